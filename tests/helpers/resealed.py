"""Manifests changed by someone who also makes the hash of them right, as no damage does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from taskdistill.io.sealed import seal_json
from taskdistill.types import MANIFEST


def reseal(folder: Path, **changes: Any) -> dict[str, Any]:
    """Write a folder's manifest again with other fields, and return it."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest.pop("sha256", None)
    manifest |= changes
    (folder / MANIFEST).write_text(seal_json(manifest))
    return manifest
