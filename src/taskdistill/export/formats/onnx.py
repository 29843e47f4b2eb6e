"""ONNX: one graph of one task, from token ids to unit vectors, with pooling, truncation and normalisation inside; float32 and int8."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import numpy as np

from taskdistill.errors import require_extra
from taskdistill.export.export import ExportJob
from taskdistill.export.formats.sentence_transformers import write_tokenizer_config
from taskdistill.export.parity import EIGHT_BITS, GRAPH, Tolerance, compare
from taskdistill.io.sealed import dump_json
from taskdistill.model.folder import Model
from taskdistill.model.onnx_graph import ERRORS_ONLY, make_graph, padded_batches, silent
from taskdistill.tasks import Role


def check(_: Model) -> None:
    """Ask for the packages that write and run a graph."""
    require_extra("onnxscript", "export", "ONNX export")
    require_extra("onnxruntime", "export", "ONNX export")


def write(export: ExportJob) -> None:
    """Write `model.onnx` and `model_int8.onnx`, run both in onnxruntime, and compare.

    Args:
        export: Model, folder and reference.
    """
    path = export.folder / "model.onnx"
    make_graph(export.model, path)
    small = export.folder / "model_int8.onnx"
    _quantise(path, small)
    write_companions(export.folder, export.model)
    ids = compared_ids(export)
    for file, tolerance in ((path, GRAPH), (small, EIGHT_BITS)):
        _check(export, file, ids, tolerance)


def _quantise(path: Path, small: Path) -> None:
    """Quantise weights per channel and activations on the fly, but for the maps back from the wide inner layer.

    Their inputs have outliers that one scale cannot hold: with them mean and smallest cosine of all-MiniLM-L6-v2 were 0.991
    and 0.974, without them 0.995 and 0.985.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(str(path), load_external_data=False).graph
    shapes = {value.name: tuple(value.dims) for value in graph.initializer}
    maps = [
        (node.name, shapes.get(node.input[1], ()))
        for node in graph.node
        if node.op_type == "MatMul"
    ]
    narrowing = [name for name, shape in maps if len(shape) == 2 and shape[0] > shape[1]]
    large = any(path.parent.glob(f"{path.name}.data"))
    with silent():
        quantize_dynamic(
            str(path),
            str(small),
            weight_type=QuantType.QInt8,
            per_channel=True,
            nodes_to_exclude=narrowing,
            use_external_data_format=large,
        )


def write_companions(folder: Path, model: Model) -> None:
    """Write the tokenizer and the prompts beside a graph.

    Args:
        folder: Folder of the export.
        model: The model.
    """
    (folder / "tokenizer.json").write_text(model.tokenizer.to_json(), "utf-8")
    write_tokenizer_config(folder, model)
    st = {
        "prompts": dict(model.settings.prompts),
        "default_prompt_name": Role.DOCUMENT.value,
        "similarity_fn_name": "cosine",
    }
    (folder / "config_sentence_transformers.json").write_text(dump_json(st), "utf-8")


def compared_ids(export: ExportJob) -> list[np.ndarray]:
    """Tokenise the texts of a comparison behind the document prompt.

    Args:
        export: Model and texts.

    Returns:
        Token ids of each text.
    """
    settings = export.model.settings
    prompt = settings.prompts.get(Role.DOCUMENT.value, "")
    return export.model.tokenizer.ids(
        list(export.texts), prompt=prompt, max_length=settings.max_length
    ).ids


def _check(export: ExportJob, file: Path, ids: list[np.ndarray], tolerance: Tolerance) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    given = np.concatenate([session.run(["embeddings"], batch)[0] for batch in padded_batches(ids)])
    version = f"onnxruntime {metadata.version('onnxruntime')}"
    export.results.append(
        compare(
            file.name,
            version,
            export.task,
            export.reference[export.task],
            given,
            tolerance,
            required=tolerance is GRAPH,
        )
    )
