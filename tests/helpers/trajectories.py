"""Twenty steps of every phase with a vocabulary of 30,000 tokens, by one process or by several that
share the batches.

`CASES` are run by `run_case`, in this process with `ALONE` or in children that
`process_child.run(size, "trajectories", OUT)` starts once for all of them; what they return is
compared number by number.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    EuroBertConfig,
    EuroBertModel,
    Qwen3Config,
    Qwen3Model,
)

from taskdistill.data.rows import LabeledText, Pair, ScoredPair, Text, make_dataset
from taskdistill.model.backbone import without_dropout
from taskdistill.model.lora import adapter_parameters
from taskdistill.model.packed_attention import ATTENTION
from taskdistill.model.projection import Projection
from taskdistill.model.student import TransformerModel
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.pipeline import phases
from taskdistill.progress import SilentProgress
from taskdistill.recipe.phases import AdapterConfig, Stage1Config
from taskdistill.tasks import Task
from taskdistill.train import fsdp, loop
from taskdistill.train import gradients as step
from taskdistill.train.base_vectors import base_vectors
from taskdistill.train.context import Phase, TrainContext
from taskdistill.train.distributed import SINGLE, ProcessGroup
from taskdistill.train.fsdp import full_tensor
from taskdistill.train.log import Log
from taskdistill.train.loop import run_phase
from taskdistill.train.phases import build_adapter, build_stage1, plan_phase
from taskdistill.train.validation import Validation
from taskdistill.train.workers import workers
from taskdistill.types import Pooling, RowKind

VOCABULARY = 30_000
STEPS = 20
WIDTH, TEACHER, DIMS = 16, 12, (4, 8, 16)
OFTEN = 400
"""Words that texts often share; the others are looked up by one text in twenty steps, so most rows
of a step are new.
"""
SKIPPED = 8
"""Step whose loss is not finite in the cases that skip one."""
SHORT = {
    3: ("first forward", -1),
    6: ("middle forward", 0),
    9: ("loss", 1),
    12: ("backward", 0),
    15: ("backward", -1),
}
"""Step to the place where memory runs out in the cases in which it does, and the process on which.
"""
FEW = {step: place for step, place in SHORT.items() if place[0] != "middle forward"}
"""The same, for batches of which a process has one micro-batch."""
STAYS = 300
"""The first rows of the token table, which stay as they are in the cases that keep some."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One phase under some circumstances."""

    name: str
    phase: str
    family: str = "bert"
    shard: str = "none"
    dtype: torch.dtype = torch.float64
    settings: dict[str, Any] = field(default_factory=dict)
    keep_tokens: int = 10**9
    """0 runs every batch twice (gradient caching)."""
    skips: bool = False
    short: dict[int, tuple[str, int]] = field(default_factory=dict)
    """See `SHORT`."""
    twice: bool = False
    """Whether the phase is run again with the same workers, on the model that it has trained."""
    stays: bool = False
    """Whether some rows of the token table stay."""
    slow: float = 0.0
    """Seconds for which the first process writes a checkpoint, and scores the model before the
    first step, while the others wait.
    """


EVERY_STAGE_1_TERM = {
    "distill": 1.0,
    "l2": 0.5,
    "mse": 1.0,
    "score_softmax": 0.3,
    "similarity": 1.0,
    "relative": 0.5,
    "rkd_distance": 0.5,
    "rkd_angle": 0.5,
    "teacher_nce": 0.2,
    "list_kl": 0.3,
}
EVERY_PAIR_TERM = {
    "info_nce": 1.0,
    "binary_info_nce": 0.2,
    "int8_info_nce": 0.2,
    "gor": 1.0,
    "gor_hinged": 0.5,
    "centre": 0.5,
    "relational": 2.0,
    **EVERY_STAGE_1_TERM,
    "distill": 2.0,
}


