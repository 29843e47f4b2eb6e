"""What an export format is, and the job that its writer fills with files and comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import WorkFailed
from taskdistill.export.parity import ParityResult, Tolerance
from taskdistill.model.golden import cosines
from taskdistill.model.model import Model
from taskdistill.model.tokenizer import TokenizedTexts
from taskdistill.tasks import Role


@dataclass(kw_only=True)
class ExportJob:
    """One export under way."""

    model: Model
    """For a format of one task, with that task's adapter already merged into the base."""
    task: str | None
    folder: Path
    reference: Mapping[str | None, NDArray[np.float32]]
    """Task to the model's unit vectors `(n, D)` of `texts`."""
    texts: Sequence[str]
    results: list[ParityResult] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was checked in another way, or not at all."""

    @property
    def prompt(self) -> str:
        """What stands before every text of the comparisons."""
        return self.model.settings.prompts.get(Role.DOCUMENT.value, "")

    def tokenized(self) -> TokenizedTexts:
        """Token ids of the texts, as the model reads them."""
        return self.model.tokenizer.ids(
            list(self.texts), prompt=self.prompt, max_length=self.model.settings.max_length
        )

    def compare(
        self,
        file: str,
        checked_with: str,
        vectors: NDArray[np.float32],
        tolerance: Tolerance,
        *,
        required: bool = True,
        task: str | None = None,
        rows: Sequence[int] | None = None,
    ) -> None:
        """Compare unit vectors `(n, D)` of an exported file with the reference; add the comparison.

        `required`: whether a difference fails the export, or is only reported. `task`: adapter,
        where the format holds several; default: the job's. `rows`: which of `texts` the vectors are
        of; default: all. Raises WorkFailed if the vectors have another shape than the reference or
        are not finite.
        """
        task = task or self.task
        reference = self.reference[task] if rows is None else self.reference[task][rows]
        if vectors.shape != reference.shape or not np.isfinite(vectors).all():
            raise WorkFailed(
                f"{file}: {checked_with} gave vectors of shape {vectors.shape}, the reference has "
                f"{reference.shape}, or they are not finite"
            )
        cosine = cosines(reference, vectors)
        smallest, mean = float(cosine.min()), float(cosine.mean())
        difference = float(np.abs(reference - vectors).max())
        equal = (
            smallest >= (tolerance.smallest_cosine or -1)
            and mean >= (tolerance.mean_cosine or -1)
            and difference <= (tolerance.largest_difference or np.inf)
        )
        self.results.append(
            ParityResult(
                file=file,
                checked_with=checked_with,
                task=task,
                texts=len(reference),
                smallest_cosine=smallest,
                mean_cosine=mean,
                largest_difference=difference,
                tolerance=tolerance,
                verdict="equal" if equal else "differs",
                required=required,
            )
        )


class ExportFormat(Protocol):
    """One format; a module of formats/ holds one as `FORMAT`, under the format's name."""

    usage: str
    """One line that loads the export; `{prompt}` and `{task}` are filled in."""
    all_tasks: bool
    """Whether it holds every adapter, so that no task is chosen."""

    def check(self, model: Model) -> None:
        """Raise BadInput, before anything is computed, for a model that the format cannot hold."""

    def write(self, job: ExportJob) -> None:
        """Write the files into `job.folder`, and compare each with the reference."""
