"""A token table for a new vocabulary.

Each piece starts as a mix of the old pieces that stand opposite it in translations (ours).

The layers of a trained backbone know what to do with the rows of their own table. A new piece that
means the same starts with the same row, so that a text of another language enters the layers as its
words in the old one would. What means the same is found by word alignment (IBM model 1, Brown et
al. 1993) over the student's texts and the texts that the teacher read for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_matrix
from torch import Tensor

from taskdistill.data.batches import Batch, BatchPlan
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.train.collate import collate
from taskdistill.types import RowKind

OCCURRENCES = 100
"""Texts in which a piece is aligned, at most, drawn by the seed: more of a frequent piece cost
memory and say nothing new."""
ROUNDS = 6
SHARPEN = 2.0
"""Exponent of the probabilities before they weigh rows: chance neighbours fade."""
LEAST = 0.02
"""Old pieces less probable than this have no part in a row."""
OWN = 0.1
"""Texts that the teacher reads as they are, per translation, at most: with more, pieces that
languages share would stand for the initial one's."""
FAVOURED = 20.0
"""See `align`."""
SAME = 0.9
"""Cosine to the initial row of the same spelling from which on a piece means the same and keeps
that row."""
CHUNK = 20_000


def read_pairs(plan: BatchPlan) -> list[tuple[str, str]]:
    """List every text of a phase's sources beside the text that the teacher reads for it.

    Returns distinct (text, text that the teacher reads), in the order of the rows.
    """
    result: dict[tuple[str, str], None] = {}
    for dataset in plan.datasets:
        for start in range(0, len(dataset.rows), CHUNK):
            rows = tuple(dataset.rows[start : start + CHUNK])
            texts = dataset.kind is RowKind.LABELLED
            kind = RowKind.TEXTS if texts else dataset.kind
            prepared = collate(
                Batch(
                    step=0,
                    index=0,
                    dataset=dataset.name,
                    kind=kind,
                    rows=rows,
                    row_ids=np.arange(len(rows)),
                    teacher_reads=dataset.teacher_reads,
                ),
                task=None,
                distil=True,
            )
            for (place, _), (_, teacher_text) in zip(
                prepared.distilled, prepared.teacher_texts(), strict=True
            ):
                result[prepared.texts[place][1], teacher_text] = None
    return list(result)


def align(
    new: Sequence[np.ndarray],
    old: Sequence[np.ndarray],
    sizes: tuple[int, int],
    seed: int,
    same: Mapping[int, int] | None = None,
) -> csr_matrix:
    """Find which old pieces each new piece stands for, by IBM model 1.

    Every new piece of a text is explained by one old piece of the other text; which one is learned
    by expectation and maximisation. `same`: new piece to the old piece of the same spelling, which
    is `FAVOURED` times as probable as others before the first round: names and numbers are seldom
    translated, and too rare to be aligned by counts alone. Returns `(new pieces, old pieces)`: the
    probability of each old piece given the new one; a piece that occurs nowhere has an empty row.
    """
    new_ids, old_ids = [np.unique(ids) for ids in new], [np.unique(ids) for ids in old]
    piece, text, weight = _links(new_ids, sizes[0], seed)
    counts = np.array([len(ids) for ids in old_ids])
    flat, first = (
        np.concatenate(old_ids).astype(np.int64),
        np.concatenate([[0], np.cumsum(counts)[:-1]]),
    )
    held = counts[text] > 0
    piece, text, weight = piece[held], text[held], weight[held]
    length = counts[text]
    row = np.repeat(np.arange(len(piece), dtype=np.int32), length)
    within = np.arange(len(row)) - np.repeat(np.cumsum(length) - length, length)
    keys = np.repeat(piece, length) * sizes[1] + flat[np.repeat(first[text], length) + within]
    pairs_seen, cell = np.unique(keys, return_inverse=True)
    cell, keys = cell.astype(np.int32), pairs_seen % sizes[1]
    pieces = pairs_seen // sizes[1]
    partner = np.full(sizes[0], -1)
    partner[list(same or {})] = list((same or {}).values())
    expected: np.ndarray = np.where(partner[pieces] == keys, FAVOURED, 1.0)
    for number in range(ROUNDS):
        chance = (
            expected
            if number == 0
            else expected / np.bincount(keys, expected, minlength=sizes[1])[keys]
        )
        share = chance[cell]
        share *= (weight / np.bincount(row, share, minlength=len(piece)))[row]
        expected = np.bincount(cell, share, minlength=len(pairs_seen))
    expected /= np.bincount(pieces, expected, minlength=sizes[0])[pieces]
    return csr_matrix((expected, (pieces, keys)), shape=sizes)


