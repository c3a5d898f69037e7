"""Progress bars, one for each stage."""

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


class Bar:
    """A progress bar; `update` moves it to a number of finished steps and sets the text behind it."""

    def __init__(self, progress: Progress, task: object) -> None:
        self._progress, self._task = progress, task
        self._done = 0

    def update(self, done: int, text: str | None = None) -> None:
        """Moves the bar on to `done`, never back; safe to call from any thread."""
        self._done = max(self._done, done)
        fields = {} if text is None else {"text": text}
        self._progress.update(self._task, completed=self._done, **fields)  # type: ignore[arg-type]


@contextlib.contextmanager
def progress_bar(label: str, total: int, console: Console | None = None) -> Iterator[Bar]:
    """Shows a progress bar while the block runs; in a terminal live, elsewhere one line at the end.

    >>> import io
    >>> with progress_bar("Train", 10, Console(file=io.StringIO())) as bar:
    ...     bar.update(10, "loss 0.1")
    """
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=20),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        task = progress.add_task(label, total=total, text="")
        yield Bar(progress, task)
