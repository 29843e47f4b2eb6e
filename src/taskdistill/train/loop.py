"""The loop of one phase: batch, vectors, loss, check, update, log, checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from taskdistill.data.batches import Batch, BatchPlan
from taskdistill.device import CPU, free_memory_of
from taskdistill.errors import WorkFailed
from taskdistill.io.folders import read_manifest, versions
from taskdistill.model.flops import step_flops
from taskdistill.model.student import StaticModel, TransformerModel
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.recipe.phases import MICRO_BATCH_TOKENS, PhaseConfig
from taskdistill.seeding import STEP_STRIDE, derive_seed, torch_seed
from taskdistill.teacher.protocol import View
from taskdistill.teacher.store import TeacherStore
from taskdistill.train.arithmetic import Arithmetic, tf32_products
from taskdistill.train.batch_loss import Share
from taskdistill.train.budget import Budget, agreed, choose_budget, kept_budget
from taskdistill.train.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint, save_snapshot, whole_state
from taskdistill.train.collate import TrainBatch
from taskdistill.train.course import read_course
from taskdistill.train.distributed import ALONE, ProcessGroup
from taskdistill.train.fsdp import clear_rows, is_sharded, local_tensor
from taskdistill.train.gradients import gradients
from taskdistill.train.log import Log
from taskdistill.train.loss_terms import weight_at
from taskdistill.train.memory import OutOfMemory
from taskdistill.train.objective import Heads, Targets, Terms
from taskdistill.train.optim import HeadSchedule, clip, gradient_norm, make_optimizer, rate_factor, set_rate
from taskdistill.train.profile import profiled
from taskdistill.train.targets import TargetLookup
from taskdistill.train.timer import Timer
from taskdistill.train.validation import Validation, drop_best_after, evaluate_now, load_best, read_scores
from taskdistill.train.workers import WorkerPool

Objective = Callable[[Tensor, TrainBatch, Targets, Heads], tuple[Terms, float]]
OnStep = Callable[[dict[str, Any]], None]


class Interrupted(WorkFailed):
    """The user asked to stop; everything so far is saved."""


@dataclass
class Phase:
    """Everything that one phase needs, beside the model and the disk."""

    name: str
    settings: PhaseConfig
    plan: BatchPlan
    prepare: Callable[[Batch], TrainBatch]
    objective: Objective
    weights: Mapping[str, float]
    trained: dict[str, nn.Parameter]
    heads: Heads = field(default_factory=Heads)
    head_schedule: HeadSchedule = field(default_factory=HeadSchedule)
    task: str | None = None
    stores: Mapping[View, TeacherStore] = field(default_factory=dict)
    further: Sequence[Mapping[View, TeacherStore]] = ()
    """Stores of further teachers, in the order of the recipe."""
    readers: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Data set to the places of the teachers that read it, where there are several."""
    kept_rows: Mapping[str, Tensor] = field(default_factory=dict)
    """Trained matrix to `(rows,)` of bool: the rows that stay as they are."""
    needs_base: bool = False
    needs_similarities: bool = False
    snapshot_at: int | None = None
    train_projection: bool = True
    starts_at: int = 0
    """Step of the plan at which the phase begins, where it goes on with another phase's batches."""
    publish: Callable[[], None] = lambda: None
    """Carries the weights into the model that others read, where this one's are divided among processes."""

    def moving_heads(self) -> dict[str, nn.Parameter]:
        """Return the heads that this phase trains.

        Returns:
            Name to parameter; without the projection where it is kept as it was.
        """
        return {n: p for n, p in self.heads.named().items() if self.train_projection or not n.startswith("projection.")}

    def weights_at(self, step: int) -> dict[str, float]:
        """Return the weights of the terms at one step.

        Args:
            step: Step of the phase, from 0.

        Returns:
            Term to weight.
        """
        return weight_at(self.weights, self.settings, step)

    def share(self, prepared: TrainBatch, given: Targets, weights: Mapping[str, float] | None = None) -> Share | None:
        """Return how the loss is taken of a part of a batch, where it is a sum over its texts.

        Args:
            prepared: The batch.
            given: What it is compared with.
            weights: Term to weight at this step; None for those of the recipe.

        Returns:
            From the vectors of some texts and their places to their part of the weighted loss; None if distillation is not the only term.
        """
        weights = self.weights if weights is None else weights
        if set(weights) - {"distill"}:
            return None
        weight, whole = weights.get("distill", 1.0), len(prepared.distilled)
        summed = getattr(self.settings, "reduction", "mean") == "sum"

        def part(vectors: Tensor, rows: np.ndarray) -> Tensor:
            place = {int(row): i for i, row in enumerate(rows)}
            chosen = [i for i, (row, _) in enumerate(prepared.distilled) if row in place]
            if not chosen:
                return 0.0 * vectors.sum()
            some = replace(prepared, distilled=[(place[row], view) for row, view in (prepared.distilled[i] for i in chosen)])
            assert given.teacher is not None
            terms, _ = self.objective(vectors, some, Targets(given.teacher[chosen]), self.heads)
            return terms["distill"] * (weight if summed else weight * len(chosen) / whole)

        return part


