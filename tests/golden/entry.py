"""All that the golden record takes from the program and from the tests' tiny models: when modules
move, this file alone changes.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers import process_child, serve_fakes, tiny, tiny_ablation, tiny_jina, topic_models

from taskdistill import (
    BadInput,
    Encoder,
    Precision,
    Task,
    WorkFailed,
    encode_chunks,
    encode_windows,
    load_recipe,
    train_recipe,
)
from taskdistill.cli.main import app, run
from taskdistill.errors import TruncationWarning
from taskdistill.evaluate.datasets import task_types
from taskdistill.export.export import FORMATS
from taskdistill.export.vector_databases import ENGINES
from taskdistill.losses import registry
from taskdistill.losses.streaming import streaming_info_nce
from taskdistill.losses.terms.contrastive import (
    HardNegativeWeighting,
    info_nce,
    int8_straight_through,
    mixed_negatives,
    sharpened_info_nce,
    sign_straight_through,
)
from taskdistill.losses.terms.cosent import cosent
from taskdistill.losses.terms.embedding import (
    embedding_distance,
    hidden_distance,
    l2_distance,
    squared_error,
    teachers_distance,
)
from taskdistill.losses.terms.listwise import list_kl
from taskdistill.losses.terms.regularizers import gor, gor_hinged, mean_vector_penalty
from taskdistill.losses.terms.relational import relational_distance
from taskdistill.losses.terms.similarity import (
    relative_similarity,
    rkd_angle,
    rkd_distance,
    score_distill,
    score_kl,
    similarity_matrix,
)
from taskdistill.losses.vectors import normalize, over_prefixes
from taskdistill.model.folder import write_model
from taskdistill.model.golden import FILE as GOLDEN_FILE
from taskdistill.model.golden import embed_with, golden_vectors
from taskdistill.model.projection import Projection
from taskdistill.quantization import fit_ranges, ranges_to_json
from taskdistill.search.index import Index
from taskdistill.serve.settings import ServerSettings
from taskdistill.train.context import Interrupted
from taskdistill.train.log import read_lines

__all__ = [
    "BadInput",
    "Encoder",
    "Interrupted",
    "ServerSettings",
    "Task",
    "WorkFailed",
    "encode_chunks",
    "encode_windows",
    "load_recipe",
    "normalize",
    "over_prefixes",
    "train_recipe",
]

FAMILIES = tiny.FAMILIES
TASKS = [task.value for task in Task]
PRECISIONS = [precision.value for precision in Precision]
TASK_TYPES = [task.name for task in task_types()]
MODEL_FORMATS = sorted(FORMATS)
INDEX_FORMATS = sorted(ENGINES)
PHASES = ["static", "stage1", "long", *(f"adapters.{task}" for task in TASKS)]
LOSS_TERMS = sorted(registry.LOSSES)
"""Names of loss terms as recipes write them."""

Matrix = torch.Tensor


def _masked(formula: Callable[..., Matrix]) -> Callable[..., Matrix]:
    """A contrast whose mask and chunk may stand in fifth and sixth place."""

    def call(*given: Any, **options: Any) -> Matrix:
        return formula(
            *given[:4], **dict(zip(("excluded", "chunk"), given[4:], strict=False)), **options
        )

    return call


def _sharpened(*given: Any, focal: float = 0.0, hardness: float = 0.0, **options: Any) -> Matrix:
    weighting = HardNegativeWeighting(focal=focal, hardness=hardness)
    return _masked(sharpened_info_nce)(*given, weighting=weighting, **options)


LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "distill": embedding_distance,
    "distill of several teachers": teachers_distance,
    "info_nce": _masked(info_nce),
    "info_nce by row chunks": _masked(streaming_info_nce),
    "info_nce sharpened": _sharpened,
    "binary_info_nce": lambda q, d, *rest: _masked(info_nce)(
        sign_straight_through(q), sign_straight_through(d), *rest
    ),
    "int8_info_nce": lambda q, d, *rest: _masked(info_nce)(
        int8_straight_through(q), int8_straight_through(d), *rest
    ),
    "cosent": cosent,
    "gor": gor,
    "gor_hinged": gor_hinged,
    "centre": mean_vector_penalty,
    "relational": relational_distance,
    "l2": l2_distance,
    "mse": squared_error,
    "score_softmax": score_distill,
    "score_kl": score_kl,
    "similarity": similarity_matrix,
    "relative": relative_similarity,
    "rkd_distance": rkd_distance,
    "rkd_angle": rkd_angle,
    "list_kl": list_kl,
    "teacher_nce": _masked(info_nce),
    "hidden": hidden_distance,
}
"""Term to its formula, a function of tensors."""
mixed_negatives = mixed_negatives

sentence, TOPICS, tiny_config = tiny.sentence, tiny.TOPICS, tiny.config
write_jsonl, write_data, write_teacher, raw_recipe = (
    tiny.write_jsonl,
    tiny.write_data,
    tiny.write_teacher,
    tiny.recipe,
)
write_topic_model, raw_ablation = topic_models.write, tiny_ablation.raw
write_jina, JINA_TEXTS = tiny_jina.write_repository, tiny_jina.TEXTS
run_processes = process_child.run
serving = serve_fakes.live


def commands() -> dict[str, Any]:
    """Every command by its name of one or two words."""
    import typer

    def within(group: Any, before: str) -> Iterator[tuple[str, Any]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from within(command, f"{before}{name} ")
            else:
                yield f"{before}{name}", command

    return dict(within(typer.main.get_command(app), ""))


def run_command(words: Sequence[str]) -> tuple[int, str, str]:
    """Run a command line in this process; its exit code, output and errors."""
    out, err = io.StringIO(), io.StringIO()
    before, handlers = warnings.showwarning, list(logging.root.handlers)
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", TruncationWarning)
            try:
                code = run(list(words))
            except SystemExit as end:  # a usage error of some versions of typer
                code = int(end.code or 0)
    finally:
        warnings.showwarning = before
        logging.root.handlers[:] = (
            # libraries that are imported on the way add some, onto streams that are closed
            # afterwards
            handlers
        )
    return code, out.getvalue(), err.getvalue()


def read_log(run_folder: Path) -> list[dict[str, Any]]:
    """The records of a run's log."""
    return [record for _, record in read_lines(run_folder / "log.jsonl")]


