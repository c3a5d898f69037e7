"""Image classification sets of TensorFlow Datasets, by name."""

import itertools
import os
import pathlib
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

import tensorflow as tf

from tfopt.config import did_you_mean, require
from tfopt.data.dataset import Data, Scaled, hold_out
from tfopt.data.digits import default_data_dir, prepare_digits


def from_tfds(
    name: str = "digits",
    data_dir: str | os.PathLike[str] | None = None,
    *,
    batch_size: int = 64,
    validation_fraction: float = 0.1,
    value_range: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
    download: bool = False,
) -> Data:
    """Loads a TFDS image classification set as `Data`.

    "digits", scikit-learn's handwritten digits (1,797 images of 8 x 8), ships with tfopt's dependencies: it
    is written to `data_dir` as a TFDS set at its first use. Pixels are cached as uint8 and scaled batch by
    batch.

    Args:
      name: as in `tfds.load`, with config and version where wanted: "mnist", "cifar10:3.0.2".
      data_dir: folder of the prepared sets; None: TFDS_DATA_DIR, or ~/tensorflow_datasets.
      batch_size: examples a training step.
      validation_fraction: share of the training split to hold out, in (0, 1), where the set has no
        "validation" split; a set without a "test" split gives as much again.
      value_range: what pixel values 0 and 255 become.
      seed: fixes the held-out examples and the order of every epoch.
      download: fetch the set where it is not on disk. Off by default: without a network TFDS would retry for
        minutes.

    Raises:
      FileNotFoundError: the set is not on disk and `download` is off.
      ConnectionError: its host is out of reach.
      ValueError: an unknown name, or a set that is no image classification.

    >>> import tempfile
    >>> data = from_tfds("digits", tempfile.mkdtemp())
    >>> data.sizes, data.input_shape, len(data.class_names)
    ({'train': 1294, 'validation': 144, 'test': 359}, (8, 8, 1), 10)
    """
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    folder = default_data_dir(data_dir)
    if name == "digits":
        prepare_digits(folder)
    builder = _builder(tfds, name, folder, download)
    info = builder.info
    image, label = _supervised(tfds, name, info)
    parts = {
        split: _examples(builder, split, image, label)
        for split in ("train", "validation", "test")
        if split in info.splits
    }
    require("train" in parts, f"{name!r} has no train split, it has {', '.join(info.splits)}")
    missing = {split: validation_fraction for split in ("validation", "test") if split not in parts}
    if missing:
        parts |= hold_out(parts["train"], missing, seed)
    return Data(
        {split: part.cache() for split, part in parts.items()},
        name=name,
        class_names=tuple(info.features[label].names),
        batch_size=batch_size,
        seed=seed,
        transform=Scaled(value_range),
    )


def _builder(tfds: Any, name: str, base: str, download: bool) -> Any:
    # A prepared set is read from its folder: the catalogue, slow to import and to ask, is not needed.
    plain, _, version = name.partition(":")
    found = [path.parent for path in pathlib.Path(base, plain).glob(f"**/{version or '*'}/dataset_info.json")]
    # What a killed preparation left behind has no version for a name.
    found = [folder for folder in found if tfds.core.Version.is_valid(folder.name)]
    configs = sorted({str(folder.parent.relative_to(base)) for folder in found})
    require(len(configs) <= 1, f"the dataset {name!r} is there in several configs: choose {' or '.join(configs)}")
    if found:
        return tfds.builder_from_directory(str(max(found, key=lambda folder: tfds.core.Version(folder.name))))
    # The list of community sets is fetched from the network.
    known = set(tfds.list_builders(with_community_datasets=False))
    here = sorted(path.name for path in pathlib.Path(base).glob("*") if any(path.glob("**/dataset_info.json")))
    catalogue_name = plain.partition("/")[0]
    if catalogue_name not in known:
        hint = did_you_mean(catalogue_name, sorted(known | set(here) | {"digits"}))
        raise ValueError(f"unknown dataset {name!r}; {hint} (on disk in {base}: {', '.join(here) or 'none'})")
    if download:
        builder = tfds.builder(name, data_dir=base)
        _check_reachable(name, builder)
        builder.download_and_prepare()
        return builder
    raise FileNotFoundError(
        f"the dataset {name!r} is not prepared in {base} (there: {', '.join(here) or 'nothing'}): pass "
        f"data_dir= where it is, or download=True on a machine with a network"
    )


def _check_reachable(name: str, builder: Any) -> None:
    """Raises a ConnectionError at once where the set's host is out of reach; TFDS would retry for minutes."""
    for url in itertools.islice(builder.url_infos, 1):
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=4).close()
        except urllib.error.HTTPError:
            pass  # an answer all the same
        except OSError as error:
            host = urllib.parse.urlsplit(url).netloc
            raise ConnectionError(
                f"cannot download the dataset {name!r}: {host} is out of reach ({error}); prepare it on a "
                "machine with a network and pass data_dir="
            ) from error


def _supervised(tfds: Any, name: str, info: Any) -> tuple[str, str]:
    """The names of the image and label features; an error for any other kind of set."""
    images = [key for key, each in info.features.items() if isinstance(each, tfds.features.Image)]
    labels = [key for key, each in info.features.items() if isinstance(each, tfds.features.ClassLabel)]
    if info.supervised_keys and len(info.supervised_keys) == 2:
        images = [key for key in images if key in info.supervised_keys]
        labels = [key for key in labels if key in info.supervised_keys]
    require(
        len(images) == 1 and len(labels) == 1,
        f"{name!r} is no image classification set: expected one Image and one ClassLabel feature, "
        f"it has {', '.join(f'{key} ({type(each).__name__})' for key, each in info.features.items())}",
    )
    shape = info.features[images[0]].shape
    require(
        None not in shape,
        f"the images of {name!r} differ in size (shape {shape}): resize them first; sets of one size only",
    )
    return images[0], labels[0]


def _examples(builder: Any, split: str, image: str, label: str) -> tf.data.Dataset:
    dataset = builder.as_dataset(split=split, shuffle_files=False)
    count = builder.info.splits[split].num_examples
    pairs = dataset.map(
        lambda example: (example[image], example[label]),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    return pairs.apply(tf.data.experimental.assert_cardinality(count))
