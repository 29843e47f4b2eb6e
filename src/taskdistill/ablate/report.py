"""The report of an ablation: one self-contained page from results.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from taskdistill.ablate import report_tables as tables
from taskdistill.ablate.contrasts import BITS, CONTROLS, COSTS, GOR, INTERACTION, LENGTHS, ORDER
from taskdistill.ablate.report_costs import cost_table, tuning_table
from taskdistill.ablate.report_tables import Results
from taskdistill.io.outputs import write_output
from taskdistill.report.page import ReportData, render_report
from taskdistill.report.plots import Series, dot_plot, interval_chart, line_chart
from taskdistill.report.tables import Section, Table

MOST_LINES = 6
"""Lines or marks that one chart can tell apart."""

SENTENCES = {
    "supported": "Supported: combining distillation with contrast beats each of them alone.",
    "contradicted": (
        "Contradicted: combining distillation with contrast does not beat both of them."
    ),
    "undecided": (
        "Undecided: these data do not tell whether combining distillation with contrast beats both"
        " of them."
    ),
}


def write_report(out: Path, results: Results, command: str) -> None:
    """Write OUT/report.html."""
    write_output(out / "report.html", render_report(report_data(results, command)))


def report_data(results: Results, command: str) -> ReportData:
    """Lay results out as a page."""
    verdict = results["verdict"]
    frozen = {key: results["frozen"][key] for key in ("ablation", "recipe", "left_out")}
    return ReportData(
        title=results["name"],
        summary=f"{SENTENCES[verdict['state']]} {_relevance(results)}",
        facts=_facts(results),
        warnings=results["warnings"],
        sections=[
            Section(
                "The claim",
                _shown(results),
                [tables.claim_table(results), *_some(tables.fewer_sets_table(results))],
                [_claim_chart(results)],
            ),
            Section("Expected before the run", f"“{results['frozen']['ablation']['expectation']}”"),
            Section(
                "Arms",
                _arm_words(results),
                [
                    tables.arm_table(results),
                    *_some(
                        tables.contrast_table(
                            results, [INTERACTION, ORDER], "Interaction, and the order of phases"
                        )
                    ),
                ],
                [_seed_chart(results)],
            ),
            Section("Test sets", "", [tables.set_table(results)]),
            Section(
                "Learning curves",
                _curve_words(results),
                _crossing_tables(results),
                _curve_charts(results),
            ),
            Section(
                "The spread-out regulariser",
                "GOR is switched on and off on its own, so that what it does is not credited to"
                " distillation.",
                _some(tables.contrast_table(results, [GOR])),
            ),
            Section(
                "Smaller vectors",
                "",
                [
                    tables.variant_table(results),
                    *_some(tables.contrast_table(results, [BITS], "Sign bits")),
                    *_some(tables.contrast_table(results, [LENGTHS], "Truncation")),
                ],
            ),
            Section(
                "Controls",
                _control_words(results),
                _some(tables.contrast_table(results, [CONTROLS])),
            ),
            Section(
                "Equal cost",
                _cost_words(results),
                [
                    cost_table(results),
                    *_some(tables.contrast_table(results, [COSTS], "Contrast alone with more")),
                ],
            ),
            Section("Tuning", "", _some(tuning_table(results))),
            Section(
                "Queries",
                _query_words(results),
                [
                    *_some(tables.query_table(results, "helped", "Helped most")),
                    *_some(tables.query_table(results, "harmed", "Harmed most")),
                    tables.length_table(results),
                ],
            ),
            Section("The same in every arm", _machine(results), [tables.hash_table(results)]),
        ],
        settings=yaml.safe_dump(frozen, sort_keys=False, allow_unicode=True),
        commands=[command],
        versions=results["versions"],
    )


def _some(table: Table | None) -> list[Table]:
    return [] if table is None else [table]


def _relevance(results: Results) -> str:
    margin = results["frozen"]["ablation"]["margin"]
    return {
        "yes": f"Both differences are larger than {margin:.1f} points.",
        "no": (
            "There is no relevant gain over both: against one of them it is shown to be below"
            f" {margin:.1f} points."
        ),
        "open": f"Whether the smaller gain is relevant, {margin:.1f} points or more, is open.",
    }[results["verdict"]["relevant"]]


def _facts(results: Results) -> list[tuple[str, str]]:
    result = {
        each["name"]: each["estimate"] for each in results["contrasts"] if not each["exploratory"]
    }
    facts = [
        (tables.points(estimate[0]), f"points, {name} ({tables.span(estimate)})")
        for name, estimate in result.items()
    ]
    before = results["smallest_detectable"]
    facts.append(
        (
            f"{100 * before['smallest_effect']:.1f}",
            "points: smallest effect it would probably show, said before the run",
        )
    )
    facts.append((f"{before['seeds']} × {before['queries']:,}", "seeds and queries"))
    return facts


def _shown(results: Results) -> str:
    p = results["verdict"]["p"]
    return (
        f"Both comparisons must hold (intersection-union test): p = {tables.p_value(p)} one-sided."
        f" {' '.join([*results['verdict']['why'], *results['verdict']['would_decide']])}"
    )


def _claim_chart(results: Results) -> Markup:
    chosen = [
        each for each in results["contrasts"] if each["family"] not in (BITS, LENGTHS, CONTROLS)
    ]
    rows = [(each["name"], *(100 * x for x in each["estimate"])) for each in chosen]
    label = "Differences in points with 95 % intervals: " + "; ".join(
        f"{name} {v:+.2f} ({a:+.2f} to {b:+.2f})" for name, v, a, b in rows
    )
    return interval_chart(
        rows, label=label, x_label="points of nDCG@10, 95 % interval over seeds, sets and queries"
    )


def _arm_words(results: Results) -> str:
    tuned = "after tuning on the dev sets" if results["tuning"] else "with same_length settings"
    return (
        "Every arm starts from one checkpoint, sees the same batches in the same order for each"
        f" seed, and has equal steps, {tuned}. The checkpoint is that of the last step for all."
    )


def _seed_chart(results: Results) -> Markup:
    arms = results["arms"]
    limit = min(MOST_LINES, max(len(arm["runs"]) for arm in arms.values()))
    seeds = [run["seed"] for run in max(arms.values(), key=lambda arm: len(arm["runs"]))["runs"]][
        :limit
    ]
    rows = []
    for name, arm in arms.items():
        by_seed = {run["seed"]: 100 * run["score"] for run in arm["runs"]}
        values = [by_seed.get(seed) for seed in seeds]
        rows.append(
            (
                name,
                (
                    values
                    if any(value is not None for value in values)
                    else [100 * arm["runs"][0]["score"]]
                ),
            )
        )
    label = "nDCG@10 of every seed: " + "; ".join(
        f"{name}: " + ", ".join(f"{v:.1f}" for v in values if v is not None)
        for name, values in rows
    )
    return dot_plot(
        rows,
        [f"seed {seed}" for seed in seeds],
        label=label,
        x_label="nDCG@10 × 100, mean over sets",
    )


def _curve_words(results: Results) -> str:
    curves = results["curves"]
    moved = curves["at_equal_distance"]
    scores = ", ".join(f"{name} {100 * score:.1f}" for name, score in moved["scores"].items())
    order = (
        "The order of D, C and DC still changed in the last fifth of the steps."
        if curves["still_changing"]
        else "The order of D, C and DC did not change in the last fifth of the steps."
    )
    with_teacher = curves.get("cpu_seconds_with_teacher")
    if with_teacher and _apart(with_teacher):
        order += (
            f" Without cached vectors contrast alone ends after {_place(with_teacher['C'][-1][0])}"
            " CPU-seconds, before an arm with a teacher takes its first step (after"
            f" {_place(with_teacher['D'][0][0])})."
        )
    return (
        "nDCG@10 on the dev sets, mean over seeds; every curve starts at the untrained base."
        f" {order} Where each has moved the weights as far as the one that moved least (Euclidean"
        f" distance {moved['distance']:.2f} from the base), the dev scores are: {scores}."
    )


def _curve_charts(results: Results) -> list[Markup]:
    titles = {
        "steps": "steps",
        "cpu_seconds": "CPU-seconds of training",
        "cpu_seconds_with_teacher": "CPU-seconds with the teacher's",
    }
    charts = []
    for key, words in titles.items():
        curves = results["curves"].get(key)
        if curves and not (key == "cpu_seconds_with_teacher" and _apart(curves)):
            series = [
                Series(name, [(x, 100 * y) for x, y in curve])
                for name, curve in list(curves.items())[:MOST_LINES]
            ]
            ends = ", ".join(f"{each.name} ends at {each.points[-1][1]:.1f}" for each in series)
            charts.append(
                line_chart(
                    series,
                    label=f"Dev nDCG@10 against {words}: {ends}",
                    x_label=words,
                    y_label="nDCG@10 × 100",
                    marks=True,
                )
            )
    return charts


def _apart(curves: Mapping[str, Any]) -> bool:
    """Whether the arms without a teacher end before those with one begin, so that a chart would
    show two heaps and nothing else.
    """
    return bool(curves["C"][-1][0] < curves["D"][0][0])


def _crossing_tables(results: Results) -> list[Table]:
    result: dict[tuple[str, str], list[str]] = {}
    keys = (
        "crossings_on_steps",
        "crossings_on_cpu_seconds",
        "crossings_on_cpu_seconds_with_teacher",
    )
    for place, key in enumerate(keys):
        for each in results["curves"].get(key, ()):
            row = result.setdefault((each["arms"][0], each["arms"][1]), ["–"] * len(keys))
            row[place] = ", ".join(_place(at) for at in each["at"])
    rows = [[f"{a} and {b}", *row] for (a, b), row in result.items()]
    if not rows:
        return []
    return [
        Table(
            title="Where curves cross",
            columns=["arms", "step", "CPU-second", "CPU-second, teacher paid"],
            rows=rows,
            note="By straight lines between the points of the mean curves.",
        )
    ]


def _place(at: float) -> str:
    return f"{at:,.0f}" if at >= 20 else f"{at:.1f}"


def _times(factor: float) -> str:
    return f"{factor:,.0f}" if factor >= 100 else f"{factor:.2f}"


def _control_words(results: Results) -> str:
    control = results["positive_control"]
    if control is None or control["retention"] is None:
        return (
            "The teacher's own weights are not here to be read as a student, so there is no"
            " positive control."
        )
    retained = f"{100 * control['retention']:.2f} %"
    return (
        f"Positive control: the teacher's own weights, read as a student is read, keep {retained}"
        " of the teacher's dev score (100 % is right)."
    )


def _cost_words(results: Results) -> str:
    words = ["Equal steps is the primary comparison."]
    for kind, message in (("flops", "floating-point work"), ("seconds", "CPU-seconds")):
        each = results["matched"].get(kind) or {}
        if each.get("factor") is not None:
            got = f"it got {each['run']:.2f} times" + (
                ", the most allowed" if each["run"] < each["factor"] else ""
            )
            same_length = next(
                (
                    arm
                    for arm in (f"C-{kind}", "C-flops", "C-seconds")
                    if _steps(results, arm) == each["steps"]
                ),
                None,
            )
            run = f"{got} ({same_length})" if same_length else "that arm was not run"
            words.append(
                f"At equal {message}, teacher included, contrast alone would get"
                f" {_times(each['factor'])} times the steps; {run}."
            )
    cached = results["matched"].get("seconds_cached")
    if cached:
        words.append(
            f"With the teacher's vectors cached, a step of DC costs {cached['factor']:.2f} times"
            " the CPU-seconds of a step of C."
        )
    return " ".join(words)


def _steps(results: Results, arm: str) -> int | None:
    return results["arms"][arm]["runs"][0]["steps"] if arm in results["arms"] else None


def _query_words(results: Results) -> str:
    counts = results["examples"]["counts"]
    return (
        f"Against {results['examples']['against']} the combination helps {counts['helped']:,} and"
        f" harms {counts['harmed']:,} of {counts['queries']:,} queries."
    )


def _machine(results: Results) -> str:
    machine = results["machine"]
    threads = next(iter(results["arms"].values()))["runs"][0]["threads"]
    return (
        f"{machine['cores']} cores ({machine['processor']}, {machine['system']}), {threads} thread"
        " a run."
    )
