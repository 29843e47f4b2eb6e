"""The phases of a transformer student in their order.

Stage 1, the long phase, and an adapter a task on the frozen base.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from taskdistill.device import CPU
from taskdistill.errors import BadInput, WorkFailed
from taskdistill.model.averaging import average
from taskdistill.model.fingerprint import weights_hash
from taskdistill.model.inference import inference_view, put_rope, read_rope
from taskdistill.model.model import Model
from taskdistill.model.projection import Projection
from taskdistill.model.rope import set_rope_theta
from taskdistill.model.student import StaticModel, TransformerModel
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.pipeline.context import RunContext
from taskdistill.pipeline.projection_start import start_projection
from taskdistill.pipeline.resume import resume_meta
from taskdistill.pipeline.save_model import save_student
from taskdistill.pipeline.student_vocab import unchanged_rows
from taskdistill.pipeline.validation import dev_score, make_validation
from taskdistill.recipe.phases import AdapterConfig, PhaseConfig, Stage1Config
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
from taskdistill.train.phases import build_adapter, build_stage1
from taskdistill.train.validation import Validation, best_so_far, remove_state
from taskdistill.train.workers import workers


def train_phase(
    run: RunContext,
    phase: Phase,
    model: TransformerModel | StaticModel,
    tokenizer: TextTokenizer,
    prompts: Mapping[str, str],
    *,
    validation: Validation | None = None,
) -> bool:
    """Run a phase; say whether it was not finished before."""
    start = time.monotonic()
    done = run.out / "phases" / phase.name
    static, meta = isinstance(model, StaticModel), resume_meta(run, phase.name)
    if not static and run.processes.broadcast(done.is_dir()) is not done.is_dir():
        raise WorkFailed(
            f"process {run.processes.rank} does not see {done} as the first one does; all need "
            "the same folder under --out"
        )
    if load_phase(done, phase, meta):
        run.progress.note(f"{phase.name}: finished before")
        return False
    run.progress.stage(f"{phase.name}: {phase.settings.steps:,} steps")
    # A static model is one look-up: the first process trains it alone, in float32.
    processes, device = SINGLE if static else run.processes, run.device
    with (
        _placed(run, phase, model, device) as (placed, trained),
        workers(_worker_count(run, trained, device)) as pool,
    ):
        ctx = TrainContext(
            tokenizer=tokenizer,
            prompts=prompts,
            seed=run.recipe.seed,
            threads=pool,
            log=run.log,
            meta=meta,
            on_step=run.progress.step,
            should_stop=run.should_stop,
            thread_count=run.threads * processes.size,
            note=run.progress.note,
            processes=processes,
            during=validation,
            profile=run.out / "profile" if run.profile else None,
            device=device,
            arithmetic=Arithmetic() if static else choose_arithmetic(run.recipe.precision, device),
        )
        run_phase(placed, trained, run.out / "checkpoints" / phase.name, ctx)
    run.timed(phase.name, start)
    return True


def _worker_count(
    run: RunContext, model: TransformerModel | StaticModel, device: torch.device
) -> int:
    """One thread feeds an accelerator, a look-up, or divided weights with exchanges in order."""
    return (
        1
        if device.type != CPU.type or isinstance(model, StaticModel) or is_sharded(model)
        else run.threads
    )


@contextmanager
def _placed(
    run: RunContext, phase: Phase, model: TransformerModel | StaticModel, device: torch.device
) -> Iterator[tuple[Phase, TransformerModel | StaticModel]]:
    """Put a phase's model and heads where they are trained.

    Whole on the device, or divided among the processes.
    """
    nn.ParameterList(phase.heads.named().values()).to(device)
    settings = phase.settings
    if not (
        isinstance(model, TransformerModel)
        and isinstance(settings, Stage1Config)
        and run.processes.size > 1
        and (settings.shard == "full" or (settings.shard == "auto" and device.type != CPU.type))
    ):
        yield phase, model.to(device)
        return
    placed = shard(model, device)
    shards = dict(placed.backbone.named_parameters())
    run.progress.note(
        f"{phase.name}: weights, gradients and moments are divided among {run.processes.size} "
        "processes"
    )
    yield (
        replace(
            phase,
            trained={name: shards[name] for name in phase.trained},
            publish=lambda: write_back(placed, model),
        ),
        placed,
    )
    write_back(placed, model)


def train_phases(run: RunContext, student: Model) -> Model:
    """Train stage 1, the long phase, one adapter a task on the frozen base, and write the model.

    `run`: its teacher stores are filled. `student`: its weights change; the model that is returned.
    """
    # The projection is drawn next: the same, whatever an earlier command has already finished.
    torch.manual_seed(torch_seed(run.recipe.seed))
    phases = _StudentPhases(run, student)
    phases.train_base()
    phases.train_adapters()
    phases.restore_inference()
    if run.processes.is_main:
        student.module.to(run.device)
        save_student(run, student)
    return student


class _StudentPhases:
    """The student of a run on its way through the phases."""

    def __init__(self, run: RunContext, student: Model) -> None:
        assert isinstance(student.module, TransformerModel)
        self.run, self.student, self.module = run, student, student.module
        self.dims, self.rope = student.settings.matryoshka_dims, read_rope(self.module.backbone)
        self.inference = partial(inference_view, self.module, self.rope)
        self.widths = [stores["document"].embedding_dim or 0 for _, _, stores in run.teachers]
        self.projection = self._new_projection()

    def _new_projection(self) -> Projection | None:
        stage1, embedding_dim = self.run.recipe.first_stage(), self.module.embedding_dim
        if not all(self.widths):
            raise WorkFailed(
                "a teacher's store is empty: no phase compares any text with that teacher; "
                "give stage1 a source that it reads"
            )
        if stage1.projection == "student":
            return Projection(
                embedding_dim,
                self.widths,
                "identity" if stage1.projection_init == "identity" else "default",
            )
        if sum(self.widths) != embedding_dim:
            raise BadInput(
                f"stage1.projection is none, but the teacher has {sum(self.widths)} dimensions "
                f"and the student {embedding_dim}"
            )
        return None

    def train_base(self) -> None:
        run, projection = self.run, self.projection
        recipe, stage1 = run.recipe, run.recipe.first_stage()
        fitted = False
        for name, settings in (("stage1", stage1), ("long", recipe.long)):
            if settings is None:
                continue
            self._set_theta(settings)
            regresses = needs_projection(stage1_weights(name, settings.weights))
            phase = build_stage1(
                name,
                settings,
                self.module,
                run.plans[name],
                run.stores,
                projection if regresses else None,
                self.dims,
            )
            frozen_rows = {} if settings.freeze_embeddings else unchanged_rows(run, self.module)
            phase = replace(self._with_teachers(phase), frozen_rows=frozen_rows)
            if regresses and not fitted:
                init = stage1.projection_init
                start_projection(run, phase, self.student, projection, dims=self.dims, init=init)
                fitted = True
            validation = make_validation(run, self.student, name, self.inference)
            # Every process trains; the first one alone writes, after all of them are through.
            if self._train(phase, validation) and run.processes.is_main:
                save_phase(run.out / "phases" / name, phase, resume_meta(run, name))
        if not fitted:
            # Adapters' distillation and the queries of another model's index go through it as well.
            with self.inference():
                start_projection(
                    run, phase, self.student, projection, dims=self.dims, init="least_squares"
                )

    def train_adapters(self) -> None:
        base_hash = weights_hash(self.module.backbone)
        for task in Task:  # in this order, whatever the recipe's order is: each seeds anew
            if task in self.run.recipe.adapters:
                self._train_adapter(task, self.run.recipe.adapters[task], base_hash)
        self.run.facts["base_weights"] = base_hash

    def restore_inference(self) -> None:
        put_rope(self.module.backbone, self.rope)
        if self.projection is not None:
            self.projection.to(CPU)
        self.student.projection = self.projection

    def _train_adapter(self, task: Task, settings: AdapterConfig, base_hash: str) -> None:
        run, student = self.run, self.student
        self._set_theta(settings)
        torch.manual_seed(torch_seed(run.recipe.seed))
        projection = self.projection
        # A copy: every adapter begins with the base's projection, not with its predecessor's.
        if projection is not None and settings.train_projection:
            trained_projection = Projection(self.module.embedding_dim, projection.weight.shape[0])
            trained_projection.load_state_dict(projection.state_dict())
            projection = trained_projection
        phase, student.adapter_configs[task.value] = build_adapter(
            task,
            settings,
            self.module,
            run.plans[f"adapters.{task.value}"],
            run.stores,
            projection,
            self.dims,
        )
        phase = self._with_teachers(phase)
        validation = make_validation(run, student, phase.name, self.inference)
        if self._train(phase, validation) and run.processes.is_main:
            if weights_hash(self.module.backbone) != base_hash:
                remove_state(run.out / "checkpoints" / phase.name)
                raise WorkFailed(
                    f"the base's weights changed while {phase.name} was trained; nothing of it was "
                    "kept, please report this"
                )
            if settings.average is not None:
                self._average(task, settings, phase, validation)
            save_phase(run.out / "phases" / phase.name, phase, resume_meta(run, phase.name))
        self.module.select(None)

    def _train(self, phase: Phase, validation: Validation | None) -> bool:
        student = self.student
        prompts = student.settings.prompts
        return train_phase(
            self.run, phase, self.module, student.tokenizer, prompts, validation=validation
        )

    def _with_teachers(self, phase: Phase) -> Phase:
        """Let a phase learn from every teacher of the run."""
        run = self.run
        if not run.further:
            return phase
        phase.heads.widths = tuple(self.widths)
        phase.heads.apart = run.recipe.several == "heads"
        readers = {name: run.recipe.readers(name) for name in run.inputs.datasets}
        return replace(phase, further=[stores for _, _, stores in run.further], readers=readers)

    def _set_theta(self, settings: PhaseConfig) -> None:
        """Set the RoPE theta that a phase is trained at: its own, or that of inference."""
        put_rope(self.module.backbone, self.rope)
        if settings.rope_theta is not None:
            set_rope_theta(self.module.backbone, settings.rope_theta)

    def _average(
        self, task: Task, config: AdapterConfig, phase: Phase, validation: Validation | None
    ) -> None:
        """Average the adapter's last weights with earlier ones, unless that scores lower.

        The gate scores the development sets of the task. Without one, but with weights chosen by a
        score while training, the average has to be better by that score, as every state had to be.
        """
        run, settings = self.run, config.average
        assert settings is not None
        checkpoints = run.out / "checkpoints" / phase.name
        meta = resume_meta(run, phase.name) | {"phase": phase.name}
        ended = {name: p.detach().clone() for name, p in phase.trained.items()}
        last = {
            name: tensor
            for name, tensor in last_weights(checkpoints, meta).items()
            if name in phase.trained
        }  # no heads
        mean = average(last, load_snapshot(checkpoints, meta), settings.weight, settings.mode)
        selects = validation is not None and validation.keep is not None
        before, after = 0.0, 0.0
        if settings.gate:
            before = self._dev_score(task)
            _load(phase.trained, mean)
            after = self._dev_score(task)
            is_better = after >= before
        else:
            _load(phase.trained, mean)
            if validation is None or validation.keep is None:
                return
            best = best_so_far(checkpoints, meta)
            assert best is not None
            before, after = best.score, float(validation.score()[validation.keep])
            is_better = after > before
        ended_with = "best" if selects else "last"
        choice = "averaged" if is_better else ended_with
        run.progress.note(
            f"{phase.name}: dev score {before:.4f} of the {ended_with} checkpoint, {after:.4f} "
            f"averaged; {choice} kept"
        )
        scores = {"averaged": after, ended_with: before, "kept": choice}
        run.log.write({"phase": phase.name, **scores})
        run.facts.setdefault("averaging", {})[task.value] = {
            ended_with: before,
            "averaged": after,
            "kept": choice,
        }
        if not is_better:
            _load(phase.trained, ended)

    def _dev_score(self, task: Task) -> float:
        with self.inference():
            return dev_score(self.run, self.student, task)


@torch.no_grad()
def _load(parameters: Mapping[str, nn.Parameter], values: Mapping[str, torch.Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])
