"""One self-contained HTML page for a run or an evaluation; parts without data are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from taskdistill.evaluate.records import Results, SeenSet
from taskdistill.report import scores, tables
from taskdistill.report.breakdowns import breakdown_sections
from taskdistill.report.tables import Section, SourceRow, SpeedRow

__all__ = ["Example", "ReportData", "Section", "render_report"]

NO_RESULTS: Results = {
    "reference": None,
    "scores": {},
    "means": {},
    "retention": {},
    "comparisons": [],
    "verdicts": {},
}
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Example:
    """A query and the passages that a model ranks first."""

    query: str
    results: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything the page can show; an empty field leaves its section out.

    Attributes:
        summary: The outcome in a sentence or two, first on the page; empty writes one from
            `results`.
        facts: Up to four (number, what it is) pairs, shown large.
        results: What `evaluate_models` or `summarize` returned. Columns of tables are its
            models, in their order.
        models: Name of a model to a few words about it, such as `the teacher`.
        log: Records of log.jsonl: `phase`, `step`, `terms` (name to value), and `loss`.
        speeds: Texts per second and size of models, the teacher first.
        times: (what, seconds) in the order in which it happened.
        sections: Further parts, after the scores and the parts of `breakdown_sections`.
        seen: See `tables.seen_table`.
        warnings: What the reader must know before trusting a number.
    """

    title: str
    summary: str = ""
    facts: Sequence[tuple[str, str]] = ()
    results: Results = field(default_factory=lambda: NO_RESULTS)
    models: Mapping[str, str] = field(default_factory=dict)
    log: Sequence[Mapping[str, Any]] = ()
    speeds: Sequence[SpeedRow] = ()
    data: Sequence[SourceRow] = ()
    times: Sequence[tuple[str, float]] = ()
    examples: Sequence[Example] = ()
    sections: Sequence[Section] = ()
    seen: Mapping[str, SeenSet] = field(default_factory=dict)
    settings: str = ""
    commands: Sequence[str] = ()
    warnings: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)


def render_report(data: ReportData) -> str:
    """Write the page: HTML that needs no other file and makes no request."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    results = data.results
    return environment.get_template("report.html.j2").render(
        data=data,
        sections=[*breakdown_sections(results), *data.sections],
        summary=data.summary or scores.summary_sentence(results),
        overview=scores.overview(results),
        overview_chart=scores.overview_chart(results),
        score_tables=scores.score_tables(results),
        sureness=scores.significance_table(results),
        notes=scores.notes(results),
        compression=scores.compression(results),
        losses=scores.loss_charts(data.log),
        speed=tables.speed_table(data.speeds),
        sources=tables.source_table(data.data),
        times=tables.time_table(data.times),
        seen=tables.seen_table(data.seen),
    )
