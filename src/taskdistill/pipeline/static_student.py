"""The instant student of a run: its vocabulary, its table, its training and its folder."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from tokenizers import Tokenizer

from taskdistill.data.rows import row_texts
from taskdistill.device import CPU
from taskdistill.io.atomic import restore
from taskdistill.io.folders import read_manifest, require_same, write_folder
from taskdistill.model.model import Model
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.pipeline.context import RunContext
from taskdistill.pipeline.phases import train_phase
from taskdistill.pipeline.resume import is_finished, resume_meta
from taskdistill.pipeline.save_model import save_static
from taskdistill.pipeline.student_vocab import sample
from taskdistill.pipeline.teacher_store import fill_stores
from taskdistill.seeding import torch_seed
from taskdistill.train.phase_folder import save_phase
from taskdistill.train.phases import build_static, learned_texts, static_phase
from taskdistill.train.static_init import start_from_texts, start_table
from taskdistill.train.vocab import learn_vocabulary

TOKENIZER = "tokenizer"
"""Folder of a run that holds a vocabulary of its own, and its kind."""


def train_static(run: RunContext, student: Model) -> Path:
    """Train the instant student, the first result of a run, and return its folder."""
    settings = run.recipe.static
    assert settings is not None
    torch.manual_seed(torch_seed(run.recipe.seed))
    config, store = static_phase(settings), run.stores["document"]
    folder = run.out / ("model" if run.recipe.stage1 is None else "static-model")
    fill_stores(run, ["static"])
    if restore(folder):
        data = resume_meta(run, "static")["data"]
        require_same(folder, read_manifest(folder, "model")["inputs"], {"data": data})
        return folder
    plan = run.plans["static"]
    tokenizer = (
        TextTokenizer.load(student.source, special=False)
        if settings.vocabulary is None
        else _learn_vocabulary(run)
    )
    start = time.monotonic()
    read, counted = learned_texts("static", config, plan)
    if settings.start == "tokens":
        run.progress.stage("embedding the vocabulary with the teacher")
        table = start_table(
            tokenizer, run.teacher, store, [teacher_text for _, teacher_text in read], run.count
        )
        run.timed("teacher", start)
    else:
        run.progress.stage("starting the table from the texts")
        table = start_from_texts(
            tokenizer, store, read, counted, noise=settings.noise, seed=run.recipe.seed
        )
        run.timed("static start", start)
    phase = build_static(
        settings,
        table,
        plan,
        store,
        [dim for dim in run.recipe.student.matryoshka_dims if dim <= table.embedding_dim],
    )
    trained = train_phase(run, phase, table, tokenizer, {})
    table.to(CPU)
    if trained:
        save_phase(run.out / "phases" / phase.name, phase, resume_meta(run, phase.name))
    save_static(run, table, tokenizer, folder, [student_text for student_text, _ in read])
    return folder


def _learn_vocabulary(run: RunContext) -> TextTokenizer:
    """Learn the vocabulary, or read it where an interrupted run has left it."""
    assert run.recipe.static is not None and run.recipe.static.vocabulary is not None
    settings, folder = run.recipe.static.vocabulary, run.out / TOKENIZER
    if not is_finished(run, "static", folder, TOKENIZER):
        start = time.monotonic()
        texts = _vocabulary_texts(run)
        run.progress.stage(f"learning {settings.size:,} pieces from {len(texts):,} texts")
        learned: Tokenizer = learn_vocabulary(texts, settings.size)
        with write_folder(folder, TOKENIZER, meta=resume_meta(run, "static")) as beside:
            (beside / "tokenizer.json").write_text(
                TextTokenizer(learned, special=False).to_json(), "utf-8"
            )
        run.timed("vocabulary", start)
    return TextTokenizer.load(folder, special=False)


def _vocabulary_texts(run: RunContext) -> list[str]:
    assert run.recipe.static is not None and run.recipe.static.vocabulary is not None
    settings = run.recipe.static.vocabulary
    names = (
        settings.sources
        if settings.sources is not None
        else [name for name, weight in run.recipe.static.sources.items() if weight > 0]
    )
    texts = dict.fromkeys(
        text for name in names for row in run.inputs.datasets[name].rows for text in row_texts(row)
    )
    return sample(list(texts), settings.texts, run.recipe.seed)
