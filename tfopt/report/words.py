"""What the measurements say, in plain sentences: pure functions of the chain's rows and the entries."""

import ast
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tfopt.report import units

if TYPE_CHECKING:
    from tfopt.report.report import StageEntry

Row = Mapping[str, Any]

# Below these a change is not worth the name: timer and scheduler noise, and gzip headers.
LATENCY_TOLERANCE = 0.05
SIZE_TOLERANCE = 0.01
SPARSITY_TOLERANCE = 0.005


def summary(chain: Sequence[Row]) -> str:
    """From the first variant to the last, in one sentence.

    Args:
      chain: the report's rows in order.

    >>> summary([])
    'Nothing was measured.'
    >>> print(
    ...     summary([
    ...         {"variant": "float32", "accuracy": 0.98, "bytes": 4000},
    ...         {"variant": "int8", "accuracy": 0.97, "bytes": 1000},
    ...     ])
    ... )
    From float32 to int8: accuracy 98.00 % to 97.00 % (-1.00 points), 4,000 to 1,000 bytes (x0.25), \
latency was not measured.
    """
    if not chain:
        return "Nothing was measured."
    first, last = chain[0], chain[-1]
    if len(chain) == 1:
        return f"One variant was measured, {first['variant']}: {_figures(first)}. Nothing to compare it with."
    spans = ", ".join([_accuracy(first, last), _size_span(first, last), _latency_span(first, last)])
    return f"From {first['variant']} to {last['variant']}: {spans}."


def steps(chain: Sequence[Row]) -> list[str]:
    """What each variant brought over the one before it; a step that brought nothing is told so.

    Args:
      chain: the report's rows in order.
    """
    return [step(before, after) for before, after in itertools.pairwise(chain)]


def step(before: Row, after: Row) -> str:
    """What one variant brought over another: sparsity, size, accuracy, latency.

    >>> print(
    ...     step(
    ...         {"variant": "Train", "bytes": 48912, "gzip_bytes": 44100, "median_ms": 0.05, "p90_ms": 0.052},
    ...         {
    ...             "variant": "Prune",
    ...             "bytes": 48912,
    ...             "gzip_bytes": 13900,
    ...             "median_ms": 0.051,
    ...             "p90_ms": 0.053,
    ...             "sparsity": 0.8,
    ...         },
    ...     )
    ... )
    Prune: 80 % of the weights are zero; the file did not get smaller (48,912 bytes), gzipped it shrank \
from 44,100 to 13,900 bytes (x0.32). Accuracy was not measured. Latency is unchanged (0.0510 ms, x1.02): \
no speed-up, LiteRT on this CPU does not skip zero weights.
    """
    zeros = _became_sparse(before, after)
    opening = f"{units.share(after['sparsity'])} of the weights are zero; " if zeros else ""
    sentences = [opening + _size(before, after), _accuracy(before, after), _latency(before, after, zeros)]
    first, *others = sentences
    return f"{after['variant']}: {first}. " + " ".join(f"{each[0].upper()}{each[1:]}." for each in others)


def latency_change(before: Row, after: Row) -> str:
    """ "faster", "slower" or "unchanged"; "" where one was not measured.

    A change counts only if it is more than 5 % and more than the larger of the two distances from
    median to 90th percentile: a smaller one is noise.

    Args:
      before: a row with "median_ms" and, where known, "p90_ms".
      after: the same of the later variant.

    >>> latency_change({"median_ms": 1.0, "p90_ms": 1.1}, {"median_ms": 0.5, "p90_ms": 0.6})
    'faster'
    >>> latency_change({"median_ms": 1.0, "p90_ms": 1.7}, {"median_ms": 0.5, "p90_ms": 0.6})
    'unchanged'
    """
    old, new = before.get("median_ms"), after.get("median_ms")
    if old is None or new is None:
        return ""
    if abs(new - old) <= max(LATENCY_TOLERANCE * old, _spread(before), _spread(after)):
        return "unchanged"
    return "faster" if new < old else "slower"


def promises(stages: Iterable["StageEntry"]) -> str:
    """How many of the invariants checked hold, and which do not.

    >>> promises([])
    'No invariant was checked.'
    """
    rows = [(stage.name, row) for stage in stages for row in stage.invariants]
    if not rows:
        return "No invariant was checked."
    broken = [f"{row['invariant']} after {name}" for name, row in rows if not row["holds"]]
    if broken:
        return f"{len(broken)} of {len(rows)} invariant checks failed: {'; '.join(broken)}."
    return "The one invariant check holds." if len(rows) == 1 else f"All {len(rows)} invariant checks hold."


def latency_conditions(artefacts: Mapping[str, Any]) -> str:
    """Runtime, threads and CPU of the latencies; empty where no artefact tells them.

    >>> latency_conditions({"tflite": {"latency": {"runtime": "LiteRT 2.3", "threads": 1, "cpu": "Xeon"}}})
    'LiteRT 2.3, 1 thread, Xeon'
    """
    for artefact in artefacts.values():
        latency = artefact.get("latency") if isinstance(artefact, dict) else None
        if isinstance(latency, dict):
            threads = latency.get("threads")
            counted = threads and f"{threads} thread{'' if threads == 1 else 's'}"
            return ", ".join(str(each) for each in (latency.get("runtime"), counted, latency.get("cpu")) if each)
    return ""


