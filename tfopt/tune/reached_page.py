"""What `reach` found, as a page for the browser and as Markdown."""

from tfopt.report import html, plots, units
from tfopt.report.markdown import code, text
from tfopt.report.markup import Markup, element, table
from tfopt.tune.candidate import Candidate
from tfopt.tune.reached import MODEL, TITLES, Reached, drop_text

_HEADS = ["Candidate", "What", "Epochs", "Front", "Decides", "Test", "Drop", "Bytes", "Gzip bytes", "Latency, ms"]
_NUMBERS = 6


def markdown(found: Reached) -> str:
    """The result as Markdown."""
    grid = [
        " | ".join(text(each) for each in row)
        for row in [_HEADS, *map(lambda each: _row(found, each), found.candidates)]
    ]
    grid.insert(1, " | ".join("---" for _ in _HEADS))
    lines = [
        "# Reaching a target",
        f"Goal: {code(found.goal)}",
        text(found.summary),
        *(f"- {text(each)}" for each in found.limits),
        "\n".join(f"| {each} |" for each in grid),
        text(_explained(found)),
        *(f"- {text(each)}" for each in found.notes),
        "## The chain",
        "\n".join(f"- {code(each)}" for each in found.best.stages) or "No training: the plain int8 file.",
        f"The file: {code(MODEL)}",
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


def page(found: Reached) -> str:
    """The result as a page that loads nothing from elsewhere."""
    rows = []
    for each in found.candidates:
        first, *rest = _row(found, each)
        folder = f"candidates/{each.number:02d}/report.html"
        rows.append([element("a", first, href=folder) if each.number and not each.reason else first, *rest])
    sentences = [element("li", each) for each in (*found.limits, *found.notes)]
    return html.page(
        "Reaching a target | tfopt",
        element(
            "header",
            element("h1", "Reaching a target"),
            element("p", element("code", found.goal)),
            element("p", found.summary),
        ),
        element("section", element("h2", "What to know"), element("ul", *sentences)) if sentences else None,
        element("section", element("h2", "Pareto front"), Markup(plot_front(found))),
        element("section", element("h2", "Files tried"), table(_HEADS, rows, _explained(found), _NUMBERS)),
        element("section", element("h2", "The chain"), *(element("pre", each) for each in found.best.stages))
        if found.best.stages
        else None,
    )


def plot_front(found: Reached) -> str:
    """The metric against the compressed size and the latency; files on the front apart, limits as lines.

    Returns:
      An SVG element.
    """
    front, reference, goal = found.front, found.reference, found.goal
    scale = 100 if reference.metric == "accuracy" else 1
    whole = scale * reference.value
    limits = {"gzip_bytes": goal.max_gzip_bytes, "median_ms": goal.max_latency_ms}
    with plots.svg_figure("front", 3.3) as (figure, svg):
        for axes, cost in zip(figure.subplots(1, 2, sharey=True), limits, strict=True):
            for color, label, chosen in (
                (plots.BLUE, "dominated", [each for each in found.measured if each not in front]),
                (plots.ORANGE, "Pareto front", list(front)),
            ):
                values = [scale * (each.value or 0.0) for each in chosen]
                axes.plot([each[cost] for each in chosen], values, "o", color=color, label=label)
                for each, value in zip(chosen, values, strict=True):
                    axes.annotate(
                        str(each.number), (each[cost], value), (4, 4), textcoords="offset points", fontsize=8.5
                    )
            if goal.max_drop is not None:
                sign = -1 if reference.metric == "accuracy" else 1
                lost = scale * goal.max_drop if sign < 0 else whole * goal.max_drop
                axes.axhline(whole + sign * lost, color=plots.GREEN, linestyle=(0, (4, 3)), label="limit")
            if limits[cost] is not None:
                axes.axvline(limits[cost], color=plots.GREEN, linestyle=(0, (4, 3)))
            axes.set(xlabel=TITLES[cost])
            axes.grid()
        first = figure.axes[0]
        first.set(ylabel=f"{reference.metric}{', %' if scale > 1 else ''}")
        figure.legend(*first.get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return svg.getvalue()


def _row(found: Reached, each: Candidate) -> list[str]:
    metric = found.reference.metric
    what = f"{each.option}: failed, {each.reason}" if each.reason else each.option
    best = each == found.best
    return [
        f"{each.number}, taken" if best else str(each.number),
        what,
        str(each.epochs),
        "yes" if each in found.front else "",
        units.value(metric, each.value),
        units.value(metric, each.test_value),
        drop_text(each.test_drop),
        _with_ratio(found.reference.bytes, each.bytes),
        _with_ratio(found.reference.gzip_bytes, each.gzip_bytes),
        _with_ratio(found.reference.median_ms, each.median_ms),
    ]


def _with_ratio(before: float, value: float | None) -> str:
    shown = units.milliseconds(value) if isinstance(value, float) else units.count(value)
    return f"{shown} ({units.ratio(before, value)})" if value is not None else shown


def _explained(found: Reached) -> str:
    reference = found.reference
    split = "half of the test split" if reference.has_seen else "the validation split"
    rest = "the other half" if reference.has_seen else "the test split"
    value = units.value(reference.metric, reference.value)
    test_value = units.value(reference.metric, reference.test_value)
    return (
        f"{split.capitalize()} decides; the file taken must keep within the drop on {rest}, too. There the float model "
        f"has {reference.metric} {value} and {test_value}. Ratios are to candidate 0; latencies are medians on one "
        "thread, in turns with it."
    )
