"""A model as an ONNX graph: one task, from token ids to unit vectors, with pooling, truncation and
normalisation inside.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskdistill.errors import BadInput
from taskdistill.model.families import heeds_padding
from taskdistill.model.model import Model
from taskdistill.model.packed_attention import ATTENTION
from taskdistill.model.pooling import pool_padded
from taskdistill.model.student import StaticModel, TransformerModel

OPSET = 20
ONE_FILE_LIMIT = 1_500_000_000
"""Bytes of weights above which they lie in a file of their own; a single ONNX file ends at two
gigabytes.
"""

BATCH = 4
INPUTS = ("input_ids", "attention_mask")
SMALLEST_LENGTH = 1e-12
ERRORS_ONLY = 3
"""onnxruntime's severity; below it stands a remark that `truncate_dim` is no constant, which is
meant.
"""


def make_graph(model: Model, path: Path, *, truncation_default: bool = True) -> None:
    """Trace a model without adapters and write its graph.

    `model`: the model; its attention implementation is changed while the graph is traced. `path`:
    file to write; large weights go beside it. `truncation_default`: whether the input
    `truncate_dim` may be left out; not every runtime knows such inputs. Raises BadInput if the
    family's operations cannot be written, or its states depend on padding.
    """
    import onnx

    module = model.module
    kind = module.backbone.config.model_type if isinstance(module, TransformerModel) else "static"
    if isinstance(module, TransformerModel) and not heeds_padding(module.backbone):
        raise BadInput(
            f"a {kind} gives padded texts other states than the same texts alone, and a graph runs"
            " padded batches; use the back end torch, or a family of docs/families.md"
        )
    weights = sum(p.numel() for p in module.parameters()) * 4
    example = torch.tensor([[5, 6, 7, 8, 9], [7, 8, 9, 1, 1]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    graph = _StaticGraph(module) if isinstance(module, StaticModel) else _PaddedGraph(module)
    with _padded_attention(module), silent(), torch.no_grad():
        try:
            program: Any = torch.onnx.export(
                graph.eval(),
                (example, mask),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(INPUTS),
                output_names=["pooled"],
                dynamic_shapes=dict.fromkeys(INPUTS, axes),
                verbose=False,
            )
        except Exception as error:  # the exporter raises classes of its own, with pages of text
            raise BadInput(
                f"a {kind} cannot be written as a graph ({type(error).__name__}:"
                f" {_first_line(error)}); export it as sentence-transformers, or use the back end"
                " torch"
            ) from error
        program.save(str(path), external_data=weights > ONE_FILE_LIMIT)
    proto = onnx.load(str(path), load_external_data=False)
    _add_head(proto, module.embedding_dim, truncation_default)
    onnx.save(proto, str(path))


def _first_line(error: Exception) -> str:
    """Give what an error of the exporter was raised from, in one short line without colours."""
    cause = error.__cause__ or error
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(cause)).strip()
    return plain.splitlines()[0][:200] if plain else type(cause).__name__


class _PaddedGraph(nn.Module):
    def __init__(self, module: TransformerModel) -> None:
        super().__init__()
        self.backbone = module.backbone
        self.pooling = module.pooling
        self.first_position = module.first_position
        table = getattr(getattr(module.backbone, "embeddings", None), "position_embeddings", None)
        self.counts_positions = module.packs and isinstance(table, nn.Embedding)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Rotary positions are relative; a table of positions is asked for those of the text,
        wherever its padding stands.
        """
        counted = (attention_mask.cumsum(1) - 1).clamp(min=0) + self.first_position
        positions = {"position_ids": counted} if self.counts_positions else {}
        states = self.backbone(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **positions
        )
        return pool_padded(states.last_hidden_state, attention_mask, self.pooling)


class _StaticGraph(nn.Module):
    def __init__(self, module: StaticModel) -> None:
        super().__init__()
        self.table = module.table

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        weights = attention_mask.unsqueeze(-1).to(self.table.dtype)
        return (F.embedding(input_ids, self.table) * weights).sum(1) / weights.sum(1).clamp(min=1)


@contextmanager
def _padded_attention(module: TransformerModel | StaticModel) -> Iterator[None]:
    if isinstance(module, StaticModel) or not module.packs:
        yield
        return
    module.backbone.set_attn_implementation("sdpa" if module.backbone._supports_sdpa else "eager")
    try:
        yield
    finally:
        module.backbone.set_attn_implementation(ATTENTION)


@contextmanager
def silent() -> Iterator[None]:
    """Keep the exporter's progress and advice off the terminal; what matters is measured
    afterwards.
    """
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            Path(os.devnull).open("w") as null,
            redirect_stdout(null),
            redirect_stderr(null),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _add_head(proto: Any, width: int, truncation_default: bool) -> None:
    """Append truncation, then normalisation (section 2.5), to a graph that ends in `pooled`."""
    from onnx import TensorProto, helper, numpy_helper

    graph = proto.graph
    constants = {
        "head_start": np.array([0], np.int64),
        "head_axis": np.array([1], np.int64),
        "head_smallest": np.array(SMALLEST_LENGTH, np.float32),
    }
    if truncation_default:
        constants["truncate_dim"] = np.array([width], np.int64)
    graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in constants.items()
    )
    graph.input.append(helper.make_tensor_value_info("truncate_dim", TensorProto.INT64, [1]))
    graph.node.extend(
        [
            helper.make_node(
                "Slice", ["pooled", "head_start", "truncate_dim", "head_axis"], ["head_cut"]
            ),
            helper.make_node("ReduceL2", ["head_cut", "head_axis"], ["head_length"], keepdims=1),
            helper.make_node("Max", ["head_length", "head_smallest"], ["head_safe"]),
            helper.make_node("Div", ["head_cut", "head_safe"], ["embeddings"]),
        ]
    )
    del graph.output[:]
    graph.output.append(
        helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["batch", "dim"])
    )


def padded_batches(ids: Sequence[np.ndarray], size: int = BATCH) -> Iterator[dict[str, np.ndarray]]:
    """Pad texts on the right, a few at a time, as the graph's inputs.

    Yields `input_ids` and `attention_mask`, `(B, L)` of int64; padding has id 0.
    """
    for start in range(0, len(ids), size):
        rows = ids[start : start + size]
        shape = (len(rows), max(map(len, rows)))
        batch = {name: np.zeros(shape, np.int64) for name in INPUTS}
        for i, row in enumerate(rows):
            batch["input_ids"][i, : len(row)] = row
            batch["attention_mask"][i, : len(row)] = 1
        yield batch
