"""What a person sees: progress bars on a terminal, plain lines elsewhere, nothing but errors when
quiet.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

PLAIN_EVERY = 20.0
"""Seconds between progress lines where there is no terminal."""
PLAIN_WIDTH = 160
"""Characters of a line where there is no terminal."""


class Terminal:
    """Draws what a job tells."""

    def __init__(self, quiet: bool = False) -> None:
        """Open the terminal. `quiet`: show only results and errors."""
        self.quiet = quiet
        self.console = Console(stderr=False, soft_wrap=True, highlight=False)
        if not self.console.is_terminal:
            self.console.width = PLAIN_WIDTH
        self.live = self.console.is_terminal and not quiet
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._name, self._began, self._last_line = "", time.monotonic(), time.monotonic()

    def stage(self, name: str) -> None:
        """Begin a part: a line, and a fresh bar."""
        self.end()
        self._name, self._began, self._last_line = name, time.monotonic(), time.monotonic()
        if not self.quiet:
            self.console.print(f"[bold]{escape(name)}[/bold]")

    def note(self, text: str) -> None:
        """Print a fact."""
        if not self.quiet:
            self.console.print(f"  {escape(text)}")

    def aside(self, text: str) -> None:
        """Print a fact beside results that another program may read."""
        if not self.quiet:
            print(text, file=sys.stderr)

    def count(self, done: int, total: int) -> None:
        """Show how far the part has come."""
        self._show(done, total, "")

    def step(self, record: Mapping[str, Any]) -> None:
        """Show a training step: speed, loss terms and time left.

        `record`: a record of the log, with `steps`.
        """
        terms = "  ".join(f"{name} {value:.4f}" for name, value in record["terms"].items())
        self._show(
            record["step"] + 1, record["steps"], f"{record['texts_per_s']:.0f} texts/s  {terms}"
        )

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """Print results."""
        self.end()
        table = Table(title=title, title_justify="left", header_style="bold")
        for i, column in enumerate(columns):
            table.add_column(escape(column), justify="left" if i < 2 else "right", no_wrap=i == 0)
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))
        self.console.print(table)

    def line(self, text: str = "") -> None:
        """Print a result line, also when quiet."""
        self.end()
        self.console.print(escape(text))

    def end(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = self._task = None

    def _show(self, done: int, total: int, details: str) -> None:
        if self.quiet:
            return
        if self.live:
            self._bar(done, total, details)
        elif time.monotonic() - self._last_line > PLAIN_EVERY:
            self._last_line = time.monotonic()
            spent = self._last_line - self._began
            left = (
                f" of {total:,}, {spent / max(done, 1) * (total - done):.0f} s left"
                if total >= done
                else ""
            )
            self.console.print(f"  {done:,}{left}  {details}".rstrip(), markup=False)

    def _bar(self, done: int, total: int, details: str) -> None:
        if self._progress is None:
            if done >= total > 0 or time.monotonic() - self._began < 1.0:
                return
            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[details]}", markup=False),
            )
            self._progress = Progress(*columns, console=self.console, transient=True)
            self._progress.start()
            self._task = self._progress.add_task("", total=total, details=details)
        assert self._task is not None
        self._progress.update(self._task, completed=done, total=total or None, details=details)


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a polite stop; the second one ends the process at once.

    Yields a function that says whether a stop was requested.
    """
    requested = False

    def ask(number: int, _frame: object) -> None:
        nonlocal requested
        if requested:
            sys.exit(128 + number)
        requested = True
        print("stopping after this step; once more to stop at once", file=sys.stderr)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
