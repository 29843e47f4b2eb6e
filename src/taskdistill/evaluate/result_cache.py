"""Scores that are kept on disk: each under a hash of all that decides it, written whole, and passed over where it is damaged."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskdistill.io.sealed import read_sealed, write_sealed

FORMAT = 2
"""Raised when what is kept changes its form."""


@dataclass(frozen=True)
class ResultCache:
    """A folder of kept values; with None for a folder nothing is kept or found."""

    folder: Path | None

    def key(self, *parts: Any) -> str:
        """Return the name under which a value is kept.

        Returns:
            32 hexadecimal digits.
        """
        return hashlib.sha256(json.dumps([FORMAT, *parts], sort_keys=True).encode()).hexdigest()[
            :32
        ]

    def read(self, key: str) -> Any:
        """Return a kept value.

        Returns:
            The value, or None where none is kept or the file is damaged; it is then made and written anew.
        """
        if self.folder is None:
            return None
        try:
            return read_sealed(self.folder / f"{key}.json", "it is made anew")["value"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, key: str, value: Any, **about: str) -> None:
        """Keep a value.

        Args:
            **about: What a person who looks into the file is told.
        """
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_sealed(self.folder / f"{key}.json", {**about, "value": value})
