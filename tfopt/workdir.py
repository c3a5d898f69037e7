"""What a chain keeps on disk: one folder a finished stage, written whole, checked when read back."""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import pathlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras

from tfopt import invariants
from tfopt.files import atomic_path, remove, sha256, write_text
from tfopt.graph import deep_graphs
from tfopt.report import Report

if TYPE_CHECKING:
    from tfopt.stage import Work
    from tfopt.workers.peers import Peers

MODEL_FILE = "model.keras"
_STAGE_FILE = "stage.json"
_RUN_FILE = "run.json"


def write_stage(folder: pathlib.Path, work: "Work", *, save_model: bool) -> None:
    """Writes the state after a stage into its folder, with the checksum of every file there."""
    if save_model and work.model is not None:
        save_checked(work.model, folder / MODEL_FILE)
    state = {
        "report": work.report.to_dict(),
        "invariants": [promise.to_dict() for promise in work.invariants],
        "variables": _paths(work.model),
        "trained": work.trained,
        "files": {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()},
    }
    write_text(folder / _STAGE_FILE, json.dumps(state, indent=1))


def read_stage(folder: pathlib.Path, work: "Work") -> "Work":
    """The work after a finished stage, from its folder; data and seed are those of `work`.

    Raises:
      ValueError: a file is missing, cut short or altered; names it.
    """
    state = _read_state(folder)
    model, snapshots = work.model, work.snapshots
    if MODEL_FILE in state["files"]:
        path = folder / MODEL_FILE
        model, snapshots = load_saved(path), (*snapshots, (folder.name, path))
    promises = tuple(invariants.from_dict(each) for each in state["invariants"])
    return work.replace(
        model=model,
        invariants=_follow(promises, state["variables"], model),
        report=Report.from_dict(state["report"]),
        trained=state["trained"],
        snapshots=snapshots,
    )


