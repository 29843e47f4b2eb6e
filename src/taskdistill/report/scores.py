"""The report's tables and charts of scores, made from results as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from taskdistill.evaluate.compression import CompressionResult
from taskdistill.evaluate.contamination import seen_of
from taskdistill.evaluate.datasets import TASK_TYPES, task_types
from taskdistill.evaluate.records import Means, ModelScore, Results, Retention
from taskdistill.evaluate.results import mean_matrix
from taskdistill.report.plots import Series, dot_plot, line_chart
from taskdistill.report.tables import CellText, Table, Value

_POINTS = 100
"""Points of a loss curve; more steps are averaged."""


@dataclass(frozen=True)
class CompressionSection:
    """The compression part of one model: its verdict, table and curve."""

    model: str
    verdict: str
    table: Table
    chart: Markup


@dataclass(frozen=True)
class LossCurve:
    """One term of the loss over the steps of one phase."""

    phase: str
    term: str
    steps: int
    chart: Markup


def kind_title(kind: str) -> str:
    """Return how a task type is written in headings."""
    return TASK_TYPES[kind].title


def summary_sentence(results: Results) -> str:
    """Say what came out, where the caller has not; empty without results."""
    scores = results["scores"]
    if not scores:
        return ""
    sets = len({name for each in scores.values() for name in each})
    retained = [
        f"{model} keeps {100 * each['mean']:.1f} %"
        for model, each in results["retention"].items()
        if each["mean"] is not None
    ]
    counted = f"{len(scores)} model{'s' * (len(scores) > 1)} on {sets} set{'s' * (sets > 1)}"
    return (
        f"{counted}: {', '.join(retained)} of {results['reference']}’s score on average."
        if retained
        else f"{counted}."
    )


def overview(results: Results) -> Table | None:
    """Return mean scores by task type, a row a model; None without results."""
    means = results["means"]
    kinds = _kinds(means)
    if not kinds:
        return None
    best = {kind: max(each["by_type"].get(kind, -1.0) for each in means.values()) for kind in kinds}
    rows: list[list[Value]] = []
    for model, each in means.items():
        cells: list[Value] = [
            (
                CellText(
                    f"{100 * each['by_type'][k]:.1f}",
                    best=_is_best(each["by_type"][k], best[k], len(means)),
                )
                if k in each["by_type"]
                else None
            )
            for k in kinds
        ]
        retention = _retention(results, model)["mean"]
        reference = "100 %" if model == results["reference"] else "–"
        rows.append(
            [
                model,
                *cells,
                each["types"],
                CellText(f"{100 * retention:.1f} %") if retention is not None else reference,
            ]
        )
    columns = ["model", *(kind_title(kind) for kind in kinds), "mean of types"]
    if results["reference"] is None:
        return Table(title="", columns=columns, rows=[row[:-1] for row in rows])
    return Table(title="", columns=[*columns, f"kept of {results['reference']}"], rows=rows)


def overview_chart(results: Results) -> Markup | None:
    """Draw mean scores by task type, a mark a model; None with nothing to compare."""
    means = results["means"]
    kinds = _kinds(means)
    if not kinds or not 2 <= len(means) <= 6:
        return None
    rows = [
        (
            kind_title(kind),
            [
                100 * each["by_type"][kind] if kind in each["by_type"] else None
                for each in means.values()
            ],
        )
        for kind in kinds
    ]
    label = "Mean score by type of set: " + "; ".join(
        f"{name}: "
        + ", ".join(
            f"{model} {value:.1f}"
            for model, value in zip(means, values, strict=True)
            if value is not None
        )
        for name, values in rows
    )
    return dot_plot(rows, list(means), label=label, x_label="mean score × 100")


def score_tables(results: Results) -> list[Table]:
    """Return one table a task type, in the order of types: a row a set, a column a model.

    Small numbers say how much of the reference each keeps.
    """
    scores = results["scores"]
    result = []
    for task in task_types():
        sets = list(
            dict.fromkeys(
                name
                for each in scores.values()
                for name, record in each.items()
                if record["kind"] == task.name
            )
        )
        if not sets:
            continue
        rows: list[list[Value]] = []
        for name in sets:
            values = {model: each[name]["score"] for model, each in scores.items() if name in each}
            best = max(values.values())
            n = next(each[name]["n"] for each in scores.values() if name in each)
            row: list[Value] = [
                CellText(name.split("/", 1)[1], small=f"n = {n:,}{_seen(results, name)}")
            ]
            for model, each in scores.items():
                retention = _retention(results, model)["sets"].get(name)
                row.append(_score_cell(each.get(name), retention, best, len(values)))
            rows.append(row)
        if len(sets) > 1:
            means = [results["means"][model]["by_type"].get(task.name) for model in scores]
            rows.append(["mean", *means])
        note = f"Metric: {task.metric} × 100."
        result.append(
            Table(
                title=task.title,
                columns=["set", *scores],
                rows=rows,
                note=note,
                totals=int(len(sets) > 1),
            )
        )
    return result


def significance_table(results: Results) -> Table | None:
    """Return differences to the reference with interval and p-value; None with one model."""
    rows: list[list[Value]] = []
    for row in results["comparisons"]:
        value, low, high = (100 * x for x in row["difference"])
        significant = "yes" if row["p"] < 0.05 and (low > 0 or high < 0) else "no"
        rows.append(
            [
                CellText(row["set"], row["model"]),
                f"{value:+.1f}",
                f"{low:+.1f} to {high:+.1f}",
                _p_value(row["p"]),
                significant,
            ]
        )
    if not rows:
        return None
    columns = [
        "set and model",
        f"difference to {results['reference']}",
        "95 % interval",
        "p",
        "beyond chance",
    ]
    return Table(title="", columns=columns, rows=rows)


def notes(results: Results) -> list[str]:
    """Return what was left out of sets, once each."""
    result = [
        f"{name}: {note}" if "this model" not in note else f"{name}, {model}: {note}"
        for model, each in results["scores"].items()
        for name, record in each.items()
        for note in record["notes"]
    ]
    return list(dict.fromkeys(result))


def compression(results: Results) -> list[CompressionSection]:
    """Return what smaller vectors cost, a part a model; none where nothing was measured.

    Numbers are means over its retrieval sets or, without any, over all that were measured.
    """
    result = []
    for model, records in results["scores"].items():
        if cells := mean_matrix(records):
            table, chart = _compression_table(cells), _compression_chart(model, cells)
            result.append(
                CompressionSection(model, results["verdicts"].get(model, ""), table, chart)
            )
    return result


def loss_charts(log: Sequence[Mapping[str, Any]]) -> list[LossCurve]:
    """Draw each loss term over the steps of each phase, from records of a log with `terms`."""
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for record in log:
        if not isinstance(record.get("terms"), Mapping) or record.get("step") is None:
            continue
        phase = curves.setdefault(str(record["phase"]), {})
        for term, value in record["terms"].items():
            if value is not None:
                phase.setdefault(term, []).append((float(record["step"]), float(value)))
    return [
        LossCurve(phase, term, int(points[-1][0]) + 1, _loss_chart(phase, term, points))
        for phase, terms in curves.items()
        for term, points in terms.items()
        if len(points) > 1
    ]


def _retention(results: Results, model: str) -> Retention:
    return results["retention"].get(model, {"sets": {}, "mean": None})


def _kinds(means: Mapping[str, Means]) -> list[str]:
    present = {kind for each in means.values() for kind in each["by_type"]}
    return [task.name for task in task_types() if task.name in present]


def _is_best(value: float, best: float, count: int) -> bool:
    return count > 1 and round(100 * value, 1) == round(100 * best, 1)


def _score_cell(
    record: ModelScore | None, retention: float | None, best: float, count: int
) -> Value:
    if record is None:
        return None
    small = (
        f"{100 * retention:.1f} %"
        if retention is not None
        else "{:.1f}–{:.1f}".format(*(100 * x for x in record["interval"]))
    )
    return CellText(f"{100 * record['score']:.1f}", small, _is_best(record["score"], best, count))


def _seen(results: Results, name: str) -> str:
    """Return a flag for a set of which something was seen in training."""
    details = ""
    for each in results.get("seen", ()):
        counts = each["sets"].get(name)
        if counts is None:
            continue
        if seen := seen_of(counts):
            details = f" · {100 * seen / counts['texts']:.0f} % of the texts seen in training"
        if counts["teacher"]:
            details += " · seen by the teacher"
    return details


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _compression_table(cells: Sequence[CompressionResult]) -> Table:
    dims = list(dict.fromkeys(cell.dim for cell in cells))
    settings = list(dict.fromkeys((cell.precision, cell.rescored) for cell in cells))
    by_setting = {(cell.dim, cell.precision, cell.rescored): cell for cell in cells}
    rows: list[list[Value]] = []
    for dim in dims:
        row: list[Value] = [f"{dim}"]
        for precision, rescored in settings:
            cell = by_setting.get((dim, precision, rescored))
            speed = f" · {cell.query_ms:.2f} ms" if cell and cell.query_ms is not None else ""
            row.append(
                CellText(f"{100 * cell.retention:.1f} %", f"{cell.bytes:,} B{speed}")
                if cell
                else None
            )
        rows.append(row)
    columns = [
        "dimensions",
        *(precision + (", rescored" if rescored else "") for precision, rescored in settings),
    ]
    timed = (
        ", and time of one query by exact search"
        if any(cell.query_ms is not None for cell in cells)
        else ""
    )
    return Table(
        title="",
        columns=columns,
        rows=rows,
        note=f"Share of the uncompressed score kept, bytes a vector{timed}.",
    )


def _compression_chart(model: str, cells: Sequence[CompressionResult]) -> Markup:
    series = []
    for precision, rescored in dict.fromkeys((cell.precision, cell.rescored) for cell in cells):
        line = sorted(
            (cell.bytes, 100 * cell.retention)
            for cell in cells
            if (cell.precision, cell.rescored) == (precision, rescored)
        )
        series.append(Series(precision + (", rescored" if rescored else ""), line))
    label = (
        f"Share of the score of {model} kept against bytes a vector, one line a precision; the"
        " numbers are in the table"
    )
    return line_chart(
        series[:6],
        label=label,
        x_label="bytes a vector",
        y_label="% of the score kept",
        log_x=True,
        marks=True,
    )


def _loss_chart(phase: str, term: str, points: Sequence[tuple[float, float]]) -> Markup:
    size = max(1, -(-len(points) // _POINTS))
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    mean = [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]
    label = f"{term} in {phase}: from {mean[0][1]:.4g} at the start to {mean[-1][1]:.4g} at the end"
    return line_chart(
        [Series(term, mean)],
        label=label,
        x_label="step",
        y_label=term,
        y_zero=min(y for _, y in mean) >= 0,
    )