def cases() -> Iterator[Case]:
    """Every phase and objective, replicated and divided, and what may happen on the way."""
    many: dict[str, Any] = {"weights": EVERY_STAGE_1_TERM, "clip": 0.05}
    for shard in ("none", "full"):
        yield Case(
            name=f"stage1, by parts, twice, {shard}", phase="stage1", shard=shard, twice=True
        )
        sums: dict[str, Any] = {"reduction": "sum"}
        yield Case(
            name=f"stage1, sum, by parts, {shard}",
            phase="stage1",
            shard=shard,
            settings=sums,
            skips=True,
            short={12: ("backward", -1)},
        )
        yield Case(
            name=f"stage1, every term, {shard}",
            phase="stage1",
            shard=shard,
            settings=many,
            short=SHORT,
        )
        table: dict[str, Any] = {"freeze_layers": True, "weights": {"similarity": 1.0}}
        yield Case(
            name=f"stage1, table alone, {shard}",
            phase="stage1",
            shard=shard,
            settings=table,
            stays=True,
        )
        layers: dict[str, Any] = {
            "freeze_embeddings": True,
            "weights": {"distill": 1.0, "score_softmax": 1.0},
        }
        yield Case(
            name=f"stage1, layers alone, {shard}",
            phase="stage1",
            family="eurobert",
            shard=shard,
            settings=layers,
        )
        long: dict[str, Any] = many | {"matryoshka": False}
        yield Case(
            name=f"long, cached, {shard}",
            phase="long",
            family="qwen3",
            shard=shard,
            settings=long,
            skips=True,
            keep_tokens=0,
            short=SHORT,
        )
        yield Case(
            name=f"float32, {shard}",
            phase="stage1",
            shard=shard,
            settings=many,
            dtype=torch.float32,
        )
    pairs: dict[str, Any] = {"weights": EVERY_PAIR_TERM, "train_projection": True, "clip": 0.5}
    yield Case(name="retrieval", phase="retrieval", settings={"clip": 1e9})
    yield Case(name="retrieval, every term", phase="retrieval", settings=pairs, short=SHORT)
    yield Case(
        name="retrieval, cached",
        phase="retrieval",
        family="qwen3",
        keep_tokens=0,
        skips=True,
        short=SHORT,
    )
    yield Case(
        name="retrieval, in parts",
        phase="retrieval",
        settings={"batch_size": 32, "micro_batch_tokens": 4096, "clip": 1e9},
    )
    yield Case(
        name="retrieval, near the floor",
        phase="retrieval",
        settings={"temperature": 0.0009, "lr": 0.05},
    )
    graded: dict[str, Any] = {"weights": {"cosent": 1.0, **EVERY_PAIR_TERM}}
    yield Case(name="text-matching", phase="text-matching", family="eurobert")
    yield Case(
        name="text-matching, every term",
        phase="text-matching",
        family="qwen3",
        keep_tokens=0,
        settings=graded,
        skips=True,
    )
    yield Case(
        name="clustering",
        phase="clustering",
        settings={"weights": {"distill": 1.0, "similarity": 1.0}},
        short=FEW,
    )
    yield Case(name="clustering, by parts", phase="clustering", family="qwen3", skips=True)
    yield Case(name="classification", phase="classification", settings={"learn_temperature": True})
    yield Case(
        name="classification, cached",
        phase="classification",
        keep_tokens=0,
        skips=True,
        short={3: ("base", 1), **SHORT, 5: ("base", 0)},
    )
    yield Case(name="float32 retrieval", phase="retrieval", dtype=torch.float32)


CORE = ("stage1, by parts, twice, none", "stage1, every term, full", "retrieval, every term")
"""What two processes run in every test run; the others are slow together."""
FEW_CASES = ("stage1, every term, none", "long, cached, full")
"""What three processes run in every test run: with `CORE` every phase, terms that need the whole
batch and such as need only a part of it, whole and divided weights, batches that are run once
and twice, and memory that runs out at each place.
"""


def tier(which: str) -> list[Case]:
    """The cases of a tier, `few`, `core` or `all`, or the one of a name."""
    names = {"few": FEW_CASES, "core": CORE}.get(which, (which,))
    return [case for case in cases() if which == "all" or case.name in names]


def word(number: int) -> str:
    return f"w{number}"


