"""What the main job tells whoever watches it; the command line draws it, a test records it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol


class Progress(Protocol):
    """Receives what happens, in order."""

    def stage(self, name: str) -> None:
        """Tell that a part of the job begins."""
        ...

    def note(self, text: str) -> None:
        """Tell a fact worth a line."""
        ...

    def count(self, done: int, total: int) -> None:
        """Tell how far a part that counts items has come."""
        ...

    def step(self, record: Mapping[str, Any]) -> None:
        """Tell the record of a training step."""
        ...

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """Show results."""
        ...


class SilentProgress:
    """Watches and says nothing."""

    def stage(self, name: str) -> None:
        """Ignore a beginning."""

    def note(self, text: str) -> None:
        """Ignore a fact."""

    def count(self, done: int, total: int) -> None:
        """Ignore a count."""

    def step(self, record: Mapping[str, Any]) -> None:
        """Ignore a step."""

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """Ignore results."""


Stop = Callable[[], bool]


def never() -> bool:
    """Never stop."""
    return False
