"""OpenVINO: its own reading of the ONNX graph, saved in float32 and compared on the CPU."""

from __future__ import annotations

import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np

from taskdistill.errors import require_extra
from taskdistill.export.export import ExportJob
from taskdistill.export.formats.onnx import compared_ids, write_companions
from taskdistill.export.parity import GRAPH, compare
from taskdistill.model.folder import Model
from taskdistill.model.onnx_graph import make_graph, padded_batches


def check(_: Model) -> None:
    """Ask for the packages that write and run a graph."""
    require_extra("openvino", "openvino", "OpenVINO export")
    require_extra("onnxscript", "export", "OpenVINO export")


def write(export: ExportJob) -> None:
    """Write `openvino_model.xml` and its weights, run them, and compare. The input `truncate_dim` must always be given.

    Args:
        export: Model, folder and reference.
    """
    import openvino

    path = export.folder / "openvino_model.xml"
    with tempfile.TemporaryDirectory(dir=export.folder.parent) as beside:
        graph = Path(beside) / "model.onnx"
        make_graph(export.model, graph, truncation_default=False)
        openvino.save_model(openvino.convert_model(str(graph)), str(path), compress_to_fp16=False)
    write_companions(export.folder, export.model)
    compiled = openvino.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    whole = {"truncate_dim": np.array([export.model.module.embedding_dim], np.int64)}
    given = np.concatenate(
        [compiled(batch | whole)["embeddings"] for batch in padded_batches(compared_ids(export))]
    )
    version = f"openvino {metadata.version('openvino')}"
    export.results.append(
        compare(path.name, version, export.task, export.reference[export.task], given, GRAPH)
    )