def big_tokenizer() -> TextTokenizer:
    """One token a word, `[CLS]` before and `[SEP]` behind a text."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "query", "document", ":"]
    vocabulary = {
        name: i
        for i, name in enumerate([*names, *(word(n) for n in range(VOCABULARY - len(names)))])
    }
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return TextTokenizer(made)


def big_student(family: str, dtype: torch.dtype) -> TransformerModel:
    torch.manual_seed(3)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "pad_token_id": 0,
    }
    if family == "bert":
        backbone: Any = BertModel(BertConfig(**shape), add_pooling_layer=False)
    elif family == "eurobert":
        backbone = EuroBertModel(
            EuroBertConfig(
                **shape,
                num_key_value_heads=1,
                head_dim=8,
                mask_token_id=4,
                bos_token_id=None,
                eos_token_id=3,
            )
        )
    else:
        backbone = Qwen3Model(
            Qwen3Config(
                **shape, num_key_value_heads=1, head_dim=8, bos_token_id=None, eos_token_id=3
            )
        )
    backbone.set_attn_implementation(ATTENTION)
    without_dropout(backbone)
    return TransformerModel(backbone.to(dtype), Pooling.MEAN if family == "bert" else Pooling.LAST)


def rows(kind: RowKind, count: int, seed: int) -> list[Any]:
    rng = np.random.default_rng(seed)

    def text() -> str:
        often = rng.integers(0, OFTEN, size=int(rng.integers(2, 7)))
        seldom = rng.integers(OFTEN, VOCABULARY - 10, size=int(rng.integers(2, 9)))
        return " ".join(word(int(n)) for n in rng.permutation([*often, *seldom]))

    if kind is RowKind.PAIRS:
        return [Pair(text(), text(), (text(), text())) for _ in range(count)]
    if kind is RowKind.SCORED:
        return [ScoredPair(text(), text(), n % 3 / 2) for n in range(count)]
    if kind is RowKind.LABELLED:
        return [LabeledText(text(), "abc"[n % 3]) for n in range(count)]
    return [Text(text()) for _ in range(count)]


class Store:
    """A teacher whose vector of a text follows from the text."""

    embedding_dim = TEACHER

    def __init__(self) -> None:
        self.texts: list[str] = []

    def locate(self, texts: Sequence[str]) -> np.ndarray:
        self.texts = list(texts)
        return np.arange(len(texts))

    def take(self, places: np.ndarray) -> np.ndarray:
        seeds = [
            int.from_bytes(hashlib.sha256(self.texts[place].encode()).digest()[:8], "big")
            for place in places
        ]
        made = np.stack(
            [np.random.default_rng(seed).normal(size=TEACHER) for seed in seeds]
        ).astype(np.float32)
        return made / np.linalg.norm(made, axis=1, keepdims=True)


PHASE = {
    "steps": STEPS,
    "batch_size": 8,
    "max_length": 24,
    "lr": 3e-3,
    "checkpoint_every": STEPS,
    "micro_batch_tokens": 48,
}


def job_of(case: Case, model: TransformerModel) -> Phase:
    projection = Projection(WIDTH, TEACHER).to(case.dtype)
    stores: Any = dict.fromkeys(("query", "document", "topic"), Store())
    if case.phase in ("stage1", "long"):
        data = [
            make_dataset("pairs", RowKind.PAIRS, rows(RowKind.PAIRS, 60, 1)),
            make_dataset("texts", RowKind.TEXTS, rows(RowKind.TEXTS, 60, 2)),
        ]
        own = (
            {"micro_batch_tokens": 64} if case.shard == "full" else {}
        )  # every pass of theirs is many exchanges
        used = data[:1] if "list_kl" in case.settings.get("weights", {}) else data
        settings = Stage1Config(
            **PHASE
            | {"sources": {each.name: 1.0 for each in used}, "shard": case.shard}
            | own
            | case.settings
        )
        plan = plan_phase(5, case.phase, settings, {each.name: each for each in used})
        return build_stage1(case.phase, settings, model, plan, stores, projection, DIMS)
    task = Task(case.phase)
    kinds = {
        Task.RETRIEVAL: [RowKind.PAIRS],
        Task.TEXT_MATCHING: [RowKind.SCORED, RowKind.PAIRS],
        Task.CLUSTERING: [RowKind.TEXTS],
        Task.CLASSIFICATION: [RowKind.LABELLED],
    }[task]
    data = [
        make_dataset(kind.value, kind, rows(kind, 60, place)) for place, kind in enumerate(kinds)
    ]
    own = {"rank": 4, "alpha": 8} | ({"negatives": 2} if task is not Task.CLUSTERING else {})
    own |= {"false_negative_margin": 0.3} if task is Task.RETRIEVAL else {}
    adapter = AdapterConfig(
        **PHASE | {"sources": {each.name: 1.0 for each in data}} | own | case.settings
    )
    plan = plan_phase(5, f"adapters.{task.value}", adapter, {each.name: each for each in data})
    torch.manual_seed(9)
    job, _ = build_adapter(task, adapter, model, plan, stores, projection, DIMS)
    for parameter in (
        *adapter_parameters(model.backbone, task.value).values(),
        *job.heads.named().values(),
    ):
        parameter.data = parameter.data.to(case.dtype)
    return job


def spoilt(job: Phase) -> Phase:
    """The job with a loss that is not finite at one step."""
    objective = job.objective

    def made(vectors: Tensor, prepared: Any, *others: Any) -> Any:
        terms, masked = objective(vectors, prepared, *others)
        bad = prepared.batch.step == SKIPPED
        return {name: term * math.nan if bad else term for name, term in terms.items()}, masked

    return replace(job, objective=made)


class Memory:
    """Runs out once at each of some steps, at one place, on one process; one process alone has
    enough.

    At a place `always ...` it runs out whenever that place is reached in the step; at a place
    `other ...` the failure is another one.
    """

    def __init__(self, case: Case, processes: ProcessGroup) -> None:
        self.case, self.processes = case, processes
        self.place, self.left = "", 0

    def at(self, step: int) -> None:
        """Get ready for a step."""
        self.place, rank = self.case.short.get(step, ("", 0))
        self.left = 2 if self.place == "middle forward" else 1
        if self.processes.size == 1 or rank % self.processes.size != self.processes.rank:
            self.place = ""

    def reach(self, place: str) -> None:
        """Fail if this is the place."""
        if place == self.place.removeprefix("always ").removeprefix("other "):
            self.left -= 1
            if self.left == 0 and self.place.startswith("other "):
                raise LookupError("a fault of this process alone")
            if self.left == 0:
                self.place = self.place if self.place.startswith("always ") else ""
                self.left = 1
                raise MemoryError

    def wrap(self, job: Phase) -> Phase:
        """Return the job with a loss that may fail."""

        def prepared_of(batch: Any) -> Any:
            self.at(batch.step)
            return job.prepare(batch)

        def loss(vectors: Tensor, prepared: Any, *others: Any) -> Any:
            if len(vectors) == len(prepared.texts):  # not the share of a piece
                self.reach("loss")
            return job.objective(vectors, prepared, *others)

        return replace(job, prepare=prepared_of, objective=loss)

    @contextmanager
    def patched(self) -> Iterator[None]:
        """Let the optimiser's update fail, and what FSDP allocates for an exchange."""
        update, allocate = torch.optim.AdamW.step, fsdp._Allocates.allocate

        def step_of(*given: Any, **named: Any) -> Any:
            self.reach("optimiser")
            return update(*given, **named)

        def allocated(*given: Any, **named: Any) -> Any:
            self.reach("allocation")
            return allocate(*given, **named)

        torch.optim.AdamW.step, fsdp._Allocates.allocate = step_of, allocated
        try:
            yield
        finally:
            torch.optim.AdamW.step, fsdp._Allocates.allocate = update, allocate

    def watch(self, model: TransformerModel) -> None:
        """Let the attention of the second layer fail, in a pass of the base, or forward,
        or back.
        """
        layer = (
            model.backbone.encoder.layer[1]
            if self.case.family == "bert"
            else model.backbone.layers[1]
        )
        inner = layer.attention if self.case.family == "bert" else layer.self_attn

        def back(gradient: Tensor) -> Tensor:
            self.reach("backward")
            return gradient

        def before(*_: Any) -> None:
            for place in ("base", "first forward", "middle forward"):
                self.reach(place)

        def behind(module: Any, given: Any, made: Any) -> None:
            if made[0].requires_grad:
                made[0].register_hook(back)

        inner.register_forward_pre_hook(before)
        inner.register_forward_hook(behind)


