"""Tables of an ablation's report, from results.json as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taskdistill.report.scores import kind_title
from taskdistill.report.tables import CellText, Table, Value
from taskdistill.stats.contrasts import RANDOM_EFFECT

Results = Mapping[str, Any]

EXPLORATORY = (
    "Exploratory. The interval is over seeds, sets and queries; p is two-sided, by the paired"
    " randomisation test over the queries of these sets alone, so that it can be small where sets"
    " disagree, and corrected within this table by Holm's method."
)


def points(value: float, digits: int = 2) -> str:
    """Write a difference in points. `digits`: digits behind the point."""
    return f"{100 * value:+.{digits}f}"


def span(estimate: Sequence[float]) -> str:
    """Write an interval of a difference in points."""
    return f"{points(estimate[1])} to {points(estimate[2])}"


def p_value(p: float | None) -> str:
    """Write a p-value. Returns three digits, or that it is smaller; a dash for None."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def claim_table(results: Results) -> Table:
    """Show the two comparisons of the claim with all three intervals."""
    rows: list[list[Value]] = []
    for each in results["contrasts"]:
        if each["exploratory"]:
            continue
        seeds = ", ".join(points(value, 1) for value in each["per_seed"])
        rows.append(
            [
                CellText(each["asks"], small=each["name"]),
                CellText(points(each["estimate"][0]), small=span(each["estimate"])),
                CellText(span(each["over_queries"])),
                CellText(span(each["over_seeds"])),
                p_value(max(each["p_greater"], each["p_draws"])),
                p_value(each["p_equivalent"]),
                CellText(seeds, small=f"sign test p {p_value(each['p_sign'])}"),
            ]
        )
    columns = [
        "question",
        "difference",
        "over queries only",
        "over seeds only",
        "p, one-sided",
        "p, equal within margin",
        "each seed",
    ]
    margin = results["frozen"]["ablation"]["margin"]
    note = (
        "Points of nDCG@10, mean over sets, with a 95 % interval over seeds, sets and queries; the"
        " next columns leave one source of chance out. The one-sided p is the larger one of the"
        f" randomisation test and the draws; the margin is {margin:.1f} points."
    )
    return Table(title="", columns=columns, rows=rows, note=note)


def fewer_sets_table(results: Results) -> Table | None:
    """Show the claim without some of its sets.

    Returns one row a choice, or None where there is one set only.
    """
    result = results["on_fewer_sets"]
    if not result:
        return None
    names = list(result[0]["contrasts"])
    rows: list[list[Value]] = [
        [
            CellText(
                ", ".join(each["left_out"]),
                small="what was seen in training" if each["seen"] else "",
            ),
            *(
                CellText(points(each["contrasts"][name][0]), small=span(each["contrasts"][name]))
                for name in names
            ),
            each["state"],
        ]
        for each in result
    ]
    note = (
        f"Exploratory. Points of nDCG@10 with 95 % intervals; where fewer than {RANDOM_EFFECT} sets"
        " are left, they hold for these sets only."
    )
    return Table(
        title="The claim on fewer sets",
        columns=["left out", *names, "combining beats both"],
        rows=rows,
        note=note,
    )


def contrast_table(results: Results, families: Sequence[str], title: str = "") -> Table | None:
    """Show the contrasts of some families.

    Returns one row a contrast, or None where there is none.
    """
    rows: list[list[Value]] = []
    for each in results["contrasts"]:
        if each["family"] in families:
            value = CellText(points(each["estimate"][0]), small=span(each["estimate"]))
            seeds = ", ".join(points(x, 1) for x in each["per_seed"])
            rows.append(
                [
                    CellText(each["asks"], small=each["name"]),
                    value,
                    p_value(each["p_two_sided"]),
                    p_value(each["p_holm"]),
                    seeds,
                ]
            )
    if not rows:
        return None
    return Table(
        title=title,
        columns=["question", "points, 95 % interval", "p", "p, corrected", "each seed"],
        rows=rows,
        note=EXPLORATORY,
    )


def arm_table(results: Results) -> Table:
    """Show every arm: its score with interval, what it keeps of the teacher, and the other kinds of
    sets.
    """
    kinds = list(
        dict.fromkeys(
            each["kind"]
            for each in results["sets"]
            if not each["dev"] and each["kind"] != "retrieval"
        )
    )
    names = {
        kind: [each["name"] for each in results["sets"] if each["kind"] == kind and not each["dev"]]
        for kind in kinds
    }
    primary = [
        each["name"] for each in results["sets"] if each["kind"] == "retrieval" and not each["dev"]
    ]
    teacher = results["teacher"]
    best = max(arm["score"]["estimate"][0] for arm in results["arms"].values())

    def others(sets: Mapping[str, Any], key: str) -> list[Value]:
        return [sum(sets[name][key] for name in names[kind]) / len(names[kind]) for kind in kinds]

    recall = sum(teacher[name]["scores"]["Recall@100"] for name in primary) / len(primary)
    full_score = sum(teacher[name]["score"] for name in primary) / len(primary)
    rows: list[list[Value]] = [
        [
            CellText("teacher", small="through the same sets"),
            CellText(f"{100 * full_score:.1f}"),
            "100 %",
            recall,
            *others(teacher, "score"),
            None,
        ]
    ]
    for name, arm in results["arms"].items():
        value, low, high = arm["score"]["estimate"]
        retained = None if arm["retention"] is None else f"{100 * arm['retention']:.1f} %"
        rows.append(
            [
                CellText(name, small=arm["about"]),
                CellText(
                    f"{100 * value:.1f}",
                    small=f"{100 * low:.1f} to {100 * high:.1f}",
                    best=value == best,
                ),
                retained,
                arm["recall_at_100"]["mean"],
                *others(arm["sets"], "mean"),
                len(arm["runs"]),
            ]
        )
    columns = [
        "arm",
        "nDCG@10",
        "kept of the teacher",
        "Recall@100",
        *(kind_title(kind) for kind in kinds),
        "seeds",
    ]
    return Table(
        title="",
        columns=columns,
        rows=rows,
        note=(
            "Scores × 100, mean over sets and seeds; small numbers: a 95 % interval over seeds,"
            " sets and queries."
        ),
    )


