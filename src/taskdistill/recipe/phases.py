"""The training phases of a recipe: the static student, stage 1, the long phase and the adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, create_model, model_validator

from taskdistill.config import ConfigModel, Fraction, Positive, Weight, is_set
from taskdistill.losses.registry import LOSSES, phase_terms
from taskdistill.losses.term import EVERY_ROW, TermConfig
from taskdistill.losses.terms.contrastive import ContrastConfig, HardNegativeWeighting
from taskdistill.losses.terms.cosent import CosentConfig
from taskdistill.losses.terms.embedding import DistillConfig
from taskdistill.losses.terms.listwise import TeacherContrastConfig
from taskdistill.losses.terms.relational import RelationalConfig
from taskdistill.recipe.student import StaticVocabConfig
from taskdistill.tasks import Task

MICRO_BATCH_TOKENS = 512
"""Tokens of a forward pass on a CPU with ample memory: more leave its cache; see
docs/performance.md."""

STAGE1_LOSSES = {"distill": 1.0}
"""The paper's loss weights of stage 1 (section 4.2); those of the adapters stand in `TASKS`."""

if TYPE_CHECKING:
    StaticTerm = str
    LossOptions = ConfigModel
else:
    StaticTerm = Literal[tuple(term.name for term in phase_terms("static"))]
    LossOptions = create_model(
        "LossOptions",
        # A base's fields stand before those of the bases to its left.
        __base__=tuple(
            dict.fromkeys(
                term.config
                for term in reversed(LOSSES.values())
                if term.config.in_menu and term.config is not TermConfig
            )
        ),
        __module__=__name__,
        __doc__="""Settings of the further distillation losses.

    Ours; each acts only where its term has a weight.
    """,
    )


def _key_of(config: type[TermConfig], name: str) -> Any:
    """Take a key of a phase from the term that reads it: its default, limits and description."""
    return config.model_fields[name]


def _base_terms() -> str:
    """List the terms of stage 1 as its description does."""
    terms = phase_terms("base")
    every = [t.name for t in terms if t.rows["base"] == EVERY_ROW and t.name not in STAGE1_LOSSES]
    few = [
        f"for {' and '.join(t.rows['base'])} {t.name}" for t in terms if t.rows["base"] != EVERY_ROW
    ]
    paper = f"{' and '.join(STAGE1_LOSSES)} (the paper's alone)"
    return ", ".join([paper, *every, *(f"and {each}" for each in few)])


class StaticConfig(ConfigModel):
    """The instant student.

    One vector per token, weighted mean, distilled by cosine (ours, not the paper's).
    """

    sources: dict[str, Weight] = Field(description="Source name to sampling weight")
    steps: Positive = 1000
    batch_size: Positive = Field(default=128, description="Rows per step")
    lr: float = Field(default=0.01, gt=0)
    matryoshka: bool = True
    vocabulary: StaticVocabConfig | None = Field(
        default=None, description="None: the student's own vocabulary"
    )
    start: Literal["tokens", "texts"] = Field(
        default="tokens",
        description=(
            "tokens: from the teacher's vector of every piece; texts: from the mean "
            "vector of the texts that a piece occurs in, "
            "for languages that the teacher does not read"
        ),
    )
    noise: float = Field(
        default=0.3,
        ge=0,
        description=(
            "start texts: length of the random part of each vector, which keeps pieces apart"
        ),
    )
    weights: dict[StaticTerm, Weight] = Field(
        default=STAGE1_LOSSES,
        description=(
            "Loss term to weight; teacher_nce: each text against the teacher's vectors of "
            "the batch; cosent is taken of scored rows"
        ),
    )
    nce_temperature: float = _key_of(TeacherContrastConfig, "nce_temperature")
    cosent_temperature: float = _key_of(CosentConfig, "cosent_temperature")

    def reads(self) -> set[str]:
        """Name the sources whose rows the phase uses."""
        vocabulary_sources = [] if self.vocabulary is None else self.vocabulary.sources or []
        return {name for name, weight in self.sources.items() if weight > 0}.union(
            vocabulary_sources
        )

    @model_validator(mode="after")
    def _terms_act(self) -> StaticConfig:
        if not any(weight > 0 for weight in self.weights.values()):
            raise ValueError("no loss term with a weight above 0; distill is the usual one")
        fields = type(self).model_fields
        if self.start == "tokens" and self.noise != fields["noise"].default:
            raise ValueError("noise has no effect with start: tokens; remove it")
        for term in phase_terms("static"):
            weight = self.weights.get(term.name, 0)
            if weight and "several_texts" in term.needs and self.batch_size < 2:
                raise ValueError(
                    f"{term.name} tells the rows of a batch apart; set batch_size to 2 or more"
                )
            for key in term.config.model_fields:
                if key in fields and not weight and is_set(self, key):
                    raise ValueError(
                        f"{key} has no effect without a weight of {term.name}; remove it"
                    )
        return self


