"""Progress bars, one for each stage."""

import contextlib
import contextvars
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Bar:
    """A stage's progress bar, safe to move from any thread."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task
        self._done = 0

    def start(self, total: int) -> None:
        """Sets how many steps there are; until then the bar only shows that something goes on."""
        self._progress.update(self._task, total=total)

    def update(self, done: int, text: str | None = None) -> None:
        """Moves the bar on to `done`, never back, and sets the text behind it."""
        self._done = max(self._done, done)
        if text is None:
            self._progress.update(self._task, completed=self._done)
        else:
            self._progress.update(self._task, completed=self._done, text=text)

    def finish(self) -> None:
        """Fills the bar."""
        self._progress.update(self._task, total=1, completed=1)


_CURRENT: contextvars.ContextVar[Bar | None] = contextvars.ContextVar("bar", default=None)


@contextlib.contextmanager
def stage_bar(label: str, console: Console | None = None) -> Iterator[Bar]:
    """Shows a progress bar while the block runs; in a terminal live, elsewhere one line at the end.

    >>> import io
    >>> with stage_bar("Train", Console(file=io.StringIO())):
    ...     bar = current_bar(10)
    ...     bar.update(5, "loss 0.1")
    """
    columns = (
        TextColumn("{task.description:<15}"),
        BarColumn(bar_width=20),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[text]}"),
    )
    # In a notebook rich would want ipywidgets and show nothing without; one line at the end is enough there.
    if console is None:
        console = Console(force_jupyter=False, force_terminal=False if Console().is_jupyter else None)
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        bar = Bar(progress, progress.add_task(label, total=None, text=""))
        token = _CURRENT.set(bar)
        try:
            yield bar
            bar.finish()
        finally:
            _CURRENT.reset(token)


def current_bar(total: int) -> Bar:
    """The bar of the stage that runs, for so many steps; outside of a stage one that nobody sees."""
    bar = _CURRENT.get()
    if bar is None:
        hidden = Progress(disable=True)
        bar = Bar(hidden, hidden.add_task("", total=None, text=""))
    bar.start(total)
    return bar
