"""From an arm and a seed to the phases that the loop runs: the same batches, base and initial
projection in every arm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from taskdistill.ablate.arms import Arm
from taskdistill.ablate.settings import Experiment, second_steps
from taskdistill.data.batches import Batch, BatchPlan
from taskdistill.data.order import generator
from taskdistill.data.rows import Dataset
from taskdistill.errors import BadInput, WorkFailed
from taskdistill.model.projection import Projection
from taskdistill.model.student import StaticModel, TransformerModel
from taskdistill.recipe.phases import AdapterConfig, PhaseConfig
from taskdistill.seeding import torch_seed
from taskdistill.tasks import Task
from taskdistill.teacher.protocol import View
from taskdistill.teacher.store import TeacherStore
from taskdistill.train.collate import TrainBatch, collate
from taskdistill.train.context import Phase
from taskdistill.train.objective import Heads, Objective, Targets, Terms
from taskdistill.train.optim import HeadSchedule

LABEL = "ablation"
"""The label under which every arm draws its batches; the arm's name is no part of it."""

SHUFFLED = "distill_shuffled"
"""Name of the distillation term of the negative control, so that no log takes it for distillation.
"""


@dataclass(frozen=True)
class Hyperparameters:
    """What is tuned: one setting of an arm's last phase."""

    lr: float
    temperature: float
    weight: float

    def to_json(self) -> dict[str, float]:
        """Return plain data."""
        return {"lr": self.lr, "temperature": self.temperature, "weight": self.weight}


def untuned(experiment: Experiment) -> Hyperparameters:
    """Return the setting that the recipe states."""
    return Hyperparameters(
        experiment.recipe.first_stage().lr,
        experiment.ablation.temperature,
        experiment.ablation.distill_weight,
    )


def batch_plan(
    experiment: Experiment, datasets: Mapping[str, Dataset], seed: int, times: int = 1
) -> BatchPlan:
    """Decide which rows every step sees: by the seed alone, whatever the arm."""
    stage = experiment.recipe.first_stage()
    used = [datasets[name] for name in stage.sources]
    sizes = {name: size * times for name, (size, _) in stage.long_sources.items()}
    return BatchPlan(
        used, stage.sources, stage.batch_size * times, seed=seed, label=LABEL, batch_sizes=sizes
    )


def initial_projection(
    experiment: Experiment, module: TransformerModel | StaticModel, teacher_dim: int, seed: int
) -> Projection | None:
    """Draw the projection that every arm of a seed starts with.

    Returns the map, or None where the recipe wants none. Raises BadInput if the recipe wants none
    but the sizes differ.
    """
    stage = experiment.recipe.first_stage()
    if stage.projection == "none":
        if teacher_dim != module.embedding_dim:
            raise BadInput(
                f"stage1.projection is none, but the teacher has {teacher_dim} dimensions and the"
                f" student {module.embedding_dim}"
            )
        return None
    if stage.projection_init not in ("auto", "default", "identity"):
        raise BadInput(
            f"stage1.projection_init is {stage.projection_init}; ablate starts every arm of a seed"
            " from one drawn projection or from identity: set it to default or identity"
        )
    torch.manual_seed(torch_seed(seed))
    return Projection(
        module.embedding_dim,
        teacher_dim,
        "identity" if stage.projection_init == "identity" else "default",
    )


def phase_lengths(arm: Arm, steps: int, experiment: Experiment) -> list[int]:
    """Share an arm's steps among its phases. `experiment`: for the share of a second phase."""
    if len(arm.phases) < 2:
        return [steps] * len(arm.phases)
    second = second_steps(steps, experiment.ablation)
    return [steps - second, second]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmPhase:
    """One phase of an arm: which terms, from where and how far."""

    name: str
    arm: Arm
    terms: Sequence[str]
    point: Hyperparameters
    steps: int
    starts_at: int
    """Steps of the arm before it."""
    every: int
    """Steps between two points of the curve."""
    dims: Sequence[int]
    """Prefixes that the Matryoshka loss is taken of."""