class WeightSchedule(ConfigModel):
    """A factor on a term's weight that moves in a straight line and then stays."""

    start: Weight = Field(description="Factor at the first step")
    end: Weight = Field(default=1.0, description="Factor at the end of the ramp and from there on")
    until: float = Field(
        default=1.0, gt=0, le=1, description="Where the ramp ends, as a share of the steps"
    )

    @model_validator(mode="after")
    def _moves(self) -> WeightSchedule:
        if self.start == self.end:
            raise ValueError(
                f"a ramp from {self.start} to {self.end} has no effect; change the weight instead"
            )
        return self


class PhaseConfig(ConfigModel):
    """What every training phase has.

    Optimiser settings are ours where section 13 calls the paper's unknown.
    """

    sources: dict[str, Weight] = Field(
        description="Source name to sampling weight; one source per batch"
    )
    steps: Positive = Field(description="Optimiser updates")
    batch_size: Positive = Field(description="Rows per step, over all processes")
    max_length: Positive = Field(default=128, description="Tokens of one text in this phase")
    long_sources: dict[str, tuple[Positive, Positive]] = Field(
        default_factory=dict,
        description=(
            "Source name to its own (batch_size, max_length) where it differs from the phase's"
        ),
    )
    rope_theta: float | None = Field(
        default=None, gt=0, description="RoPE theta in this phase; None takes that of inference"
    )
    lr: float = Field(gt=0, description="Peak learning rate")
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = Field(default=0.05, ge=0, le=1, description="Share of the steps that warms up")
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    clip: float = Field(default=1.0, gt=0, description="Largest gradient norm")
    matryoshka: bool = Field(
        default=True, description="Every loss term over every prefix of student.matryoshka_dims"
    )
    micro_batch_tokens: Positive | None = Field(
        default=None,
        description=(
            "Tokens per forward pass; bounds memory, changes no number beyond rounding. "
            "None: 512 on a CPU, what fits on an accelerator"
        ),
    )
    menu: LossOptions = Field(
        default=LossOptions(),
        description="Settings of the further distillation losses that `weights` may name",
    )
    weight_schedule: dict[str, WeightSchedule] = Field(
        default_factory=dict, description="Loss term to a factor that changes with the steps"
    )
    checkpoint_every: Positive = Field(default=200, description="Steps between checkpoints")
    max_bad_steps: int = Field(
        default=3,
        ge=0,
        description="Steps with a non-finite loss or gradient that are skipped before giving up",
    )

    def reads(self) -> set[str]:
        """Name the sources whose rows the phase uses."""
        return {name for name, weight in self.sources.items() if weight > 0}

    @model_validator(mode="after")
    def _sources_exist(self) -> PhaseConfig:
        if not any(weight > 0 for weight in self.sources.values()):
            raise ValueError("no source with a weight above 0")
        if unknown := [name for name in self.long_sources if name not in self.sources]:
            raise ValueError(
                f"long_sources names {unknown}, not among the phase's sources "
                f"{sorted(self.sources)}"
            )
        return self


