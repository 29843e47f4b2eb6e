"""Find evaluation sets in a data folder."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from taskdistill.errors import BadInput, did_you_mean
from taskdistill.evaluate.task_type import AnyTask, EvalSet
from taskdistill.registry import Registry

TASK_TYPES: Registry[AnyTask] = Registry(
    "taskdistill.evaluate.tasks", "TASK", noun="evaluation task type"
)


def task_types() -> list[AnyTask]:
    """Return all types in the order of reports."""
    return sorted(TASK_TYPES.values(), key=lambda task: task.order)


@dataclass(frozen=True)
class EvalSelection:
    """Which evaluation sets of a data folder are used, and how far each is cut."""

    root: Path
    names: Sequence[str] | None = None
    """Names or patterns, see `find_eval_sets`; None takes every set."""
    max_queries: int | None = None

    def find(self, split: str) -> list[EvalSet]:
        """List the sets, see `find_eval_sets`."""
        return find_eval_sets(self.root, self.names, split)


def find_eval_sets(
    root: Path, names: Sequence[str] | None = None, split: str = "test"
) -> list[EvalSet]:
    """List the evaluation sets of a data folder; of files mostly first rows are read.

    Every type of `tasks/` says where its sets are. `names`: names such as `retrieval/scifact` or
    patterns such as `sts/*`; None takes every set. Returns the sets, by type and name, or in the
    order of `names`. Raises BadInput if the folder has no such sets or a name is unknown.
    """
    if not root.is_dir():
        raise BadInput(
            f"{root} is not a folder; give a folder with retrieval/, scored/, labelled/ or pairs/"
            " in it"
        )
    types = task_types()
    by_name = {each.name: each for task in types for each in task.find(root, split)}
    sets = sorted(by_name.values(), key=lambda each: (each.task.order, each.name))
    if not sets:
        raise BadInput(
            f"{root} has no evaluation sets for split {split!r};"
            f" it needs files such as labelled/NAME.{split}.jsonl.gz or retrieval/NAME/"
        )
    if names is None:
        return sets
    known = {each.name: each for task in types for each in task.find_by_name(root, split)} | {
        each.name: each for each in sets
    }
    chosen: dict[str, EvalSet] = {}
    for name in names:
        matches = (
            [known[name]]
            if name in known
            else [each for each in sets if fnmatch.fnmatchcase(each.name, name)]
        )
        if not matches:
            raise BadInput(
                f"no evaluation set {name!r} for split {split!r} in {root}"
                f"{did_you_mean(name, known)}"
            )
        chosen.update({each.name: each for each in matches})
    return list(chosen.values())
