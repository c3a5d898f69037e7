"""The tables that ship with scikit-learn."""

from typing import Any

from tfopt.config import require
from tfopt.data.dataset import Data, from_arrays

NAMES = ("breast_cancer", "iris", "wine")


def from_sklearn(name: str = "breast_cancer", **options: Any) -> Data:
    """Makes `Data` of a table for classification that ships with scikit-learn, split class by class.

    Args:
      name: "breast_cancer" (569 rows of 30 columns, 2 classes), "iris" (150 of 4, 3 classes) or "wine" (178 of 13,
        3 classes).
      **options: those of `from_arrays`, such as `test_fraction`, `seed` and `batch_size`.

    Raises:
      ValueError: another name.

    >>> data = from_sklearn("iris", test_fraction=0.2)
    >>> data.sizes, data.input_shape, data.class_names
    ({'train': 105, 'validation': 15, 'test': 30}, (4,), ('setosa', 'versicolor', 'virginica'))
    """
    from sklearn import datasets

    require(name in NAMES, f"name must be one of {', '.join(NAMES)}, received {name!r}")
    found = getattr(datasets, f"load_{name}")()
    # The classes have their own shares in a table of 150 rows only where they are drawn one by one.
    defaults = {"name": name, "class_names": tuple(map(str, found.target_names)), "stratify": True}
    return from_arrays((found.data, found.target), **{**defaults, **options})
