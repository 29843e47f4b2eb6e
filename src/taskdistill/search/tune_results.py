"""What tuning measures: settings, their numbers and costs, and the table to print."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from taskdistill.search.prf import PrfSettings


@dataclass(frozen=True, kw_only=True)
class SearchSetting:
    """A way to store and search."""

    dim: int
    rescore: str
    """Precision of the vectors kept beside the binary codes, or none."""
    oversample: int | None
    """None where nothing is rescored, and for the exact reference."""
    hybrid: bool = False
    refinement: PrfSettings | None = None

    @property
    def additions(self) -> int:
        """How many of hybrid search and refinement it has."""
        return int(self.hybrid) + int(self.refinement is not None)


@dataclass(frozen=True, kw_only=True)
class SettingResult:
    """What a setting gives and costs."""

    setting: SearchSetting
    ndcg: float
    """Mean nDCG@10, 0 to 1."""
    difference: float
    """Mean difference to the reference: exact float32 search over all dimensions."""
    low: float
    """Lower end of its 95 % interval (paired bootstrap over queries)."""
    high: float
    harmed: float
    """Share of queries whose nDCG@10 is lower than the reference's."""
    helped: float
    bytes: float
    """Stored for search, a passage: codes, vectors and postings."""
    milliseconds: float
    """A query, without embedding it, on this machine."""


@dataclass(frozen=True, kw_only=True)
class Improvement:
    """What hybrid search or refinement changes at the recommended storage."""

    setting: SearchSetting
    """With the addition."""
    gain: float
    """Mean difference of nDCG@10."""
    low: float
    high: float
    harmed: float
    helped: float


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """A finished measurement."""

    queries: int
    documents: int
    tolerance: float
    """How much nDCG@10 the recommendation may lose."""
    reference: SettingResult
    """Exact float32 search over all dimensions."""
    rows: tuple[SettingResult, ...]
    """Every setting, best nDCG@10 first."""
    recommended: SettingResult
    """The cheapest within the tolerance of the best."""
    stored: SettingResult | None
    """The same among the settings of an index that exists, or None."""
    additions: tuple[Improvement, ...]
    """Hybrid search, refinement and both, at the recommended storage."""

    def to_json(self) -> dict[str, object]:
        """Return plain data."""
        return asdict(self)


COLUMNS = (
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
)


def table(tuning: Tuning, rows: int = 20) -> list[list[str]]:
    """Return `COLUMNS`, then a line each: reference, recommendations, the best `rows` settings.

    nDCG@10 and shares are times 100.
    """
    lines = [("reference", tuning.reference), ("recommended", tuning.recommended)]
    lines += [] if tuning.stored is None else [("as stored", tuning.stored)]
    lines += [("", row) for row in tuning.rows[:rows]]
    return [list(COLUMNS), *([name, *_cells(row)] for name, row in lines)]


def verdicts(tuning: Tuning) -> list[str]:
    """Say in a line each of hybrid search and refinement what they change and whom they harm."""
    recommended = tuning.recommended.setting
    lines = []
    for each in tuning.additions:
        setting = each.setting
        names = ["hybrid search"] if setting.hybrid else []
        if setting.refinement is not None:
            names.append(f"refinement ({_prf_text(setting.refinement)})")
        chosen = (setting.hybrid, setting.refinement) == (
            recommended.hybrid,
            recommended.refinement,
        )
        lines.append(
            f"{' and '.join(names)}: nDCG@10 {100 * each.gain:+.2f} [{100 * each.low:+.2f}, "
            f"{100 * each.high:+.2f}], harms {100 * each.harmed:.1f} % of queries, helps "
            f"{100 * each.helped:.1f} %: {'recommended' if chosen else 'not recommended'}"
        )
    return lines


def _prf_text(refinement: PrfSettings) -> str:
    return f"K={refinement.documents} a={refinement.weight} tau={refinement.temperature}"


def _cells(row: SettingResult) -> list[str]:
    setting = row.setting
    return [
        str(setting.dim),
        setting.rescore,
        str(setting.oversample or ("-" if setting.rescore == "none" else "all")),
        "yes" if setting.hybrid else "no",
        "no" if setting.refinement is None else _prf_text(setting.refinement),
        f"{100 * row.ndcg:.2f}",
        f"{100 * row.difference:+.2f} [{100 * row.low:+.2f}, {100 * row.high:+.2f}]",
        f"{100 * row.harmed:.1f}",
        f"{100 * row.helped:.1f}",
        f"{row.bytes:.0f}",
        f"{row.milliseconds:.2f}",
    ]
