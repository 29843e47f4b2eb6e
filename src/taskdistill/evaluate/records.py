"""The shape of results.json, of its parts, and of what the caches keep."""

from __future__ import annotations

from typing import NotRequired, TypedDict


class LengthRow(TypedDict):
    """The score of one range of lengths."""

    label: str
    n: int
    score: float


class CompressionRow(TypedDict):
    """One way to store vectors, see `CompressionResult`."""

    dim: int
    precision: str
    rescored: bool
    score: float
    kept: float
    """Share of the uncompressed score."""
    bytes: int
    query_ms: float | None


class CalibrationSource(TypedDict):
    """The dimensions whose int8 ranges the model stores, and those fitted on the set."""

    model: list[int]
    set: list[int]


class ModelScore(TypedDict):
    """One model on one set."""

    set: str
    kind: str
    metric: str
    score: float
    interval: list[float]
    scores: dict[str, float]
    by_language: dict[str, float]
    n: int
    dim: int
    texts: int
    cut: int
    """Texts longer than the model reads."""
    encode_seconds: float
    score_seconds: float
    notes: list[str]
    lengths: list[LengthRow]
    compression: list[CompressionRow]
    calibration: NotRequired[CalibrationSource]
    prompts: NotRequired[dict[str, float]]
    """Prompt to the score under it."""


class Record(ModelScore):
    """One model on one set with what comparisons need, as it is cached."""

    units: dict[str, list[float]]
    """Language to its units, see `stats.intervals.Units`."""


class Means(TypedDict):
    """Averages of section 8.3 of the paper; None without a score."""

    sets: float | None
    types: float | None
    """Mean of the means of the types."""
    by_type: dict[str, float]


class Retention(TypedDict):
    """Scores as shares of the reference's, by set, and their mean."""

    sets: dict[str, float]
    mean: float | None


class Comparison(TypedDict):
    """How far a model is ahead of the reference on one set."""

    set: str
    model: str
    against: str
    difference: list[float]
    """Value, and the ends of its 95 % interval."""
    p: float


class PoolLanguage(TypedDict):
    """How queries of one language fare, see `LanguageScores`."""

    queries: int
    own: float
    pooled: float
    any_language: float | None
    own_share: float
    first_own: float | None


class PoolScores(TypedDict):
    """A family of sets searched crosswise and in one pool, see `PooledScores`."""

    by_language: dict[str, PoolLanguage]
    cross: dict[str, dict[str, float]]


class SeenCounts(TypedDict):
    """How many of some texts were seen in training; None where that is not known."""

    texts: int
    exact: int | None
    near: int | None
    """Share a run of 13 words, without the exact ones."""


class SeenSet(SeenCounts):
    """The counts of one evaluation set."""

    teacher: bool | None
    """Whether the teacher was trained on the set; None if that is not declared."""
    queries: NotRequired[SeenCounts]
    """Of a set that searches."""


class Seen(TypedDict):
    """What one training has seen of each set."""

    training: str
    texts: int
    sets: dict[str, SeenSet]


class SuiteModel(TypedDict):
    """One model on a public benchmark."""

    revision: str
    scores: dict[str, float]
    splits: dict[str, dict[str, dict[str, float]]]
    """Task to split to subset to main score."""
    means: Means


class SuiteTask(TypedDict):
    """What mteb says of a task."""

    type: str
    metric: str


class Suite(TypedDict):
    """A public benchmark."""

    suite: str
    tasks: dict[str, SuiteTask]
    models: dict[str, SuiteModel]
    missing: dict[str, str]
    """Task to what kept its data away."""
    mteb: str
    seen_by_teacher: NotRequired[dict[str, list[str]]]
    """Training to the tasks that its teacher declares."""


class EvaluatedModel(TypedDict):
    """A model by its name and what decides its vectors."""

    name: str
    fingerprint: str


class EvaluatedSet(TypedDict):
    """A set by its name and the hash of its files."""

    name: str
    kind: str
    split: str
    digest: str


class Summary(TypedDict):
    """Scores of several models and how they compare with one of them."""

    reference: str | None
    scores: dict[str, dict[str, ModelScore]]
    """Model to set to score."""
    means: dict[str, Means]
    retention: dict[str, Retention]
    comparisons: list[Comparison]
    verdicts: dict[str, str]
    """Model to what compression costs it, in words."""


class Results(Summary, total=False):
    """What `evaluate_models` returns; an evaluation adds `seen` and `suites`."""

    models: list[EvaluatedModel]
    sets: list[EvaluatedSet]
    options: dict[str, object]
    pools: dict[str, dict[str, PoolScores]]
    """Model to family."""
    versions: dict[str, str]
    seen: list[Seen]
    suites: list[Suite]
