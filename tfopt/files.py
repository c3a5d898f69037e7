"""Writing files so that a crash leaves the old one or the new one, never half of one."""

import contextlib
import errno
import hashlib
import os
import pathlib
import shutil
from collections.abc import Iterator

Path = str | os.PathLike[str]


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[pathlib.Path]:
    """Gives a temporary path beside `path`; moves it into place when the block ends well.

    The temporary file or folder is removed when the block raises. It has the suffix of `path`.

    Raises:
      OSError: with a message that names the place and what is free there, when the disk is full.

    >>> import tempfile, pathlib
    >>> target = pathlib.Path(tempfile.mkdtemp(), "a.txt")
    >>> with atomic_path(target) as temporary:
    ...     _ = temporary.write_text("whole")
    >>> target.read_text()
    'whole'
    """
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp{target.suffix}")
    remove(temporary)
    try:
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            _sync(path)
        if temporary.is_dir():
            remove(target)
        os.replace(temporary, target)
        _sync(target.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(target.parent).free
            raise OSError(
                error.errno,
                f"the disk is full: cannot write {target} ({free:,} bytes are free there). "
                "Free some space or choose another folder, then start again: finished stages are kept",
            ) from error
        raise
    finally:
        remove(temporary)


def _sync(path: pathlib.Path) -> None:
    """Flushes a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Removes a file or a folder with all in it; does nothing where there is none."""
    path = pathlib.Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> pathlib.Path:
    """Writes a text file atomically; returns its path."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return pathlib.Path(path)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
