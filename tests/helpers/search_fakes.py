"""What the search tests share: an encoder without a model, and indexes of random vectors."""

from __future__ import annotations

import hashlib
import re

import numpy as np

from taskdistill.quantization import normalize, truncate
from taskdistill.search.corpus import Document
from taskdistill.search.index import Index
from taskdistill.search.settings import IndexSettings

DIM = 64


class FakeEncoder:
    """A text's vector is the sum of its words' random vectors; `texts_seen` what was embedded."""

    def __init__(
        self,
        space_id: str = "space-a",
        model_hash: str = "hash-a",
        name: str = "fake",
        dim: int = DIM,
        noise: float = 0.0,
    ):
        self.space_id, self.model_hash, self.name, self.embedding_dim, self.noise = (
            space_id,
            model_hash,
            name,
            dim,
            noise,
        )
        self.texts_seen: list[str] = []

    def encode(
        self, texts, *, task=None, prompt_name="document", truncate_dim=None, precision="float32"
    ):
        self.texts_seen += texts
        vectors = np.array([self._vector(text) for text in texts], np.float32).reshape(
            len(texts), self.embedding_dim
        )
        return truncate(vectors, truncate_dim or self.embedding_dim)

    def _vector(self, text):
        words = re.findall(r"\w+", text.lower()) or ["nothing"]
        total = np.sum([word_vector(word, self.embedding_dim) for word in words], axis=0)
        return total + self.noise * word_vector("noise " + text, self.embedding_dim)


def word_vector(word, dim=DIM):
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(dim).astype(np.float32)


def settings(rescore="int8", dim=DIM, passages=None):
    return IndexSettings(
        model="m",
        model_hash="h",
        space_id="s",
        task="retrieval",
        document_prompt="document",
        query_prompt="query",
        dim=dim,
        rescore=rescore,
        passages=passages,
    )


def random_vectors(n, seed=0, dim=DIM):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((8, dim))
    return normalize(centres[rng.integers(0, 8, n)] + 0.7 * rng.standard_normal((n, dim)))


def numbered(n, start=0):
    return [
        Document(f"d{i}", f"text {i}", {"parity": i % 2, "i": i}) for i in range(start, start + n)
    ]


def filled(path, n=500, rescore="int8"):
    index = Index.create(path, settings(rescore))
    index.add_vectors(numbered(n), random_vectors(n), space_id="s")
    return index


def ids(hits):
    return [hit.id for hit in hits]
