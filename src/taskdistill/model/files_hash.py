"""One hash over the files of a model folder that decide its vectors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskdistill.folders import sha256_file

DECIDING = (".safetensors", "tokenizer.json", "config.json", "modules.json")


def files_hash(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Hash the files of a model folder that decide its vectors.

    Args:
        files: Relative path to its entry with `sha256`.

    Returns:
        64 hexadecimal digits.
    """
    chosen = {name: entry["sha256"] for name, entry in files.items() if name.endswith(DECIDING)}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


def deciding_files(folder: Path) -> dict[str, dict[str, str]]:
    """Hash the files that decide the vectors of a folder without a manifest; others, such as exports, may be large.

    Args:
        folder: Model folder.

    Returns:
        Relative path to `{"sha256": ...}`, sorted by path.
    """
    chosen = sorted(p for p in folder.rglob("*") if p.name.endswith(DECIDING) and p.is_file())
    return {p.relative_to(folder).as_posix(): {"sha256": sha256_file(p)} for p in chosen}
