"""The report's parts on public benchmarks, languages, lengths and prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from taskdistill.evaluate.records import ModelScore, Results, Suite
from taskdistill.report.languages import language_section
from taskdistill.report.tables import CellText, Section, Table, Value


def breakdown_sections(results: Results) -> list[Section]:
    """Return the parts that there are numbers for."""
    scores = results["scores"]
    result = [_suite_section(suite) for suite in results.get("suites", ())]
    if languages := language_section(results):
        result.append(languages)
    if lengths := _length_table(scores):
        intro = "By length of the relevant document, of the pair, or of the text, in characters."
        result.append(Section("Lengths", intro, [lengths]))
    if prompts := _prompt_tables(scores):
        intro = (
            "The score under each declared prompt. Where prompts may be chosen after the scores"
            " are seen, only the range is a fair number."
        )
        result.append(Section("Prompts", intro, prompts))
    return result


def _suite_section(suite: Suite) -> Section:
    models, tasks = suite["models"], suite["tasks"]
    types = list(
        dict.fromkeys(kind for each in models.values() for kind in each["means"]["by_type"])
    )
    rows: list[list[Value]] = [
        [
            name,
            *(each["means"]["by_type"].get(kind) for kind in types),
            each["means"]["types"],
            each["means"]["sets"],
        ]
        for name, each in models.items()
    ]
    overview = Table(
        title="By type",
        columns=["model", *types, "mean of types", "mean of tasks"],
        rows=rows,
        note="Main score of each task × 100.",
    )
    order = sorted(
        (name for name in tasks if name not in suite["missing"]),
        key=lambda name: (types.index(tasks[name]["type"]), name),
    )
    each_task: list[list[Value]] = [
        [
            CellText(name, f"{tasks[name]['type']}, {tasks[name]['metric']}"),
            *(each["scores"].get(name) for each in models.values()),
        ]
        for name in order
    ]
    intro = f"Run by mteb {suite['mteb']} on {len(order)} of {len(tasks)} tasks."
    if suite["missing"]:
        intro += (
            f" Without data, so left out: {', '.join(suite['missing'])}. Means over a part of"
            " the tasks do not compare with published ones."
        )
    return Section(
        suite["suite"],
        intro,
        [overview, Table(title="By task", columns=["task", *models], rows=each_task)],
    )


def _length_table(scores: Mapping[str, Mapping[str, ModelScore]]) -> Table | None:
    rows: list[list[Value]] = []
    for name in _sets(scores, "lengths"):
        each = {
            model: {bucket["label"]: bucket for bucket in sets[name]["lengths"]}
            for model, sets in scores.items()
            if name in sets
        }
        labels = next(iter(each.values()))
        if len(labels) > 1:
            for label, bucket in labels.items():
                values = [
                    each[model][label]["score"] if model in each and label in each[model] else None
                    for model in scores
                ]
                rows.append([CellText(name, label), bucket["n"], *values])
    return (
        Table(
            title="",
            columns=["set", "n", *scores],
            rows=rows,
            note="Main score × 100; with few rows in a range, chance decides.",
        )
        if rows
        else None
    )


def _prompt_tables(scores: Mapping[str, Mapping[str, ModelScore]]) -> list[Table]:
    names = _sets(scores, "prompts")
    if not names:
        return []
    rows: list[list[Value]] = []
    for name in names:
        row: list[Value] = [name]
        for sets in scores.values():
            values: Sequence[float] = list(_prompts(sets, name).values())
            row.append(
                CellText(
                    f"{100 * np.median(values):.1f}",
                    f"{100 * min(values):.1f}–{100 * max(values):.1f}",
                )
                if values
                else None
            )
        rows.append(row)
    tables = [Table(title="Median, and minimum to maximum", columns=["set", *scores], rows=rows)]
    prompts = list(
        dict.fromkeys(
            prompt for sets in scores.values() for name in names for prompt in _prompts(sets, name)
        )
    )
    means: list[list[Value]] = []
    for prompt in prompts:
        result: list[Value] = [f"“{prompt}”" if prompt else "none"]
        for sets in scores.values():
            values = [
                sets[name]["prompts"][prompt] for name in names if prompt in _prompts(sets, name)
            ]
            result.append(float(np.mean(values)) if values else None)
        means.append(result)
    return [
        *tables,
        Table(title="By prompt, mean over the sets", columns=["prompt", *scores], rows=means),
    ]


def _prompts(sets: Mapping[str, ModelScore], name: str) -> dict[str, float]:
    return sets[name].get("prompts", {}) if name in sets else {}


def _sets(scores: Mapping[str, Mapping[str, ModelScore]], field: str) -> list[str]:
    return list(
        dict.fromkeys(
            name for sets in scores.values() for name, record in sets.items() if record.get(field)
        )
    )
