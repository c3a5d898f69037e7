"""The report as Markdown (GitHub's dialect): the page's content without the plots."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tfopt.report import scores, units, words
from tfopt.report.report import Report, StageEntry


def render(report: Report) -> str:
    """The whole document.

    Args:
      report: the report.
    """
    blocks = [
        f"# {text(report.recipe)}",
        text(words.summary(report.chain)),
        "\n".join(f"- {text(each)}" for each in [*words.steps(report.chain), words.promises(report.stages)]),
        _chain(report.chain),
    ]
    if report.chain:
        where = words.latency_conditions(report.artefacts)
        blocks.append(f"Latency: median and 90th percentile{f' ({text(where)})' if where else ''}.")
    for name, metrics in scores.measured(report.artefacts).items():
        blocks += _scores(name, metrics)
    for number, stage in enumerate(report.stages, 1):
        blocks += _stage(number, stage)
    for name, artefact in report.artefacts.items():
        blocks += [
            f"## The file ({text(name)})",
            _pairs(_without_metrics(artefact) if isinstance(artefact, dict) else {name: artefact}),
        ]
    blocks += ["## Environment", _pairs(report.environment)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def text(value: Any) -> str:
    r"""A value as one line of Markdown that shows its characters as they are.

    >>> print(text("a|b <i> *c*"))
    a\|b \<i\> \*c\*
    """
    line = " ".join(str(value).split())
    line = re.sub(r"([\\`*\[\]<>|&~$#]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", line)
    # A number or sign that would start a list or a rule.
    return re.sub(r"^(\d+)([.)])|^([-+=])", lambda found: f"{found[1] or ''}\\{found[2] or found[3]}", line)


def code(value: Any) -> str:
    """A name in a code span, whatever backticks it holds.

    >>> print(code("dense_1/kernel"), code("a`b"))
    `dense_1/kernel` `` a`b ``
    """
    line = " ".join(str(value).split()).replace("|", "\\|")
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    return f"{ticks}{line}{ticks}" if len(ticks) == 1 else f"{ticks} {line} {ticks}"


def _chain(chain: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            text(row["variant"]),
            units.percent(row.get("accuracy")),
            units.count(row.get("bytes")),
            units.count(row.get("gzip_bytes")),
            units.count(row.get("zstd_bytes")),
            units.ratio(chain[0].get("bytes"), row.get("bytes")),
            units.milliseconds(row.get("median_ms")),
            units.milliseconds(row.get("p90_ms")),
            units.ratio(chain[0].get("median_ms"), row.get("median_ms")),
            units.share(row.get("sparsity")),
        ]
        for row in chain
    ]
    heads = [
        "Variant",
        "Accuracy",
        "Bytes",
        "Gzip bytes",
        "Zstd bytes",
        "Ratio",
        "Latency, ms",
        "p90, ms",
        "Ratio",
        "Zeros",
    ]
    return _table(heads, rows)


def _stage(number: int, stage: StageEntry) -> list[str]:
    before, after = stage.metrics.get("before") or {}, stage.metrics.get("after") or {}
    names = dict.fromkeys([*before, *after])
    metrics = [[text(name), units.value(name, before.get(name)), units.value(name, after.get(name))] for name in names]
    epochs = words.training(stage.history)
    return [
        f"## {number}. {text(stage.name)} ({units.seconds(stage.seconds)})",
        _fenced(stage.repr),
        _table(["Metric", "Before", "After"], metrics),
        text(f"{epochs}.") if epochs else "",
        "\n".join(f"- {text(note)}" for note in stage.notes),
        "\n".join(_check(row) for row in stage.invariants),
        f"Changed ({len(stage.changed)}): {', '.join(map(code, stage.changed))}" if stage.changed else "",
        _table(["Skipped", "Reason"], [[code(row["layer"]), text(row["reason"])] for row in stage.skipped]),
        _table(["Kernel", "Zeros"], [[code(name), units.share(each)] for name, each in stage.sparsity.items()]),
    ]


def _scores(artefact: str, metrics: Mapping[str, Any]) -> list[str]:
    heads, rows = scores.rows(metrics)
    blocks = [
        f"## Metrics ({text(artefact)})",
        _table([text(head) for head in heads], [[text(title), *map(_figure, figures)] for title, *figures in rows]),
        text(scores.conditions(metrics)),
        "\n".join(f"- {text(each)}" for each in scores.remarks(metrics)),
    ]
    for key, found in metrics.items():
        shown, left_out = scores.worst(found)
        if shown:
            cells = [[text(name), *figures] for name, *figures in scores.class_rows(shown)]
            blocks += [f"### By class: {text(scores.SUBJECTS.get(key, key))}", _table(scores.CLASS_HEADS, cells)]
            blocks.append(text(left_out))
    return blocks


def _figure(cell: str) -> str:
    """A number as it is; words, which may hold the name of a class, with their characters escaped."""
    return cell if cell[:1].isdigit() or cell[:1] == "-" else text(cell)


def _check(row: Mapping[str, Any]) -> str:
    detail = f" ({text(row['detail'])})" if row.get("detail") else ""
    return f"- **{'holds' if row['holds'] else 'broken'}** {code(row['invariant'])}{detail}"


def _without_metrics(artefact: Mapping[str, Any]) -> dict[str, Any]:
    """They have a section of their own."""
    return {name: each for name, each in artefact.items() if name != "metrics"}


def _fenced(source: str) -> str:
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", source)), default=0))
    return f"{fence}python\n{source}\n{fence}"


def _pairs(values: Mapping[str, Any]) -> str:
    return _table(["", ""], [[text(name), text(units.value(name, each))] for name, each in values.items()])


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if not lines:
        return ""
    return "\n".join([f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads), *lines])
