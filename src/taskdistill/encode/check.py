"""What a back end changes: its vectors against the model's golden ones, and int8's measured
cosines.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from taskdistill.encode.encoder import Encoder
from taskdistill.encode.int8 import CosineStats, Int8Model
from taskdistill.errors import WorkFailed
from taskdistill.model.golden import BASE, SAME_SPACE, check_golden, read_golden
from taskdistill.tasks import Role


def int8_cosines(encoder: Encoder, task: str | None = None) -> CosineStats | None:
    """Say how close int8 comes to float32 on the calibration texts.

    `task`: adapter; None for the base. Returns mean and smallest cosine, or None in another back
    end.
    """
    if not isinstance(encoder.backend, Int8Model):
        return None
    chosen = encoder.choose_task(task)
    encoder.backend.prepare(chosen)
    return encoder.backend.cosines[chosen or BASE]


def golden_cosine(encoder: Encoder, task: str | None = None) -> float | None:
    """Compare a back end's vectors with those that the model folder keeps.

    `task`: adapter; None for the base. Returns the smallest cosine, or None if the folder keeps no
    golden vectors. Raises WorkFailed if a back end that computes in float32 gives other vectors.
    """
    golden, chosen = read_golden(encoder.model.source), encoder.choose_task(task)
    if golden is None:
        return None

    def embed(texts: Sequence[str], name: str | None) -> np.ndarray:
        return encoder.encode(texts, task=name, prompt_name=Role.DOCUMENT.value)

    name = chosen or BASE
    result = check_golden(golden, embed, [name])[name]
    if result < SAME_SPACE and int8_cosines(encoder, chosen) is None:
        raise WorkFailed(
            f"this back end gives other vectors than {encoder.name} (smallest cosine {result:.6f});"
            " use the back end torch"
        )
    return result
