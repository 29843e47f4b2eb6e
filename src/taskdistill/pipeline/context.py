"""What the steps of a run share."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from taskdistill.data.batches import BatchPlan
from taskdistill.device import CPU
from taskdistill.memory import peak_megabytes, trim_memory
from taskdistill.pipeline.setup import TrainData
from taskdistill.progress import Progress, Stop
from taskdistill.recipe.recipe import Recipe
from taskdistill.teacher.protocol import Teacher, View
from taskdistill.teacher.store import TeacherStore
from taskdistill.train.context import Interrupted
from taskdistill.train.distributed import SINGLE, ProcessGroup
from taskdistill.train.log import Log, read_lines

NamedStores = tuple[str, Teacher, Mapping[View, TeacherStore]]
"""A teacher's name in the recipe, the teacher, and where its vectors are kept."""


@dataclass(kw_only=True)
class RunContext:
    """What the steps of a run share.

    Inputs and plans change where a teacher has no vector for some text.
    """

    recipe: Recipe
    out: Path
    inputs: TrainData
    teachers: Sequence[NamedStores]
    """Every teacher, the first one first."""
    progress: Progress
    should_stop: Stop
    log: Log
    threads: int
    plans: dict[str, BatchPlan]
    facts: dict[str, Any] = field(default_factory=dict)
    """What metrics.json says of the run beside its scores."""
    processes: ProcessGroup = SINGLE
    profile: bool = False
    device: torch.device = CPU
    unusable: set[str] = field(default_factory=set)
    """Texts of which no teacher makes a vector; their rows are left out."""

    @property
    def teacher(self) -> Teacher:
        """The first teacher."""
        return self.teachers[0][1]

    @property
    def stores(self) -> Mapping[View, TeacherStore]:
        """The stores of the first teacher."""
        return self.teachers[0][2]

    @property
    def further(self) -> Sequence[NamedStores]:
        """The teachers beside the first."""
        return self.teachers[1:]

    def count(self, done: int, total: int) -> None:
        """Tell how far a part has come whose finished items stay; stop if that was requested."""
        self.progress.count(done, total)
        if self.should_stop():
            raise Interrupted(
                "stopped; what is finished is kept, run the same command again to continue"
            )

    def timed(self, part: str, start: float) -> None:
        """Log the seconds since `start` for a part, and give back the memory it leaves free."""
        # In the log, not in memory: a continued run counts the parts of its earlier commands too.
        self.log.write(
            {
                "part": part,
                "seconds": time.monotonic() - start,
                "peak_megabytes": round(peak_megabytes()),
            }
        )
        trim_memory()

    def seconds(self) -> dict[str, float]:
        """Sum the seconds of every part over all commands that worked on the run."""
        result: dict[str, float] = {}
        for record in self._parts():
            result[record["part"]] = result.get(record["part"], 0.0) + record["seconds"]
        return result

    def peak(self) -> float:
        """Return the largest memory of all commands that worked on the run, in megabytes.

        0 if no part has ended.
        """
        return max((record.get("peak_megabytes", 0.0) for record in self._parts()), default=0.0)

    def _parts(self) -> list[dict[str, Any]]:
        return [record for _, record in read_lines(self.log.path) if "part" in record]
