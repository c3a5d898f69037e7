"""Cleaning: examples that spoil training or what is measured, found by one look at all of them."""

import array
import dataclasses
import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tfopt.config import require
from tfopt.data.dataset import SPLITS, Data, Split
from tfopt.data.digest import digest
from tfopt.data.policy import Policy, check_policy

# What is measured is kept as it is: a copy goes from what trains.
_ORDER: tuple[Split, ...] = ("test", "validation", "train")
# A median needs the values that it is of: about so many are in memory at once.
_MOST_VALUES = 10_000_000
# What int64 holds.
_MOST_LABEL = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class Cleaned:
    """What cleaning has made of data.

    Args:
      data: without what is bad.
      repaired: names of the examples that were repaired, such as "train[12]".
      warnings: what cleaning cannot mend.
    """

    data: Data
    repaired: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Seen:
    """What a look at a split shows.

    Args:
      digests: of the inputs of each example, shape (n,), 16 bytes each.
      targets: the label of each example; of other targets a hash; int64, shape (n,).
      faults: by row, the kind and the reason.
      has_labels: whether the targets are integer labels.
      repaired: rows whose inputs are not finite and can be repaired.
    """

    digests: np.ndarray
    targets: np.ndarray
    faults: dict[int, tuple[str, str]]
    has_labels: bool
    repaired: tuple[int, ...]


def clean(data: Data, on_bad: Policy = "raise", *, max_imbalance: float = 100.0, keep_nan: bool = False) -> Data:
    """Finds what spoils training, or what is measured after it, and leaves it out.

    Bad are: inputs or targets that are NaN or infinite; integer labels below 0, or beyond the class names; empty text
    as a label; and an example whose inputs are those of another, byte for byte: in its own split, or, which is leakage,
    in two. Then what is measured stays: a copy in training goes before one in validation, and that before one in test;
    within a split all but the first go, and the reason names the labels where they differ.

    Of each example a digest of 16 bytes is kept, not the example.

    Args:
      data: of any kind; looked at before augmentation and `transform`.
      on_bad: what to do: "raise"; "skip" the bad ones; or "repair" what is NaN or infinite in float inputs of shape
        (columns,), by the column's median in the training split, and skip the others. `Data.skipped` names each, as
        "train[12]", by its place in the split as given.
      max_imbalance: how many times as many examples as the smallest class the largest may have in training, at least
        1; beyond it "raise" raises, and the others warn.
      keep_nan: NaN in inputs stands for a missing value, which a later step imputes.

    Returns:
      The data without them; what was repaired is in `Data.prepared` too, for use with the trained model.

    Raises:
      ValueError: the first bad example under "raise", with the count of each kind; or a split with no good one.

    >>> from tfopt.data.dataset import from_arrays
    >>> x, y = np.arange(40.0).reshape(20, 2), np.arange(20) % 2
    >>> data = from_arrays((x, y), validation=(x[:3] + 0.5, y[:3]), test=(x[3:5], y[3:5] * 0))
    >>> cleaned = clean(data, on_bad="skip")
    >>> cleaned.sizes, cleaned.skipped["train[3]"]
    ({'train': 18, 'validation': 3, 'test': 2}, 'equal to test[0], whose label is 0 and not 1')
    """
    result = look_and_clean(data, on_bad, max_imbalance, keep_nan)
    if result.repaired:
        logging.info("%s: %s examples repaired", data.name, f"{len(result.repaired):,}")
    for warning in result.warnings:
        logging.warning("%s", warning)
    return result.data


