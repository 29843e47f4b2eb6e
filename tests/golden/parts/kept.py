"""The folders that earlier versions wrote (tests/kept), read back: what `info` says,
vectors, hits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from golden import entry
from golden.summaries import summarize, weights_below
from golden.workshop import REPOSITORY, Workshop

KEPT = REPOSITORY / "tests/kept"
TEXTS = [
    "word 3",
    "Which planet is known as the Red Planet?",
    "a ship in the harbour",
    "火星は太陽系の第四惑星です。",
]


def record(workshop: Workshop) -> dict[str, Any]:
    """Folder to what is read of it."""
    found: dict[str, Any] = {}
    for folder in folders():
        name = folder.relative_to(KEPT).as_posix()
        copy = workshop.copy(folder, f"kept/{name}")
        said = workshop.run("info", copy, result=workshop.path(f"kept-info/{name}.json"))
        found[name] = {"info": said, "files": workshop.files(copy), "weights": weights_below(copy)}
        if name.startswith(("model", "jina", "sentence", "static")):
            found[name]["vectors"] = vectors(copy)
        if name.startswith("search-index"):
            opened = entry.open_index(copy)
            found[name]["documents"] = opened.documents
            found[name]["about"] = workshop.mask.value(opened.describe())
        if name.startswith(("shards", "teacher")):
            found[name]["arrays"] = {
                path.relative_to(copy).as_posix(): summarize(np.load(path))
                for path in sorted(copy.rglob("*.npy"))
            }
    return found


def folders() -> list[Path]:
    """Every folder with a manifest or weights of its own."""
    return sorted({path.parent for path in KEPT.rglob("taskdistill.json")})


def vectors(folder: Path) -> dict[str, Any]:
    """Vectors of some texts under every task of a model."""
    encoder = entry.Encoder.load(folder, threads=1)
    tasks = list(encoder.tasks) or [None]
    return {
        f"{task} {prompt}": summarize(encoder.encode(TEXTS, task=task, prompt_name=prompt))
        for task in tasks
        for prompt in ("query", "document")
    }
