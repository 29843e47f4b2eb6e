"""OpenVINO: its own reading of the ONNX graph, saved in float32 and compared on the CPU."""

from __future__ import annotations

import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np

from taskdistill.errors import require_extra
from taskdistill.export.base import ExportFormat, ExportJob
from taskdistill.export.parity import GRAPH
from taskdistill.export.tokenizer_files import write_tokenizer
from taskdistill.model.model import Model
from taskdistill.model.onnx_graph import make_graph, padded_batches


class OpenvinoGraph:
    """`openvino_model.xml` and its weights; the input `truncate_dim` must always be passed."""

    usage = (
        'Core().compile_model("openvino_model.xml", "CPU")([ids, mask, truncate_dim])'
        '     # of "{prompt}a text"'
    )
    all_tasks = False

    def check(self, model: Model) -> None:
        """Require the packages that write and run a graph."""
        require_extra("openvino", "openvino", "OpenVINO export")
        require_extra("onnxscript", "export", "OpenVINO export")

    def write(self, job: ExportJob) -> None:
        """Trace to ONNX beside the export, convert, run and compare."""
        import openvino

        path = job.folder / "openvino_model.xml"
        with tempfile.TemporaryDirectory(dir=job.folder.parent) as temporary:
            graph = Path(temporary) / "model.onnx"
            make_graph(job.model, graph, truncation_default=False)
            converted = openvino.convert_model(str(graph))
            openvino.save_model(converted, str(path), compress_to_fp16=False)
        write_tokenizer(job.folder, job.model, job.model.settings.prompts)
        # Without the hint the CPU plug-in may compute in bfloat16.
        compiled = openvino.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        width = {"truncate_dim": np.array([job.model.module.embedding_dim], np.int64)}
        batches = padded_batches(job.tokenized().ids)
        vectors = np.concatenate([compiled(batch | width)["embeddings"] for batch in batches])
        job.compare(path.name, f"openvino {metadata.version('openvino')}", vectors, GRAPH)


FORMAT: ExportFormat = OpenvinoGraph()
