"""Where a phase began and where it ended, by its development scores; and a warning where it ended
lower.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taskdistill.train.log import Log, read_lines

MEAN = "mean"
"""Name of the mean over the main scores of all sets of a phase."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """Development scores of a phase's first state and of the state that it ended with."""

    phase: str
    step: int
    """Updates of the state that the phase ended with; fewer than its steps where the best state was
    kept.
    """
    began: Mapping[str, float]
    """Set to main score before the first update, and `mean`."""
    ended: Mapping[str, float]

    @property
    def change(self) -> float:
        """By how much the mean rose."""
        return self.ended[MEAN] - self.began[MEAN]

    def lines(self) -> list[str]:
        """Say in words where the phase ended, and warn where that is lower than its start.

        Returns the mean first; then the sets that fell.
        """
        fell = [name for name in self.began if name != MEAN and self.ended[name] < self.began[name]]
        shown = (
            f"{100 * self.began[MEAN]:.1f} before the first step, {100 * self.ended[MEAN]:.1f}"
            f" after step {self.step:,}"
        )
        lowered = "; ".join(
            f"{name} {100 * self.began[name]:.1f} to {100 * self.ended[name]:.1f}" for name in fell
        )
        if self.change >= 0:
            return [
                f"{self.phase}: development mean {shown}" + (f"; lower: {lowered}" if fell else "")
            ]
        return [
            f"warning: {self.phase} ended below where it began: development mean {shown}"
            f" ({lowered}); lower {self.phase}.lr, look at {self.phase}.weights, or set"
            " evaluation.during.keep to mean, which keeps the best state, the first one included"
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {"step": self.step, "began": dict(self.began), "ended": dict(self.ended)}


def read_course(log: Log, phase: str, step: int) -> Course | None:
    """Read a phase's course from the log.

    Returns the course; None where its first or this state was not scored.
    """
    scored = {
        record["evaluated"]: record["main"]
        for _, record in read_lines(log.path)
        if record.get("phase") == phase and "evaluated" in record and MEAN in record.get("main", {})
    }
    if 0 not in scored or step not in scored:
        return None
    return Course(phase=phase, step=step, began=scored[0], ended=scored[step])


def courses(log: Log) -> list[Course]:
    """Read what every finished phase wrote into the log.

    Returns one course a phase, in the order in which they ended first.
    """
    result: dict[str, Course] = {}
    for _, record in read_lines(log.path):
        if "course" in record:
            result[record["phase"]] = Course(phase=record["phase"], **record["course"])
    return list(result.values())
