"""A deterministic encoder for the search tests: a text's vector is the sum of its words' random vectors."""

from __future__ import annotations

import hashlib
import re

import numpy as np

from taskdistill.quantization import truncate

DIM = 64


class FakeEncoder:
    """Texts that share words are near each other; `texts_seen` counts what was embedded."""

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
