"""The report as one HTML page that needs nothing else: no script, no network."""

import importlib.resources
import pathlib
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfopt.report import plots, scores, units, words
from tfopt.report.confusion import confusion_matrix
from tfopt.report.markup import Markup, element, join, table
from tfopt.report.report import Report, StageEntry

# The policy lets a browser load nothing at all, whatever a name in the report may contain.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
# Lists longer than this are folded.
_LONG = 12


def render(report: Report) -> str:
    """The whole page.

    Args:
      report: the report; relative paths of artefacts become links, so they are relative to the page.
    """
    sections = [
        _header(report),
        _section("What each step brought", _sentences(report), chain_table(report)),
        _section("Plots", _plots(report)),
        *(
            _section(f"Metrics ({name})", *_scores(number, each))
            for number, (name, each) in enumerate(scores.measured(report.artefacts).items())
        ),
        _section("Stages", *(_stage(number, stage) for number, stage in enumerate(report.stages, 1))),
        *(_section(f"The file ({name})", _artefact(each)) for name, each in report.artefacts.items()),
        _section("Environment", _pairs(report.environment)),
    ]
    return page(f"{report.recipe} | tfopt report", *sections)


def page(title: str, *sections: Markup | None) -> str:
    """A whole page in the style of the reports, which loads nothing from elsewhere.

    Args:
      title: of the browser's window.
      sections: elements, one below the other; None is left out.
    """
    style = importlib.resources.files("tfopt.report").joinpath("style.css").read_text(encoding="utf-8")
    return _PAGE.format(title=join(title), style=style, body="\n".join(each for each in sections if each))


def fragment(report: Report) -> str:
    """The summary and the chain's table, for a notebook cell."""
    summary = element("p", element("b", report.recipe), ": ", words.summary(report.chain))
    return element("div", summary, chain_table(report))


def chain_table(report: Report) -> Markup | None:
    """One row for each variant, with its ratios to the first; None where nothing was measured."""
    if not report.chain:
        return None
    first = report.chain[0]
    rows = []
    for row in report.chain:
        later = row is not first
        rows.append(
            [
                row["variant"],
                _with_note(
                    units.percent(row.get("accuracy")),
                    units.points(first.get("accuracy"), row.get("accuracy")) if later else "",
                ),
                *(
                    _with_note(write(row.get(key)), units.ratio(first.get(key), row.get(key)) if later else "")
                    for key, write in _COLUMNS.items()
                ),
                units.share(row.get("sparsity")),
            ]
        )
    heads = ["Variant", "Accuracy", "Bytes", "Gzip bytes", "Zstd bytes", "Latency, ms", "p90, ms", "Zeros"]
    return table(heads, rows, caption=_conditions(report), numbers=7)


_COLUMNS: dict[str, Callable[[float | None], str]] = {
    "bytes": units.count,
    "gzip_bytes": units.count,
    "zstd_bytes": units.count,
    "median_ms": units.milliseconds,
    "p90_ms": units.milliseconds,
}


def _conditions(report: Report) -> str:
    """How the table's latencies were measured, and what its small figures and dashes mean."""
    where = words.latency_conditions(report.artefacts)
    sentences = [f"Latency: median and 90th percentile{f' ({where})' if where else ''}."]
    if len(report.chain) > 1:
        sentences.append(f"Small figures are against {report.chain[0]['variant']}.")
    if any(row.get(key) is None for row in report.chain for key in ("accuracy", *_COLUMNS, "sparsity")):
        sentences.append(f"{units.NOT_MEASURED} was not measured.")
    return " ".join(sentences)


def _with_note(text: str, note: str) -> Markup:
    return join(text, element("small", note) if note else None)


def _section(title: str, *content: Any) -> Markup | None:
    content = tuple(each for each in content if each)
    return element("section", element("h2", title), *content) if content else None


def _header(report: Report) -> Markup:
    seconds = sum(stage.seconds or 0.0 for stage in report.stages)
    names = ", ".join(stage.name for stage in report.stages)
    under = f"{names}: {units.seconds(seconds)}" if names else "No stage ran."
    return element("header", element("h1", report.recipe), element("p", under), _headline(report.chain))


