"""scikit-learn's handwritten digits as a TFDS set, so that the default data take the same way as any other.

Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository;
the copy in `sklearn.datasets.load_digits`.
"""

import contextlib
import io
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

_VERSION = "1.0.0"
_TEST_EXAMPLES = 359


def prepare_digits(data_dir: str) -> None:
    """Writes the digits set into `data_dir` unless it is there.

    >>> import tempfile
    >>> prepare_digits(folder := tempfile.mkdtemp())
    >>> os.listdir(pathlib.Path(folder, "digits"))
    ['1.0.0']
    """
    if pathlib.Path(data_dir, "digits", _VERSION, "dataset_info.json").exists():
        return
    import tensorflow_datasets as tfds
    from sklearn import model_selection

    images, labels = _load()
    train, test = model_selection.train_test_split(
        np.arange(len(labels)), test_size=_TEST_EXAMPLES, random_state=0, stratify=labels
    )
    rows = {"train": train, "test": test}

    class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """1,797 handwritten digits of 8 x 8 pixels by 43 people."""

        name = "digits"
        VERSION = tfds.core.Version(_VERSION)

        def _info(self) -> Any:
            image = tfds.features.Image(shape=(8, 8, 1), encoding_format="png")
            label = tfds.features.ClassLabel(num_classes=10)
            return tfds.core.DatasetInfo(
                builder=self,
                description=self.__doc__,
                features=tfds.features.FeaturesDict({"image": image, "label": label}),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: self._generate_examples(split) for split in rows}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            for row in rows[split]:
                yield int(row), {"image": images[row], "label": int(labels[row])}

    # TFDS writes into a folder of its own and renames it at the end: a kill leaves no half set behind.
    with contextlib.redirect_stdout(io.StringIO()):
        Digits(data_dir=data_dir).download_and_prepare()


def _load() -> tuple[Any, Any]:
    from sklearn import datasets

    digits = datasets.load_digits()
    # The set counts ink from 0 to 16; images are kept in 0 to 255 like everyone else's.
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    return images, digits.target


def default_data_dir(data_dir: str | os.PathLike[str] | None) -> str:
    """`data_dir`, else TFDS_DATA_DIR, else ~/tensorflow_datasets, with ~ written out."""
    chosen = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return str(pathlib.Path(chosen).expanduser())
