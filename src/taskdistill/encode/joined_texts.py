"""Texts read as one document, so that each one's vector has seen the others: late chunking for
whoever holds the chunks already.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput
from taskdistill.model.packed import pack
from taskdistill.model.student import StaticModel, TransformerModel
from taskdistill.types import Pooling


@dataclass(frozen=True, slots=True)
class JoinedTexts:
    """The token ids of the document, and which of its states belong to which text."""

    ids: np.ndarray
    spans: np.ndarray
    """First token and the one after the last of each text, `(texts, 2)` of int64, none empty."""

    def embed(self, module: TransformerModel | StaticModel) -> torch.Tensor:
        """Run the model once and pool the states of each text as it pools a text of its own.

        Returns `(texts, D)`, not scaled.
        """
        if isinstance(module, StaticModel):
            states = module.table[torch.from_numpy(self.ids.astype(np.int64))]
        else:
            states = module.hidden(pack([self.ids]).to(module.device))
        if isinstance(module, TransformerModel) and module.pooling is Pooling.LAST:
            return states[torch.from_numpy(self.spans[:, 1] - 1)]
        return torch.stack([states[first:last].mean(0) for first, last in self.spans.tolist()])


def join_texts(encoder: Encoder, texts: Sequence[str], prompt: str) -> JoinedTexts:
    """Tokenise texts as one document, in order and with a space between.

    As in `encode_chunks`, a token belongs to the text that it begins in, the prompt and what stands
    before the document to the first text and what stands behind it to the last; a text that no
    token begins in has the one that it lies within. `texts`: the texts, none empty. Returns its
    ids, however many, and the tokens of each text. Raises BadInput if there is no token of a text
    at all.
    """
    ids, places = encoder.model.tokenizer.offsets(" ".join(texts), prompt=prompt)
    inside = np.flatnonzero(places[:, 1] >= 0)
    if len(inside) == 0:
        raise BadInput("the texts have no token this model knows; leave empty texts out")
    begin, end = int(inside[0]), int(inside[-1]) + 1
    starts = np.maximum.accumulate(np.maximum(places[begin:end, 0], 0))
    edges = [0, *(np.cumsum([len(text) + 1 for text in texts]) - 1).tolist()]
    spans = []
    for start, stop in itertools.pairwise(edges):
        first, last = (int(np.searchsorted(starts, edge, side="left")) for edge in (start, stop))
        if first == last:
            first, last = max(first - 1, 0), max(first, 1)
        spans.append(
            (0 if first == 0 else begin + first, len(ids) if last == len(starts) else begin + last)
        )
    return JoinedTexts(ids, np.array(spans, np.int64))
