"""Which evaluation data was seen in training: by the student, and by its teacher where declared."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from taskdistill.data.overlap import SeenTexts, overlap_with
from taskdistill.evaluate.records import SeenCounts, SeenSet
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
) -> dict[str, SeenSet]:
    """Count the evaluation texts that were seen, by set.

    Sets that search have their queries counted as well.
    """
    result: dict[str, SeenSet] = {}
    for each in sets:
        searched = data[each.name]
        counts = _counts(training.trained, judged_texts(searched))
        teacher = teacher_saw(training.teacher, each.name)
        if isinstance(searched, RankingData):
            queries = _counts(training.trained, list(dict.fromkeys(searched.queries.values())))
            result[each.name] = {**counts, "queries": queries, "teacher": teacher}
        else:
            result[each.name] = {
                "texts": counts["texts"],
                "exact": counts["exact"],
                "near": counts["near"],
                "teacher": teacher,
            }
    return result


def teacher_saw(declared: Sequence[str] | None, name: str) -> bool | None:
    """Tell whether a pattern fits a set's name or its last part; None where none is declared.

    Names are those of sets, such as `retrieval/scifact`, or of a benchmark's tasks.
    """
    if declared is None:
        return None
    names = (name, name.rsplit("/", 1)[-1])
    return any(fnmatch.fnmatchcase(each, pattern) for pattern in declared for each in names)


def warnings_of(label: str, seen: Mapping[str, SeenSet]) -> list[str]:
    """Say in a sentence for every set of which something was seen what a reader must know."""
    result = []
    for name, counts in seen.items():
        reasons = []
        if seen_of(counts):
            reasons.append(
                f"of {counts['texts']:,} texts {counts['exact']:,} were seen word for word,"
                f" {counts['near']:,} more share 13 words in a row"
            )
            if queries := counts.get("queries"):
                reasons.append(f"among them {seen_of(queries):,} of {queries['texts']:,} queries")
        if counts["teacher"]:
            reasons.append("the teacher was trained on this set")
        if reasons:
            result.append(f"{name}, trained on {label}: {'; '.join(reasons)}.")
    return result


def seen_of(counts: SeenCounts) -> int:
    """Return how many texts were seen, in whatever way; 0 where that is not known."""
    return (counts["exact"] or 0) + (counts["near"] or 0)


def _counts(trained: SeenTexts | None, texts: Sequence[str]) -> SeenCounts:
    if trained is None:
        return {"texts": len(texts), "exact": None, "near": None}
    counts = overlap_with(trained, texts).counts()
    return {"texts": counts["texts"], "exact": counts["exact"], "near": counts["near"]}
