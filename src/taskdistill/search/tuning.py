"""What tuning measures and says: settings, their numbers and costs, and the table to print."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from taskdistill.search.refine import Refinement


@dataclass(frozen=True)
class Setting:
    """A way to store and search.

    Attributes:
        dim: Dimensions kept.
        rescore: Precision of the vectors kept beside the binary codes, or none.
        oversample: Candidates for each result; None where nothing is rescored, and for the exact reference.
        hybrid: Whether BM25 is joined in.
        refinement: How queries are refined, or None.
    """

    dim: int
    rescore: str
    oversample: int | None
    hybrid: bool = False
    refinement: Refinement | None = None


@dataclass(frozen=True)
class Measured:
    """What a setting gives and costs.

    Attributes:
        setting: What was measured.
        ndcg: Mean nDCG@10, 0 to 1.
        difference: Mean difference to the reference: exact float32 search over all dimensions.
        low: Lower end of its 95 % interval (paired bootstrap over queries).
        high: Upper end.
        harmed: Share of queries whose nDCG@10 is lower than the reference's.
        helped: Share of queries whose nDCG@10 is higher.
        bytes: Stored for search, a passage: codes, vectors and postings.
        milliseconds: A query, without embedding it, on this machine.
    """

    setting: Setting
    ndcg: float
    difference: float
    low: float
    high: float
    harmed: float
    helped: float
    bytes: float
    milliseconds: float


@dataclass(frozen=True)
class Tuning:
    """A finished measurement.

    Attributes:
        queries: Queries judged.
        documents: Documents searched.
        tolerance: How much nDCG@10 the recommendation may lose.
        reference: Exact float32 search over all dimensions.
        rows: Every setting, best nDCG@10 first.
        recommended: The cheapest within the tolerance of the best.
    """

    queries: int
    documents: int
    tolerance: float
    reference: Measured
    rows: tuple[Measured, ...]
    recommended: Measured

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def table(tuning: Tuning, rows: int = 20) -> list[list[str]]:
    """Return a table to print.

    Args:
        tuning: A finished measurement.
        rows: Settings at most; the reference and the recommendation come first.

    Returns:
        Lines of cells, a heading first. nDCG@10 and shares are x100.
    """
    heading = ["", "dim", "rescore", "oversample", "hybrid", "refinement", "nDCG@10", "difference", "harmed %", "helped %", "bytes", "ms"]
    lines = [("reference", tuning.reference), ("recommended", tuning.recommended), *(("", row) for row in tuning.rows[:rows])]
    return [heading, *([name, *_cells(row)] for name, row in lines)]


def _cells(row: Measured) -> list[str]:
    setting = row.setting
    moved = setting.refinement
    return [
        str(setting.dim),
        setting.rescore,
        str(setting.oversample or ("-" if setting.rescore == "none" else "all")),
        "yes" if setting.hybrid else "no",
        "no" if moved is None else f"K={moved.documents} a={moved.weight} tau={moved.temperature}",
        f"{100 * row.ndcg:.2f}",
        f"{100 * row.difference:+.2f} [{100 * row.low:+.2f}, {100 * row.high:+.2f}]",
        f"{100 * row.harmed:.1f}",
        f"{100 * row.helped:.1f}",
        f"{row.bytes:.0f}",
        f"{row.milliseconds:.2f}",
    ]