def look_and_clean(data: Data, on_bad: Policy, max_imbalance: float, keep_nan: bool) -> Cleaned:
    """As `clean`; tells what was repaired and what it cannot mend."""
    check_policy(on_bad)
    require(max_imbalance >= 1, f"max_imbalance must be at least 1, received {max_imbalance!r}")
    seen = {split: _look(data, split, keep_nan, on_bad == "repair") for split in SPLITS}
    _find_copies(seen)
    kinds = Counter(kind for each in seen.values() for kind, _ in each.faults.values())
    splits, skipped = dict(data.splits), dict(data.skipped)
    for split, each in seen.items():
        for row, (_, reason) in sorted(each.faults.items()):
            counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
            require(
                on_bad != "raise",
                f"{split}[{row}] of {data.name!r} cannot be used: {reason}. In all there are {counts}. Mend the data, "
                'or pass on_bad="skip"',
            )
            # The data may have been cleaned before, and rows be numbered anew.
            name = f"{split}[{row}]"
            while name in skipped:
                name += " again"
            skipped[name] = reason
        if each.faults:
            bad = np.isin(np.arange(len(each.digests)), list(each.faults))
            require(not bad.all(), f"no example of the {split} split of {data.name!r} can be used: {kinds}")
            splits[split] = _without(splits[split], bad)
    warning = _imbalance(data, seen["train"], max_imbalance)
    require(on_bad != "raise" or not warning, warning)
    data = dataclasses.replace(data, splits=splits, skipped=skipped)
    repaired = tuple(f"{split}[{row}]" for split in SPLITS for row in seen[split].repaired)
    if repaired:
        fill = functools.partial(_fill, _medians(data), keep_nan)
        data = dataclasses.replace(data, read=_then(data.read, fill), prepared=(*data.prepared, fill))
    return Cleaned(data, repaired, (warning,) if warning else ())


def _look(data: Data, split: Split, keep_nan: bool, repair: bool) -> _Seen:
    examples = data.examples(split)
    has_labels, highest = _has_labels(examples), len(data.class_names) - 1 if data.class_names else _MOST_LABEL
    columns = [_is_columns(spec) for spec in tf.nest.flatten(examples.element_spec[0])]
    digests, targets = bytearray(), array.array("q")
    faults, repaired = dict[int, tuple[str, str]](), list[int]()
    for row, (x, y, *weight) in enumerate(examples.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()):
        inputs, target = tf.nest.flatten(x), tf.nest.flatten(y)
        digests += digest(inputs)
        label = int(np.ravel(y)[0]) if has_labels else int.from_bytes(digest(target)[:8], signed=True)
        targets.append(min(label, _MOST_LABEL))
        bad = [not _is_finite(each, keep_nan) for each in inputs]
        if not all(_is_finite(each) for each in (*target, *weight)):
            faults[row] = "targets not finite", "its target or weight is NaN or infinite"
        elif has_labels and not 0 <= label <= highest:
            expected = f"0 to {highest}" if data.class_names else "0 and above, as far as int64 goes"
            faults[row] = "labels out of range", f"its label is {label}, expected {expected}"
        elif any(each.dtype.kind in "OS" and not np.all(each != b"") for each in map(np.asarray, target)):
            faults[row] = "labels missing", "its label is empty"
        elif any(bad) and repair and all(is_columns for is_columns, each in zip(columns, bad, strict=True) if each):
            repaired.append(row)
        elif any(bad):
            faults[row] = "inputs not finite", "its inputs hold NaN or infinity"
    return _Seen(np.frombuffer(digests, "S16"), np.array(targets), faults, has_labels, tuple(repaired))


def _find_copies(seen: dict[Split, _Seen]) -> None:
    """Adds to the faults all but the first of equal examples, in the order of `_ORDER`."""
    good = {split: np.setdiff1d(np.arange(len(seen[split].digests)), list(seen[split].faults)) for split in _ORDER}
    rows = np.concatenate([good[split] for split in _ORDER])
    sources = np.repeat(np.arange(len(_ORDER)), [len(good[split]) for split in _ORDER])
    digests = np.concatenate([seen[split].digests[good[split]] for split in _ORDER])
    _, first, which = np.unique(digests, return_index=True, return_inverse=True)
    for place in np.flatnonzero(first[which] != np.arange(len(digests))):
        split, other = _ORDER[sources[place]], _ORDER[sources[first[which[place]]]]
        row, twin = int(rows[place]), int(rows[first[which[place]]])
        reason = f"equal to {other}[{twin}]"
        mine, its = seen[split].targets[row], seen[other].targets[twin]
        if mine != its:
            reason += f", whose label is {its} and not {mine}" if seen[split].has_labels else ", with another target"
        seen[split].faults[row] = ("copies within a split" if split == other else "copies across splits", reason)


