"""A search as a page for the browser and as Markdown."""

from tfopt.config import source
from tfopt.files import write_text
from tfopt.report import html, plots, units
from tfopt.report.markdown import code, text
from tfopt.report.markup import Markup, element, table
from tfopt.tune.result import Search, Trial


def write_markdown(found: Search) -> None:
    """Writes search.md to the workdir, atomically."""
    write_text(found.workdir / "search.md", markdown(found))


def write_html(found: Search) -> None:
    """Writes search.html to the workdir, atomically."""
    write_text(found.workdir / "search.html", page(found))


def markdown(found: Search) -> str:
    """The search as Markdown."""
    heads, rows = _heads(found), _rows(found)
    lines = ["# Search", text(_summary(found)), text(_advice(found))]
    grid = [" | ".join(text(each) for each in row) for row in [heads, *rows]]
    grid.insert(1, " | ".join("---" for _ in heads))
    lines.append("\n".join(f"| {each} |" for each in grid))
    if found.front:
        lines.append(f"Best: {code(found.best.folder.relative_to(found.workdir))}")
    return "\n\n".join(line for line in lines if line) + "\n"


def page(found: Search) -> str:
    """The search as a page that loads nothing from elsewhere."""
    rows = [
        [element("a", row[0], href=f"trials/{trial.number:04d}/report.html"), *row[1:]]
        for row, trial in zip(_rows(found), found.trials, strict=True)
    ]
    plot = plot_trials(found)
    return html.page(
        "Search | tfopt",
        element("header", element("h1", "Search"), element("p", _summary(found)), element("p", _advice(found))),
        element("section", element("h2", "Objectives"), Markup(plot)) if plot else None,
        element("section", element("h2", "Trials"), table(_heads(found), rows, numbers=len(found.objectives))),
    )


def plot_trials(found: Search) -> str:
    """The first two objectives against each other, or the only one over the trials; the front joined by a line.

    Returns:
      An SVG element; an empty string where no trial is complete.
    """
    complete = [each for each in found.trials if each.state == "complete"]
    if not complete:
        return ""
    y, *others = found.objectives
    front = sorted(found.front, key=lambda each: _x(each, others))
    with plots.svg_figure("search", 3.3) as (figure, svg):
        axes = figure.subplots()
        axes.plot(
            [_x(each, others) for each in complete],
            [each.values[y] for each in complete],
            "o",
            color=plots.BLUE,
            label="trial",
        )
        style = "o-" if others else "o"
        axes.plot(
            [_x(each, others) for each in front],
            [each.values[y] for each in front],
            style,
            color=plots.ORANGE,
            label="Pareto front" if others else "best",
        )
        for each in front:
            axes.annotate(
                str(each.number), (_x(each, others), each.values[y]), (4, 4), textcoords="offset points", fontsize=8.5
            )
        axes.set(xlabel=others[0] if others else "trial", ylabel=y)
        axes.grid()
        figure.legend(loc="outside upper right", ncols=2)
    return svg.getvalue()


def _x(trial: Trial, others: list[str]) -> float:
    return trial.values[others[0]] if others else trial.number


def _summary(found: Search) -> str:
    counts = {state: sum(each.state == state for each in found.trials) for state in ("complete", "pruned", "failed")}
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    if not found.front:
        return f"{told}."
    best = found.best
    values = ", ".join(f"{name} {units.value(name, value)}" for name, value in best.values.items())
    settings = ", ".join(f"{name}={source(value)}" for name, value in best.parameters.items())
    return f"{told}. Best {found.objectives[0]}: trial {best.number} ({values}) with {settings}."


def _advice(found: Search) -> str:
    chosen = [name for name in found.objectives if name in ("accuracy", "loss", "mean_absolute_error")]
    if not chosen:
        return ""
    return (
        f"{chosen[0]} is that of the test split, by which the best was chosen: on new data expect less. "
        f"val_{chosen[0]} would leave the test split out of the choice."
    )


def _heads(found: Search) -> list[str]:
    names = list(dict.fromkeys(name for each in found.trials for name in each.parameters))
    return ["Trial", "State", "Front", *names, *found.objectives]


def _rows(found: Search) -> list[list[str]]:
    front, names = found.front, _heads(found)[3 : -len(found.objectives)]
    return [
        [
            str(each.number),
            f"{each.state}: {each.reason}" if each.reason else each.state,
            "yes" if each in front else "",
            *(source(each.parameters[name]) for name in names),
            *(units.value(name, each.values.get(name)) for name in found.objectives),
        ]
        for each in found.trials
    ]
