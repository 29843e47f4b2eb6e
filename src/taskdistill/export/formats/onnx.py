"""ONNX: one graph of one task, from token ids to truncated unit vectors."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import numpy as np

from taskdistill.errors import require_extra
from taskdistill.export.base import ExportFormat, ExportJob
from taskdistill.export.parity import EIGHT_BITS, GRAPH
from taskdistill.export.tokenizer_files import write_tokenizer
from taskdistill.model.model import Model
from taskdistill.model.onnx_graph import ERRORS_ONLY, make_graph, padded_batches, silent


class OnnxGraphs:
    """`model.onnx` in float32 and `model_int8.onnx`, both run in onnxruntime."""

    usage = (
        'InferenceSession("model.onnx").run(None, {{"input_ids": ids, "attention_mask": mask}})'
        '     # of "{prompt}a text"'
    )
    all_tasks = False

    def check(self, model: Model) -> None:
        """Require the packages that write and run a graph."""
        require_extra("onnxscript", "export", "ONNX export")
        require_extra("onnxruntime", "export", "ONNX export")

    def write(self, job: ExportJob) -> None:
        """Trace, quantize, run and compare; eight bits are only reported."""
        import onnxruntime

        exact, small = job.folder / "model.onnx", job.folder / "model_int8.onnx"
        make_graph(job.model, exact)
        _quantize(exact, small)
        write_tokenizer(job.folder, job.model, job.model.settings.prompts)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        version = f"onnxruntime {metadata.version('onnxruntime')}"
        for file, tolerance in ((exact, GRAPH), (small, EIGHT_BITS)):
            session = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
            batches = padded_batches(job.tokenized().ids)
            vectors = np.concatenate([session.run(["embeddings"], batch)[0] for batch in batches])
            job.compare(file.name, version, vectors, tolerance, required=tolerance is GRAPH)


def _quantize(path: Path, small: Path) -> None:
    """Quantize weights per channel and activations on the fly."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(str(path), load_external_data=False).graph
    shapes = {value.name: tuple(value.dims) for value in graph.initializer}
    products = [
        (node.name, shapes.get(node.input[1], ()))
        for node in graph.node
        if node.op_type == "MatMul"
    ]
    # The maps back from the wide inner layer stay in float32: their inputs have outliers that one
    # scale cannot hold. With them mean and smallest cosine of all-MiniLM-L6-v2 were 0.991 and
    # 0.974, without them 0.995 and 0.985.
    narrowing = [name for name, shape in products if len(shape) == 2 and shape[0] > shape[1]]
    with silent():
        quantize_dynamic(
            str(path),
            str(small),
            weight_type=QuantType.QInt8,
            per_channel=True,
            nodes_to_exclude=narrowing,
            use_external_data_format=any(path.parent.glob(f"{path.name}.data")),
        )


FORMAT: ExportFormat = OnnxGraphs()