def _imbalance(data: Data, train: _Seen, most: float) -> str:
    """What to say of the sizes of the classes; "" where they are fine."""
    if not train.has_labels:
        return ""
    counts = Counter(np.delete(train.targets, list(train.faults)).tolist())
    names = data.class_names or {label: str(label) for label in counts}
    for label, name in enumerate(data.class_names):
        if label not in counts:
            return f"the class {name!r} has no training examples in {data.name!r}: add some, or leave the class out"
    (large, many), (small, few) = counts.most_common(1)[0], counts.most_common()[-1]
    if many <= most * few:
        return ""
    return (
        f"the class {names[large]!r} has {many:,} training examples in {data.name!r}, {names[small]!r} has {few:,}: "
        f"more than {most:g} times as many. Add examples of it, weight the classes, or pass a greater max_imbalance"
    )


def _without(elements: tf.data.Dataset, bad: np.ndarray) -> tf.data.Dataset:
    is_good = tf.constant(~bad)
    kept = elements.enumerate().filter(lambda row, _: is_good[row]).map(lambda _, element: element)
    return kept.apply(tf.data.experimental.assert_cardinality(int((~bad).sum())))


def _medians(data: Data) -> list[np.ndarray | None]:
    """For each input of shape (columns,) the medians of its finite training values; None for other inputs."""
    flat = tf.nest.flatten(data.examples("train").element_spec[0])
    width = sum(spec.shape[0] for spec in flat if _is_columns(spec))
    # Evenly spaced, where there are more than fit.
    every = -(-data.sizes["train"] * width // _MOST_VALUES)
    taken = data.examples("train").shard(every, 0).map(lambda x, *rest: tf.nest.flatten(x))
    medians: list[np.ndarray | None] = []
    for place, spec in enumerate(flat):
        if not _is_columns(spec):
            medians.append(None)
            continue
        values = np.stack([each[place] for each in taken.as_numpy_iterator()])
        values[~np.isfinite(values)] = np.nan
        empty = np.isnan(values).all(0)
        require(not empty.any(), f"column {int(np.argmax(empty))} of {data.name!r} has no finite value in training")
        medians.append(np.nanmedian(values, 0))
    return medians


def _fill(medians: list[np.ndarray | None], keep_nan: bool, inputs: Any) -> Any:
    """Inputs with the medians in place of what is not finite."""

    def filled(x: tf.Tensor, median: np.ndarray | None) -> tf.Tensor:
        if median is None:
            return x
        bad = tf.math.is_inf(x) if keep_nan else ~tf.math.is_finite(x)
        return tf.where(bad, tf.cast(median, x.dtype), x)

    parts = zip(tf.nest.flatten(inputs), medians, strict=True)
    return tf.nest.pack_sequence_as(inputs, [filled(x, median) for x, median in parts])


def _then(read: Callable[..., Any] | None, change: Callable[[Any], Any]) -> Callable[..., Any]:
    """A `Data.read` that changes the inputs after another one."""

    def both(*element: Any) -> tuple[Any, ...]:
        x, *rest = element if read is None else read(*element)
        return (change(x), *rest)

    return both


def _has_labels(examples: tf.data.Dataset) -> bool:
    target = examples.element_spec[1]
    return isinstance(target, tf.TensorSpec) and target.dtype.is_integer and target.shape.num_elements() == 1


def _is_columns(spec: tf.TensorSpec) -> bool:
    return spec.dtype.is_floating and spec.shape.rank == 1 and spec.shape[0] is not None


def _is_finite(values: Any, keep_nan: bool = False) -> bool:
    values = np.asarray(values)
    if not np.issubdtype(values.dtype, np.inexact):
        return True
    return not np.isinf(values).any() if keep_nan else bool(np.isfinite(values).all())
