"""The end of a run in the terminal: one table and where the files are."""

import pathlib
from typing import TYPE_CHECKING

from tfopt import files
from tfopt.report import scores, units
from tfopt.report.report import Report

if TYPE_CHECKING:
    import rich.console


def print_summary(
    report: Report, console: "rich.console.Console | None" = None, *, folder: files.Path | None = None
) -> None:
    """Prints the chain as a table, then the paths of the .tflite and of report.html.

    Args:
      report: the report of a run.
      console: where to print; None: the standard output.
      folder: where `report.write` wrote it; None: it was not written, so its path is not printed.
    """
    import rich.console
    import rich.table
    import rich.text

    console = console or rich.console.Console()
    if report.chain:
        table = rich.table.Table("variant", title=rich.text.Text(report.recipe), title_justify="left")
        for name in ("accuracy", "bytes", "gzip bytes", "latency, ms"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in report.chain:
            table.add_row(
                rich.text.Text(row["variant"]),
                units.percent(row.get("accuracy")),
                units.count(row.get("bytes")),
                units.count(row.get("gzip_bytes")),
                units.milliseconds(row.get("median_ms")),
            )
        console.print(table)
    else:
        console.print(rich.text.Text(f"{report.recipe}: nothing was measured."))
    for sentence in scores.sentences(report.artefacts):
        console.print(rich.text.Text(sentence), soft_wrap=True)
    for name, path in _paths(report, folder).items():
        # One line each, however long, so that it can be copied.
        console.print(rich.text.Text(f"{name}: {path}"), soft_wrap=True)


def _paths(report: Report, folder: files.Path | None) -> dict[str, pathlib.Path]:
    base = pathlib.Path(folder or ".")
    paths = {}
    for name, artefact in report.artefacts.items():
        if isinstance(artefact, dict) and artefact.get("path"):
            inside = base / artefact["path"]
            paths[name] = inside if inside.exists() else pathlib.Path(artefact["path"])
    if folder is not None:
        paths["report"] = base / "report.html"
    return {name: path.absolute() for name, path in paths.items()}
