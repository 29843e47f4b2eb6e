"""The loop of one phase: batch, vectors, loss, check, update, log, checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from taskdistill.device import CPU, free_memory_of
from taskdistill.errors import WorkFailed
from taskdistill.io.folders import read_manifest
from taskdistill.model.flops import step_flops
from taskdistill.model.student import StaticModel, TransformerModel
from taskdistill.recipe.phases import MICRO_BATCH_TOKENS
from taskdistill.seeding import STEP_STRIDE, derive_seed, torch_seed
from taskdistill.train.arithmetic import tf32_products
from taskdistill.train.budget import Budget, agreed, choose_budget, saved_budget
from taskdistill.train.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    save_snapshot,
    whole_state,
)
from taskdistill.train.context import Interrupted, Phase, TrainContext
from taskdistill.train.course import read_course
from taskdistill.train.fsdp import clear_rows, is_sharded, local_tensor
from taskdistill.train.gradient_step import Passes, StepLoss
from taskdistill.train.gradients import gradients
from taskdistill.train.memory import OutOfMemory
from taskdistill.train.optim import (
    clip,
    gradient_norm,
    make_optimizer,
    rate_factor,
    set_rate,
)
from taskdistill.train.profile import profiled
from taskdistill.train.targets import TargetLookup
from taskdistill.train.timer import Timer
from taskdistill.train.validation import (
    drop_best_after,
    evaluate_now,
    load_best,
    read_scores,
)
from taskdistill.versions import versions


def run_phase(
    phase: Phase, model: TransformerModel | StaticModel, folder: Path, ctx: TrainContext
) -> None:
    """Train one phase from its last checkpoint, or from the start, to its end.

    `model`: the model; the parameters in `phase.trained` are changed. `folder`: where the phase's
    checkpoints are kept. Raises Interrupted if a stop was asked for; the state is saved. Raises
    WorkFailed if losses or gradients stay non-finite.
    """
    settings, everything = phase.settings, phase.trained | phase.moving_heads()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in everything.values():
        parameter.requires_grad_(True)
    optimiser = make_optimizer(
        settings, phase.trained, phase.moving_heads(), phase.head_schedule, phase.frozen_rows
    )
    meta = {**ctx.meta, "phase": phase.name}
    step, bad, last_good, budget = 0, 0, 0, None
    is_main, sharded = ctx.processes.is_main, is_sharded(model)
    if result := ctx.processes.broadcast(list_checkpoints(folder) if is_main else []):
        step = last_good = load_checkpoint(result[-1], everything, optimiser, meta)
        budget = saved_budget(read_manifest(result[-1]), ctx.device)
        _say_if_not_identical(result[-1], phase.name, ctx)
    runs = {
        "device": ctx.device.type,
        "precision": str(ctx.arithmetic),
        "threads": ctx.thread_count,
    }
    if isinstance(model, TransformerModel):
        budget = budget or _budget(phase, model, ctx)
        runs |= {"budget": budget.to_json()}
    if is_main:
        ctx.log.forget(phase.name, step)
        ctx.log.write(
            {
                "phase": phase.name,
                "runs_from": step,
                **runs,
                "free_megabytes": _megabytes(free_memory_of(ctx.device)),
            }
        )
        if note := drop_best_after(folder, step):
            ctx.note(f"{phase.name}: {note}")
    phase.heads.hold_temperature()
    targets = TargetLookup(
        phase, model, ctx, MICRO_BATCH_TOKENS if budget is None else budget.micro_batch_tokens
    )

    def save() -> None:
        broken = [
            name
            for name, p in everything.items()
            if not torch.isfinite(local_tensor(p.detach())).all()
        ]
        if ctx.processes.any_rank(bool(broken)):
            raise WorkFailed(
                f"{phase.name}: {next(iter(broken), 'a weight of another process')} is not finite"
                f" after step {step}, so this state is not saved; the last checkpoint is that of"
                f" step {last_good}: lower {phase.name}.lr ({settings.lr})"
            )
        if is_main or sharded:
            start = time.monotonic()
            save_checkpoint(folder, step, everything, optimiser, meta | runs, write=is_main)
            ctx.log.write({"phase": phase.name, "saved": step, "seconds": time.monotonic() - start})
        ctx.processes.wait()  # writing may take longer than an exchange of the next step waits

    def evaluate() -> None:
        if not ctx.processes.broadcast(is_main and step not in read_scores(ctx.log, phase.name)):
            return
        assert ctx.during is not None
        phase.publish()
        weights = whole_state(everything) if is_main or sharded else {}
        if is_main:
            model.eval()
            scores = evaluate_now(ctx.during, step, weights, ctx.log, phase.name, folder, meta)
            model.train()
            ctx.note(
                f"{phase.name}: after step {step:,}, "
                + ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
            )
        ctx.processes.wait()

    model.train()
    if ctx.during is not None and ctx.during.due(step, settings.steps):
        evaluate()
    rounding = tf32_products(ctx.arithmetic.tf32)
    with (
        rounding,
        profiled(ctx.profile if is_main else None, phase.name, settings.steps - step) as tick,
    ):
        while step < settings.steps:
            if ctx.processes.any_rank(ctx.should_stop()):
                save()
                raise Interrupted(
                    f"stopped before step {step} of {phase.name}; everything is saved, run the same"
                    " command again to continue"
                )
            record = _one_step(phase, model, optimiser, everything, targets, ctx, step, budget)
            bad = bad + 1 if record["skipped"] else 0
            ctx.log.write(record)
            ctx.on_step(record | {"steps": settings.steps})
            if bad > settings.max_bad_steps:
                raise WorkFailed(
                    f"{phase.name}: loss or gradient was not finite {bad} times in a row, the last"
                    f" at step {step} (rows {record['rows']} of {record['dataset']}); the last"
                    f" checkpoint is that of step {last_good}: lower {phase.name}.lr"
                    f" ({settings.lr}) or look at those rows"
                )
            step += 1
            if step == phase.snapshot_at and is_main:
                save_snapshot(folder, step, phase.trained, meta)
            due = ctx.during is not None and ctx.during.due(step, settings.steps)
            if step % settings.checkpoint_every == 0 or step == settings.steps or due:
                save()
                last_good = step
            if due:
                evaluate()
            tick()
    if ctx.during is not None and ctx.during.keep is not None:
        best = load_best(folder, everything, meta)
        step = best.step
        why = (
            "" if best.step else ", those before the first update, for no later ones scored higher"
        )
        ctx.note(
            f"{phase.name}: the weights of step {best.step:,} are kept{why}: {best.metric}"
            f" {best.score:.4f}"
        )
    if is_main and (course := read_course(ctx.log, phase.name, step)) is not None:
        ctx.log.write({"phase": phase.name, "course": course.as_dict()})
        for line in course.lines():
            ctx.note(line)
    model.eval()
    for parameter in everything.values():
        parameter.requires_grad_(False)
        parameter.grad = None


def _say_if_not_identical(checkpoint: Path, name: str, ctx: TrainContext) -> None:
    """Tell why a continued run may differ from an uninterrupted one in the last bits."""
    manifest = read_manifest(checkpoint)
    then, now = manifest["created_by"], versions()
    why = [
        f"{package} {then.get(package)} then, {now[package]} now"
        for package in now
        if package != "taskdistill" and then.get(package) != now[package]
    ]
    if ctx.device.type != CPU.type or manifest.get("device", CPU.type) != ctx.device.type:
        why.append("an accelerator adds up in no fixed order")
    if manifest.get("precision", str(ctx.arithmetic)) != str(ctx.arithmetic):
        why.append(f"{manifest['precision']} then, {ctx.arithmetic} now")
    if manifest.get("threads") != ctx.thread_count:
        why.append(f"{manifest.get('threads')} threads then, {ctx.thread_count} now")
    exact = (
        f"not bit-identical to an uninterrupted run: {'; '.join(why)}"
        if why
        else "bit-identical to an uninterrupted run"
    )
    ctx.note(f"{name}: continued at step {manifest['step']:,}, {exact}")


def _budget(phase: Phase, model: TransformerModel, ctx: TrainContext) -> Budget:
    """Choose the phase's token budgets, the same on every process."""
    local_budget = choose_budget(
        model,
        sum(local_tensor(p).numel() for p in phase.trained.values()),
        device=ctx.device,
        compute=ctx.arithmetic.compute,
        micro_batch_tokens=phase.settings.micro_batch_tokens,
        processes_here=ctx.processes.on_this_host,
    )
    return agreed(local_budget, ctx.processes)


