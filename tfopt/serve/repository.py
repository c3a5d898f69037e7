"""Which models and versions there are, loaded and replaced while requests go on."""

import asyncio
import dataclasses
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator

from tfopt.config import require
from tfopt.serve.description import Description
from tfopt.serve.model import SAVED_MODEL
from tfopt.serve.pool import Pool
from tfopt.serve.replica import ReplicaLost
from tfopt.serve.settings import Settings, is_name

logger = logging.getLogger("tfopt.serve")
SUFFIXES = (".tflite", ".keras", ".h5")

Key = tuple[str, int]
Fingerprint = tuple[tuple[str, int, int, int], ...]


class UnknownModel(LookupError):
    """There is no such model or version."""


@dataclasses.dataclass(eq=False)
class Version:
    """One version of a model.

    Args:
      name: of the model.
      number: of the version.
      found: what its files look like.
      pool: its workers; None: not loaded.
      state: as TensorFlow Serving names it.
      error: why it was not loaded.
    """

    name: str
    number: int
    found: Fingerprint
    pool: Pool | None = None
    state: str = "LOADING"
    error: str = ""

    @property
    def description(self) -> Description:
        """What the model takes and gives."""
        assert self.pool is not None
        return self.pool.description


class Repository:
    """The models below one path; nothing outside of it is read.

    Workers load a copy, which nobody changes: a file that is written anew, or a folder that is removed, disturbs none
    of them, and one that dies comes back with the same model.

    Args:
      settings: the path and how to serve it.
      make_pool: makes the workers of a copy of the named version.
    """

    def __init__(self, settings: Settings, make_pool: Callable[[str, Key], Pool]) -> None:
        self.settings, self._make_pool = settings, make_pool
        self._root = pathlib.Path(settings.path).absolute()
        self._versions: dict[Key, Version] = {}
        self._seen: dict[Key, Fingerprint] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._poller: asyncio.Task[None] | None = None
        self.is_started = False

    async def start(self) -> None:
        """Loads what there is, and goes on looking for what is new.

        Raises:
          ValueError: a single model cannot be loaded.
        """
        self._copies = pathlib.Path(tempfile.mkdtemp(prefix="tfopt-serve-"))
        try:
            await self._refresh(at_start=True)
            single = scan(self._root, self.settings.name)[1]
            for version in self._versions.values():
                require(not (single and version.error), f"{self.settings.path} cannot be served: {version.error}")
        except BaseException:
            await self.close()
            raise
        if not self._versions:
            logger.warning("%s holds no models yet", self.settings.path)
        self.is_started = True
        self._poller = asyncio.create_task(self._poll())

    async def close(self) -> None:
        """Ends all workers, after what they are asked is answered."""
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)
        for version in self._versions.values():
            self._retire(version.pool)
        await asyncio.gather(*self._retiring)
        shutil.rmtree(self._copies, ignore_errors=True)

    def names(self) -> list[str]:
        """The models that there are."""
        return sorted({name for name, _ in self._versions})

    def versions(self, name: str) -> list[Version]:
        """The versions of a model, the newest first.

        Raises:
          UnknownModel: there is no such model.
        """
        found = sorted((each for each in self._versions.values() if each.name == name), key=lambda each: -each.number)
        if not found:
            raise UnknownModel(f"there is no model {name!r}; there are: {', '.join(self.names()) or 'none'}")
        return found

    def find(self, name: str, number: int | None = None) -> Version:
        """A version that answers requests; the newest one where no number is given.

        Raises:
          UnknownModel: there is no such model or version, or it is not loaded; says why.
        """
        versions = self.versions(name)
        for version in versions:
            if version.pool is not None and number in (None, version.number):
                return version
        for version in versions:
            if number in (None, version.number):
                raise UnknownModel(f"version {version.number} of {name!r} is not loaded: {version.error or 'wait'}")
        numbers = ", ".join(str(each.number) for each in versions)
        raise UnknownModel(f"there is no version {number} of {name!r}; there are: {numbers}")

    def loaded(self) -> list[Version]:
        """All versions that answer requests."""
        return [each for each in self._versions.values() if each.pool is not None]

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self.settings.poll_seconds)
            try:
                await self._refresh()
            # A disk that does not answer for a while: what is loaded goes on.
            except OSError as error:
                logger.warning("cannot look for new models in %s: %s", self.settings.path, error)

    async def _refresh(self, at_start: bool = False) -> None:
        found, single = await asyncio.to_thread(scan, self._root, self.settings.name)
        for key, path in found.items():
            try:
                files = await asyncio.to_thread(fingerprint, path, self._root.resolve())
            except (OSError, ValueError) as error:
                self._fail(Version(*key, ()), error)
                continue
            known = self._versions.get(key)
            is_still = at_start or self._seen.get(key) == files
            self._seen[key] = files
            # What is being written changes from one look to the next.
            if (known is None or known.found != files) and is_still:
                await self._load(Version(*key, files), path)
        if single and not found:
            return
        for key in [key for key in self._versions if key not in found]:
            version = self._versions.pop(key)
            self._seen.pop(key, None)
            logger.info("version %d of %s is gone", version.number, version.name)
            self._retire(version.pool)

    async def _load(self, version: Version, path: pathlib.Path) -> None:
        key = (version.name, version.number)
        self._versions.setdefault(key, version)
        copies = pathlib.Path(tempfile.mkdtemp(dir=self._copies))
        try:
            copy = await asyncio.to_thread(_copy, path, copies)
            pool = self._make_pool(str(copy), key)
            await pool.start()
        except (OSError, ValueError, ReplicaLost) as error:
            shutil.rmtree(copies, ignore_errors=True)
            self._fail(version, error)
            return
        old = self._versions[key].pool
        version.pool, version.state = pool, "AVAILABLE"
        self._versions[key] = version
        logger.info("version %d of %s is loaded", version.number, version.name)
        self._retire(old)

    def _fail(self, version: Version, error: Exception) -> None:
        """What was loaded before goes on; the files are looked at again when they change."""
        text = str(error).replace(str(self._copies), "").strip()
        known = self._versions.setdefault((version.name, version.number), version)
        if known.error != text:
            logger.warning("version %d of %s cannot be loaded: %s", version.number, version.name, text)
        known.found, known.error = version.found, text
        if known.pool is None:
            known.state = "END"

    def _retire(self, pool: Pool | None) -> None:
        if pool is not None:
            task = asyncio.create_task(self._end(pool))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def _end(self, pool: Pool) -> None:
        await pool.drain(self.settings.limits.answer_seconds)
        await pool.close()
        shutil.rmtree(pathlib.Path(pool.path).parent, ignore_errors=True)


