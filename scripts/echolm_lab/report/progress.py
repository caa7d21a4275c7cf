"""Progress of long work on the terminal."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Stage:
    """A progress bar for one stage of a measurement."""

    def __init__(self, console: Console, title: str, total: int) -> None:
        columns = (TextColumn("{task.description:34}"), BarColumn(), MofNCompleteColumn())
        self._progress = Progress(*columns, TimeElapsedColumn(), console=console)
        self._task = self._progress.add_task(title, total=total)

    def __enter__(self) -> Stage:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def step(self, record: object = None) -> None:
        """One more is done."""
        self._progress.advance(self._task)

    def step_by(self, count: int) -> None:
        """``count`` more are done."""
        self._progress.advance(self._task, count)
