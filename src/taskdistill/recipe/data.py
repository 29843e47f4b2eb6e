"""A recipe's data: where rows come from, and what is said of them."""

from __future__ import annotations

from pydantic import Field, model_validator

from taskdistill.config import ConfigModel, Positive, is_set
from taskdistill.types import RowKind, TeacherSide


class SourceConfig(ConfigModel):
    """One training data set: a file, a glob below `data.root`, or a Hub data set."""

    path: str = Field(
        description=(
            "File or glob below data.root (JSONL, CSV or Parquet, gzip too), or hub:<owner>/<name>"
        )
    )
    kind: RowKind = Field(description="pairs, scored, labelled or texts")
    columns: dict[str, str] = Field(
        default_factory=dict, description="Our field name to the file's column name"
    )
    languages: list[str] | None = Field(
        default=None,
        description=(
            "Keep only rows whose lang is listed; where there is no such column, what the "
            "rows are in"
        ),
    )
    limit: Positive | None = Field(
        default=None, description="Use at most this many rows, drawn by the recipe's seed"
    )
    subset: str | dict[str, str] | None = Field(
        default=None,
        description=(
            "Subset (configuration) of a Hub data set, or language to subset where each "
            "language has its own"
        ),
    )
    split: str = Field(
        default="train",
        description="Split of a Hub data set, or a slice of one such as train[:100000]",
    )
    revision: str | None = Field(default=None, description="Revision of a Hub data set")
    score_range: tuple[float, float] = Field(
        default=(0.0, 1.0), description="Smallest and largest allowed score of a scored row"
    )
    licence: str | None = Field(
        default=None, description="Licence of the data, copied to the model card"
    )
    note: str | None = Field(default=None, description="What the data is, copied to the model card")
    rows: Positive | None = Field(
        default=None,
        description="Rows it is said to have; plan counts with them where it cannot read the data",
    )
    tokens: dict[str, Positive] | None = Field(
        default=None,
        description=(
            "Our field name to its usual tokens, for plan where it cannot read the data; "
            "None counts max_length"
        ),
    )
    teacher_reads: TeacherSide = Field(
        default=TeacherSide.BOTH,
        description=(
            "query or positive, for pairs of translations: the teacher reads that side, and the"
            " student learns both sides from its vector. neither, for scored rows: the teacher"
            " cannot read them, only their scores count"
        ),
    )
    teachers: list[str] | None = Field(
        default=None,
        description=(
            "With several teachers: the names of those that read this source, `teacher` "
            "being the first; None: all"
        ),
    )

    @model_validator(mode="after")
    def _reads_what_is_there(self) -> SourceConfig:
        kinds = {
            TeacherSide.QUERY: RowKind.PAIRS,
            TeacherSide.POSITIVE: RowKind.PAIRS,
            TeacherSide.NEITHER: RowKind.SCORED,
        }
        if self.kind is not kinds.get(self.teacher_reads, self.kind):
            raise ValueError(
                f"teacher_reads {self.teacher_reads.value} is for "
                f"{kinds[self.teacher_reads].value}, not for {self.kind.value}"
            )
        return self

    @model_validator(mode="after")
    def _hub_only(self) -> SourceConfig:
        idle = [name for name in ("subset", "revision", "split") if is_set(self, name)]
        if idle and not self.path.startswith("hub:"):
            raise ValueError(f"{idle[0]} has no effect: {self.path} is no Hub data set; remove it")
        if isinstance(self.subset, dict) and not self.subset:
            raise ValueError("subset names no subset; give language to subset, or one name")
        if isinstance(self.subset, dict) and (
            other := [each for each in self.languages or [] if each not in self.subset]
        ):
            raise ValueError(
                f"languages names {other}, which subset gives no subset for; its languages are "
                f"{sorted(self.subset)}"
            )
        return self

    @model_validator(mode="after")
    def _some_scores(self) -> SourceConfig:
        if not self.score_range[0] < self.score_range[1]:
            raise ValueError(
                f"score_range {self.score_range} is empty; give the smallest and the largest "
                "allowed score"
            )
        return self


class DataConfig(ConfigModel):
    """Where the texts come from."""

    root: str = Field(
        default="docstrings",
        description="Folder the sources' paths start from, or `docstrings`: the embedded default",
    )
    sources: dict[str, SourceConfig] = Field(description="Name to source")
    max_bad: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Share of rejected rows above which a source is refused",
    )
    docstrings_limit: Positive | None = Field(
        default=None, description="With root docstrings: at most this many training documents"
    )