def set_table(results: Results) -> Table:
    """Show every test set by arm."""
    shown = [
        "A0",
        *(
            name
            for name in ("D", "C", "DC", "D->DC", "DC+gor", "C+gor", "C-flops")
            if name in results["arms"]
        ),
    ]
    rows: list[list[Value]] = []
    for each in results["sets"]:
        if each["dev"]:
            continue
        means = {name: results["arms"][name]["sets"][each["name"]]["mean"] for name in shown}
        best = max(means.values())
        record = results["teacher"][each["name"]]
        specs: list[Value] = [
            CellText(f"{100 * mean:.1f}", best=mean == best) for mean in means.values()
        ]
        rows.append(
            [
                CellText(each["name"], small=f"{record['metric']}, n = {record['n']:,}"),
                record["score"],
                *specs,
            ]
        )
    return Table(
        title="",
        columns=["set", "teacher", *shown],
        rows=rows,
        note="Scores × 100, mean over seeds. The best arm of a row is underlined.",
    )


def variant_table(results: Results) -> Table:
    """Show what binary codes and truncation leave of every arm."""
    variants = list(results["arms"]["DC"]["variants"])
    rows: list[list[Value]] = []
    for name, arm in results["arms"].items():
        full_score = arm["variants"]["float"]["mean"]
        specs: list[Value] = []
        for variant in variants:
            mean = arm["variants"][variant]["mean"]
            specs.append(
                CellText(
                    f"{100 * mean:.1f}",
                    small=(
                        ""
                        if variant == "float" or not full_score
                        else f"{100 * mean / full_score:.0f} %"
                    ),
                )
            )
        rows.append([name, *specs])
    titles = {"float": "whole, float", "binary": "whole, binary"}
    columns = [
        titles.get(each, f"{each.removeprefix('dim-')} dimensions, float") for each in variants
    ]
    return Table(
        title="",
        columns=["arm", *columns],
        rows=rows,
        note="nDCG@10 × 100, and the share of the whole float vectors' score that is kept.",
    )


def query_table(results: Results, which: str, title: str) -> Table | None:
    """Show the queries that the combination helps or harms most.

    Returns one row a query, or None where there is none.
    """
    result = results["examples"][which]
    rows: list[list[Value]] = [
        [
            CellText(row["query"], small=row["set"]),
            row["D"],
            row["C"],
            row["DC"],
            points(row["gain"], 0),
        ]
        for row in result
    ]
    note = (
        f"nDCG@10 × 100, mean over seeds; the gain is over {results['examples']['against']}, the"
        " better single arm."
    )
    return (
        Table(title=title, columns=["query", "D", "C", "DC", "gain"], rows=rows, note=note)
        if rows
        else None
    )


def length_table(results: Results) -> Table:
    """Show scores by length of the relevant document."""
    arms = ("A0", "D", "C", "DC")
    rows: list[list[Value]] = [
        [
            CellText(name, small=f"{bucket['characters']} characters"),
            bucket["queries"],
            *(float(bucket[arm]) for arm in arms),
        ]
        for name, buckets in results["lengths"].items()
        for bucket in buckets
    ]
    return Table(
        title="",
        columns=["set", "queries", *arms],
        rows=rows,
        note="nDCG@10 × 100 by length of the relevant document, mean over seeds.",
    )


def hash_table(results: Results) -> Table:
    """Show what was the same in every arm."""
    same = results["same"]
    rows: list[list[Value]] = [
        ["experiment, frozen before the run", results["frozen"]["digest"][:16]]
    ]
    rows.append(["base checkpoint with tokenizer, pooling, prompts", same["checkpoint"][:16]])
    for seed, each in same["seeds"].items():
        rows.append([f"seed {seed}: order of rows", each["batches"]])
        rows.append([f"seed {seed}: initial projection", each["projection"]])
    rows += [[f"set {name}", digest[:16]] for name, digest in results["set_hashes"].items()]
    return Table(
        title="",
        columns=["what", "hash"],
        rows=rows,
        note="Checked after the run: the same in every arm, or there would be no report.",
    )
