"""Progress with time left: a live bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn


def seconds_text(seconds: float) -> str:
    """`8 s`, `3 min 20 s`, `2 h 05 min`: a duration as people say it."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


Notice = Callable[[float, float, str], None]
"""Called as notice(done, total, text) while something long runs."""


class Step:
    """One long step: call it with (done, total, text); it draws a bar or now and then prints a line.

    The call signature is that of the `progress` argument of every task method, so a step can be handed to a task.
    """

    def __init__(self, reporter: Reporter, title: str, bar: TaskID | None, lines: bool = True) -> None:
        self._reporter = reporter
        self._lines = lines
        self._title = title
        self._bar = bar
        self._begin = self._last = time.monotonic()
        self._first: float | None = None

    def __call__(self, done: float, total: float, text: str = "") -> None:
        now = time.monotonic()
        if self._first is None:
            # Time left counts from where this process began, not from what an earlier one had already done.
            self._first, self._begin = done, now
        gained = done - self._first
        left = f", {seconds_text((now - self._begin) / gained * (total - done))} left" if gained > 0 else ""
        if self._bar is not None and self._reporter.bars is not None:
            note = f"{left.removeprefix(', ')}  {text}"
            self._reporter.bars.update(self._bar, completed=done, total=total, note=note)
            return
        if not self._lines or now - self._last < self._reporter.every:
            return
        self._last = now
        share = f"{100 * done / total:.0f}%" if total else "..."
        self._reporter.say(f"  {self._title}: {share}{left}{'  ' + text if text else ''}")


class Reporter:
    """Where a command speaks: `say` prints a line, `step` opens a long step; quiet=True says nothing."""

    def __init__(self, console: Console | None = None, every: float = 10.0, quiet: bool = False) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.every = every
        self.quiet = quiet
        self.bars: Progress | None = None

    def say(self, text: str) -> None:
        """Print one line; on a terminal it appears above the bars."""
        if not self.quiet:
            self.console.print(text, markup=False)

    @contextmanager
    def step(self, title: str, lines: bool = True) -> Iterator[Step]:
        """A long step; nested steps stack their bars. lines=False: a bar on a terminal, but no lines elsewhere."""
        if self.quiet or not self.console.is_terminal:
            yield Step(self, title, None, lines and not self.quiet)
            return
        outermost = self.bars is None
        if self.bars is None:
            self.bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=28),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[note]}", markup=False),
                console=self.console,
                transient=True,
            )
            self.bars.start()
        bar = self.bars.add_task(title, total=None, note="")
        try:
            yield Step(self, title, bar)
        finally:
            self.bars.remove_task(bar)
            if outermost:
                self.bars.stop()
                self.bars = None