class Stage1Config(PhaseConfig):
    """Stage 1, embedding distillation.

    Section 4, and the long phase with its own length and theta.
    """

    weights: dict[str, Weight] = Field(
        default_factory=dict,
        description=(
            f"Loss term to weight: {_base_terms()}. Empty: chosen by where the student comes from,"
            " see `plan`"
        ),
    )
    negatives: int = Field(
        default=0,
        ge=0,
        description=(
            "Hard negatives of a row, at most, that are distilled beside its pair; with "
            "list_kl they are candidates of its query too"
        ),
    )
    reduction: Literal["mean", "sum"] = _key_of(DistillConfig, "reduction")
    projection: Literal["student", "none"] = Field(
        default="student",
        description="A trained map from student to teacher size, or none if equal",
    )
    projection_init: Literal["auto", "default", "identity", "least_squares", "rotation"] = Field(
        default="auto",
        description=(
            "default: torch's linear initialisation; identity: ones on the diagonal of "
            "each teacher's rows, for a student cut from its "
            "teacher; least_squares, rotation: fitted to the teacher's vectors of a sample before "
            "step 1; auto: by where the student comes from"
        ),
    )
    projection_lr: float | None = Field(
        default=None, gt=0, description="Learning rate of the projection; None: the phase's"
    )
    projection_warmup: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Share of the steps in which the projection's rate warms up; None: the phase's",
    )
    projection_weight_decay: float | None = Field(
        default=None, ge=0, description="Weight decay of the projection; None: the phase's"
    )
    freeze_embeddings: bool = Field(
        default=False, description="Keep the token table as it was started"
    )
    freeze_layers: bool = Field(
        default=False,
        description=(
            "Train the token table alone: a new vocabulary learns to speak to layers that "
            "stay as they are"
        ),
    )
    shard: Literal["auto", "full", "none"] = Field(
        default="auto",
        description=(
            "Divide weights, gradients and moments among the processes (FSDP2). auto: "
            "where several GPUs train; full: wherever "
            "several processes do; none: each holds all of them"
        ),
    )

    @model_validator(mode="after")
    def _something_moves(self) -> Stage1Config:
        if self.freeze_embeddings and self.freeze_layers:
            raise ValueError(
                "freeze_embeddings and freeze_layers together leave nothing to train; set one of "
                "them"
            )
        return self


class AveragingConfig(ConfigModel):
    """Mean of the last checkpoint with an earlier one.

    Section 5.1; which one is unknown, so these are ours.
    """

    earlier: float = Field(
        default=0.5, gt=0, lt=1, description="The earlier checkpoint, as a share of the steps"
    )
    weight: float = Field(default=0.5, gt=0, lt=1, description="Weight of the last checkpoint")
    mode: Literal["factors", "product"] = Field(
        default="factors",
        description="Average A and B apart, or their product B A cut back to the rank",
    )
    gate: bool = Field(
        default=True,
        description="Keep the average only if its dev score is not below the last checkpoint's",
    )


class AdapterConfig(PhaseConfig):
    """Stage 2, one task.

    Section 5: a LoRA adapter on the frozen student with its own mix of losses.
    """

    rank: Positive = 32
    alpha: Positive = 32
    dropout: float = Field(default=0.1, ge=0, lt=1)
    target_modules: list[str] | None = Field(
        default=None, description="None: every linear of every layer"
    )
    weights: dict[str, Weight] = Field(
        default_factory=dict,
        description="Loss term to weight; defaults are the paper's for the task",
    )
    temperature: float = Field(default=0.02, gt=0, description="Of InfoNCE")
    learn_temperature: bool | None = Field(
        default=None, description="None: as in the paper, learned for retrieval only"
    )
    min_temperature: float = Field(
        default=0.001, gt=0, description="A learned temperature is never below this"
    )
    cosent_temperature: float = _key_of(CosentConfig, "cosent_temperature")
    negatives: int = Field(
        default=7,
        ge=0,
        description="Hard negatives taken from a row, at most; classification: negatives per item",
    )
    train_projection: bool = Field(
        default=False, description="Train stage 1's projection further instead of keeping it"
    )
    false_negative_margin: float | None = Field(
        default=None,
        description=(
            "Mask an in-batch negative whose teacher similarity exceeds the positive's by "
            "more than this; None: off"
        ),
    )
    negatives_of_others: bool = Field(
        default=True, description="Whether hard negatives of other queries count as negatives"
    )
    mask_same_label: bool = Field(
        default=True, description="classification: texts with the anchor's label are no negatives"
    )
    relational_mean_gradient: bool = _key_of(RelationalConfig, "relational_mean_gradient")
    sharpen: HardNegativeWeighting = _key_of(ContrastConfig, "sharpen")
    average: AveragingConfig | None = None


ACTS_FOR: dict[str, set[Task]] = {
    key: {task for term in LOSSES.values() for task in term.tasks_of(key)}
    for each in LOSSES.values()
    for key in each.phase_settings
}
"""Adapter settings that only some tasks know; set elsewhere, they are an error."""
