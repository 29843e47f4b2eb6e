"""Results on disk, each under a hash of all that decides it; a damaged file counts as missing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskdistill.io.sealed import hash_json, read_sealed, write_sealed

FORMAT = 2
"""Raised when what is kept changes its form."""


@dataclass(frozen=True)
class ResultCache:
    """A folder of values; with None for a folder nothing is stored."""

    folder: Path | None

    def key(self, *parts: object) -> str:
        """Return the name of a value: 32 hexadecimal digits."""
        return hash_json([FORMAT, *parts])[:32]

    def read(self, key: str) -> Any:
        """Return a stored value; None where there is none or the file is damaged."""
        if self.folder is None:
            return None
        try:
            return read_sealed(self.folder / f"{key}.json", "it is made anew")["value"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, key: str, value: object, **about: str) -> None:
        """Store a value; `about` is for a person who looks into the file."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_sealed(self.folder / f"{key}.json", {**about, "value": value})
