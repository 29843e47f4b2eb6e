"""A teacher without a model: the vector of a text is drawn from the text's hash."""

import hashlib
from collections import Counter

import numpy as np

from taskdistill.teacher.protocol import Identity, unit_rows

DIM = 8


def vector(text, dim=DIM):
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).normal(size=dim)


def stored(texts, dim=DIM):
    """What a store must give back: unit rows, rounded to float16."""
    return unit_rows(np.stack([vector(text, dim) for text in texts])).astype(np.float16)


class FakeTeacher:
    embedding_dim = None

    def __init__(self, identity=None, dim=DIM):
        self.identity = identity or Identity("local", "fake/teacher", None, "weights", 256)
        self.dim = dim
        self.seen = Counter()

    def embed(self, texts):
        self.seen.update(texts)
        return unit_rows(np.stack([vector(text, self.dim) for text in texts]))
