"""Live progress: bars on a terminal, plain lines with a time stamp where the output is a file."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

PLAIN_SECONDS = 15.0  # a line this often is enough to see that it is alive


class Bar:
    """One piece of work with a known size."""

    def __init__(self, progress: "Progress", label: str, live: RichProgress | None) -> None:
        self._progress = progress
        self._label = label
        self._live = live
        self._task: TaskID | None = None if live is None else live.add_task(label, total=None, doing="")
        self._began: tuple[float, int] | None = None  # when, and how much was done before
        self._last_line = 0.0

    def set(self, done: int, total: int, doing: str = "") -> None:
        """Set the progress. doing: the current activity in a few words."""
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=done, total=total, doing=doing)
            return
        now = time.monotonic()
        began, known = self._began = self._began or (now, done)
        if now - self._last_line < PLAIN_SECONDS and done < total:
            return
        self._last_line = now
        left = f", about {(now - began) / (done - known) * (total - done):.0f} s left" if known < done < total else ""
        self._progress.say(f"{self._label}: {done} of {total}{left}{'; ' + doing if doing else ''}")


class Progress:
    """Prints progress. One bar at a time."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()

    def say(self, line: str) -> None:
        """A line that stays."""
        passed = time.monotonic() - self._began
        self._console.print(
            f"[{passed // 60:3.0f}:{passed % 60:02.0f}] {line}", markup=False, highlight=False, soft_wrap=True
        )

    @contextmanager
    def bar(self, label: str) -> Iterator[Bar]:
        """Show one piece of work until the block ends."""
        if not self._console.is_terminal:
            yield Bar(self, label, None)
            return
        live = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[doing]}"),
            console=self._console,
            transient=True,
        )
        with live:
            yield Bar(self, label, live)