def run_case(
    case: Case, folder: Path, processes: ProcessGroup = SINGLE, *, threads: int = 1
) -> dict[str, Any]:
    """Run a case.

    Returns:
        losses, norms and so on, one a step, the whole weights at the end, and how often memory ran
        out.
    """
    model, records = big_student(case.family, case.dtype), list[dict[str, Any]]()
    job = spoilt(job_of(case, model)) if case.skips else job_of(case, model)
    gradients = loop.gradients
    loop.gradients = lambda *given, **named: step.gradients(
        *given[:4], replace(given[4], keep_tokens=case.keep_tokens), **named
    )
    holder: Any = SimpleNamespace(processes=processes, progress=SilentProgress())
    memory, during = Memory(case, processes), None
    folder.mkdir(parents=True, exist_ok=True)
    save = loop.save_checkpoint
    if case.slow:

        def slowly(*given: Any, **named: Any) -> None:
            save(*given, **named)
            time.sleep(case.slow if named["write"] else 0.0)

        def score() -> dict[str, float]:
            time.sleep(0.0 if records else case.slow)
            return {"mean": 0.5}

        loop.save_checkpoint, during = slowly, Validation(STEPS, score)
    if case.stays:
        table = model.backbone.get_input_embeddings().weight
        rows_that_stay = torch.arange(VOCABULARY) < STAYS
        job = replace(
            job, frozen_rows={name: rows_that_stay for name, p in job.trained.items() if p is table}
        )
    try:
        with (
            memory.patched(),
            phases._placed(holder, memory.wrap(job), model, torch.device("cpu")) as (
                placed,
                trained,
            ),
            workers(1 if case.shard == "full" else threads) as pool,
        ):
            memory.watch(trained)

            def on_step(record: dict[str, Any]) -> None:
                records.append(record)
                pool.halvings = (
                    0  # so that a later step runs out of memory in whole micro-batches again
                )

            for number in range(1 + case.twice):
                ctx = TrainContext(
                    tokenizer=big_tokenizer(),
                    prompts={"query": "query: ", "document": "document: "},
                    seed=11,
                    threads=pool,
                    log=Log(
                        folder / f"{case.name.replace(' ', '-')}-{number}-{processes.rank}.jsonl"
                    ),
                    meta={},
                    on_step=on_step,
                    should_stop=lambda: False,
                    thread_count=1,
                    note=lambda note: None,
                    processes=processes,
                    during=during,
                )
                run_phase(placed, trained, folder / case.name.replace(" ", "-") / str(number), ctx)
            everything = placed.trained | placed.moving_heads()
            final = {name: full_tensor(p.detach()).clone() for name, p in everything.items()}
        published = dict(
            model.backbone.named_parameters()
        )  # a divided copy is carried back into the whole model at the end
        assert all(
            torch.equal(published[name], weight)
            for name, weight in final.items()
            if name in published
        )
    finally:
        loop.gradients, loop.save_checkpoint = gradients, save
    return {
        "losses": [record["loss"] for record in records],
        "norms": [record["grad_norm"] for record in records],
        "terms": [record["terms"] for record in records],
        "skipped": [record["skipped"] for record in records],
        "clipped": [record["clipped"] for record in records],
        "temperatures": [record.get("temperature") for record in records],
        "ran out": [record.get("out_of_memory", 0) for record in records],
        "weights": final,
    }


def base_of(processes: ProcessGroup = SINGLE) -> tuple[Tensor, int]:
    """Vectors of a batch without adapter, and how many of its texts this process embedded."""
    model, rng = big_student("qwen3", torch.float32), np.random.default_rng(4)
    ids = [
        rng.integers(5, VOCABULARY, size=int(n)).astype(np.int32)
        for n in rng.integers(2, 20, size=40)
    ]
    embed, embedded = model.embed, list[int]()

    def counted(some: Sequence[np.ndarray]) -> Tensor:
        embedded.append(len(some))
        return embed(some)

    model.embed = counted
    with workers(1) as pool:
        return base_vectors(
            model, ids, threads=pool, micro_batch_tokens=64, processes=processes
        ), sum(embedded)


def run_some(out: Path, processes: ProcessGroup, which: str) -> None:
    """Run the cases of a tier on processes that work together, and write what each found."""
    found: dict[str, Any] = {
        case.name: run_case(case, out / "run", processes) for case in tier(which)
    }
    found["base"] = base_of(processes)
    torch.save(found, out / f"{processes.rank}.pt")