def chunks_of(vectors: Any) -> dict[str, Any]:
    """What late chunking returns: arrays by name."""
    return {
        "vectors": vectors.vectors,
        "spans": vectors.spans,
        "tokens": vectors.tokens,
        "passes": vectors.passes,
    }


def token_ids(encoder: Encoder, texts: list[str], prompt: str, max_length: int) -> list[list[int]]:
    """Token ids of texts as the model reads them."""
    return [
        row.tolist()
        for row in encoder.model.tokenizer.ids(texts, prompt=prompt, max_length=max_length).ids
    ]


def write_adapted(folder: Path, family: str, teacher: Path | None = None) -> Path:
    """Write a random model with an adapter a task, int8 ranges, golden vectors, and with a teacher
    a projection into its space.
    """
    module = tiny.student(family, seed=1)
    source = tiny.write_tokenizer(
        folder.with_name(f"{folder.name}-tokenizer"), end=family != "bert"
    )
    made = tiny.model(module, source, end=family != "bert")
    made.name = family
    for place, task in enumerate(TASKS):
        made.adapter_configs[task] = tiny.add_adapter(module, task, seed=7 + place)
    rng = np.random.default_rng(3)
    texts = [sentence(topic, rng) for topic in [*TOPICS] * 4]
    encoder = Encoder(made, threads=1)
    for name in (None, *TASKS):
        made.settings.int8_ranges[name or "base"] = ranges_to_json(
            fit_ranges(encoder.encode(texts, task=name), (8, 16, 32))
        )
    if teacher is not None:
        facts = {
            "model": str(teacher),
            "embedding_dim": 32,
            "space_id": Encoder.load(teacher, threads=1).space_id,
        }
        made.settings = replace(made.settings, teacher=facts)
        made.projection = Projection(32, 32, "identity").eval()
    write_model(
        folder,
        made,
        extra_files={GOLDEN_FILE: json.dumps(golden_vectors(embed_with(made), list(module.tasks)))},
    )
    return folder


def open_index(path: Path) -> Any:
    """An index folder, to be served."""
    return Index.open(path)
