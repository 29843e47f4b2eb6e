"""What tuning measures and says: settings, their numbers and costs, and the table to print."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from taskdistill.search.prf import PrfSettings


@dataclass(frozen=True)
class SearchSetting:
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
    refinement: PrfSettings | None = None


@dataclass(frozen=True)
class SettingResult:
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

    setting: SearchSetting
    ndcg: float
    difference: float
    low: float
    high: float
    harmed: float
    helped: float
    bytes: float
    milliseconds: float


@dataclass(frozen=True)
class Improvement:
    """What hybrid search or refinement changes at the recommended storage, against the same without it.

    Attributes:
        setting: With the addition.
        gain: Mean difference of nDCG@10.
        low: Lower end of its 95 % interval.
        high: Upper end.
        harmed: Share of queries whose nDCG@10 falls.
        helped: Share of queries whose nDCG@10 rises.
    """

    setting: SearchSetting
    gain: float
    low: float
    high: float
    harmed: float
    helped: float


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
        stored: The same among the settings of an index that exists, or None.
        additions: Hybrid search, refinement and both, at the recommended storage.
    """

    queries: int
    documents: int
    tolerance: float
    reference: SettingResult
    rows: tuple[SettingResult, ...]
    recommended: SettingResult
    stored: SettingResult | None = None
    additions: tuple[Improvement, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def table(tuning: Tuning, rows: int = 20) -> list[list[str]]:
    """Return a table to print.

    Args:
        tuning: A finished measurement.
        rows: Settings at most; the reference and the recommendations come first.

    Returns:
        Lines of cells, a heading first. nDCG@10 and shares are x100.
    """
    heading = [
        "",
        "dim",
        "rescore",
        "oversample",
        "hybrid",
        "refinement",
        "nDCG@10",
        "difference",
        "harmed %",
        "helped %",
        "bytes",
        "ms",
    ]
    lines = [("reference", tuning.reference), ("recommended", tuning.recommended)]
    lines += [] if tuning.stored is None else [("as stored", tuning.stored)]
    lines += [("", row) for row in tuning.rows[:rows]]
    return [heading, *([name, *_cells(row)] for name, row in lines)]


def verdicts(tuning: Tuning) -> list[str]:
    """Say of hybrid search and refinement what they change and whom they harm.

    Args:
        tuning: A finished measurement.

    Returns:
        A line each.
    """
    lines = []
    for each in tuning.additions:
        moved = each.setting.refinement
        name = " and ".join(
            ["hybrid search"] * each.setting.hybrid
            + ([] if moved is None else [f"refinement ({_moved(moved)})"])
        )
        chosen = (each.setting.hybrid, moved) == (
            tuning.recommended.setting.hybrid,
            tuning.recommended.setting.refinement,
        )
        lines.append(
            f"{name}: nDCG@10 {100 * each.gain:+.2f} [{100 * each.low:+.2f}, {100 * each.high:+.2f}], harms {100 * each.harmed:.1f} % of queries, "
            f"helps {100 * each.helped:.1f} %: {'recommended' if chosen else 'not recommended'}"
        )
    return lines


def _moved(refinement: PrfSettings) -> str:
    return f"K={refinement.documents} a={refinement.weight} tau={refinement.temperature}"


def _cells(row: SettingResult) -> list[str]:
    setting = row.setting
    moved = setting.refinement
    return [
        str(setting.dim),
        setting.rescore,
        str(setting.oversample or ("-" if setting.rescore == "none" else "all")),
        "yes" if setting.hybrid else "no",
        "no" if moved is None else _moved(moved),
        f"{100 * row.ndcg:.2f}",
        f"{100 * row.difference:+.2f} [{100 * row.low:+.2f}, {100 * row.high:+.2f}]",
        f"{100 * row.harmed:.1f}",
        f"{100 * row.helped:.1f}",
        f"{row.bytes:.0f}",
        f"{row.milliseconds:.2f}",
    ]
