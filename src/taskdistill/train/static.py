"""The instant student: a token table started by embedding the vocabulary with the teacher (ours, not the paper's)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from taskdistill.errors import WorkFailed
from taskdistill.model.student import StaticModel
from taskdistill.model.text import TextTokenizer
from taskdistill.teacher.protocol import Teacher
from taskdistill.teacher.store import TeacherStore

FREQUENCY_FLOOR = 1e-3
"""Constant `a` of the weight `a / (a + p)` that a token of share p starts with: frequent tokens say little."""


def token_texts(tokenizer: TextTokenizer) -> list[str]:
    """Write every entry of the vocabulary as a text that a teacher can read.

    Args:
        tokenizer: The student's tokenizer.

    Returns:
        One text an id; pieces that stand for no text of their own are written as their bare name.
    """
    texts = []
    for number in range(len(tokenizer)):
        token = tokenizer.backend.id_to_token(number) or ""
        plain = tokenizer.backend.decode([number], skip_special_tokens=False).strip() or token
        texts.append(plain.removeprefix("##").replace("\u2581", " ").replace("\u0120", " ").strip() or token or "?")
    return texts


def start_table(
    tokenizer: TextTokenizer,
    teacher: Teacher,
    store: TeacherStore,
    sample: list[str],
    progress: Callable[[int, int], None] | None = None,
    *,
    only: Sequence[int] | None = None,
) -> StaticModel:
    """Start the table from the teacher's vectors of the vocabulary, each scaled by how rare its token is.

    Args:
        tokenizer: The student's tokenizer, adding no special tokens.
        teacher: Embeds what the store lacks.
        store: Store of raw texts.
        sample: Texts from which the share of each token is counted.
        progress: Called with (texts done, texts in all).
        only: Ids of the tokens to embed; the others start at zero. None embeds the whole vocabulary.

    Returns:
        The model.

    Raises:
        WorkFailed: If the teacher gave no vector for some token.
    """
    every = token_texts(tokenizer)
    texts = every if only is None else [every[i] for i in only]
    store.fill(texts, teacher, progress=progress)
    if missing := store.missing(texts):
        raise WorkFailed(f"the teacher gave no vector for {len(missing)} tokens of the vocabulary, {missing[0]!r} first")
    vectors = torch.from_numpy(store.get(texts).astype(np.float32))
    counts = np.bincount(np.concatenate(tokenizer.ids(sample, prompt="", max_length=512).ids), minlength=len(every))
    shares = torch.from_numpy(counts / max(1, counts.sum())).float()
    centred = vectors - vectors.mean(0, keepdim=True)
    if only is not None:
        centred = torch.zeros(len(every), centred.shape[1]).index_copy(0, torch.tensor(only), centred)
    return StaticModel(centred * (FREQUENCY_FLOOR / (FREQUENCY_FLOOR + shares))[:, None])
