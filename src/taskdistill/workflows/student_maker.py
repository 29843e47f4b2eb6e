"""A static student made of a teacher in a minute, to see what the teacher is worth."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from taskdistill.data.batches import BatchPlan
from taskdistill.data.rows import Text, make_dataset
from taskdistill.errors import BadInput
from taskdistill.evaluate.protocol import Embedder
from taskdistill.io.folders import read_manifest
from taskdistill.io.sealed import hash_json
from taskdistill.model.folder import write_model
from taskdistill.model.model import Model
from taskdistill.model.settings import ModelSettings
from taskdistill.model.student import StaticModel
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.progress import Progress, never
from taskdistill.recipe.phases import StaticConfig
from taskdistill.seeding import torch_seed
from taskdistill.tasks import Role
from taskdistill.teacher.fill import fill_store
from taskdistill.teacher.protocol import TeacherIdentity, slug, unit_rows
from taskdistill.teacher.store import TeacherStore, open_store
from taskdistill.train.context import Phase, TrainContext
from taskdistill.train.log import Log
from taskdistill.train.loop import run_phase
from taskdistill.train.phases import build_static, static_phase, teacher_needs
from taskdistill.train.static_init import start_table
from taskdistill.train.workers import workers
from taskdistill.types import MANIFEST, RowKind

STUDENT = ": student"
"""What follows a teacher's name in the name of its student."""

LONG_TEXT = 512
"""Tokens of one text from which the vocabulary to embed is read."""


@dataclass(frozen=True)
class StudentBudget:
    """How long a student is trained: about a minute with a small teacher.

    Attributes:
        texts: Training texts that the teacher embeds, at most.
    """

    texts: int = 4000
    steps: int = 400
    batch_size: int = 128
    seed: int = 17


class EmbedderTeacher:
    """Any model as a teacher: it is told nothing and reads every text as a document."""

    def __init__(self, model: Embedder) -> None:
        self.model = model
        self.identity = TeacherIdentity(
            kind="model", model=model.name, revision=None, weights=model.fingerprint()
        )
        self.embedding_dim: int | None = None

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embed texts. Returns Float32 (n, dim) unit rows."""
        return unit_rows(self.model.encode(texts, task=None, prompt_name=Role.DOCUMENT.value))


@dataclass(frozen=True, kw_only=True)
class StudentMaker:
    """Trains the static student of each teacher from the same texts; goes on where it stopped."""

    out: Path
    texts: Sequence[str]
    """Texts to train on."""
    vocabulary: Sequence[str]
    """Texts whose tokens get a vector: those and all of the evaluation sets."""
    budget: StudentBudget
    threads: int
    progress: Progress

    def make(self, model: Embedder, tokenizer: TextTokenizer) -> Path:
        """Make the static student of a teacher, unless the same one is there."""
        teacher, budget, progress = EmbedderTeacher(model), self.budget, self.progress
        ids = np.unique(
            np.concatenate(
                tokenizer.ids(list(self.vocabulary), prompt="", max_length=LONG_TEXT).ids
            )
        )
        inputs = {
            "teacher": hash_json(teacher.identity.fields()),
            "texts": hashlib.sha256("\n".join(self.texts).encode()).hexdigest(),
            "tokens": hashlib.sha256(tokenizer.to_json().encode() + ids.tobytes()).hexdigest(),
            "effort": json.dumps(vars(budget), sort_keys=True),
        }
        folder = self.out / "students" / f"{slug(model.name)}-{inputs['teacher'][:8]}"
        if (folder / MANIFEST).is_file() and read_manifest(folder, "model")["inputs"] == inputs:
            progress.note(f"{model.name}{STUDENT}: made before")
            return folder
        store = open_store(self.out / "teacher-store", teacher.identity, None)
        progress.stage(f"{model.name}: embedding {len(ids):,} tokens and {len(self.texts):,} texts")
        table = start_table(
            tokenizer, teacher, store, list(self.texts), progress.count, only=ids.tolist()
        )
        settings = StaticConfig(
            sources={"texts": 1.0},
            steps=budget.steps,
            batch_size=min(budget.batch_size, len(self.texts)),
        )
        dataset = make_dataset("texts", RowKind.TEXTS, [Text(text) for text in self.texts])
        plan = BatchPlan(
            [dataset], {"texts": 1.0}, settings.batch_size, seed=budget.seed, label="static"
        )
        self._fill(store, teacher, settings, plan)
        torch.manual_seed(torch_seed(budget.seed))
        phase = build_static(settings, table, plan, store, [table.embedding_dim])
        progress.stage(f"{model.name}{STUDENT}: {settings.steps} steps")
        self._train(phase, table, tokenizer, folder.parent)
        model_settings = ModelSettings(max_length=1_000_000, matryoshka_dims=(table.embedding_dim,))
        student = Model(
            module=table.eval(),
            tokenizer=tokenizer,
            settings=model_settings,
            name=folder.name,
            source=folder,
        )
        write_model(folder, student, inputs=inputs, replace_existing=True)
        return folder

    def _fill(
        self, store: TeacherStore, teacher: EmbedderTeacher, settings: StaticConfig, plan: BatchPlan
    ) -> None:
        texts = [
            text
            for prompt_texts in teacher_needs("static", static_phase(settings), plan).values()
            for text in prompt_texts
        ]
        fill_store(store, texts, teacher, progress=self.progress.count)
        if missing := store.missing(texts):
            raise BadInput(
                f"teacher {teacher.model.name!r} gives no usable vector for {len(missing)} texts, "
                f"the first {missing[0][:60]!r}"
            )

    def _train(
        self, phase: Phase, table: StaticModel, tokenizer: TextTokenizer, folder: Path
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=folder, prefix=".training-") as work,
            workers(self.threads) as pool,
        ):
            log = Log(Path(work) / "log.jsonl")
            ctx = TrainContext(
                tokenizer=tokenizer,
                prompts={},
                seed=self.budget.seed,
                threads=pool,
                log=log,
                meta={},
                on_step=self.progress.step,
                should_stop=never,
                thread_count=self.threads,
                note=self.progress.note,
            )
            run_phase(phase, table, Path(work) / "checkpoints", ctx)
            log.close()
