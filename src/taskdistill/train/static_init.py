"""The static student.

A token table started from the teacher's vectors of the vocabulary, or of the texts (ours, not the
paper's).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from taskdistill.errors import WorkFailed
from taskdistill.losses.vectors import normalize
from taskdistill.model.student import StaticModel
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.seeding import torch_seed
from taskdistill.teacher.fill import fill_store
from taskdistill.teacher.protocol import Teacher
from taskdistill.teacher.store import TeacherStore

FREQUENCY_FLOOR = 1e-3
"""Constant `a` of the weight `a / (a + p)` that a token of share p starts with: frequent tokens say
little."""
SELDOM = 5.0
"""Occurrences at which a token's mean over its texts counts for half."""
TEXTS_AT_ONCE = 20_000


def token_texts(tokenizer: TextTokenizer) -> list[str]:
    """Write every entry of the vocabulary as a text that a teacher can read.

    Returns one text an id; pieces that stand for no text of their own are written as their bare
    name.
    """
    texts = []
    for number in range(len(tokenizer)):
        token = tokenizer.backend.id_to_token(number) or ""
        plain = tokenizer.backend.decode([number], skip_special_tokens=False).strip() or token
        texts.append(
            plain.removeprefix("##").replace("\u2581", " ").replace("\u0120", " ").strip()
            or token
            or "?"
        )
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
    """Start the table from the teacher's vectors of the tokens, scaled by their rarity.

    `tokenizer`: the student's tokenizer, adding no special tokens. `sample`: texts from which the
    share of each token is counted. `only`: ids of the tokens to embed; the others start at zero.
    None embeds the whole vocabulary. Raises WorkFailed if the teacher gave no vector for some
    token.
    """
    every = token_texts(tokenizer)
    texts = every if only is None else [every[i] for i in only]
    fill_store(store, texts, teacher, progress=progress)
    if missing := store.missing(texts):
        raise WorkFailed(
            f"the teacher gave no vector for {len(missing)} tokens of the vocabulary, "
            f"{missing[0]!r} first"
        )
    vectors = torch.from_numpy(store.get(texts).astype(np.float32))
    counts = np.bincount(
        np.concatenate(tokenizer.ids(sample, prompt="", max_length=512).ids), minlength=len(every)
    )
    shares = torch.from_numpy(counts / max(1, counts.sum())).float()
    centred = vectors - vectors.mean(0, keepdim=True)
    if only is not None:
        centred = torch.zeros(len(every), centred.shape[1]).index_copy(
            0, torch.tensor(only), centred
        )
    return StaticModel(centred * (FREQUENCY_FLOOR / (FREQUENCY_FLOOR + shares))[:, None])


def start_from_texts(
    tokenizer: TextTokenizer,
    store: TeacherStore,
    read: Sequence[tuple[str, str]],
    counted: Sequence[str],
    *,
    noise: float,
    seed: int,
) -> StaticModel:
    """Start the table where the teacher cannot read the tokens.

    Each from the texts that it occurs in.

    A token's vector is the mean of its texts' teacher vectors about the mean of all, drawn towards
    zero where it occurs seldom, plus a random direction, so that tokens of the same texts differ.
    It is scaled by how rare the token is, as in `start_table`. `tokenizer`: the student's
    tokenizer, adding no special tokens. `store`: store of raw texts, which holds a vector for every
    text that the teacher read. `read`: a text of the student, and the text that the teacher read
    for it. `counted`: further texts from which only the share of each token is counted.
    """
    pairs = list(dict.fromkeys(read))
    numbers = {
        text: i for i, text in enumerate(dict.fromkeys(teacher_text for _, teacher_text in pairs))
    }
    vectors = torch.from_numpy(store.get(list(numbers)).astype(np.float32))
    vectors = vectors - vectors.mean(0, keepdim=True)
    sums, counts = torch.zeros(len(tokenizer), vectors.shape[1]), torch.zeros(len(tokenizer))
    for start in range(0, len(pairs), TEXTS_AT_ONCE):
        some = pairs[start : start + TEXTS_AT_ONCE]
        ids = tokenizer.ids(
            [student_text for student_text, _ in some], prompt="", max_length=512
        ).ids
        flat = torch.from_numpy(np.concatenate(ids)).long()
        rows = torch.from_numpy(
            np.repeat(
                [numbers[teacher_text] for _, teacher_text in some], [len(row) for row in ids]
            )
        )
        sums.index_add_(0, flat, vectors[rows])
        counts.index_add_(0, flat, torch.ones(len(flat)))
    table = 2 * sums / (counts[:, None] + SELDOM)
    table += noise * normalize(
        torch.randn(table.shape, generator=torch.Generator().manual_seed(torch_seed(seed)))
    )
    for start in range(0, len(counted), TEXTS_AT_ONCE):
        flat = torch.from_numpy(
            np.concatenate(
                tokenizer.ids(counted[start : start + TEXTS_AT_ONCE], prompt="", max_length=512).ids
            )
        ).long()
        counts.index_add_(0, flat, torch.ones(len(flat)))
    shares = counts / counts.sum().clamp_min(1)
    return StaticModel(table * (FREQUENCY_FLOOR / (FREQUENCY_FLOOR + shares))[:, None])