@dataclass
class TrainContext:
    """What all phases of a run share."""

    tokenizer: TextTokenizer
    prompts: Mapping[str, str]
    seed: int
    threads: WorkerPool
    log: Log
    meta: dict[str, Any]
    on_step: OnStep
    should_stop: Callable[[], bool]
    thread_count: int
    note: Callable[[str], None]
    processes: ProcessGroup = ALONE
    during: Validation | None = None
    profile: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    arithmetic: Arithmetic = field(default_factory=Arithmetic)
    """Number types of the passes."""


def run_phase(job: Phase, model: TransformerModel | StaticModel, folder: Path, around: TrainContext) -> None:
    """Train one phase from its last checkpoint, or from the start, to its end.

    Args:
        job: The phase.
        model: The model; the parameters in `job.trained` are changed.
        folder: Where the phase's checkpoints are kept.
        around: Tokenizer, log, threads and so on.

    Raises:
        Interrupted: If a stop was asked for; the state is saved.
        WorkFailed: If losses or gradients stay non-finite.
    """
    settings, everything = job.settings, job.trained | job.moving_heads()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in everything.values():
        parameter.requires_grad_(True)
    optimiser = make_optimizer(settings, job.trained, job.moving_heads(), job.head_schedule, job.kept_rows)
    meta = {**around.meta, "phase": job.name}
    step, bad, last_good, budget = 0, 0, 0, None
    leads, sharded = around.processes.leads, is_sharded(model)
    if found := around.processes.same(list_checkpoints(folder) if leads else []):
        step = last_good = load_checkpoint(found[-1], everything, optimiser, meta)
        budget = kept_budget(read_manifest(found[-1]), around.device)
        _say_if_not_identical(found[-1], job.name, around)
    runs = {"device": around.device.type, "precision": str(around.arithmetic), "threads": around.thread_count}
    if isinstance(model, TransformerModel):
        budget = budget or _budget(job, model, around)
        runs |= {"budget": budget.to_json()}
    if leads:
        around.log.forget(job.name, step)
        around.log.write({"phase": job.name, "runs_from": step, **runs, "free_megabytes": _megabytes(free_memory_of(around.device))})
        if note := drop_best_after(folder, step):
            around.note(f"{job.name}: {note}")
    job.heads.hold_temperature()
    signals = TargetLookup(job, model, around, MICRO_BATCH_TOKENS if budget is None else budget.micro_batch_tokens)

    def save() -> None:
        broken = [name for name, p in everything.items() if not torch.isfinite(local_tensor(p.detach())).all()]
        if around.processes.any(bool(broken)):
            raise WorkFailed(
                f"{job.name}: {next(iter(broken), 'a weight of another process')} is not finite after step {step}, so this state is not saved; the last checkpoint is that of step "
                f"{last_good}: lower {job.name}.lr ({settings.lr})"
            )
        if leads or sharded:
            start = time.monotonic()
            save_checkpoint(folder, step, everything, optimiser, meta | runs, write=leads)
            around.log.write({"phase": job.name, "saved": step, "seconds": time.monotonic() - start})
        around.processes.wait()  # writing may take longer than an exchange of the next step waits

    def evaluate() -> None:
        if not around.processes.same(leads and step not in read_scores(around.log, job.name)):
            return
        assert around.during is not None
        job.publish()
        weights = whole_state(everything) if leads or sharded else {}
        if leads:
            model.eval()
            scores = evaluate_now(around.during, step, weights, around.log, job.name, folder, meta)
            model.train()
            around.note(f"{job.name}: after step {step:,}, " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
        around.processes.wait()

    model.train()
    if around.during is not None and around.during.due(step, settings.steps):
        evaluate()
    rounding = tf32_products(around.arithmetic.tf32)
    with rounding, profiled(around.profile if leads else None, job.name, settings.steps - step) as tick:
        while step < settings.steps:
            if around.processes.any(around.should_stop()):
                save()
                raise Interrupted(f"stopped before step {step} of {job.name}; everything is saved, run the same command again to continue")
            record = _one_step(job, model, optimiser, everything, signals, around, step, budget)
            bad = bad + 1 if record["skipped"] else 0
            around.log.write(record)
            around.on_step(record | {"steps": settings.steps})
            if bad > settings.max_bad_steps:
                raise WorkFailed(
                    f"{job.name}: loss or gradient was not finite {bad} times in a row, the last at step {step} (rows {record['rows']} of "
                    f"{record['dataset']}); the last checkpoint is that of step {last_good}: lower {job.name}.lr ({settings.lr}) or look at "
                    f"those rows"
                )
            step += 1
            if step == job.snapshot_at and leads:
                save_snapshot(folder, step, job.trained, meta)
            due = around.during is not None and around.during.due(step, settings.steps)
            if step % settings.checkpoint_every == 0 or step == settings.steps or due:
                save()
                last_good = step
            if due:
                evaluate()
            tick()
    if around.during is not None and around.during.keep is not None:
        best = load_best(folder, everything, meta)
        step = best.step
        why = "" if best.step else ", those before the first update, for no later ones scored higher"
        around.note(f"{job.name}: the weights of step {best.step:,} are kept{why}: {best.metric} {best.score:.4f}")
    if leads and (course := read_course(around.log, job.name, step)) is not None:
        around.log.write({"phase": job.name, "course": course.as_dict()})
        for line in course.lines():
            around.note(line)
    model.eval()
    for parameter in everything.values():
        parameter.requires_grad_(False)
        parameter.grad = None


def _say_if_not_identical(checkpoint: Path, name: str, around: TrainContext) -> None:
    """Tell why a continued run may differ from an uninterrupted one in the last bits."""
    manifest = read_manifest(checkpoint)
    then, now = manifest["created_by"], versions()
    why = [
        f"{package} {then.get(package)} then, {now[package]} now"
        for package in now
        if package != "taskdistill" and then.get(package) != now[package]
    ]
    if around.device.type != CPU.type or manifest.get("device", CPU.type) != around.device.type:
        why.append("an accelerator adds up in no fixed order")
    if manifest.get("precision", str(around.arithmetic)) != str(around.arithmetic):
        why.append(f"{manifest['precision']} then, {around.arithmetic} now")
    if manifest.get("threads") != around.thread_count:
        why.append(f"{manifest.get('threads')} threads then, {around.thread_count} now")
    exact = f"not bit-identical to an uninterrupted run: {'; '.join(why)}" if why else "bit-identical to an uninterrupted run"
    around.note(f"{name}: continued at step {manifest['step']:,}, {exact}")


def _budget(job: Phase, model: TransformerModel, around: TrainContext) -> Budget:
    """Choose the phase's token budgets, the same on every process."""
    own = choose_budget(
        model,
        sum(local_tensor(p).numel() for p in job.trained.values()),
        device=around.device,
        compute=around.arithmetic.compute,
        micro_batch_tokens=job.settings.micro_batch_tokens,
        processes_here=around.processes.on_this_host,
    )
    return agreed(own, around.processes)


def _megabytes(number: int | None) -> int | None:
    return None if number is None else number // 1_000_000


def _one_step(
    job: Phase,
    model: TransformerModel | StaticModel,
    optimiser: torch.optim.Optimizer,
    everything: Mapping[str, nn.Parameter],
    signals: TargetLookup,
    around: TrainContext,
    step: int,
    budget: Budget | None,
) -> dict[str, Any]:
    clock, halvings, worked = Timer(), around.threads.halvings, time.process_time()
    with clock("data"):
        batch = job.plan.at(job.starts_at + step)
        prepared = job.prepare(batch)
    with clock("tokenise"):
        ids = signals.ids(prepared)
    with clock("teacher"):
        given = signals.of(prepared, ids)
    model.select(job.task)
    weights, temperature = job.weights_at(step), job.heads.temperature
    optimiser.zero_grad(set_to_none=True)
    terms, total, masked = gradients(
        model,
        ids,
        lambda vectors: job.objective(vectors, prepared, given, job.heads),
        weights,
        list(job.trained.values()),
        seed=derive_seed(torch_seed(around.seed), step, STEP_STRIDE),
        threads=around.threads,
        **({} if budget is None else budget.to_json()),
        share=job.share(prepared, given, weights),
        heads=list(job.moving_heads().values()),
        processes=around.processes,
        clock=clock,
        compute=around.arithmetic.compute,
    )
    with clock("optimiser"):
        for name, rows in job.kept_rows.items():
            if (moved := job.trained[name].grad) is not None:
                clear_rows(moved, rows)
        norm = gradient_norm(everything)
        factor = rate_factor(job.settings, step)
        # Every process computes both numbers for itself; a difference in the last bits must not let one of them skip alone.
        skipped = around.processes.any(not (math.isfinite(total) and math.isfinite(norm)))
        if not skipped:
            _update(job, optimiser, everything, norm, step, around)
    record: dict[str, Any] = {
        "phase": job.name,
        "step": step,
        "dataset": batch.dataset,
        "loss": total,
        "terms": terms,
        "lr": job.settings.lr * factor,
        "grad_norm": norm,
        "clipped": norm > job.settings.clip,
        "masked": masked,
        "skipped": skipped,
        "texts": len(ids),
        "tokens": sum(len(row) for row in ids),
        "work": step_flops(model, np.array([len(row) for row in ids]), list(job.trained.values()), job.task),
        "seconds": clock.seconds,
        "cpu_seconds": time.process_time() - worked,
    }
    record["texts_per_s"] = len(ids) / sum(clock.seconds.values())
    if temperature is not None:
        record["temperature"] = temperature
    if around.threads.halvings > halvings:
        record["out_of_memory"] = around.threads.halvings - halvings
    if skipped:
        record["rows"] = np.asarray(batch.row_ids).reshape(-1)[:20].tolist()
    return record


def _update(
    job: Phase,
    optimiser: torch.optim.Optimizer,
    everything: Mapping[str, nn.Parameter],
    norm: float,
    step: int,
    around: TrainContext,
) -> None:
    """Take one step of the optimiser, on every process or on none that goes on."""
    try:
        with around.processes.together():
            clip(everything, norm, job.settings.clip)
            set_rate(optimiser, job.settings, step)
            optimiser.step()
            job.heads.hold_temperature()
    except OutOfMemory:
        # Some weights may have been updated and others not, so this state is not gone on with; no smaller pass would help either.
        raise WorkFailed(
            f"{job.name}: memory ran out while the optimiser updated the weights, which needs two numbers a weight beside weight and gradient; "
            f"give the process more memory, or several processes with {job.name}.shard: full where {job.name} has it. The last checkpoint is good"
        ) from None
