"""The plot of a confusion matrix."""

from collections.abc import Sequence

from tfopt.report import labels, units
from tfopt.report.plots import BLUE, INK, ORANGE, svg_figure

# Up to so many classes a cell holds its number, and each class its name.
_NUMBERED, _NAMED = 15, 30
_SHADES = 12


def confusion_matrix(confusion: Sequence[Sequence[float]], names: Sequence[str], key: str) -> str:
    """Labels by true class (rows) and decided class (columns); right ones blue, wrong ones orange.

    The deeper the colour, the larger the share of the row, by its square root: so one mistake in a hundred is seen.

    Args:
      confusion: a row for each class, at least 2; the counts in it, or sums of weights.
      names: of the classes.
      key: sets the plot apart from the others of the page: letters, digits and hyphens.

    Returns:
      An SVG element; an empty string where there is nothing to draw.
    """
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    count = len(confusion)
    if not count:
        return ""
    squares: dict[tuple[str, int], list[list[tuple[float, float]]]] = {}
    gap = 0.03 if count <= _NUMBERED else 0.0
    for row, cells in enumerate(confusion):
        whole = sum(cells)
        for column, cell in enumerate(cells):
            if cell:
                shade = max(1, round(_SHADES * (cell / whole) ** 0.5))
                left, right, top, bottom = column + gap, column + 1 - gap, row + gap, row + 1 - gap
                corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
                squares.setdefault((BLUE if row == column else ORANGE, shade), []).append(corners)
    with svg_figure(key, 5.0) as (figure, svg):
        axes = figure.subplots()
        # One path for each shade: a path for each of 10,000 cells would make a page of megabytes.
        codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
        for (colour, shade), cells_of in sorted(squares.items()):
            corners = [corner for square in cells_of for corner in square]
            path = Path(corners, codes * len(cells_of))
            axes.add_patch(PathPatch(path, facecolor=colour, alpha=0.1 + 0.7 * shade / _SHADES, linewidth=0))
        if count <= _NUMBERED:
            for row, cells in enumerate(confusion):
                for column, cell in enumerate(cells):
                    if cell:
                        place = (column + 0.5, row + 0.5)
                        text = units.value("", cell)
                        # A digit is about 0.65 of its size wide.
                        size = min(8.5, 280 / count / (0.65 * len(text)))
                        axes.text(*place, text, ha="center", va="center", fontsize=size)
        axes.set(xlim=(0, count), ylim=(count, 0), xlabel="decided", ylabel="true", aspect="equal")
        step = -(-count // _NAMED)
        shown = range(0, count, step)
        told = [labels.shortened(names[place], 14) for place in shown]
        size = min(8.5, 230 / len(told))
        axes.set_xticks([place + 0.5 for place in shown], told, rotation=90 if count > 4 else 0, fontsize=size)
        axes.set_yticks([place + 0.5 for place in shown], told, fontsize=size)
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set(visible=True, color=INK, linewidth=0.6)
    return svg.getvalue()