def _links(
    rows_of: Sequence[np.ndarray], size: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the texts in which each piece is aligned.

    Each counts for as many as the piece has a drawn one for.
    """
    piece = np.concatenate(rows_of).astype(np.int64)
    text = np.repeat(np.arange(len(rows_of)), [len(ids) for ids in rows_of])
    order = np.random.default_rng(seed).permutation(len(piece))
    order = order[np.argsort(piece[order], kind="stable")]
    counts = np.bincount(piece, minlength=size)
    rank = np.arange(len(piece)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = order[rank < OCCURRENCES]
    return (
        piece[chosen],
        text[chosen],
        (counts / np.minimum(counts, OCCURRENCES).clip(1))[piece[chosen]],
    )


def mixed_rows(chances: csr_matrix, table: Tensor, spelled: Sequence[np.ndarray]) -> Tensor:
    """Make the rows of the new pieces.

    `table`: the old token table, `(old pieces, D)`. `spelled`: ids of each new piece's own letters
    in the old vocabulary, for pieces that were not aligned. Returns `(new pieces, D)`; the mean of
    the table for a piece that has neither.
    """
    sharp = chances.copy()
    sharp.data = np.where(sharp.data < LEAST, 0, sharp.data**SHARPEN)
    total = np.asarray(sharp.sum(axis=1)).ravel()
    sharp = csr_matrix(sharp.multiply(1 / np.where(total > 0, total, 1)[:, None]))
    rows = torch.from_numpy((sharp @ table.numpy().astype(np.float64)).astype(np.float32))
    for number in np.flatnonzero(total == 0).tolist():
        ids = torch.from_numpy(spelled[number].astype(np.int64))
        rows[number] = table[ids].mean(0) if len(ids) else table.mean(0)
    return rows


def transfer_embeddings(
    tokenizer: TextTokenizer,
    old: TextTokenizer,
    pairs: Sequence[tuple[str, str]],
    table: Tensor,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Make the token table of a new vocabulary out of the old one.

    `pairs`: see `read_pairs`; texts that are read as they are say what the pieces of the initial
    language stand for. `table`: the old token table, `(old pieces, D)`. Returns `(new pieces, D)`;
    and `(new pieces,)` of bool, which of them have exactly the old row of the same spelling:
    special tokens, and pieces that are one old token and mean the same in the pairs, or do not
    occur in them.
    """
    pairs = _balanced(pairs, seed)
    new_ids, old_ids = (
        _plain_ids(tokenizer, [student_text for student_text, _ in pairs]),
        _plain_ids(old, [teacher_text for _, teacher_text in pairs]),
    )
    pieces = [
        tokenizer.backend.decode([number], skip_special_tokens=False).strip()
        for number in range(len(tokenizer))
    ]
    unknown = _unknown(old)
    spelled = [ids[ids != unknown] for ids in _plain_ids(old, pieces)]
    same = {number: int(ids[0]) for number, ids in enumerate(spelled) if len(ids) == 1}
    rows = mixed_rows(
        align(new_ids, old_ids, (len(tokenizer), len(table)), seed, same), table, spelled
    )
    is_old = torch.zeros(len(rows), dtype=torch.bool)
    same = {
        number: one
        for number, one in same.items()
        if F.cosine_similarity(rows[number], table[one], dim=0) > SAME
    }
    for number, token in tokenizer.backend.get_added_tokens_decoder().items():
        if (one := old.backend.token_to_id(token.content)) is not None:
            same[number] = one
    for number, one in same.items():
        rows[number], is_old[number] = table[one], True
    return rows, is_old


def _balanced(pairs: Sequence[tuple[str, str]], seed: int) -> list[tuple[str, str]]:
    translated = [pair for pair in pairs if pair[0] != pair[1]]
    as_they_are = [pair for pair in pairs if pair[0] == pair[1]]
    limit = round(OWN * len(translated)) if translated else len(as_they_are)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(as_they_are))[:limit])
    return translated + [as_they_are[i] for i in chosen.tolist()]


def _plain_ids(tokenizer: TextTokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    plain = TextTokenizer(tokenizer.backend.from_str(tokenizer.to_json()), special=False)
    return plain.ids(texts, prompt="", max_length=512).ids


def _unknown(tokenizer: TextTokenizer) -> int:
    name = getattr(tokenizer.backend.model, "unk_token", None)
    number = tokenizer.backend.token_to_id(name) if isinstance(name, str) else None
    return -1 if number is None else number
