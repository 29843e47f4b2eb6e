"""A student with a vocabulary of its own: learned from stage 1's texts, its token table mixed from the initial model's, kept in the run."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from taskdistill.io.folders import write_folder
from taskdistill.io.sealed import dump_json
from taskdistill.model.backbone import read_json
from taskdistill.model.model import Model
from taskdistill.model.prune_vocabulary import replace_embeddings
from taskdistill.model.student import TransformerModel
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.pipeline.context import RunContext, drawn, made_before, resume_meta
from taskdistill.train.vocab import learn_beside
from taskdistill.train.vocab_transfer import read_pairs, transfer_embeddings

FOLDER, KIND, TABLE = "student-tokenizer", "tokenizer", "table.safetensors"
NAMED = (
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


def learn_own_vocabulary(run: RunContext, student: Model) -> None:
    """Learn the vocabulary and make its token table, unless the run has them.

    Args:
        run: The run; its recipe asks for a vocabulary.
        student: The student before its first step, with the initial vocabulary; it is not changed.

    Raises:
        BadInput: If the run has one that was made from other data or settings.
    """
    settings, folder = run.recipe.student.vocabulary, run.out / FOLDER
    assert settings is not None and isinstance(student.module, TransformerModel)
    if made_before(run, "stage1", folder, KIND):
        return
    start = time.monotonic()
    pairs = read_pairs(run.plans["stage1"])
    texts = drawn(
        list(dict.fromkeys(student_text for student_text, _ in pairs)),
        settings.texts,
        run.recipe.seed,
    )
    run.progress.stage(f"learning {settings.size:,} pieces from {len(texts):,} texts")
    tokenizer = learn_beside(
        texts, settings.size, student.tokenizer, keep_words=settings.keep_words
    )
    pairs = drawn(pairs, settings.pairs, run.recipe.seed)
    run.progress.stage(
        f"aligning its pieces with the initial ones in {len(pairs):,} pairs of texts"
    )
    table = student.module.backbone.get_input_embeddings().weight.detach()
    rows, is_old = transfer_embeddings(tokenizer, student.tokenizer, pairs, table, run.recipe.seed)
    run.progress.note(
        f"vocabulary: {len(rows):,} pieces, {int(is_old.sum()):,} with the row that they had, which stays"
    )
    with write_folder(folder, KIND, meta=resume_meta(run, "stage1")) as beside:
        (beside / "tokenizer.json").write_text(tokenizer.to_json(), "utf-8")
        (beside / "tokenizer_config.json").write_text(dump_json(_side_file(student)), "utf-8")
        save_file(
            {"rows": rows.contiguous(), "kept": is_old}, beside / TABLE, metadata={"format": "pt"}
        )
    run.timed("vocabulary", start)


def with_own_vocabulary(student: Model, out: Path) -> Model:
    """Give the student the vocabulary of its run.

    Args:
        student: The student before its first step; its module is changed.
    """
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


def kept_rows(run: RunContext, model: TransformerModel) -> dict[str, torch.Tensor]:
    """Say which rows of the token table stay as they are in training.

    Returns:
        Name of the table to `(pieces,)` of bool; nothing where the recipe asks for no vocabulary.
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
    return {key: fields[key] for key in NAMED if key in fields} | {
        "tokenizer_class": "PreTrainedTokenizerFast"
    }
