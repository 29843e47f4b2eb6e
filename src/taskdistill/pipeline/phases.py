"""The phases of a transformer student in their order: stage 1, the long phase, and an adapter a task on the frozen base."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from taskdistill.device import CPU
from taskdistill.errors import BadInput, WorkFailed
from taskdistill.model.averaging import average
from taskdistill.model.backbone import weights_hash
from taskdistill.model.inference import Rope, inference_view, put_rope, read_rope
from taskdistill.model.model import Model
from taskdistill.model.projection import Projection
from taskdistill.model.rope import set_rope_theta
from taskdistill.model.student import StaticModel, TransformerModel
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.pipeline.context import RunContext, resume_meta
from taskdistill.pipeline.projection_start import start_projection
from taskdistill.pipeline.save_model import finish_model
from taskdistill.pipeline.student_vocab import kept_rows
from taskdistill.pipeline.validation import View, dev_score, make_during
from taskdistill.recipe.phases import AdapterConfig, AveragingConfig, PhaseConfig, Stage1Config
from taskdistill.seeding import torch_seed
from taskdistill.tasks import Task
from taskdistill.train.arithmetic import Arithmetic, choose_arithmetic
from taskdistill.train.checkpoint import last_weights, load_snapshot
from taskdistill.train.context import Phase, TrainContext
from taskdistill.train.distributed import SINGLE
from taskdistill.train.fsdp import is_sharded, shard, write_back
from taskdistill.train.loop import run_phase
from taskdistill.train.loss_terms import needs_projection, stage1_weights
from taskdistill.train.phase_folder import load_phase, save_phase
from taskdistill.train.phases import adapter_job, stage1_job
from taskdistill.train.validation import Validation, best_so_far, remove_state
from taskdistill.train.workers import workers


def train_phase(
    run: RunContext,
    phase: Phase,
    model: Any,
    tokenizer: TextTokenizer,
    prompts: Mapping[str, str],
    during: Validation | None = None,
) -> bool:
    """Run a phase unless it is finished."""
    start = time.monotonic()
    done = run.out / "phases" / phase.name
    if (
        not isinstance(model, StaticModel)
        and run.processes.broadcast(done.is_dir()) is not done.is_dir()
    ):
        raise WorkFailed(
            f"process {run.processes.rank} does not see {done} as the first one does; all need the same folder under --out"
        )
    if load_phase(done, phase, resume_meta(run, phase.name)):
        run.progress.note(f"{phase.name}: finished before")
        return False
    run.progress.stage(f"{phase.name}: {phase.settings.steps:,} steps")
    static = isinstance(model, StaticModel)
    processes, device = SINGLE if static else run.processes, run.device
    with (
        _placed(run, phase, model, device) as (placed, trained),
        workers(_workers(run, trained, device)) as threads,
    ):
        ctx = TrainContext(
            tokenizer,
            prompts,
            run.recipe.seed,
            threads,
            run.log,
            resume_meta(run, phase.name),
            run.progress.step,
            run.should_stop,
            run.threads * processes.size,
            run.progress.note,
            processes,
            during,
            run.out / "profile" if run.profile else None,
            device,
            Arithmetic() if static else choose_arithmetic(run.recipe.precision, device),
        )
        run_phase(placed, trained, run.out / "checkpoints" / phase.name, ctx)
    run.timed(phase.name, start)
    return True


def _workers(run: RunContext, model: Any, device: torch.device) -> int:
    """One thread feeds an accelerator, a static model's one look-up, or divided weights, whose exchanges must keep their order."""
    return (
        1
        if device.type != CPU.type or isinstance(model, StaticModel) or is_sharded(model)
        else run.threads
    )


