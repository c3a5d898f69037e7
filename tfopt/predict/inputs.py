"""From what a user calls the input, and what the model takes, to a `Source`."""

import glob
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tfopt.config import require
from tfopt.data.image import Images
from tfopt.data.policy import Policy
from tfopt.predict.arrays import open_npy
from tfopt.predict.images import open_images
from tfopt.predict.records import open_records
from tfopt.predict.source import Source
from tfopt.predict.table import open_table
from tfopt.serve.description import Description
from tfopt.tflite.examples import InputSpec

Kind = Literal["images", "tfrecord", "parquet", "npy"]
KINDS: tuple[Kind, ...] = ("images", "tfrecord", "parquet", "npy")
Input = str | pathlib.Path | Mapping[str, str | pathlib.Path]
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")


def open_input(
    given: Input,
    description: Description,
    *,
    kind: Kind | None,
    features: Mapping[str, str],
    id: str | None,
    on_bad: Policy,
    image_size: tuple[int, int] | None,
    value_range: tuple[float, float] | None,
) -> Source:
    """Finds the files, and how their rows become the model's inputs. Arguments and errors as of `predict_files`."""
    specs = input_specs(description)
    for name in features:
        require(name in [spec.name for spec in specs], f"features names {name!r}, which is no input: {_names(specs)}")
    if isinstance(given, Mapping):
        return _side_by_side(given, specs, kind)
    root, files, found = find(pathlib.Path(given).expanduser(), kind)
    images = images_of(description, specs, image_size, value_range)
    require(id is None or found == "parquet", f"id names a column of Parquet files, and {given} holds {found}")
    require(not features or found in ("parquet", "tfrecord"), f"features are for Parquet and TFRecord, not for {found}")
    if found == "images":
        if images is None or len(specs) > 1:
            taken = ", ".join(f"{spec.name!r} of shape {spec.shape}" for spec in specs)
            raise ValueError(
                f"{given} holds images, and the model takes {taken}: expected one input (height, width, 3)"
            )
        names = None if files is None else [each.relative_to(root).as_posix() for each in files]
        return open_images(root, names, specs, images, on_bad)
    assert files is not None
    if found == "tfrecord":
        return open_records(root, files, specs, features, images, on_bad)
    if found == "parquet":
        return open_table(root, files, specs, features, id, images, on_bad)
    if len(specs) > 1:
        raise ValueError(
            f"the model takes {_names(specs)}: give the files of each, a dict by name, on the command line "
            f"{' '.join(f'--input={spec.name}=PATH' for spec in specs)}"
        )
    return open_npy(root, {specs[0].name: files}, specs)


def input_specs(description: Description) -> tuple[InputSpec, ...]:
    """The model's inputs without the axis of examples.

    Raises:
      ValueError: there is none.
    """
    require(
        description.batch != 0,
        "the model's inputs and outputs have no common axis of examples, so rows cannot be predicted together",
    )
    return tuple(
        InputSpec(info.name, tuple(None if size < 0 else size for size in info.shape[1:]), info.dtype)
        for info in description.inputs
    )


def images_of(
    description: Description,
    specs: Sequence[InputSpec],
    image_size: tuple[int, int] | None,
    value_range: tuple[float, float] | None,
) -> Images | None:
    """How encoded images become the model's input: as told, else as its file tells; None: it takes no images.

    Raises:
      ValueError: the size is open, or another one than the model's.
    """
    spec, known = specs[0], description.metadata.get("preprocessing") or {}
    is_image = len(specs) == 1 and len(spec.shape) == 3 and spec.shape[2] in (1, 3, 4)
    if not is_image:
        require(image_size is None and value_range is None, f"image_size and value_range are for images, not {spec}")
        return None
    height, width = image_size or spec.shape[:2]
    if height is None or width is None:
        raise ValueError(f"the input {spec.name!r} has the open shape {spec.shape}: pass image_size=(height, width)")
    require(
        spec.shape[0] in (None, height) and spec.shape[1] in (None, width),
        f"image_size is {image_size}, and the input {spec.name!r} has the shape {spec.shape}",
    )
    # Where nobody tells: integers are pixels, floats fractions of 255, as `from_folder` makes them.
    usual = (0.0, 255.0) if spec.dtype.startswith(("int", "uint")) else (0.0, 1.0)
    low, high = value_range or known.get("value_range") or usual
    return Images((height, width), int(spec.shape[2] or 0), (float(low), float(high)))


