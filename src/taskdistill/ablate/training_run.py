"""A cell is one training of the experiment: an arm with a seed, a trial of tuning, or a first phase
that several arms share.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from taskdistill.ablate.arms import Arm, arm_of
from taskdistill.ablate.context import ExperimentContext
from taskdistill.ablate.costs import student_flops
from taskdistill.ablate.measure import TokenEmbedder, dev_scores, macro, test_scores
from taskdistill.ablate.phases import (
    ArmPhase,
    batches_hash,
    build_phase,
    initial_projection,
    phase_lengths,
    require_no_teacher,
)
from taskdistill.ablate.run_spec import TrainingRun
from taskdistill.device import CPU
from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput, WorkFailed
from taskdistill.io.lock import writer_lock
from taskdistill.io.outputs import remove_names
from taskdistill.io.sealed import read_sealed, write_sealed
from taskdistill.model.fingerprint import weights_hash
from taskdistill.model.folder import write_model
from taskdistill.model.inference import put_rope, read_rope
from taskdistill.model.model import Model
from taskdistill.model.projection import Projection
from taskdistill.model.rope import set_rope_theta
from taskdistill.model.student import StaticModel
from taskdistill.train.context import Phase, TrainContext
from taskdistill.train.log import Log, read_lines
from taskdistill.train.loop import run_phase
from taskdistill.train.phase_folder import load_phase, save_phase
from taskdistill.train.targets import TargetLookup
from taskdistill.train.validation import remove_state
from taskdistill.train.workers import workers
from taskdistill.versions import versions

RESULT = "result.json"
TRIAL_SEED = 1_000_003
"""Added to the recipe's seed for trials, so that no seed of the experiment was tuned on."""

OnSteps = Callable[[int, int], None]


def result_of(context: ExperimentContext, spec: TrainingRun) -> dict[str, Any] | None:
    """Read a finished cell.

    Returns its result, or None while it is not finished. Raises BadInput if it was made by other
    settings or from other data.
    """
    path = context.out / spec.key / RESULT
    if not path.is_file():
        return None
    result: dict[str, Any] = read_sealed(path, "remove it to run this cell again")
    for name, value in spec.meta(context).items():
        if result["meta"].get(name) != value:
            raise BadInput(
                f"{path} was made with {name} = {result['meta'].get(name)!r}, this run has"
                f" {value!r}; use a new --out"
            )
    return result


def run_training(
    context: ExperimentContext,
    spec: TrainingRun,
    *,
    should_stop: Callable[[], bool],
    on_steps: OnSteps,
    note: Callable[[str], None],
) -> None:
    """Train and score a cell from its last checkpoint to its end; a finished one is left as it is.

    `spec`: the cell; the one that it needs is finished. `should_stop`: asked before every step;
    true saves and stops. `on_steps`: told (steps done, steps of this cell). Raises WorkFailed if it
    cannot be finished, or the base checkpoint is not the experiment's.
    """
    if result_of(context, spec) is not None:
        return
    folder = context.out / spec.key
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(context.experiment.recipe.threads or 1)
    with writer_lock(folder / "lock"):
        training = _TrainingRunner(
            context=context,
            spec=spec,
            folder=folder,
            should_stop=should_stop,
            on_steps=on_steps,
            note=note,
        )
        result = training.run()
        write_sealed(folder / RESULT, result)
        for phase in sorted((folder / "checkpoints").glob("phase-*")):
            remove_state(phase)
        remove_names(folder / "checkpoints", ())
        if spec.kind == "run" and context.experiment.ablation.keep_models:
            model = training.model
            write_model(
                folder / "model",
                replace(model, name=f"{spec.arm} seed {spec.seed}"),
                inputs=spec.meta(context),
                replace_existing=True,
            )


