"""The parity certificate: how close an exported file comes to the reference on fixed texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from taskdistill.errors import WorkFailed
from taskdistill.model.golden import cosines

FILE = "parity.json"


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What a comparison must reach; None where it is not asked for."""

    smallest_cosine: float | None = None
    mean_cosine: float | None = None
    largest_difference: float | None = None


EXACT = Tolerance(smallest_cosine=1 - 1e-5, largest_difference=1e-5)
GRAPH = Tolerance(smallest_cosine=1 - 1e-4)
HALF = Tolerance(smallest_cosine=0.999)
EIGHT_BITS = Tolerance(mean_cosine=0.99)


@dataclass(frozen=True, slots=True)
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
    """Whether a difference is a failure, or only said."""


def compare(
    file: str,
    checked_with: str,
    task: str | None,
    reference: np.ndarray,
    given: np.ndarray,
    tolerance: Tolerance,
    *,
    required: bool = True,
) -> ParityResult:
    """Compare the vectors of an exported file with the reference.

    Args:
        file: Name of the file within the export.
        checked_with: The program that computed them, with its version.
        task: Adapter; None for the base.
        reference: Unit vectors `(n, D)`.
        given: Unit vectors `(n, D)`.
        tolerance: What must be reached.
        required: Whether a difference is a failure of the export, or only said.

    Returns:
        The figures and the verdict.

    Raises:
        WorkFailed: If the file gives vectors of another shape or values that are not finite.
    """
    if given.shape != reference.shape or not np.isfinite(given).all():
        raise WorkFailed(
            f"{file}: {checked_with} gave vectors of shape {given.shape}, the reference has {reference.shape}, or they are not finite"
        )
    found = cosines(reference, given)
    smallest, mean, difference = (
        float(found.min()),
        float(found.mean()),
        float(np.abs(reference - given).max()),
    )
    good = smallest >= (tolerance.smallest_cosine or -1) and mean >= (tolerance.mean_cosine or -1)
    good = good and (
        tolerance.largest_difference is None or difference <= tolerance.largest_difference
    )
    return ParityResult(
        file,
        checked_with,
        task,
        len(reference),
        smallest,
        mean,
        difference,
        tolerance,
        "equal" if good else "differs",
        required,
    )


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


def rows(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Lay the comparisons of a certificate out for a table.

    Args:
        results: Its `results`.

    Returns:
        A row each, in the order of `COLUMNS`.
    """
    return [
        [
            result["file"],
            result["checked_with"],
            result["task"] or "",
            f"{result['smallest_cosine']:.6f}",
            f"{result['mean_cosine']:.6f}",
            f"{result['largest_difference']:.1e}",
            f"{_asked(result['tolerance'])}{'' if result['required'] else ', only reported'}",
            result["verdict"],
        ]
        for result in results
    ]


def _asked(tolerance: Mapping[str, float | None]) -> str:
    words = {
        "smallest_cosine": "smallest {:.6g}",
        "mean_cosine": "mean {:.6g}",
        "largest_difference": "difference {:.0e}",
    }
    return ", ".join(
        said.format(tolerance[name]) for name, said in words.items() if tolerance[name] is not None
    )


def certificate(
    format_name: str,
    model_name: str,
    model_hash: str,
    results: list[ParityResult],
    notes: list[str],
) -> Mapping[str, Any]:
    """Put the comparisons of an export together.

    Args:
        format_name: Format of the export.
        model_name: The model exported.
        model_hash: Hash of its files.
        results: The comparisons.
        notes: What was checked in another way, or not at all.

    Returns:
        Content of `parity.json`.
    """
    return {
        "format": format_name,
        "model": model_name,
        "model_hash": model_hash,
        "reference": "the packed torch model in float32, document prompt, unit vectors",
        "results": [asdict(result) for result in results],
        "notes": notes,
        "verdict": "equal" if all(result.verdict == "equal" for result in results) else "differs",
    }
