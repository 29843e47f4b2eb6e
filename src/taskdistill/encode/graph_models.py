"""The back ends onnxruntime and OpenVINO: the model traced to a graph, one for each task that was
asked for, run on padded batches.
"""

from __future__ import annotations

import copy
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from taskdistill.errors import BadInput, require_extra
from taskdistill.model.lora import merge
from taskdistill.model.model import Model
from taskdistill.model.onnx_graph import ERRORS_ONLY, make_graph, padded_batches
from taskdistill.model.student import TransformerModel

Run = Callable[[Mapping[str, np.ndarray]], np.ndarray]
"""A batch's inputs to vectors `(texts, D)`; may be called by several threads at once."""


class GraphModel:
    """A model that another engine runs; a task's graph is traced when the task is first used."""

    def __init__(self, model: Model, engine: str, threads: int) -> None:
        """Take a model; nothing is traced yet.

        `model`: the model; its weights stay in memory beside the engine's. Raises BadInput if a
        package is missing or the model is not on the CPU.
        """
        extra = "openvino" if engine == "openvino" else "export"
        require_extra(engine, extra, f"back end {engine}")
        require_extra("onnxscript", "export", f"back end {engine}")
        if next(model.module.parameters()).device.type != "cpu":
            raise BadInput(
                f"back end {engine} runs on a CPU here; load the model without a device, or use the"
                " back end torch"
            )
        self._model, self._engine, self._threads = model, engine, threads
        self.tasks = model.module.tasks
        self.embedding_dim = model.module.embedding_dim
        self._graphs: dict[str | None, Run] = {}
        self._task: str | None = None
        self._lock = threading.Lock()

    def select(self, task: str | None) -> None:
        """Switch to a task's graph. `task`: name of an adapter, or None for the base."""
        self._task = task

    def prepare(self, task: str | None) -> Run:
        """Give a task's graph, tracing it the first time.

        `task`: name of an adapter, or None for the base. Raises BadInput if the model cannot be
        traced or the engine cannot run the graph.
        """
        with self._lock:
            if task not in self._graphs:
                try:
                    self._graphs[task] = _open(
                        _of_task(self._model, task), self._engine, self._threads
                    )
                except (
                    Exception
                ) as error:  # the exporter and the engines raise classes of their own
                    reason = " ".join(str(error).split())[:300]
                    raise BadInput(
                        f"{self._engine} cannot run {self._model.name} ({reason}); use the back end"
                        " torch"
                    ) from error
            return self._graphs[task]

    def embed(self, ids: Sequence[np.ndarray]) -> Tensor:
        """Turn token ids into vectors. Returns `(texts, D)` in the order given, unit rows."""
        run = self._graphs.get(self._task) or self.prepare(self._task)
        return torch.from_numpy(
            np.concatenate([run(batch) for batch in padded_batches(ids, len(ids))])
        )


def _of_task(model: Model, task: str | None) -> Model:
    """Give the model of one task without adapters."""
    module = model.module
    if not isinstance(module, TransformerModel) or not module.tasks:
        return model
    merged = copy.deepcopy(module)
    merge(merged.backbone, task or "")
    return replace(model, module=merged)


def _open(model: Model, engine: str, threads: int) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        make_graph(model, path, truncation_default=engine != "openvino")
        return (
            _openvino(path, threads, model.module.embedding_dim)
            if engine == "openvino"
            else _onnxruntime(path)
        )


def _onnxruntime(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(batch: Mapping[str, np.ndarray]) -> np.ndarray:
        vectors: np.ndarray = session.run(["embeddings"], dict(batch))[0]
        return vectors

    return run


def _openvino(path: Path, threads: int, width: int) -> Run:
    import openvino

    properties = {
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": threads,
        "INFERENCE_NUM_THREADS": threads,
    }
    compiled = openvino.compile_model(str(path), "CPU", properties)
    full_width = {"truncate_dim": np.array([width], np.int64)}
    thread_state = threading.local()

    def run(batch: Mapping[str, np.ndarray]) -> np.ndarray:
        if not hasattr(thread_state, "request"):
            thread_state.request = compiled.create_infer_request()
        vectors: np.ndarray = thread_state.request.infer({**batch, **full_width})[
            "embeddings"
        ].copy()
        return vectors

    return run
