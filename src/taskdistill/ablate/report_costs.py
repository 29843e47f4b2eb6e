"""The tables of what the arms cost and how they were tuned."""

from __future__ import annotations

from taskdistill.ablate.report_tables import Results
from taskdistill.report.tables import CellText, Table, Value


def cost_table(results: Results) -> Table:
    """Show what every arm cost, its teacher apart."""
    cost = results["teacher_cost"]
    rows: list[list[Value]] = []
    for name, arm in results["arms"].items():
        if not arm["runs"][0]["budget"]["steps"]:
            continue
        budgets = [run["budget"] for run in arm["runs"]]
        mean = {
            key: sum(each[key] for each in budgets) / len(budgets)
            for key in ("steps", "tokens", "student_flops", "cpu_seconds", "clipped_steps")
        }
        paid = "distill" in " ".join(budgets[0]["terms_at_end"]) or "then" in name or "->" in name
        teacher = cost["cpu_seconds"] if paid else 0.0
        rows.append(
            [
                name,
                f"{mean['steps']:,.0f}",
                f"{mean['tokens'] / 1e6:.2f} M",
                _flops(mean["student_flops"]),
                _flops(cost["flops"] if paid else 0.0),
                f"{mean['cpu_seconds']:.0f}",
                None if teacher is None else f"{teacher:.0f}",
                f"{100 * mean['clipped_steps'] / mean['steps']:.0f} %",
            ]
        )
    columns = [
        "arm",
        "steps",
        "tokens",
        "student GFLOP",
        "teacher GFLOP",
        "CPU-seconds",
        "of the teacher",
        "clipped steps",
    ]
    note = (
        f"A run, mean over seeds; the teacher embeds each of {cost['texts']:,} distinct texts once."
        " Cached vectors cost later arms nothing."
    )
    return Table(title="", columns=columns, rows=rows, note=note)


def _flops(value: float | None) -> str | None:
    return None if value is None else f"{value / 1e9:,.0f}"


def tuning_table(results: Results) -> Table | None:
    """Show every trial of every tuned arm.

    Returns one row a setting, one column an arm; None where nothing was tuned.
    """
    tuning = results["tuning"]
    if not tuning:
        return None
    arms = list(tuning)
    rows: list[list[Value]] = []
    best = {arm: max(trial["score"] for trial in trials) for arm, trials in tuning.items()}
    for number, first in enumerate(tuning[arms[0]]):
        specs: list[Value] = []
        for arm in arms:
            score = tuning[arm][number]["score"]
            specs.append(CellText(f"{100 * score:.1f}", best=score == best[arm]))
        name = "untuned" if number == 0 else str(number)
        rows.append(
            [name, f"{first['lr']:g}", f"{first['temperature']:g}", f"{first['weight']:g}", *specs]
        )
    steps = tuning[arms[0]][0]["steps"]
    note = (
        f"nDCG@10 × 100 on the dev sets after {steps:,} steps; every arm tries the same settings,"
        " the best of a column is underlined and was used. Temperature does nothing in D, and the"
        " weight of distillation only where both losses are."
    )
    return Table(
        title="",
        columns=["setting", "learning rate", "temperature", "weight", *arms],
        rows=rows,
        note=note,
    )
