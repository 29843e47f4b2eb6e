"""Which evaluation data was seen in training: by the student, and by its teacher where declared."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taskdistill.data.overlap import SeenTexts, overlap_with
from taskdistill.evaluate.set_data import RankingData, SetData, judged_texts
from taskdistill.evaluate.task_type import EvalSet


@dataclass(frozen=True)
class TrainingTexts:
    """What a model was trained on.

    Attributes:
        trained: Its texts, prepared for comparison; None where only the teacher's declaration is
            known.
        teacher: Patterns of sets that the teacher was trained on; None where that is not declared.
    """

    name: str
    trained: SeenTexts | None
    texts: int
    teacher: Sequence[str] | None = None


def seen_in(
    training: TrainingTexts, sets: Sequence[EvalSet], data: Mapping[str, SetData]
) -> dict[str, dict[str, Any]]:
    """Count the evaluation texts that were seen, by set.

    Returns `texts`, `exact` and `near` (share a run of 13 words, without the exact ones), for
    sets that search also under `queries`, and `teacher`: true or false where the teacher's data
    is declared, otherwise None. Counts are None where the training texts are not known.
    """
    result = {}
    for each in sets:
        counts = _counts(training.trained, judged_texts(data[each.name]))
        searched = data[each.name]
        if isinstance(searched, RankingData):
            counts["queries"] = _counts(
                training.trained, list(dict.fromkeys(searched.queries.values()))
            )
        result[each.name] = counts | {"teacher": teacher_saw(training.teacher, each.name)}
    return result


def teacher_saw(declared: Sequence[str] | None, name: str) -> bool | None:
    """Tell whether a pattern fits a set's name or its last part; None where none is declared.

    Names are those of sets, such as `retrieval/scifact`, or of a benchmark's tasks.
    """
    if declared is None:
        return None
    names = (name, name.rsplit("/", 1)[-1])
    return any(fnmatch.fnmatchcase(each, pattern) for pattern in declared for each in names)


def warnings_of(label: str, seen: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say in a sentence for every set of which something was seen what a reader must know."""
    result = []
    for name, counts in seen.items():
        reasons = []
        if counts["exact"] or counts["near"]:
            reasons.append(
                f"of {counts['texts']:,} texts {counts['exact']:,} were seen word for word,"
                f" {counts['near']:,} more share 13 words in a row"
            )
            if counts.get("queries"):
                queries = counts["queries"]
                reasons.append(
                    f"among them {queries['exact'] + queries['near']:,} of {queries['texts']:,}"
                    " queries"
                )
        if counts["teacher"]:
            reasons.append("the teacher was trained on this set")
        if reasons:
            result.append(f"{name}, trained on {label}: {'; '.join(reasons)}.")
    return result


def _counts(trained: SeenTexts | None, texts: Sequence[str]) -> dict[str, Any]:
    if trained is None:
        return {"texts": len(texts), "exact": None, "near": None}
    return dict(overlap_with(trained, texts).counts())