def find(path: pathlib.Path, kind: Kind | None) -> tuple[pathlib.Path, list[pathlib.Path] | None, Kind]:
    """The root, the files in order (None: all of a folder or archive of images), and what they hold.

    Raises:
      FileNotFoundError: there is nothing at the path, or no file of a pattern.
      ValueError: the names do not tell what the files hold, or they hold several things.
    """
    require(kind in (None, *KINDS), f"kind must be one of {', '.join(KINDS)}, received {kind!r}")
    if path.is_dir() or path.suffix.lower() == ".zip":
        if path.is_file() or kind == "images":
            return path, None, "images"
        files = [each for each in sorted(path.rglob("*")) if each.is_file() and _is_visible(each.relative_to(path))]
        kinds = {_kind(each) for each in files}
        if kind is None and kinds <= {"images", None}:
            # What is no image among them is a bad row.
            return path, None, "images"
        found = _only(path, kinds, kind)
        # Where no name tells anything, the user has said what all are.
        return path, [each for each in files if kinds == {None} or _kind(each) == found], found
    names = [str(path)] if path.is_file() else sorted(glob.glob(str(path), recursive=True))
    files = [each for each in map(pathlib.Path, names) if each.is_file()]
    if not files:
        raise FileNotFoundError(f"there is no file or folder {path}")
    root = files[0].parent
    while not all(each.is_relative_to(root) for each in files):
        root = root.parent
    return root, files, kind or _only(path, {_kind(each) for each in files}, None)


def _only(path: pathlib.Path, kinds: set[Kind | None], kind: Kind | None) -> Kind:
    if kind is not None:
        require(kind in kinds or kinds == {None}, f"{path} has no files of kind {kind}")
        return kind
    found = sorted(str(each or "other files") for each in kinds)
    if len(kinds) == 1 and (one := next(iter(kinds))) is not None:
        return one
    raise ValueError(
        f"{path} holds {', '.join(found)}: give files of one kind, or say which with kind=, on the command line --kind="
    )


def _kind(path: pathlib.Path) -> Kind | None:
    name = path.name.lower()
    if ".tfrec" in name:
        return "tfrecord"
    suffix = path.suffix.lower()
    if suffix in _IMAGE_SUFFIXES:
        return "images"
    return {".parquet": "parquet", ".npy": "npy"}.get(suffix)  # type: ignore[return-value]


def _is_visible(path: pathlib.Path) -> bool:
    """As pyarrow and Spark take it: what begins with "_" or "." is about the data."""
    return not any(part.startswith((".", "_")) for part in path.parts)


def _side_by_side(given: Mapping[str, Any], specs: Sequence[InputSpec], kind: Kind | None) -> Source:
    require(kind in (None, "npy"), f"inputs by name are .npy files, received kind={kind!r}")
    require(
        set(given) == {spec.name for spec in specs},
        f"the model's inputs are {_names(specs)}, received {', '.join(given) or 'none'}",
    )
    paths = {spec.name: find(pathlib.Path(given[spec.name]).expanduser(), "npy") for spec in specs}
    root = next(iter(paths.values()))[0]
    return open_npy(root, {name: files or [] for name, (_, files, _) in paths.items()}, specs)


def _names(specs: Sequence[InputSpec]) -> str:
    return ", ".join(spec.name for spec in specs)