@contextmanager
def _placed(
    run: RunContext, phase: Phase, model: Any, device: torch.device
) -> Iterator[tuple[Phase, Any]]:
    """Put a phase's model and heads where they are trained: whole on the device, or divided among the processes."""
    nn.ParameterList(phase.heads.named().values()).to(device)
    settings = phase.settings
    requested = isinstance(settings, Stage1Config) and run.processes.size > 1
    if not (
        requested
        and isinstance(settings, Stage1Config)
        and (settings.shard == "full" or (settings.shard == "auto" and device.type != CPU.type))
    ):
        yield phase, model.to(device)
        return
    placed = shard(model, device)
    shares = dict(placed.backbone.named_parameters())
    run.progress.note(
        f"{phase.name}: weights, gradients and moments are divided among {run.processes.size} processes"
    )
    yield (
        replace(
            phase,
            trained={name: shares[name] for name in phase.trained},
            publish=lambda: write_back(placed, model),
        ),
        placed,
    )
    write_back(placed, model)


def train_phases(run: RunContext, student: Model) -> Model:
    """Train stage 1, the long phase, then one adapter per task on the frozen base, and write the model folder.

    Args:
        run: The run; its teacher store is filled.

    Raises:
        BadInput: If teacher and student differ in size and no projection is trained.
        WorkFailed: If a phase fails.
    """
    recipe, module = run.recipe, student.module
    stage1 = recipe.first_stage()
    assert isinstance(module, TransformerModel)
    torch.manual_seed(torch_seed(recipe.seed))
    widths = [stores["document"].embedding_dim or 0 for _, _, stores in run.teachers()]
    teacher_dim = sum(widths)
    if not all(widths):
        raise WorkFailed(
            "a teacher's store is empty: no phase compares any text with that teacher; give stage1 a source that it reads"
        )
    dims, rope = student.settings.matryoshka_dims, read_rope(module.backbone)
    projection = None
    if stage1.projection == "student":
        projection = Projection(
            module.embedding_dim,
            widths,
            "identity" if stage1.projection_init == "identity" else "default",
        )
    elif teacher_dim != module.embedding_dim:
        raise BadInput(
            f"stage1.projection is none, but the teacher has {teacher_dim} dimensions and the student {module.embedding_dim}"
        )
    fitted = False
    for name, settings in (("stage1", stage1), ("long", recipe.long)):
        if settings is not None:
            _with_theta(module, settings, rope)
            regresses = needs_projection(stage1_weights(name, settings.weights))
            phase = stage1_job(
                name,
                settings,
                module,
                run.plans[name],
                run.stores,
                projection if regresses else None,
                dims,
            )
            phase = _with_teachers(run, phase)
            phase = replace(
                phase, kept_rows={} if settings.freeze_embeddings else kept_rows(run, module)
            )
            if regresses and not fitted:
                start_projection(run, phase, student, projection, dims, stage1.projection_init)
                fitted = True
            during = make_during(run, student, name, partial(inference_view, module, rope))
            if (
                train_phase(run, phase, module, student.tokenizer, student.settings.prompts, during)
                and run.processes.is_main
            ):
                save_phase(run.out / "phases" / name, phase, resume_meta(run, name))
    if not fitted:  # the adapters' distillation and the queries of another model's index go through it all the same
        with inference_view(module, rope):
            start_projection(run, phase, student, projection, dims, "least_squares")
    before = weights_hash(module.backbone)
    for task in Task:
        if task in recipe.adapters:
            _with_theta(module, recipe.adapters[task], rope)
            _adapter(
                run,
                task,
                recipe.adapters[task],
                student,
                run.plans[f"adapters.{task.value}"],
                projection,
                dims,
                before,
                rope,
            )
    run.facts["base_weights"] = before
    put_rope(module.backbone, rope)
    if projection is not None:
        projection.to(CPU)
    student.projection = projection
    if run.processes.is_main:
        module.to(run.device)
        finish_model(run, student)
    return student


def _with_teachers(run: RunContext, phase: Phase) -> Phase:
    """Let a phase learn from every teacher of the run."""
    if not run.further:
        return phase
    phase.heads.widths = tuple(
        stores["document"].embedding_dim or 0 for _, _, stores in run.teachers()
    )
    phase.heads.apart = run.recipe.several == "heads"
    readers = {name: run.recipe.readers(name) for name in run.inputs.datasets}
    return replace(phase, further=[stores for _, _, stores in run.further], readers=readers)


