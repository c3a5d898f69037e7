"""Images in a folder or a ZIP archive as rows."""

import dataclasses
import functools
import pathlib
import warnings
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import PIL.Image

from tfopt.config import require
from tfopt.data.dataset import Scaled
from tfopt.data.image import Images
from tfopt.data.policy import Policy
from tfopt.data.tree import Tree, open_tree
from tfopt.predict.source import InputFile, Rows, Source, stamp
from tfopt.tflite.examples import InputSpec


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSource(Source):
    """Each file below the root is a row.

    Args:
      images: how they become inputs.
      on_bad: "repair" takes images of other channels.
      archive: the ZIP archive that holds them.
    """

    kind: ClassVar[str] = "images"
    images: Images
    on_bad: Policy
    archive: pathlib.Path | None = None

    @property
    def settings(self) -> dict[str, object]:
        """Size, channels and range of values."""
        return image_settings(self.images)

    def piece(self, index: int, first: int, last: int) -> Rows:
        """The image of a file."""
        name = self.files[index].name
        try:
            content = _tree(self.archive or self.root).content(name)
        except OSError as error:
            return Rows([name], {}, {0: f"it cannot be read ({error.strerror})"})
        return decoded([name], [content], self.images, self.on_bad, self.specs[0])

    def stamp(self, name: str) -> str:
        """Of the file, or of the archive."""
        return super().stamp(name) if self.archive is None else stamp(self.archive)


# An archive stays open in each process that reads it.
@functools.lru_cache(maxsize=1)
def _tree(root: pathlib.Path) -> Tree:
    return Tree(root, (), ()) if root.is_dir() else open_tree(root)


def open_images(
    root: pathlib.Path, names: Sequence[str] | None, specs: Sequence[InputSpec], images: Images, on_bad: Policy
) -> ImageSource:
    """The images of a folder or archive, or those with these names in it.

    Raises:
      FileNotFoundError: there is neither.
      ValueError: there are no files in it, or the model takes no images.
    """
    tree = open_tree(root) if names is None else Tree(root, tuple(names), ())
    require(bool(tree.files), f"there are no files in {root}")
    of_archive = stamp(root) if tree.archive else ""
    files = tuple(InputFile(name, 1, of_archive or stamp(root / name)) for name in tree.files)
    return ImageSource(root, files, tuple(specs), images, on_bad, root if tree.archive else None)


def image_settings(images: Images | None) -> dict[str, object]:
    """What decides how images become inputs."""
    return {} if images is None else {"image_size": list(images.size), "value_range": list(images.value_range)}


def decoded(
    ids: Sequence[str], contents: Sequence[bytes | None], images: Images, on_bad: Policy, spec: InputSpec
) -> Rows:
    """Encoded images as rows, prepared as `Data` of images are."""
    with warnings.catch_warnings():
        # Pillow's own limit only warns; `Images` has one.
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
        found = [images.load(content or b"", on_bad) for content in contents]
    faults = {place: each for place, each in enumerate(found) if isinstance(each, str)}
    pixels = [each for each in found if not isinstance(each, str)]
    if not pixels:
        return Rows(ids, {}, faults)
    scaled, _ = Scaled(images.value_range)(np.stack(pixels), None)
    return Rows(ids, {spec.name: scaled.numpy()}, faults)
