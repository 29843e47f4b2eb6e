"""`--help` of every command, and of the program."""

from __future__ import annotations

from typing import Any

from golden import entry
from golden.workshop import Workshop


def record(workshop: Workshop) -> dict[str, Any]:
    """The words of a command to what its help prints."""
    names = ["", *sorted(entry.commands()), "data"]
    return {name or "taskdistill": workshop.run(*name.split(), "--help") for name in names}