def _with_theta(module: TransformerModel, settings: PhaseConfig, inference: Rope) -> None:
    """Set the RoPE theta that a phase is trained at: its own, or that of inference."""
    put_rope(module.backbone, inference)
    if settings.rope_theta is not None:
        set_rope_theta(module.backbone, settings.rope_theta)


def _adapter(
    run: RunContext,
    task: Task,
    settings: AdapterConfig,
    student: Model,
    plan: Any,
    projection: Projection | None,
    dims: tuple[int, ...],
    base: str,
    rope: Rope,
) -> None:
    module = student.module
    assert isinstance(module, TransformerModel)
    torch.manual_seed(torch_seed(run.recipe.seed))
    adapter_projection = projection
    if projection is not None and settings.train_projection:
        adapter_projection = Projection(module.embedding_dim, projection.weight.shape[0])
        adapter_projection.load_state_dict(projection.state_dict())
    adapter_of_task, config = adapter_job(
        task, settings, module, plan, run.stores, adapter_projection, dims
    )
    phase = _with_teachers(run, adapter_of_task)
    student.adapter_configs[task.value] = config
    view: View = partial(inference_view, module, rope)
    during = make_during(run, student, phase.name, view)
    if (
        train_phase(run, phase, module, student.tokenizer, student.settings.prompts, during)
        and run.processes.is_main
    ):
        if weights_hash(module.backbone) != base:
            remove_state(run.out / "checkpoints" / phase.name)
            raise WorkFailed(
                f"the base's weights changed while {phase.name} was trained; nothing of it was kept, please report this"
            )
        if settings.average is not None:
            _average(run, task, settings.average, phase, student, during, view)
        save_phase(run.out / "phases" / phase.name, phase, resume_meta(run, phase.name))
    module.select(None)


def _average(
    run: RunContext,
    task: Task,
    settings: AveragingConfig,
    phase: Phase,
    student: Model,
    during: Validation | None,
    view: View,
) -> None:
    """Average the adapter's last weights with earlier ones, and keep that if it scores no lower than what the phase ended with.

    The gate scores the development sets of the task. Without one, but with weights chosen by a score while training, the average has to
    be better by that score, as every state had to be.
    """
    checkpoints, meta = (
        run.out / "checkpoints" / phase.name,
        resume_meta(run, phase.name) | {"phase": phase.name},
    )
    ended = {name: p.detach().clone() for name, p in phase.trained.items()}
    last = {
        name: tensor
        for name, tensor in last_weights(checkpoints, meta).items()
        if name in phase.trained
    }  # no heads
    mean = average(last, load_snapshot(checkpoints, meta), settings.weight, settings.mode)
    chosen = during if during is not None and during.keep is not None else None

    def score() -> float:
        with view():
            return dev_score(run, student, task)

    before = score() if settings.gate else None
    _put(phase.trained, mean)
    if before is not None:
        after = score()
        is_kept = after >= before
    elif chosen is not None and chosen.keep is not None:
        best = best_so_far(checkpoints, meta)
        assert best is not None
        before, after = best.score, float(chosen.score()[chosen.keep])
        is_kept = after > before
    else:
        return
    what = "last" if chosen is None else "best"
    run.progress.note(
        f"{phase.name}: dev score {before:.4f} of the {what} checkpoint, {after:.4f} averaged; {'averaged' if is_kept else what} kept"
    )
    run.log.write(
        {
            "phase": phase.name,
            "averaged": after,
            what: before,
            "kept": "averaged" if is_kept else what,
        }
    )
    run.facts.setdefault("averaging", {})[task.value] = {
        what: before,
        "averaged": after,
        "kept": "averaged" if is_kept else what,
    }
    if not is_kept:
        _put(phase.trained, ended)


@torch.no_grad()
def _put(parameters: Mapping[str, nn.Parameter], values: Mapping[str, torch.Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
