"""Names beside the points of a plot, placed so that they cover neither points nor one another."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

_OFFSETS = [
    (x, y, alignment)
    for far in (1, 2.2, 3.6)
    for x, y, alignment in (
        (7, 7 * far, "left"),
        (7, -7 * far, "left"),
        (-7, 7 * far, "right"),
        (-7, -7 * far, "right"),
        (0, 11 * far, "center"),
        (0, -11 * far, "center"),
    )
]


def shortened(name: str, length: int) -> str:
    """A name on one line, with a part left out where it is longer than `length`; most of its end stays.

    >>> shortened("block_1/conv_2/depthwise_kernel", 16)
    'block…ise_kernel'
    """
    name = " ".join(name.split())
    if len(name) <= length:
        return name
    head = length // 3
    return f"{name[:head]}…{name[len(name) - (length - head - 1) :]}"


def place(
    figure: "Figure",
    axes: "Axes",
    points: Sequence[tuple[float, float]],
    names: Sequence[str],
    colours: Sequence[str],
) -> None:
    """Writes each name at the first place around its point where it fits, or where it covers least.

    Args:
      figure: the figure, with its limits and legends set.
      axes: the axes of the points.
      points: (x, y) in data coordinates.
      names: one for each point.
      colours: the same.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    renderer = FigureCanvasAgg(figure).get_renderer()
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in axes.transData.transform(list(points))]
    inside = axes.get_window_extent(renderer)
    for point, name, colour in zip(points, names, colours, strict=True):
        label = axes.annotate(name, point, (0, 0), textcoords="offset points", va="center", fontsize=8.5, color=colour)
        label.set_in_layout(False)
        costs = []
        for offset in _OFFSETS:
            _move(label, offset)
            costs.append(_cost(label.get_window_extent(renderer), taken, inside))
        _move(label, _OFFSETS[costs.index(min(costs))])
        taken.append(label.get_window_extent(renderer))


def _move(label: "Annotation", offset: tuple[float, float, str]) -> None:
    x, y, alignment = offset
    label.set_position((x, y))
    label.set(horizontalalignment=alignment)


def _cost(box: "Bbox", taken: Sequence["Bbox"], inside: "Bbox") -> float:
    """The area, in square pixels, that a label covers of others or that is cut off by the axes."""
    overlaps = [_area(box.intersection(box, other)) for other in taken]
    return sum(overlaps) + box.width * box.height - _area(box.intersection(box, inside))


def _area(box: "Bbox | None") -> float:
    return 0.0 if box is None else box.width * box.height
