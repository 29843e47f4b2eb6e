"""A plain sentence-transformers folder of one task, readable by every stock tool."""

from __future__ import annotations

import importlib.util
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskdistill.export.base import ExportFormat, ExportJob
from taskdistill.export.parity import EXACT
from taskdistill.export.tokenizer_files import write_tokenizer_config
from taskdistill.io.sealed import dump_json
from taskdistill.model.configuration import quiet_transformers
from taskdistill.model.folder import fill_folder, read_model
from taskdistill.model.golden import embed_with
from taskdistill.model.model import Model
from taskdistill.model.onnx_graph import silent
from taskdistill.model.student import TransformerModel
from taskdistill.versions import versions

REWRITTEN_FAMILIES = frozenset({"qwen3", "eurobert"})
"""Families whose own tokenizer class rebuilds `tokenizer.json` instead of taking it as it is."""


class SentenceTransformersFolder:
    """Weights and settings, read back by this package and by sentence-transformers if installed."""

    usage = 'SentenceTransformer(folder).encode(["{prompt}a text"], normalize_embeddings=True)'
    all_tasks = False

    def check(self, model: Model) -> None:
        """Refuse nothing: every model has such a folder."""

    def write(self, job: ExportJob) -> None:
        """Write the folder and compare it through both readers."""
        fill_folder(job.folder, job.model)
        _finish_config(job.folder, job.model)
        name = "model.safetensors"
        vectors = embed_with(read_model(job.folder))(job.texts, None)
        job.compare(name, f"taskdistill {versions()['taskdistill']}", vectors, EXACT)
        if importlib.util.find_spec("sentence_transformers") is None:
            job.notes.append(
                "sentence-transformers is not installed here, so the folder was only read by "
                "taskdistill"
            )
            return
        package = f"sentence-transformers {metadata.version('sentence-transformers')}"
        job.compare(name, package, _stock_vectors(job), EXACT)


def _stock_vectors(job: ExportJob) -> NDArray[np.float32]:
    from sentence_transformers import SentenceTransformer

    with quiet_transformers(), silent():
        # local_files_only: the folder must be enough by itself.
        stock = SentenceTransformer(str(job.folder), device="cpu", local_files_only=True)
        vectors: NDArray[np.float32] = stock.encode(
            list(job.texts),
            prompt=job.prompt,
            batch_size=4,
            show_progress_bar=False,
            normalize_embeddings=True,
        )
    return vectors


def _finish_config(folder: Path, model: Model) -> None:
    """Add `rope_theta` for readers older than transformers 5, and settle the tokenizer's class."""
    if not isinstance(model.module, TransformerModel):
        return
    raw: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    theta = (raw.get("rope_parameters") or {}).get("rope_theta")
    if theta is not None:
        raw["rope_theta"] = theta
    (folder / "config.json").write_text(dump_json(raw), "utf-8")
    if raw["model_type"] in REWRITTEN_FAMILIES:
        write_tokenizer_config(folder, model)


FORMAT: ExportFormat = SentenceTransformersFolder()