@dataclass(kw_only=True)
class _TrainingRunner:
    context: ExperimentContext
    spec: TrainingRun
    folder: Path
    should_stop: Callable[[], bool]
    on_steps: OnSteps
    note: Callable[[str], None]

    def __post_init__(self) -> None:
        self.arm: Arm = arm_of(self.spec.arm)
        self.model: Model = self.context.fresh()
        self.module = self.model.module
        self.device, self.arithmetic = self.context.device, self.context.arithmetic
        self.plan = self.context.plan(self.spec.seed, self.arm)
        self.lengths = phase_lengths(self.arm, self.spec.steps, self.context.experiment)
        self.every = max(1, self.spec.steps // self.context.experiment.ablation.points)
        self.dims = self.model.settings.matryoshka_dims
        self.done = 0

    def run(self) -> dict[str, Any]:
        checkpoint = self.context.checkpoint_hash
        base = weights_hash(self.module)
        self.module.to(self.device)
        if base != self.context.base_weights_hash:
            raise WorkFailed(
                f"{self.spec.key} does not start from the experiment's checkpoint; please report"
                " this"
            )
        projection = self._projection()
        started = None if projection is None else _hash(projection)
        with self._log() as log:
            for number, phase in self._phases(projection):
                if number == 0 and self.spec.kind != "first" and self.spec.first is not None:
                    shared = self.spec.needs()
                    assert shared is not None
                    if not load_phase(
                        self.context.out / shared.key / "phase", phase, shared.meta(self.context)
                    ):
                        raise WorkFailed(
                            f"{self.spec.key} goes on from {shared.key}, which is not finished; run"
                            " the same command again"
                        )
                    continue
                self._train(phase, log)
                if self.spec.kind == "first":
                    save_phase(self.folder / "phase", phase, self.spec.meta(self.context))
                    break
        self.module.eval()
        return {
            "meta": self.spec.meta(self.context),
            "cell": self.spec.settings(),
            "hashes": {
                "base": base,
                "checkpoint": checkpoint,
                "projection": started,
                "batches": batches_hash(self.plan, 0, sum(self.lengths)),
                "weights": weights_hash(self.module),
            },
            "curve": self._curve(),
            "budget": self._budget(),
            "test": self._test(),
            "threads": torch.get_num_threads(),
            "device": self.device.type,
            "precision": str(self.arithmetic),
            "versions": versions(),
        }

    def _phases(self, projection: Projection | None) -> Iterator[tuple[int, Phase]]:
        start = 0
        for number, (terms, steps) in enumerate(zip(self.arm.phases, self.lengths, strict=True)):
            last = number + 1 == len(self.lengths)
            point = self.spec.point if last or self.spec.first is None else self.spec.first
            described = ArmPhase(
                name=f"phase-{number + 1}",
                arm=self.arm,
                terms=terms,
                point=point,
                steps=steps,
                starts_at=start,
                every=self.every,
                dims=self.dims,
            )
            phase = build_phase(
                described,
                self.context.experiment,
                self.module,
                self.plan,
                projection,
                self.context.stores,
            )
            require_no_teacher(phase)
            yield number, phase
            start += steps

    def _projection(self) -> Projection | None:
        if not any("distill" in terms for terms in self.arm.phases):
            return None
        size = self.context.stores["document"].embedding_dim
        if size is None:
            raise WorkFailed("the teacher store is empty; run the same command again to fill it")
        return initial_projection(self.context.experiment, self.module, size, self.spec.seed)

    @contextmanager
    def _log(self) -> Iterator[Log]:
        log = Log(self.folder / "log.jsonl")
        try:
            yield log
        finally:
            log.close()

    def _train(self, phase: Phase, log: Log) -> None:
        total = self.spec.trained_steps(self.context)

        def on_step(record: dict[str, Any]) -> None:
            step = phase.starts_at + record["step"] + 1
            self.done = record["step"] + 1
            self.on_steps(self.done, total)
            if self.spec.kind != "trial" and (step % self.every == 0 or step == sum(self.lengths)):
                log.write({"phase": phase.name, "step": record["step"], "curve": self._point(step)})

        threads = self.context.experiment.recipe.threads or 1
        nn.ParameterList(phase.heads.named().values()).to(self.device)
        with (
            workers(threads if self.device == CPU else 1) as pool,
            self._theta(phase.settings.rope_theta),
        ):
            ctx = TrainContext(
                tokenizer=self.context.once or self.model.tokenizer,
                prompts=self.model.settings.prompts,
                seed=self.spec.seed,
                threads=pool,
                log=log,
                meta=self.spec.meta(self.context),
                on_step=on_step,
                should_stop=self.should_stop,
                thread_count=threads,
                note=lambda text: self.note(f"{self.spec.key}: {text}"),
                device=self.device,
                arithmetic=self.arithmetic,
            )
            if self.context.once is not None:
                self._tokenise(phase, ctx)
            run_phase(phase, self.module, self.folder / "checkpoints" / phase.name, ctx)

    def _tokenise(self, phase: Phase, ctx: TrainContext) -> None:
        """Make the tokens of all steps before the first, so that no arm pays for another's."""
        source = TargetLookup(phase, self.module, ctx)
        for step in range(phase.settings.steps):
            source.ids(phase.prepare(phase.plan.at(phase.starts_at + step)))

    @contextmanager
    def _theta(self, requested: float | None) -> Iterator[None]:
        """Compute at a RoPE theta for a while: training's in a phase, inference's where the student
        is scored meanwhile.
        """
        if requested is None or isinstance(self.module, StaticModel):
            yield
            return
        before = read_rope(self.module.backbone)
        set_rope_theta(self.module.backbone, requested)
        try:
            yield
        finally:
            put_rope(self.module.backbone, before)

    def _embedder(self) -> TokenEmbedder:
        encoder = Encoder(self.model, threads=self.context.experiment.recipe.threads or 1)
        return TokenEmbedder(encoder, self.context.tokens, name=self.spec.arm)

    def _point(self, step: int) -> dict[str, Any]:
        self.module.eval()
        with self._theta(self.model.settings.rope_theta):
            scores = dev_scores(self._embedder(), self.context.sets)
        self.module.train()
        return {
            "step": step,
            "score": macro(scores, self.context.sets.dev),
            "scores": scores,
            "distance": self._distance(),
        }

    def _distance(self) -> float:
        weights = self.context.base_weights
        squares = [
            float((p.detach().cpu() - weights[name]).double().square().sum())
            for name, p in self.module.named_parameters()
        ]
        return math.sqrt(sum(squares))

    def _records(self) -> list[dict[str, Any]]:
        records = [record for _, record in read_lines(self.folder / "log.jsonl")]
        shared = self.spec.needs()
        if shared is None:
            return records
        return [
            record for _, record in read_lines(self.context.out / shared.key / "log.jsonl")
        ] + records

    def _curve(self) -> list[dict[str, Any]]:
        """Points of the curve with the CPU-seconds of training up to each; the shared first phase
        counts in full.
        """
        points, spent = [], 0.0
        for record in self._records():
            if "terms" in record:
                spent += record["cpu_seconds"]
            elif "curve" in record:
                points.append({**record["curve"], "cpu_seconds": spent})
        if self.spec.kind == "trial" or not self.arm.phases:
            points.append(
                {**self._point(self.spec.steps if self.arm.phases else 0), "cpu_seconds": spent}
            )
            self.module.eval()
        return points

    def _budget(self) -> dict[str, Any]:
        records = [record for record in self._records() if "terms" in record]
        parts: dict[str, float] = {}
        for record in records:
            for part, seconds in record["seconds"].items():
                parts[part] = parts.get(part, 0.0) + seconds
        tokens = sum(record["tokens"] for record in records)
        return {
            "steps": len(records),
            "texts": sum(record["texts"] for record in records),
            "tokens": tokens,
            "cpu_seconds": sum(record["cpu_seconds"] for record in records),
            "wall_seconds": parts,
            "student_flops": student_flops(self.module, records),
            "clipped_steps": sum(record["clipped"] for record in records),
            "skipped_steps": sum(record["skipped"] for record in records),
            "terms_at_end": records[-1]["terms"] if records else {},
        }

    def _test(self) -> dict[str, Any]:
        if self.spec.kind != "run":
            return {}
        began = time.process_time()
        result = test_scores(self._embedder(), self.context.sets, self.context.truncations)
        return {"sets": result, "cpu_seconds": time.process_time() - began}


def _hash(projection: Projection) -> str:
    digest = hashlib.sha256()
    for parameter in (projection.weight, projection.bias):
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