def _megabytes(number: int | None) -> int | None:
    return None if number is None else number // 1_000_000


def _one_step(
    phase: Phase,
    model: TransformerModel | StaticModel,
    optimiser: torch.optim.Optimizer,
    everything: Mapping[str, nn.Parameter],
    targets: TargetLookup,
    ctx: TrainContext,
    step: int,
    budget: Budget | None,
) -> dict[str, Any]:
    clock, halvings, worked = Timer(), ctx.threads.halvings, time.process_time()
    with clock("data"):
        batch = phase.plan.at(phase.starts_at + step)
        prepared = phase.prepare(batch)
    with clock("tokenise"):
        ids = targets.ids(prepared)
    with clock("teacher"):
        batch_targets = targets.of(prepared, ids)
    model.select(phase.task)
    weights, temperature = phase.weights_at(step), phase.heads.temperature
    optimiser.zero_grad(set_to_none=True)
    terms, total, masked = gradients(
        model,
        ids,
        StepLoss(
            terms=lambda vectors: phase.objective(vectors, prepared, batch_targets, phase.heads),
            weights=weights,
            share=phase.partial_loss(prepared, batch_targets, weights),
            heads=list(phase.moving_heads().values()),
        ),
        list(phase.trained.values()),
        Passes(
            seed=derive_seed(torch_seed(ctx.seed), step, STEP_STRIDE),
            **({} if budget is None else budget.to_json()),
            compute=ctx.arithmetic.compute,
        ),
        threads=ctx.threads,
        processes=ctx.processes,
        clock=clock,
    )
    with clock("optimiser"):
        for name, rows in phase.frozen_rows.items():
            if (moved := phase.trained[name].grad) is not None:
                clear_rows(moved, rows)
        norm = gradient_norm(everything)
        factor = rate_factor(phase.settings, step)
        # Every process computes both numbers for itself; a difference in the last bits must not let
        # one of them skip alone.
        skipped = ctx.processes.any_rank(not (math.isfinite(total) and math.isfinite(norm)))
        if not skipped:
            _update(phase, optimiser, everything, norm, step, ctx)
    record: dict[str, Any] = {
        "phase": phase.name,
        "step": step,
        "dataset": batch.dataset,
        "loss": total,
        "terms": terms,
        "lr": phase.settings.lr * factor,
        "grad_norm": norm,
        "clipped": norm > phase.settings.clip,
        "masked": masked,
        "skipped": skipped,
        "texts": len(ids),
        "tokens": sum(len(row) for row in ids),
        "work": step_flops(
            model, np.array([len(row) for row in ids]), list(phase.trained.values()), phase.task
        ),
        "seconds": clock.seconds,
        "cpu_seconds": time.process_time() - worked,
    }
    record["texts_per_s"] = len(ids) / sum(clock.seconds.values())
    if temperature is not None:
        record["temperature"] = temperature
    if ctx.threads.halvings > halvings:
        record["out_of_memory"] = ctx.threads.halvings - halvings
    if skipped:
        record["rows"] = np.asarray(batch.row_ids).reshape(-1)[:20].tolist()
    return record


def _update(
    phase: Phase,
    optimiser: torch.optim.Optimizer,
    everything: Mapping[str, nn.Parameter],
    norm: float,
    step: int,
    ctx: TrainContext,
) -> None:
    """Take one step of the optimiser, on every process or on none that goes on."""
    try:
        with ctx.processes.together():
            clip(everything, norm, phase.settings.clip)
            set_rate(optimiser, phase.settings, step)
            optimiser.step()
            phase.heads.hold_temperature()
    except OutOfMemory:
        # Some weights may have been updated and others not, so this state is not gone on with; no
        # smaller pass would help either.
        raise WorkFailed(
            f"{phase.name}: memory ran out while the optimiser updated the weights, which needs two"
            " numbers a weight beside weight and gradient; give the process more memory, or"
            f" several processes with {phase.name}.shard: full where {phase.name} has it. The last"
            " checkpoint is good"
        ) from None