def _headline(chain: Sequence[Mapping[str, Any]]) -> Markup | None:
    """The last variant's figures in large, with what they were at first."""
    if not chain:
        return None
    first, last = chain[0], chain[-1]
    tiles: list[tuple[str, Callable[[Any], str], str]]
    tiles = [("Accuracy", units.percent, "accuracy"), ("Bytes", units.count, "bytes")]
    tiles += [("Bytes gzipped", units.count, "gzip_bytes"), ("Latency, ms", units.milliseconds, "median_ms")]
    return element("dl", *(_tile(first, last, *tile) for tile in tiles), class_="headline")


def _tile(
    first: Mapping[str, Any], last: Mapping[str, Any], title: str, write: Callable[[Any], str], key: str
) -> Markup:
    old, new = first.get(key), last.get(key)
    note = None
    if new is None:
        note = "not measured"
    elif first is not last and old is not None:
        change = units.points(old, new) if key == "accuracy" else units.ratio(old, new)
        note = f"{change} from {write(old)}"
        if key == "median_ms" and words.latency_change(first, last) == "unchanged":
            note += ", within the noise"
    return element("div", element("dt", title), element("dd", write(new), element("small", note) if note else None))


def _sentences(report: Report) -> Markup:
    sentences = [words.summary(report.chain), *words.steps(report.chain)]
    broken = any(not row["holds"] for stage in report.stages for row in stage.invariants)
    promises = element("li", words.promises(report.stages), class_="broken" if broken else None)
    return element("ul", *(element("li", each) for each in sentences), promises, class_="summary")


def _plots(report: Report) -> Markup | None:
    missing = [row["variant"] for row in report.chain if row.get("accuracy") is None]
    left_out = f"Left out, without an accuracy: {', '.join(missing)}." if missing else None
    size, latency = plots.accuracy_by_size(report.chain), plots.accuracy_by_latency(report.chain)
    figures = [
        _figure("Accuracy and size", size, left_out),
        _figure("Accuracy and latency", latency, left_out),
        _figure("Training", plots.training_curves([(stage.name, stage.history) for stage in report.stages])),
    ]
    sparse = [stage for stage in report.stages if stage.sparsity]
    if sparse:
        targets = [words.target_sparsity(stage.repr) for stage in report.stages]
        target = next((each for each in reversed(targets) if each is not None), None)
        bars = plots.sparsity_by_layer(sparse[-1].sparsity, target)
        figures.append(_figure("Zeros by layer", bars, f"After {sparse[-1].name}."))
    for stage in report.stages:
        if stage.sensitivity:
            title = f"Sensitivity: {stage.sensitivity['metric']} by {stage.sensitivity['kind']} of one layer"
            figures.append(_figure(title, plots.sensitivity_by_layer(stage.sensitivity)))
    drawn = [each for each in figures if each]
    return element("div", *drawn, class_="plots") if drawn else None


def _figure(title: str, svg: str, note: str | None = None) -> Markup | None:
    if not svg:
        return None
    caption = element("figcaption", title, element("small", note) if note else None)
    box = element("div", Markup(svg), class_="tall", tabindex=0, role="img", aria_label=title)
    return element("figure", caption, box)


def _stage(number: int, stage: StageEntry) -> Markup:
    heading = element(
        "header", element("h3", f"{number}. {stage.name}"), element("small", units.seconds(stage.seconds))
    )
    epochs = words.training(stage.history)
    return element(
        "article",
        heading,
        element("pre", element("code", stage.repr)),
        _metrics(stage.metrics),
        element("p", f"{epochs}.") if epochs else None,
        element("ul", *(element("li", each) for each in stage.notes)) if stage.notes else None,
        _titled("Invariants", element("ul", *map(_check, stage.invariants), class_="checks"), stage.invariants),
        _names("Changed", stage.changed),
        _skipped(stage.skipped),
        _zeros(stage.sparsity),
    )


def _metrics(metrics: Mapping[str, Mapping[str, Any] | None]) -> Markup | None:
    before, after = metrics.get("before") or {}, metrics.get("after") or {}
    names = list(dict.fromkeys([*before, *after]))
    rows = [[name, units.value(name, before.get(name)), units.value(name, after.get(name))] for name in names]
    return table(["Metric", "Before", "After"], rows, numbers=2) if rows else None


