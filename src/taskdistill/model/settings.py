"""What a model folder says beside its weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypedDict

Calibration = dict[str, dict[str, list[float]]]
"""Two levels of names to a number for each coordinate."""

CalibrationByTask = dict[str, Calibration]
"""Task (or `base`) to calibration."""


class TeacherFacts(TypedDict, total=False):
    """What a model says of the teacher that it was distilled from."""

    model: str
    """Names of several teachers are joined by ` + `."""
    revision: str | None
    kind: str
    """As in a recipe, or `several`."""
    embedding_dim: int | None
    """Of several teachers, the sum."""
    space_id: str
    """Empty where the teacher's vectors are of no space that a model here could share."""
    former_space_ids: list[str]
    trained_on: list[str] | None


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What a model folder says beside its weights."""

    prompts: dict[str, str] = field(default_factory=dict)
    max_length: int = 512
    matryoshka_dims: tuple[int, ...] = ()
    rope_theta: float | None = None
    """RoPE theta at inference; None for a backbone without rotary positions."""
    space_id: str = ""
    """Hash of everything that decides the base vectors, of a model that is not on disk;
    `Model.space_id` is the one in force.
    """
    teacher: TeacherFacts = field(default_factory=lambda: TeacherFacts())
    """Empty for a model that was not distilled here."""
    task_required: bool = False
    """Whether a task must be named: so with the published jina-v5 layout (section 3.1)."""
    int8_ranges: CalibrationByTask = field(default_factory=dict)
    """Task (or `base`) to dimension to the smallest and largest value of each coordinate."""
    binary_offsets: CalibrationByTask = field(default_factory=dict)
    """Task (or `base`) to `query` and `document` to dimension to what is taken from each coordinate
    before its sign; empty for none.
    """
    adapter_tasks: dict[str, str] = field(default_factory=dict)
    """Adapter to the task that it serves, where its name is another one."""
    extends: list[str] = field(default_factory=list)
    """Hashes of earlier states of this folder, all of whose adapters are in it unchanged."""
    former_space_ids: list[str] = field(default_factory=list)
    """Ids that earlier versions gave to the same space, so that their indexes are still searched.
    """
