"""The parity certificate: how close an exported file comes to the model on fixed texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from taskdistill.model.model import Model
from taskdistill.report.model_card import make_card

FILE = "parity.json"
README = "README.md"

COLUMNS = (
    "file",
    "checked with",
    "task",
    "smallest cosine",
    "mean cosine",
    "difference",
    "must reach",
    "verdict",
)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What a comparison must reach; None where nothing is required."""

    smallest_cosine: float | None = None
    mean_cosine: float | None = None
    largest_difference: float | None = None

    def __str__(self) -> str:
        limits = (
            ("smallest {:.6g}", self.smallest_cosine),
            ("mean {:.6g}", self.mean_cosine),
            ("difference {:.0e}", self.largest_difference),
        )
        return ", ".join(form.format(limit) for form, limit in limits if limit is not None)


EXACT = Tolerance(smallest_cosine=1 - 1e-5, largest_difference=1e-5)
GRAPH = Tolerance(smallest_cosine=1 - 1e-4)
HALF = Tolerance(smallest_cosine=0.999)
EIGHT_BITS = Tolerance(mean_cosine=0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityResult:
    """One comparison of an exported file with the reference."""

    file: str
    checked_with: str
    task: str | None
    texts: int
    smallest_cosine: float
    mean_cosine: float
    largest_difference: float
    tolerance: Tolerance
    verdict: str
    """`equal` within the tolerance, or `differs`."""
    required: bool
    """Whether a difference fails the export, or is only reported."""


@dataclass(frozen=True, kw_only=True)
class ParityCertificate:
    """The comparisons of one export."""

    format: str
    model: str
    model_hash: str
    results: list[ParityResult]
    notes: list[str]
    """What was checked in another way, or not at all."""
    golden: dict[str, float]
    """`base` or task to the smallest cosine of the reference to the folder's golden vectors."""

    @property
    def verdict(self) -> str:
        """`equal` if every comparison is, else `differs`."""
        return "equal" if all(result.verdict == "equal" for result in self.results) else "differs"

    def to_json(self) -> dict[str, object]:
        """Content of `parity.json`."""
        return {
            "format": self.format,
            "model": self.model,
            "model_hash": self.model_hash,
            "reference": "the packed torch model in float32, document prompt, unit vectors",
            "results": [asdict(result) for result in self.results],
            "notes": self.notes,
            "verdict": self.verdict,
            "golden": self.golden,
        }


def table_rows(results: Sequence[ParityResult]) -> list[list[str]]:
    """One row of a table for each comparison, under `COLUMNS`."""
    return [
        [
            result.file,
            result.checked_with,
            result.task or "",
            f"{result.smallest_cosine:.6f}",
            f"{result.mean_cosine:.6f}",
            f"{result.largest_difference:.1e}",
            f"{result.tolerance}{'' if result.required else ', only reported'}",
            result.verdict,
        ]
        for result in results
    ]


def write_readme(
    folder: Path,
    model: Model,
    certificate: ParityCertificate,
    *,
    task: str | None,
    adapters: Sequence[str],
    content: str,
    usage: str,
) -> None:
    """Write the model's card, what was exported, how close it comes, and how it is loaded."""
    source = model.source / README
    card = source.read_text("utf-8") if source.is_file() else make_card(model, adapters)
    command = f"taskdistill export MODEL --format {certificate.format}"
    if task:
        command += f" --task {task}"
    lines = [
        "## This export",
        f"Format {certificate.format}: {content}. Written by `{command} --out DIR`.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
        *(f"| {' | '.join(row)} |" for row in table_rows(certificate.results)),
        "",
        "```",
        usage,
        "```",
        "",
    ]
    (folder / README).write_text(card.rstrip() + "\n\n" + "\n".join(lines), "utf-8")