def _read_state(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / _STAGE_FILE
    advice = f"delete the folder {folder} and those numbered after it; the run then continues from there"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        files = state["files"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is missing or damaged ({error}): {advice}") from error
    for name, expected in files.items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing: {advice}")
        if sha256(folder / name) != expected:
            raise ValueError(f"{folder / name} is damaged or was changed after it was written: {advice}")
    return state


@deep_graphs()
def load_saved(path: pathlib.Path, compile: bool = True) -> keras.Model:
    """Loads a model that `save_checked` wrote: compiled as it was, with a new optimizer, or not compiled."""
    with warnings.catch_warnings():
        # A model that was handed in compiled but never trained has an optimizer without state in its file.
        warnings.filterwarnings("ignore", "Skipping variable loading for optimizer")
        return keras.saving.load_model(path, compile=compile)


def save_checked(model: keras.Model, path: pathlib.Path) -> None:
    """Saves a model and makes sure that it can be read back.

    Raises:
      ValueError: it cannot, with the reason.
    """
    model.save(path)
    try:
        load_saved(path)
    except (TypeError, ValueError, NotImplementedError, AttributeError) as error:
        raise ValueError(
            f"the model {model.name!r} cannot be read back from its own file, so a run could not resume: register "
            "its custom classes with @keras.saving.register_keras_serializable and give them get_config; replace "
            f"Lambda layers by layers. Keras said: {error}"
        ) from error


def adopt(work: "Work") -> "Work":
    """Writes the model that the user handed over to the workdir and goes on with a copy read from there."""
    if work.model is None or work.snapshots or work.finished:
        return work
    model = work.need_model()
    assert work.workdir is not None
    folder = work.workdir / "00-input"
    if not (folder / MODEL_FILE).exists():
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            save_checked(model, temporary / MODEL_FILE)
    path = folder / MODEL_FILE
    return work.replace(model=load_saved(path), snapshots=((folder.name, path),))


def with_fresh_model(work: "Work") -> "Work":
    """The work with the model read anew from its file."""
    if not work.snapshots:
        return work
    model = load_saved(work.snapshots[-1][1])
    return work.replace(model=model, invariants=_follow(work.invariants, _paths(work.model), model))


def _paths(model: keras.Model | None) -> list[str]:
    return [variable.path for variable in model.variables] if model is not None else []


def _follow(
    promises: Sequence[invariants.Invariant], old_paths: Sequence[str], model: keras.Model | None
) -> tuple[invariants.Invariant, ...]:
    """The promises for a model that was read anew: layers of subclassed models get new names each time."""
    new_paths = _paths(model)
    if len(old_paths) != len(new_paths):
        raise ValueError(
            f"the model has {len(new_paths)} variables after it was read back and had {len(old_paths)} before: build "
            "all of its layers in __init__ or build()"
        )
    renamed = dict(zip(old_paths, new_paths, strict=True))
    return tuple(promise.follow(renamed) for promise in promises)


def identity(recipe: str, stages: Sequence[Any], work: "Work") -> dict[str, Any]:
    """What a workdir belongs to: the recipe, its settings, its inputs, the versions that compute."""
    packages = ("tfopt", "tensorflow", "keras")
    return {
        "recipe": recipe,
        "seed": work.seed,
        "stages": [repr(stage) for stage in stages],
        "model": _model_fingerprint(work.model) if work.model is not None else None,
        "data": work.data.fingerprint() if work.data is not None else None,
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }


def claim(workdir: pathlib.Path, mine: Mapping[str, Any]) -> None:
    """Marks a workdir as belonging to a run; refuses one that belongs to another.

    Raises:
      ValueError: names what differs.
    """
    path = workdir / _RUN_FILE
    if not path.exists():
        strangers = sorted(each.name for each in workdir.iterdir() if each.name[:1] != "." and each.name[:2] != "00")
        if any(name[:2].isdigit() for name in strangers):
            raise ValueError(f"{workdir} has stage folders ({', '.join(strangers)}) but no {_RUN_FILE}: use another")
        write_text(path, json.dumps(mine, indent=1))
        return
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): use another workdir, or delete {workdir}") from error
    differences = _differences(theirs, json.loads(json.dumps(mine)))
    if differences:
        raise ValueError(
            f"the workdir {workdir} belongs to another run: {'; '.join(differences)}. Use another workdir, or delete "
            "this one to start anew"
        )


def require_alike(peers: "Peers", mine: Mapping[str, Any]) -> None:
    """Refuses processes that would train together on different things.

    Raises:
      ValueError: names what differs, and in which.
    """
    texts = peers.texts(json.dumps(mine))
    for index, text in enumerate(texts):
        differences = _differences(json.loads(texts[0]), json.loads(text))
        if differences:
            raise ValueError(
                f"worker {index} runs something else than worker 0: {'; '.join(differences)}. Start all workers with "
                "the same command, data and versions"
            )


def _differences(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> list[str]:
    found = []
    for key, new in mine.items():
        old = theirs.get(key)
        if old == new:
            continue
        if key == "stages" and isinstance(old, list):
            for index in range(max(len(old), len(new))):
                before, now = (each[index] if index < len(each) else "nothing" for each in (old, new))
                if before != now:
                    found.append(f"stage {index + 1} was {before}, now {now}")
        else:
            found.append(f"{key} was {old}, now {new}")
    return found


def _model_fingerprint(model: keras.Model) -> str:
    digest = hashlib.sha256()
    for variable in model.weights:
        digest.update(f"{variable.path} {variable.shape} {variable.dtype}".encode())
        digest.update(keras.ops.convert_to_numpy(variable).tobytes())
    return f"{type(model).__name__} {model.name} {digest.hexdigest()[:16]}"


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps a second process out of a workdir; clears what a killed one left half-written.

    Raises:
      OSError: the workdir cannot be made or written.
      RuntimeError: another process is at work in it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = open(workdir / ".lock", "a")  # noqa: SIM115 - closed, and so unlocked, below
    except OSError as error:
        raise type(error)(
            error.errno, f"cannot write to the workdir {workdir} ({error.strerror}): choose another one"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(
                f"another process is at work in {workdir}: wait for it, or choose another workdir"
            ) from error
        for leftover in workdir.rglob(".*.tmp*"):
            remove(leftover)
        yield
