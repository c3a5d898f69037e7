"""The rows of `engines` as a table, as remarks and as a report."""

import dataclasses
import pathlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import rich.console
import rich.table

from recipes.benchmarks.engines import ENGINES, PEERS, TECHNIQUES, Row, key_of
from tfopt.files import write_text
from tfopt.report import Report, StageEntry, describe_environment

COLUMNS_EXPLAINED = (
    "accuracy: of the .tflite file on the test split. parity: share of test examples on which file and model decide "
    "alike. zeros, values: share of zeros, and most different values of one kernel, in the file, depthwise kernels "
    "left out. step, memory: of a training step, over the float model in the same Keras"
)
_COLUMNS = (
    "accuracy",
    "parity",
    "zeros",
    "values",
    "bytes",
    "gzip",
    "latency, ms",
    "step / float",
    "memory / float",
)


_MEANS = ("accuracy", "parity", "sparsity", "unique_values", "bytes", "gzip_bytes")


def merged(rows: Sequence[Row]) -> list[Row]:
    """One row for each model, technique and engine: means over the seeds, with the least and the largest accuracy."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["technique"], row["engine"]), []).append(row)
    order, engines = ["after training", *TECHNIQUES], [*PEERS, *ENGINES]
    names = list(dict.fromkeys(row["model"] for row in rows))
    keys = sorted(groups, key=lambda key: (names.index(key[0]), order.index(key[1]), engines.index(key[2])))
    return [dict(zip(("model", "technique", "engine"), key, strict=True)) | _mean(groups[key]) for key in keys]


def _mean(group: Sequence[Row]) -> Row:
    """What the rows of all seeds say together."""
    ran = [row for row in group if row["ran"]]

    def of(name: str, mean: Any) -> Any:
        values = [row[name] for row in ran if row.get(name) is not None]
        return mean(values) if values else None

    return {
        "seeds": len(ran),
        "error": next((row["error"] for row in group if not row["ran"]), ""),
        "promises": next((row["promises"] for row in ran if row["promises"]), ""),
        **{name: of(name, statistics.mean) for name in _MEANS},
        **{name: of(name, statistics.median) for name in ("median_ms", "step", "memory")},
        "range": of("accuracy", lambda values: (min(values), max(values))),
    }


def cells(row: Mapping[str, Any]) -> list[str]:
    """The columns of a merged row as text."""
    if not row["seeds"]:
        return ["did not run", *[""] * (len(_COLUMNS) - 1)]
    spread = row["range"]
    accuracy = "" if row["accuracy"] is None else f"{row['accuracy']:.4f}"
    if spread and row["seeds"] > 1:
        accuracy += f" ({spread[0]:.4f} to {spread[1]:.4f})"

    def text(name: str, form: str) -> str:
        return "" if row[name] is None else format(row[name], form)

    return [
        accuracy,
        text("parity", ".4f"),
        text("sparsity", ".1%"),
        text("unique_values", ".0f"),
        text("bytes", ",.0f"),
        text("gzip_bytes", ",.0f"),
        text("median_ms", ".3g"),
        text("step", ".2f"),
        text("memory", ".2f"),
    ]


def rich_table(rows: Sequence[Row], title: str) -> rich.table.Table:
    """The table for a terminal."""
    table = rich.table.Table("model", "technique", "engine", *_COLUMNS, title=title)
    last = None
    for row in merged(rows):
        if last is not None and last != (row["model"], row["technique"]):
            table.add_section()
        last = (row["model"], row["technique"])
        table.add_row(row["model"], row["technique"], row["engine"], *cells(row))
    return table


def remarks(rows: Sequence[Row]) -> list[str]:
    """What the table has no room for: errors, promises that a file has lost, and where TFMOT is ahead."""
    found, table = [], merged(rows)
    for row in table:
        where = f"{row['model']}, {row['technique']}, {row['engine']}"
        if row["error"]:
            found.append(f"{where}: {row['error']}")
        if row["promises"]:
            found.append(f"{where}: {row['promises']}")
    pairs = {(row["model"], row["technique"], row["engine"]): row for row in table if row["seeds"]}
    for (model, technique, engine), ours in pairs.items():
        theirs = pairs.get((model, technique, "TFMOT"))
        if engine == "tfopt" and theirs is not None:
            found += [f"{model}, {technique}: {each}" for each in _behind(technique, ours, theirs)]
    return found


def _behind(technique: str, ours: Row, theirs: Row) -> Iterator[str]:
    """In what TFMOT is ahead; figures that a technique does not aim at are left out."""
    zeros, values = "Prune" in TECHNIQUES[technique], technique in ("CQAT", "PCQAT")
    aims = [
        ("accuracy", "accuracy", 1),
        ("parity", "parity", 1),
        *([("sparsity", "zeros", 1)] if zeros else []),
        *([("unique_values", "different values", -1)] if values else []),
        ("bytes", "bytes", -1),
        ("gzip_bytes", "bytes after gzip", -1),
        ("median_ms", "latency", -1),
        ("step", "step time", -1),
        ("memory", "memory", -1),
    ]
    for name, what, better in aims:
        mine, other = ours[name], theirs[name]
        if mine is not None and other is not None and better * (other - mine) > 0:
            yield f"TFMOT is ahead in {what}, {other:.5g} for {mine:.5g}"


def markdown(rows: Sequence[Row], title: str, notes: Sequence[str]) -> str:
    """The table and the remarks as Markdown."""
    head = ["model", "technique", "engine", *_COLUMNS]
    lines = [f"# {title}", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join([row['model'], row['technique'], row['engine'], *cells(row)])} |" for row in merged(rows)]
    lines += ["", *[f"- {each}" for each in [*notes, *remarks(rows)]]]
    return "\n".join(lines) + "\n"


def report_of(rows: Sequence[Row], name: str) -> Report:
    """The rows as a report: a stage for each, a variant for each file."""
    report = Report(name, describe_environment())
    several = len({key_of(row)[:2] for row in rows}) > 1
    chain = []
    for row in rows:
        label = f"{row['technique']}, {row['engine']}"
        if several:
            label = f"{row['model']}, seed {row['seed']}, {label}"
        told = [] if row["ran"] else [f"did not run: {row['error']}"]
        if row.get("parity") is not None:
            told.append(f"the file decides as the model does on {row['parity']:.2%} of the test examples")
        if row["ran"]:
            told += [row["promises"]] * bool(row["promises"])
            chain.append(
                {"variant": label}
                | {key: row.get(key) for key in ("accuracy", "bytes", "gzip_bytes", "sparsity", "median_ms", "p90_ms")}
            )
        report = report.add(StageEntry(label, " ".join(row["stages"]), row["seconds"], notes=told))
    return dataclasses.replace(report, chain=tuple(chain))


def publish(rows: Sequence[Row], folder: pathlib.Path, name: str, notes: Sequence[str]) -> None:
    """Prints the table and the remarks, and writes report.html, .json and .md, and the table as table.md."""
    notes = [*notes, COLUMNS_EXPLAINED]
    console = rich.console.Console()
    if not console.is_terminal:
        # A log has no width; 80 columns would leave nothing of the figures.
        console = rich.console.Console(width=180)
    console.print(rich_table(rows, name))
    for each in [*notes, *remarks(rows)]:
        console.print(f"- {each}", highlight=False)
    report_of(rows, name).write(folder)
    write_text(folder / "table.md", markdown(rows, name, notes))
    console.print(f"report: {folder / 'report.html'}, table: {folder / 'table.md'}")