def build_phase(
    phase: ArmPhase,
    experiment: Experiment,
    module: TransformerModel | StaticModel,
    plan: BatchPlan,
    projection: Projection | None,
    stores: Mapping[View, TeacherStore],
) -> Phase:
    """Describe one phase of an arm: the whole student trained on named terms over pairs.

    A phase without distillation gets no teacher store, no projection and no similarities: there is
    nothing in it that a teacher's signal could come from.
    """
    arm, terms = phase.arm, phase.terms
    settings = phase_settings(
        arm, terms, phase.point, experiment, steps=phase.steps, every=phase.every
    )
    distils = "distill" in terms
    weights = dict(settings.weights)
    if arm.shuffled:
        weights[SHUFFLED] = weights.pop("distill")
    chosen = list(phase.dims) if arm.matryoshka and settings.matryoshka else [module.embedding_dim]

    def prepared(batch: Batch) -> TrainBatch:
        return collate(batch, task=Task.RETRIEVAL, distil=distils, negatives=settings.negatives)

    objective = Objective(settings, settings.weights, chosen)

    def shuffled(
        vectors: Tensor, batch: TrainBatch, targets: Targets, heads: Heads
    ) -> tuple[Terms, float]:
        if targets.teacher is not None:
            order = shuffle(plan.seed, batch.batch.step, len(targets.teacher)).to(
                targets.teacher.device
            )
            targets = replace(targets, teacher=targets.teacher[order])
        terms, masked = objective(vectors, batch, targets, heads)
        terms[SHUFFLED] = terms.pop("distill")
        return terms, masked

    stage = experiment.recipe.first_stage()
    heads = Heads(projection=projection if distils else None)
    return Phase(
        name=phase.name,
        settings=settings,
        plan=plan,
        prepare=prepared,
        objective=shuffled if arm.shuffled else objective,
        weights=weights,
        trained=trained_weights(module, freeze_table=stage.freeze_embeddings),
        heads=heads,
        head_schedule=HeadSchedule(
            lr=stage.projection_lr,
            warmup=stage.projection_warmup,
            weight_decay=stage.projection_weight_decay,
        ),
        stores=stores if distils else {},
        starts_at=phase.starts_at,
    )


def trained_weights(
    module: TransformerModel | StaticModel, *, freeze_table: bool
) -> dict[str, nn.Parameter]:
    """List what every arm trains: the whole student.

    Raises BadInput if nothing would be left to train.
    """
    if isinstance(module, StaticModel):
        if freeze_table:
            raise BadInput(
                "stage1.freeze_embeddings leaves nothing to train in a static student; remove it"
            )
        return {"table": module.table}
    table = module.backbone.get_input_embeddings().weight
    return {
        n: p for n, p in module.backbone.named_parameters() if not (freeze_table and p is table)
    }


def phase_settings(
    arm: Arm,
    terms: Sequence[str],
    point: Hyperparameters,
    experiment: Experiment,
    *,
    steps: int,
    every: int,
) -> AdapterConfig:
    """Write a phase of an arm as settings: stage 1's optimiser, batch and length, and the arm's
    terms.

    `point`: learning rate, temperature, weight of distillation where it is combined. Returns the
    settings; those of an adapter's shape do nothing here.
    """
    shared = experiment.recipe.first_stage().model_dump(include=set(PhaseConfig.model_fields))
    times = experiment.ablation.large_batch if arm.large else 1
    weights = dict.fromkeys(terms, 1.0)
    if len(terms) > 1 and "info_nce" in terms and "distill" in terms:
        weights["distill"] = point.weight
    if arm.gor and (len(arm.phases) == 1 or tuple(terms) == arm.phases[-1]):
        weights["gor"] = experiment.ablation.gor_weight
    changed = {
        "steps": steps,
        "batch_size": shared["batch_size"] * times,
        "lr": point.lr,
        "checkpoint_every": every,
        "weights": weights,
        "temperature": point.temperature,
        "learn_temperature": False,
        "negatives": experiment.ablation.negatives,
    }
    return AdapterConfig.model_validate({**shared, **changed})


def shuffle(seed: int, step: int, count: int) -> Tensor:
    """Permute the texts of a batch, for the negative control.

    Returns `(count,)` of int64, a permutation.
    """
    return torch.from_numpy(generator(seed, LABEL, "shuffle", step).permutation(count))


def batches_hash(plan: BatchPlan, start: int, stop: int) -> str:
    """Hash which rows some steps see.

    Returns 16 hexadecimal digits over data sets and row numbers.
    """
    digest = hashlib.sha256()
    for step in range(start, stop):
        batch = plan.at(step)
        digest.update(f"{batch.dataset} {batch.row_ids.tolist()}".encode())
    return digest.hexdigest()[:16]


def require_no_teacher(phase: Phase) -> None:
    """Hold a phase without distillation to having nothing of the teacher.

    Raises WorkFailed if it could see the teacher.
    """
    if any(term in phase.weights for term in ("distill", SHUFFLED)):
        return
    prepared = phase.prepare(phase.plan.at(phase.starts_at))
    seen = {
        "teacher stores": bool(phase.stores),
        "texts to distil": bool(prepared.distilled),
        "teacher similarities": phase.needs_similarities,
        "a projection into the teacher's space": phase.heads.projection is not None,
    }
    if result := [what for what, there in seen.items() if there]:
        raise WorkFailed(
            f"{phase.name} has no distillation but was given {', '.join(result)}; please report"
            " this"
        )