def scan(root: pathlib.Path, name: str) -> tuple[dict[Key, pathlib.Path], bool]:
    """The models below a path, by name and version, and whether it is a single one.

    >>> root = pathlib.Path(tempfile.mkdtemp())
    >>> for path in ("digits/1/m.tflite", "digits/12/m.tflite", "words.tflite"):
    ...     (root / path).parent.mkdir(parents=True, exist_ok=True)
    ...     (root / path).touch()
    >>> sorted(scan(root, "model")[0])
    [('digits', 1), ('digits', 12), ('words', 1)]
    >>> scan(root / "words.tflite", "model")[0].keys()
    dict_keys([('model', 1)])
    """
    if root.is_file() or (root / SAVED_MODEL).is_file() or not root.exists():
        return ({(name, 1): root} if root.exists() else {}), True
    versions = _versions_in(root)
    if versions:
        return {(name, number): path for number, path in versions.items()}, False
    found: dict[Key, pathlib.Path] = {}
    for path in sorted(root.iterdir()):
        if path.is_file() and path.suffix in SUFFIXES and is_name(path.stem):
            found[path.stem, 1] = path
        elif path.is_dir() and is_name(path.name):
            if (path / SAVED_MODEL).is_file():
                found[path.name, 1] = path
            found |= {(path.name, number): each for number, each in _versions_in(path).items()}
    return found, False


def _versions_in(folder: pathlib.Path) -> dict[int, pathlib.Path]:
    names = [each for each in folder.iterdir() if each.is_dir() and each.name.isdecimal() and each.name.isascii()]
    # As many digits as an int64 surely holds.
    return {int(each.name): each for each in sorted(names) if len(each.name) <= 18}


def fingerprint(path: pathlib.Path, root: pathlib.Path) -> Fingerprint:
    """Name, size, time and inode of each file of a model.

    Raises:
      ValueError: one of them is a link that leads out of `root`, or to a folder.
    """
    found = []
    for each in _files(path):
        # Path.resolve raises what is no OSError where a link leads to itself.
        target = pathlib.Path(os.path.realpath(each))
        require(target.is_relative_to(root), f"{each.name} is a link that leads out of the folder of models")
        require(each.is_file(), f"{each.name} is a link to a folder or to itself, or no file at all")
        status = each.stat()
        found.append((str(each), status.st_size, status.st_mtime_ns, status.st_ino))
    return tuple(found)


def _files(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Files of a model; links to folders are among them, and not followed."""
    if path.is_file():
        yield path
        return
    for folder, folders, files in os.walk(path):
        for each in sorted(files + [each for each in folders if os.path.islink(os.path.join(folder, each))]):
            yield pathlib.Path(folder, each)


def _copy(path: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Copies a model; returns the file or folder to load."""
    if path.is_dir() and not (path / SAVED_MODEL).is_file():
        models = [each for each in sorted(path.iterdir()) if each.suffix in SUFFIXES and each.is_file()]
        require(
            len(models) == 1,
            f"the version {path.parent.name}/{path.name} must hold one {', '.join(SUFFIXES)} file or a SavedModel, "
            f"found {', '.join(each.name for each in models) or 'none'}",
        )
        path = models[0]
    target = folder / (path.name or "model")
    return pathlib.Path(shutil.copytree(path, target) if path.is_dir() else shutil.copyfile(path, target))