def _check(row: Mapping[str, Any]) -> Markup:
    mark, verdict = ("\u2713", "holds") if row["holds"] else ("\u2717", "broken")
    detail = f" ({row['detail']})" if row.get("detail") else ""
    return element("li", element("span", f"{mark} {verdict}", class_=verdict), f" {row['invariant']}{detail}")


def _names(title: str, names: Sequence[str]) -> Markup | None:
    return _titled(
        f"{title} ({len(names)})",
        element("ul", *(element("li", each) for each in names), class_="names"),
        names,
    )


def _skipped(rows: Sequence[Mapping[str, str]]) -> Markup | None:
    cells = [[row["layer"], row["reason"]] for row in rows]
    return _titled(f"Skipped ({len(rows)})", table(["Layer", "Reason"], cells), rows)


def _zeros(sparsity: Mapping[str, float | None]) -> Markup | None:
    cells = [[name, units.share(each)] for name, each in sparsity.items()]
    return _titled(f"Zeros by kernel ({len(cells)})", table(["Kernel", "Zeros"], cells, numbers=1), cells)


def _titled(title: str, content: Markup, items: Sequence[Any]) -> Markup | None:
    """The content below its title, folded where it is long; nothing where there are no items."""
    if not items:
        return None
    if len(items) > _LONG:
        return element("details", element("summary", title), content)
    return join(element("h4", title), content)


def _scores(artefact: int, metrics: Mapping[str, Any]) -> list[Markup | None]:
    """The metrics with intervals, then for each model or file its classes and which it takes for which."""
    heads, rows = scores.rows(metrics)
    said = [element("li", each) for each in scores.remarks(metrics)]
    figures, tables = [], []
    for number, (key, found) in enumerate(metrics.items()):
        subject, names = scores.SUBJECTS.get(key, key), [row["name"] for row in found["classes"]]
        svg = confusion_matrix(found["confusion"], names, f"confusion-{artefact}-{number}")
        figures.append(_figure(f"Confusion matrix: {subject}", svg, "Rows: the true class; columns: the decided one."))
        shown, left_out = scores.worst(found)
        by_class = table(scores.CLASS_HEADS, scores.class_rows(shown), left_out or None, numbers=4)
        tables.append(_titled(f"By class: {subject} ({len(shown)} of {len(names)})", by_class, shown))
    drawn = [each for each in figures if each]
    return [
        table(heads, rows, caption=scores.conditions(metrics)),
        element("ul", *said) if said else None,
        element("div", *drawn, class_="plots") if drawn else None,
        *tables,
    ]


def _artefact(artefact: Any) -> Markup:
    """Single values first, then a list for each group such as ops, parity and latency."""
    values = {**artefact} if isinstance(artefact, dict) else {"value": artefact}
    # They have a section of their own.
    values.pop("metrics", None)
    groups = {name: each for name, each in values.items() if isinstance(each, dict)}
    single = {name: each for name, each in values.items() if name not in groups}
    return element(
        "article",
        _pairs(single),
        *(join(element("h4", _label(name)), _pairs(each)) for name, each in groups.items() if each),
    )


def _pairs(values: Mapping[str, Any]) -> Markup | None:
    flat = {key: each for key, each in values.items() if not isinstance(each, dict)}
    for name, each in values.items():
        if isinstance(each, dict):
            flat.update({key if name == "versions" else f"{name} {key}": inner for key, inner in each.items()})
    pairs = [element("div", element("dt", _label(key)), element("dd", _shown(key, each))) for key, each in flat.items()]
    return element("dl", *pairs, class_="pairs") if pairs else None


def _shown(name: str, measured: Any) -> Any:
    if name != "path" or not isinstance(measured, str) or pathlib.PurePath(measured).is_absolute():
        return units.value(name, measured)
    # The leading ./ keeps a name with a colon from being read as a scheme.
    return element("a", measured, href=f"./{urllib.parse.quote(measured)}")


def _label(name: str) -> str:
    return name if name.isupper() else name.replace("_", " ")
