"""The report's plots as inline SVG: the same input gives the same bytes, in light and dark pages."""

import contextlib
import io
import itertools
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tfopt.report import labels, units

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers too. The page may replace each through
# its CSS variable, and neutral parts take the colour of the text around the plot.
INK = "#5c6470"
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
_IN_PAGE = {
    INK: "currentColor",
    BLUE: f"var(--blue, {BLUE})",
    ORANGE: f"var(--orange, {ORANGE})",
    GREEN: f"var(--green, {GREEN})",
}
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.2,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "figure.constrained_layout.use": True,
}


def accuracy_by_size(chain: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy against the file's size, raw and gzipped, in the chain's order.

    Args:
      chain: the report's rows.

    Returns:
      An SVG element; an empty string where no row has both.
    """
    series = [("file", "bytes", BLUE, "o"), ("gzipped", "gzip_bytes", ORANGE, "s")]
    unit, scale = _unit(max((row.get("bytes") or 0 for row in chain), default=0))
    return _accuracy_plot(chain, series, "size", unit, scale)


def accuracy_by_latency(chain: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy against median latency, with a line to the 90th percentile, in the chain's order.

    Args:
      chain: the report's rows.

    Returns:
      An SVG element; an empty string where no row has both.
    """
    series = [("median, line to p90", "median_ms", BLUE, "o")]
    return _accuracy_plot(chain, series, "latency", "ms", 1.0)


def sparsity_by_layer(sparsity: Mapping[str, float | None], target: float | None = None) -> str:
    """One bar for each kernel, in the model's order, and a line at the target.

    Args:
      sparsity: "layer/kernel" to its fraction of zeros, in [0, 1].
      target: the fraction asked for; None: no line.

    Returns:
      An SVG element; an empty string where there is nothing to draw.
    """
    if not sparsity:
        return ""
    names = [labels.shortened(name, 38) for name in sparsity]
    places = range(len(names))
    with svg_figure("sparsity", 0.9 + 0.22 * len(names)) as (figure, svg):
        axes = figure.subplots()
        axes.barh(places, [100 * (value or 0.0) for value in sparsity.values()], height=0.66, color=BLUE)
        for place, value in zip(places, sparsity.values(), strict=True):
            axes.text(102, place, units.share(value), va="center", fontsize=8.5)
        if target is not None:
            label = f"target {units.share(target)}"
            axes.axvline(100 * target, color=ORANGE, linestyle=(0, (4, 3)), label=label)
            figure.legend(loc="outside upper right")
        axes.set(xlim=(0, 112), ylim=(len(names) - 0.4, -0.6), xticks=range(0, 101, 20), xlabel="zeros, %")
        axes.set_yticks(places, names)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
    return svg.getvalue()


def sensitivity_by_layer(found: Mapping[str, Any]) -> str:
    """The metric at each level of each layer, as a grid of figures, in the model's order.

    Args:
      found: "kind", "metric", "baseline" and "values": by layer, the metric by level.

    Returns:
      An SVG element; an empty string where there is nothing to draw.
    """
    values = found["values"]
    if not values:
        return ""
    levels = sorted({level for row in values.values() for level in row}, key=float, reverse=found["kind"] == "bits")
    is_accuracy = found["metric"] == "accuracy"
    scale = 100.0 if is_accuracy else 1.0
    with svg_figure("sensitivity", 1.1 + 0.24 * len(values)) as (figure, svg):
        axes = figure.subplots()
        for row, (_, metrics) in enumerate(values.items()):
            for column, level in enumerate(levels):
                metric = metrics.get(level)
                if metric is None:
                    continue
                worse = (found["baseline"] - metric) * (1 if is_accuracy else -1)
                # The deeper the colour, the more it costs: full at ten points, or at the loss doubled.
                full = 0.1 if is_accuracy else abs(found["baseline"]) or 1.0
                depth = min(max(worse / full, 0.0), 1.0)
                axes.barh(row, 0.96, left=column + 0.02, height=0.9, color=ORANGE, alpha=0.08 + 0.62 * depth)
                axes.text(
                    column + 0.5,
                    row,
                    f"{scale * metric:.1f}" if is_accuracy else f"{metric:.3f}",
                    ha="center",
                    va="center",
                    fontsize=8.5,
                )
        axes.set(xlim=(0, len(levels)), ylim=(len(values) - 0.5, -0.5))
        axes.set_xticks(
            [column + 0.5 for column in range(len(levels))], [_level(found["kind"], each) for each in levels]
        )
        axes.set_yticks(range(len(values)), [labels.shortened(name, 38) for name in values])
        axes.tick_params(length=0)
        axes.set_xlabel(
            f"{found['kind']}; the whole model has {scale * found['baseline']:.4g}{' %' if is_accuracy else ''}"
        )
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
    return svg.getvalue()


def _level(kind: str, level: Any) -> str:
    return f"{float(level):g} bits" if kind == "bits" else units.share(float(level))


def training_curves(histories: Sequence[tuple[str, Mapping[str, Sequence[float | None]]]]) -> str:
    """Loss and accuracy per epoch through all training stages, their boundaries marked.

    Args:
      histories: (stage name, metric name to one number an epoch) in order.

    Returns:
      An SVG element; an empty string where no stage has a loss or an accuracy.
    """
    stages = [(name, {key: values for key, values in each.items() if values}) for name, each in histories]
    stages = [(name, curves) for name, curves in stages if curves]
    keys = list(dict.fromkeys(key for _, curves in stages for key in curves))
    groups = {
        "loss": [key for key in keys if key.removeprefix("val_") == "loss"],
        "accuracy, %": [key for key in keys if "acc" in key],
    }
    groups = {title: members for title, members in groups.items() if members}
    if not groups:
        return ""
    with svg_figure("training", 0.5 + 1.9 * len(groups)) as (figure, svg):
        panels = figure.subplots(len(groups), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (title, members) in zip(panels, groups.items(), strict=True):
            _curves(axes, stages, members, 100.0 if "%" in title else 1.0)
            axes.set_ylabel(title)
        _name_stages(panels[0], stages)
        panels[-1].set_xlabel("epoch")
        panels[-1].xaxis.get_major_locator().set_params(integer=True)
    return svg.getvalue()


def _accuracy_plot(
    chain: Sequence[Mapping[str, Any]],
    series: Sequence[tuple[str, str, str, str]],
    quantity: str,
    unit: str,
    scale: float,
) -> str:
    """Accuracy in percent over one quantity, or over several in the same unit."""
    measured = {
        key: [row for row in chain if row.get(key) is not None and row.get("accuracy") is not None]
        for _, key, _, _ in series
    }
    if not any(measured.values()):
        return ""
    with svg_figure(quantity, 3.3) as (figure, svg):
        axes = figure.subplots()
        points, names, colours = [], [], []
        for label, key, colour, marker in series:
            rows = measured[key]
            if not rows:
                continue
            x, y = [row[key] * scale for row in rows], [100 * row["accuracy"] for row in rows]
            axes.plot(x, y, marker, color=colour, label=label, markersize=7, zorder=3)
            _arrows(axes, x, y, colour)
            if key == "median_ms":
                ends = [max(row["median_ms"], row.get("p90_ms") or 0.0) for row in rows]
                axes.hlines(y, x, ends, color=colour, alpha=0.5, linewidth=3)
            points += list(zip(x, y, strict=True))
            names += [labels.shortened(row["variant"], 30) for row in rows]
            colours += [colour] * len(rows)
        _set_limits(axes, points)
        axes.set(xlabel=f"{quantity}, {unit}", ylabel="accuracy, %")
        axes.grid()
        figure.legend(loc="outside upper right", ncols=len(series))
        labels.place(figure, axes, points, names, colours)
    return svg.getvalue()


def _unit(largest: float) -> tuple[str, float]:
    """The decimal unit in which a number of bytes has few digits, and its factor."""
    if largest < 1000:
        return "bytes", 1.0
    return ("kB", 1e-3) if largest < 1_000_000 else ("MB", 1e-6)


def _arrows(axes: "Axes", x: Sequence[float], y: Sequence[float], colour: str) -> None:
    style = {"arrowstyle": "-|>", "color": colour, "alpha": 0.6, "shrinkA": 5, "shrinkB": 5, "linewidth": 1.2}
    places = list(zip(x, y, strict=True))
    for start, end in itertools.pairwise(places):
        axes.annotate("", end, start, arrowprops=style)


def _set_limits(axes: "Axes", points: Sequence[tuple[float, float]]) -> None:
    """Sizes and times from zero, so that lengths compare; at least one point of accuracy in view."""
    largest = max(x for x, _ in points)
    accuracies = [y for _, y in points]
    middle = (max(accuracies) + min(accuracies)) / 2
    reach = max(0.5, 0.75 * (max(accuracies) - min(accuracies)))
    axes.set_xlim(0, 1.15 * largest if largest > 0 else 1)
    axes.set_ylim(middle - reach, middle + reach)


def _curves(
    axes: "Axes",
    stages: Sequence[tuple[str, Mapping[str, Sequence[float | None]]]],
    keys: list[str],
    scale: float,
) -> None:
    for key in keys:
        colour = ORANGE if key.startswith("val_") else BLUE
        label, start = key, 0
        for _, curves in stages:
            values = [math.nan if value is None else scale * value for value in curves.get(key, ())]
            epochs = [start + 1 + index for index in range(len(values))]
            axes.plot(epochs, values, color=colour, label=label, marker="o", markersize=3)
            label = "_" + key if values else label
            start += _epochs(curves)
    axes.grid(axis="y")
    axes.legend(loc="best", fontsize=8.5)


def _name_stages(top: "Axes", stages: Sequence[tuple[str, Mapping[str, Sequence[float | None]]]]) -> None:
    """The name of each stage above its first epoch, and a line before it in every panel."""
    start = 0
    for name, curves in stages:
        for axes in top.figure.axes if start else ():
            axes.axvline(start + 0.5, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
        above = (start + 0.5, 1.03)
        top.annotate(labels.shortened(name, 24), above, xycoords=("data", "axes fraction"), fontsize=8.5)
        start += _epochs(curves)
    top.set_xlim(0.5, start + 0.5)


def _epochs(curves: Mapping[str, Sequence[float | None]]) -> int:
    return max(len(values) for values in curves.values())


@contextlib.contextmanager
def svg_figure(name: str, height: float) -> Iterator[tuple["Figure", io.StringIO]]:
    """An empty figure to draw on; at the end the SVG element is in the buffer.

    Args:
      name: sets the plot's ids apart from those of the page's other plots.
      height: in inches, at a width of 5.4.
    """
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    settings: dict[Any, Any] = {**_STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # The browser draws the text in its own font; what Matplotlib's lacks does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(5.4, height))
        figure.patch.set_alpha(0)
        yield figure, buffer
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        document = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(document, format="svg", metadata=nothing)
    buffer.write(_inline(document.getvalue(), name))


def _inline(document: str, name: str) -> str:
    """The SVG element of an SVG file, with ids of its own and the page's colours."""
    svg = document[document.index("<svg") :]
    return re.sub(r"<[^>]+>", lambda tag: _tag_in_page(tag[0], name), svg)


def _tag_in_page(tag: str, name: str) -> str:
    tag = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", tag)
    for colour, replacement in _IN_PAGE.items():
        tag = tag.replace(colour, replacement)
    return tag
