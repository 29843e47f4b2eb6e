"""Tables of the report: what a cell shows, and the tables of cost, speed and data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass

from markupsafe import Markup

from taskdistill.evaluate.contamination import seen_of
from taskdistill.evaluate.records import SeenSet


@dataclass(frozen=True)
class CellText:
    """A cell: its text, a smaller line below, whether it is the best of its row."""

    main: str
    small: str = ""
    best: bool = False


Value = str | float | int | None | CellText


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table, whose first column names its rows.

    A float is a score from 0 to 1 and is shown times 100; None is a dash.
    """

    title: str
    columns: Sequence[str]
    _: KW_ONLY
    rows: Sequence[Sequence[Value]]
    note: str = ""
    totals: int = 0

    def cells(self) -> list[list[CellText]]:
        """Return the rows as texts."""
        return [[as_text(value) for value in row] for row in self.rows]


@dataclass(frozen=True)
class Section:
    """A part of the page: tables and charts under a heading."""

    title: str
    intro: str = ""
    tables: Sequence[Table] = ()
    charts: Sequence[Markup] = ()


@dataclass(frozen=True)
class SpeedRow:
    """What one model costs to run and to keep."""

    model: str
    texts_per_second: float | None = None
    parameters: int | None = None
    megabytes: float | None = None


@dataclass(frozen=True, kw_only=True)
class SourceRow:
    """What became of the rows of one data source."""

    name: str
    kind: str
    read: int
    used: int
    repaired: int = 0
    rejected: int = 0


def as_text(value: Value) -> CellText:
    """Return what a cell shows: scores times 100 with one digit, a dash for None."""
    if isinstance(value, CellText):
        return value
    if value is None:
        return CellText("–")
    if isinstance(value, float):
        return CellText(f"{100 * value:.1f}")
    return CellText(f"{value:,}" if isinstance(value, int) else value)


def speed_table(models: Sequence[SpeedRow]) -> Table | None:
    """Return what models cost; None without models."""
    if not models:
        return None
    base = models[0].texts_per_second
    rows: list[list[Value]] = []
    for i, each in enumerate(models):
        speed = each.texts_per_second
        times = f"{speed / base if i else 1:.1f} ×" if speed and base else None
        size = f"{each.megabytes:,.1f}" if each.megabytes else None
        rows.append(
            [
                each.model,
                f"{speed:,.0f}" if speed else None,
                times,
                _millions(each.parameters),
                size,
            ]
        )
    return Table(
        title="",
        columns=[
            "model",
            "texts per second",
            f"times {models[0].model}",
            "parameters",
            "MB on disk",
        ],
        rows=rows,
    )


def source_table(sources: Sequence[SourceRow]) -> Table | None:
    """Return what became of the rows read, with a total; None without sources."""
    if not sources:
        return None
    rows: list[list[Value]] = [
        [s.name, s.kind, s.read, s.used, s.repaired, s.rejected] for s in sources
    ]
    total: list[Value] = [
        "all",
        "",
        *(
            sum(numbers)
            for numbers in zip(
                *((s.read, s.used, s.repaired, s.rejected) for s in sources), strict=True
            )
        ),
    ]
    return Table(
        title="",
        columns=["source", "kind", "rows read", "used", "repaired", "rejected"],
        rows=[*rows, total],
        totals=1,
    )


def time_table(times: Sequence[tuple[str, float]]) -> Table | None:
    """Return where the time went, with a total; None without rows."""
    total = sum(seconds for _, seconds in times)
    if not total:
        return None
    rows: list[list[Value]] = [
        [what, duration(seconds), f"{100 * seconds / total:.0f} %"] for what, seconds in times
    ]
    return Table(
        title="",
        columns=["what", "time", "share"],
        rows=[*rows, ["all", duration(total), "100 %"]],
        totals=1,
    )


def seen_table(seen: Mapping[str, SeenSet]) -> Table | None:
    """Return how much of each evaluation set was seen in training; None without sets."""
    if not seen:
        return None
    has_queries = any("queries" in counts for counts in seen.values())
    rows: list[list[Value]] = []
    for name, counts in seen.items():
        row: list[Value] = [name, counts["texts"], counts["exact"], counts["near"]]
        if has_queries:
            queries = counts.get("queries")
            row.append(
                f"{seen_of(queries):,} of {queries['texts']:,}"
                if queries and queries["exact"] is not None
                else None
            )
        rows.append([*row, {True: "yes", False: "no", None: "not declared"}[counts["teacher"]]])
    columns = ["set", "texts", "seen word for word", "share 13 words in a row"]
    return Table(
        title="",
        columns=[*columns, *["queries seen"] * has_queries, "teacher trained on it"],
        rows=rows,
    )


def duration(seconds: float) -> str:
    """Return a time as people write it, such as `48 s`, `3 min 05 s` or `1 h 20 min`."""
    seconds_rounded = round(seconds)
    if seconds_rounded < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds_rounded} s"
    if seconds_rounded < 3600:
        return f"{seconds_rounded // 60} min {seconds_rounded % 60:02d} s"
    return f"{seconds_rounded // 3600} h {seconds_rounded % 3600 // 60:02d} min"


def _millions(count: int | None) -> str | None:
    if count is None:
        return None
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,}"