def training(history: Mapping[str, Sequence[float | None]]) -> str:
    """The epochs of one stage, with the first and last value of each metric; empty without a history.

    >>> training({"loss": [1.5, 0.25], "val_accuracy": [0.5, 0.97]})
    '2 epochs: loss 1.5 to 0.25, val_accuracy 50.00 % to 97.00 %'
    """
    curves = {name: values for name, values in history.items() if values}
    if not curves:
        return ""
    epochs = max(len(values) for values in curves.values())
    spans = [
        f"{name} {units.value(name, values[0])} to {units.value(name, values[-1])}" for name, values in curves.items()
    ]
    return f"{epochs} epoch{'' if epochs == 1 else 's'}: {', '.join(spans)}"


def target_sparsity(expression: str) -> float | None:
    """The sparsity that a stage was asked for, read from its repr; None where it names none.

    >>> target_sparsity("Prune(schedule=PolynomialDecay(final_sparsity=0.8, end_step=10))")
    0.8
    """
    try:
        tree = ast.parse(expression, mode="eval")
    except (SyntaxError, ValueError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in ("final_sparsity", "target_sparsity"):
            target = getattr(node.value, "value", None)
            if isinstance(target, float):
                return target
    return None


def _spread(row: Row) -> float:
    """The distance from the median to the 90th percentile, in ms: the noise of a measurement."""
    p90 = row.get("p90_ms")
    return 0.0 if p90 is None else max(0.0, p90 - row["median_ms"])


def _became_sparse(before: Row, after: Row) -> bool:
    old, new = before.get("sparsity") or 0.0, after.get("sparsity") or 0.0
    return new - old > SPARSITY_TOLERANCE


def _accuracy(before: Row, after: Row) -> str:
    old, new = before.get("accuracy"), after.get("accuracy")
    if old is None or new is None:
        return "accuracy was not measured" if new is None else f"accuracy is {units.percent(new)}"
    if units.percent(old) == units.percent(new):
        return f"accuracy is unchanged ({units.percent(new)})"
    return f"accuracy {units.percent(old)} to {units.percent(new)} ({units.points(old, new)})"


def _size(before: Row, after: Row) -> str:
    raw = _shrinkage(before.get("bytes"), after.get("bytes"))
    packed = _shrinkage(before.get("gzip_bytes"), after.get("gzip_bytes"))
    if not raw and not packed:
        return "size was not measured"
    return ", ".join(text for text in (raw and f"the file {raw}", packed and f"gzipped it {packed}") if text)


def _shrinkage(old: float | None, new: float | None) -> str:
    if old is None or new is None:
        return ""
    if abs(new - old) <= SIZE_TOLERANCE * old:
        return f"did not get smaller ({units.count(new)} bytes)"
    verb = "shrank" if new < old else "grew"
    return f"{verb} from {units.count(old)} to {units.count(new)} bytes ({units.ratio(old, new)})"


def _size_span(first: Row, last: Row) -> str:
    old, new = first.get("bytes"), last.get("bytes")
    if old is None or new is None:
        return "size was not measured"
    packed = units.ratio(first.get("gzip_bytes"), last.get("gzip_bytes"))
    inside = units.ratio(old, new) + (f", gzipped {packed}" if packed else "")
    return f"{units.count(old)} to {units.count(new)} bytes ({inside})"


def _latency(before: Row, after: Row, zeros: bool) -> str:
    change = latency_change(before, after)
    if not change:
        return "latency was not measured"
    old, new = before["median_ms"], after["median_ms"]
    if change != "unchanged":
        verdict = "faster" if change == "faster" else "no speed-up but slower"
        return f"latency {_span(old, new)}: {verdict}"
    why = _why_unchanged(before, after, zeros)
    return f"latency is unchanged ({units.milliseconds(new)} ms, {units.ratio(old, new)}): no speed-up, {why}"


def _why_unchanged(before: Row, after: Row, zeros: bool) -> str:
    spread = max(_spread(before), _spread(after))
    if spread > LATENCY_TOLERANCE * before["median_ms"]:
        return f"the difference is within the noise of {units.milliseconds(spread)} ms (median to p90)"
    if zeros:
        return "LiteRT on this CPU does not skip zero weights"
    return f"the difference is within {units.share(LATENCY_TOLERANCE)}"


def _latency_span(first: Row, last: Row) -> str:
    change = latency_change(first, last)
    if not change:
        return "latency was not measured"
    return f"latency {_span(first['median_ms'], last['median_ms'])}" + (
        ", unchanged within the noise" if change == "unchanged" else f", {change}"
    )


def _span(old: float, new: float) -> str:
    return f"{units.milliseconds(old)} to {units.milliseconds(new)} ms ({units.ratio(old, new)})"


def _figures(row: Row) -> str:
    """One row's own numbers."""
    accuracy, size, packed, median = (row.get(key) for key in ("accuracy", "bytes", "gzip_bytes", "median_ms"))
    parts = [
        "accuracy not measured" if accuracy is None else f"accuracy {units.percent(accuracy)}",
        "size not measured" if size is None else f"{units.count(size)} bytes",
        "" if packed is None else f"{units.count(packed)} bytes gzipped",
        "latency not measured" if median is None else f"latency {units.milliseconds(median)} ms",
    ]
    return ", ".join(part for part in parts if part)
