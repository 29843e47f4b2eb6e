"""Golden vectors: what a model gave for fixed texts when it was written, against which any back end
is checked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import torch

from taskdistill.errors import BadInput
from taskdistill.model.student import StaticModel
from taskdistill.tasks import Role

if TYPE_CHECKING:
    from taskdistill.model.model import Model

FILE = "golden.json"
BASE = "base"
"""Key of the vectors without an adapter."""

DECIMALS = 7
SAME_SPACE = 0.9999
"""Smallest cosine to a golden vector of whatever computes in float32."""

PROBES = 3
"""Golden texts, the shortest ones, that a model embeds when it is read."""

SAME_VECTOR = 1e-6
"""Largest difference of a coordinate between unit vectors that are taken for one."""

BATCH = 4
"""Texts embedded at once; bounds memory, changes no number beyond rounding."""

TEXTS = (
    "Which planet is known as the Red Planet?",
    "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
    "a",
    "Die Katze sitzt auf der Fensterbank und schaut den Vögeln im Garten zu.",
    "火星は太陽系の第四惑星で、赤い惑星とも呼ばれています。",
    "مرحبا بالعالم، هذا نص قصير من اليمين إلى اليسار.",
    "यह एक छोटा वाक्य है।",
    "def add(first: int, second: int) -> int:\n    return first + second\n",
)
"""The fixed texts: several scripts, one token to a few dozen."""

Embed = Callable[[Sequence[str], str | None], np.ndarray]
"""Texts and a task (None for the base) to float32 vectors `(n, D)` of unit length, behind the
document prompt.
"""


class GoldenVectors(TypedDict):
    """Content of `golden.json`."""

    texts: list[str]
    role: str
    vectors: dict[str, list[list[float]]]
    """`base` or task to the vectors of unit length of all texts."""


def embed_with(model: Model) -> Embed:
    """Make the reference computation: the packed torch model, in float32, as the encoder runs it.

    Returns a function of texts and task; it leaves the model with no adapter selected.
    """
    prompt = model.settings.prompts.get(Role.DOCUMENT.value, "")

    def embed(texts: Sequence[str], task: str | None) -> np.ndarray:
        ids = model.tokenizer.ids(
            list(texts), prompt=prompt, max_length=model.settings.max_length
        ).ids
        model.module.select(task)
        try:
            with torch.inference_mode():
                parts = [
                    model.module.embed(ids[i : i + BATCH]).float().cpu()
                    for i in range(0, len(ids), BATCH)
                ]
        finally:
            model.module.select(None)
        unit: np.ndarray = torch.nn.functional.normalize(torch.cat(parts), dim=-1).numpy()
        return unit

    return embed


def golden_vectors(embed: Embed, tasks: Sequence[str]) -> GoldenVectors:
    """Compute the golden vectors of a model."""
    vectors: dict[str, list[list[float]]] = {
        task or BASE: np.round(embed(TEXTS, task).astype(np.float64), DECIMALS).tolist()
        for task in (None, *tasks)
    }
    return {"texts": list(TEXTS), "role": Role.DOCUMENT.value, "vectors": vectors}


def check_golden(
    golden: GoldenVectors, embed: Embed, names: Collection[str] | None = None
) -> dict[str, float]:
    """Compare a back end with golden vectors.

    `names`: `base` and tasks that are compared; None for all. Returns name to the smallest cosine
    between its vectors and the golden ones. Raises BadInput if the golden vectors are malformed or
    of another size than the back end's.
    """
    result = {}
    for name, rows in golden["vectors"].items():
        if names is not None and name not in names:
            continue
        expected = np.array(rows, dtype=np.float32)
        vectors = embed(golden["texts"], None if name == BASE else name)
        if expected.shape != vectors.shape or not np.isfinite(expected).all():
            raise BadInput(
                f"golden vectors of {name} have shape {expected.shape}, this model gives"
                f" {vectors.shape}; they belong to another model"
            )
        result[name] = float(cosines(expected, vectors).min())
    return result


def check_vectors(model: Model, folder: Path) -> None:
    """Run a few short texts through a model that was just read, and compare them with its golden
    vectors if it has some.

    Damage that keeps every hash right, such as weights of zeros or a layer norm that divides by
    1e30, is found by what it computes. `model`: the model, on the CPU; left with no adapter
    selected. Raises BadInput if a vector is zero or not finite, different texts have one vector, or
    a vector is not the golden one.
    """
    golden = read_golden(folder)
    texts = (
        list(TEXTS)
        if golden is None
        else [text for text in golden["texts"] if isinstance(text, str)]
    )
    chosen = sorted(range(len(texts)), key=lambda i: len(texts[i]))[:PROBES]
    prompt = model.settings.prompts.get(Role.DOCUMENT.value, "")
    rows = model.tokenizer.ids(
        [texts[i] for i in chosen], prompt=prompt, max_length=model.settings.max_length
    ).ids
    known = [(i, row) for i, row in zip(chosen, rows, strict=True) if len(row)]
    model.module.select(None)
    with torch.inference_mode():
        vectors = (
            model.module.embed([row for _, row in known]).double().numpy()
            if known
            else np.zeros((0, 1))
        )
    lengths, advice = (
        np.linalg.norm(vectors, axis=1),
        "its weights or settings are damaged or were changed; copy the folder again",
    )
    # A static model knows no vector of tokens that it never saw, so some of its texts may have
    # none.
    some = isinstance(model.module, StaticModel) and bool(model.module.table.any())
    for (i, _), length in zip(known, lengths, strict=True):
        if not np.isfinite(length) or (length == 0 and not some):
            what = "a zero vector" if length == 0 else "values that are not finite"
            raise BadInput(f"{folder}: the model gives {what} for the text {texts[i]!r}: {advice}")
    unit = vectors / np.maximum(lengths, np.finfo(np.float64).tiny)[:, None]
    if len(
        {row.tobytes() for (_, row), length in zip(known, lengths, strict=True) if length}
    ) > 1 and _all_one(unit[lengths > 0]):
        raise BadInput(f"{folder}: the model gives one vector for different texts: {advice}")
    expected = [] if golden is None else golden["vectors"].get(BASE, [])
    for (i, _), row in zip(known, unit, strict=True):
        if i < len(expected) and not (cosine := _cosine(expected[i], row)) >= SAME_SPACE:
            raise BadInput(
                f"{folder}: the model does not give its golden vector of {texts[i]!r} (cosine"
                f" {cosine:.4f}): {advice}"
            )


def _all_one(unit: np.ndarray) -> bool:
    return bool(np.abs(unit - unit[0]).max() < SAME_VECTOR)


def _cosine(expected: object, row: np.ndarray) -> float:
    """Compare with a golden vector; two zero vectors are alike, and what is no vector is like
    nothing.
    """
    try:
        reference = np.asarray(expected, dtype=np.float64)
        return (
            1.0
            if not (reference.any() or row.any())
            else float(cosines(reference[None], row[None])[0])
        )
    except (TypeError, ValueError):
        return float("nan")


def read_golden(folder: Path) -> GoldenVectors | None:
    """Read the golden vectors of a model folder.

    Returns their content, or None if the folder has none. Raises BadInput if the file is malformed.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        golden: GoldenVectors = json.loads(path.read_text("utf-8"))
        if not isinstance(golden["texts"], list) or not isinstance(golden["vectors"], dict):
            raise TypeError("texts or vectors")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput(
            f"{path} holds no golden vectors ({error}); copy the model folder again"
        ) from None
    return golden


def cosines(expected: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Compare vectors row by row.

    Returns cosine of each pair of rows, `(n,)` in float64; 0 where a row is zero.
    """
    one, two = expected.astype(np.float64), vectors.astype(np.float64)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    result: np.ndarray = np.divide(
        (one * two).sum(1), lengths, out=np.zeros(len(one)), where=lengths > 0
    )
    return result
