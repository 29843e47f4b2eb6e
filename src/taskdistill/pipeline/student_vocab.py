"""A student with a vocabulary of its own.

Learned from stage 1's texts, its token table mixed from the initial model's, kept in the run.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file

from taskdistill.io.folders import write_folder
from taskdistill.io.sealed import dump_json
from taskdistill.model.backbone import read_json
from taskdistill.model.model import Model
from taskdistill.model.prune_vocabulary import replace_embeddings
from taskdistill.model.student import TransformerModel
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.pipeline.context import RunContext
from taskdistill.pipeline.resume import is_finished, resume_meta
from taskdistill.seeding import torch_seed
from taskdistill.train.vocab import learn_beside
from taskdistill.train.vocab_transfer import read_pairs, transfer_embeddings

T = TypeVar("T")

FOLDER, KIND, TABLE = "student-tokenizer", "tokenizer", "table.safetensors"
TOKENIZER_FIELDS = (
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
    "bos_token",
    "eos_token",
    "model_max_length",
)
"""What the initial tokenizer's settings say that stays true of the new one."""


def sample(items: list[T], limit: int, seed: int) -> list[T]:
    """Draw items without replacement, at most `limit`, in their order."""
    if len(items) <= limit:
        return items
    generator = torch.Generator().manual_seed(torch_seed(seed))
    chosen = torch.randperm(len(items), generator=generator)[:limit]
    return [items[i] for i in sorted(chosen.tolist())]


def learn_student_vocab(run: RunContext, student: Model) -> None:
    """Learn the vocabulary and mix its token table, unless the run has them.

    The student is not changed.
    """
    settings, folder = run.recipe.student.vocabulary, run.out / FOLDER
    assert settings is not None and isinstance(student.module, TransformerModel)
    if is_finished(run, "stage1", folder, KIND):
        return
    start = time.monotonic()
    pairs = read_pairs(run.plans["stage1"])
    texts = sample(
        list(dict.fromkeys(student_text for student_text, _ in pairs)),
        settings.texts,
        run.recipe.seed,
    )
    run.progress.stage(f"learning {settings.size:,} pieces from {len(texts):,} texts")
    tokenizer = learn_beside(
        texts, settings.size, student.tokenizer, keep_words=settings.keep_words
    )
    pairs = sample(pairs, settings.pairs, run.recipe.seed)
    run.progress.stage(
        f"aligning its pieces with the initial ones in {len(pairs):,} pairs of texts"
    )
    table = student.module.backbone.get_input_embeddings().weight.detach()
    rows, is_old = transfer_embeddings(tokenizer, student.tokenizer, pairs, table, run.recipe.seed)
    run.progress.note(
        f"vocabulary: {len(rows):,} pieces, {int(is_old.sum()):,} with the row that they had, "
        "which stays"
    )
    with write_folder(folder, KIND, meta=resume_meta(run, "stage1")) as beside:
        (beside / "tokenizer.json").write_text(tokenizer.to_json(), "utf-8")
        (beside / "tokenizer_config.json").write_text(dump_json(_side_file(student)), "utf-8")
        save_file(
            {"rows": rows.contiguous(), "kept": is_old}, beside / TABLE, metadata={"format": "pt"}
        )
    run.timed("vocabulary", start)


def with_student_vocab(student: Model, out: Path) -> Model:
    """Give the student before its first step the vocabulary of its run; its module is changed."""
    assert isinstance(student.module, TransformerModel)
    folder = out / FOLDER
    tokenizer, rows = TextTokenizer.load(folder), load_file(folder / TABLE)["rows"]
    carried = {
        number: tokenizer.backend.token_to_id(token.content)
        for number, token in _special(student.tokenizer)
    }
    replace_embeddings(
        student.module,
        rows,
        {number: place for number, place in carried.items() if place is not None},
    )
    return replace(student, tokenizer=tokenizer, source=folder)


def unchanged_rows(run: RunContext, model: TransformerModel) -> dict[str, torch.Tensor]:
    """Say which rows of the token table stay as they are in training.

    Returns name of the table to `(pieces,)` of bool; nothing where the recipe asks for no
    vocabulary.
    """
    if run.recipe.student.vocabulary is None:
        return {}
    table = model.backbone.get_input_embeddings().weight
    is_old = load_file(run.out / FOLDER / TABLE)["kept"]
    return {
        name: is_old for name, parameter in model.backbone.named_parameters() if parameter is table
    }


def _special(tokenizer: TextTokenizer) -> list[tuple[int, Any]]:
    return [
        (number, token)
        for number, token in tokenizer.backend.get_added_tokens_decoder().items()
        if token.special
    ]


def _side_file(student: Model) -> dict[str, Any]:
    path = student.source / "tokenizer_config.json"
    fields = read_json(path) if path.is_file() else {}
    return {key: fields[key] for key in TOKENIZER_FIELDS if key in fields} | {
        "tokenizer_class": "PreTrainedTokenizerFast"
    }
