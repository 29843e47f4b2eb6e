"""The mean of each side is taken from vectors before their signs, if the recipe says so, wherever
binary codes are made.
"""

from __future__ import annotations

import numpy as np
import pytest
from helpers import tiny, tiny_run

from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput
from taskdistill.evaluate.models.encoder import EncoderEmbedder
from taskdistill.quantization import pack_bits, truncate
from taskdistill.serve.vectors import binary_offset, sent_as


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A model with offsets, from a recipe of three steps a phase."""
    home = tmp_path_factory.mktemp("offsets")
    data = tiny.write_data(home / "data")
    raw = tiny.recipe(data, tiny.write_teacher(home / "teacher"), steps=3)
    raw["student"]["binary_offsets"] = True
    raw["adapters"] = {"retrieval": raw["adapters"]["retrieval"]}
    del raw["static"]
    tiny_run.train(raw, home / "run")
    return Encoder.load(home / "run" / "model", threads=1)


TEXTS = [tiny.sentence(topic, np.random.default_rng(i)) for i, topic in enumerate(tiny.TOPICS)]


@pytest.mark.parametrize("task", [None, "retrieval"])
@pytest.mark.parametrize("role", ["query", "document"])
@pytest.mark.parametrize("dim", [8, 32])
def test_codes_are_the_signs_of_what_is_left(encoder, task, role, dim):
    offset = np.array(
        encoder.model.settings.binary_offsets[task or "base"][role][str(dim)], np.float32
    )
    vectors = encoder.encode(TEXTS, task=task, prompt_name=role, truncate_dim=dim)
    codes = encoder.encode(TEXTS, task=task, prompt_name=role, truncate_dim=dim, precision="binary")
    assert np.array_equal(codes, pack_bits(vectors - offset)) and np.abs(offset).max() > 0
    served = binary_offset(encoder, task, dim, role)
    assert np.array_equal(sent_as(vectors, "ubinary", None, served), codes)
    assert np.array_equal(
        np.asarray(sent_as(vectors, "binary", None, served)).view(np.uint8) ^ 128, codes
    )
    assert np.array_equal(sent_as(vectors, "float", None, served), vectors)  # only signs move


def test_offsets_are_the_means_of_training_texts_on_each_side(encoder):
    stored = encoder.model.settings.binary_offsets["retrieval"]
    assert stored["query"]["32"] != stored["document"]["32"]
    means = {
        role: truncate(encoder.encode(TEXTS, task="retrieval", prompt_name=role), 32).mean(0)
        for role in ("query", "document")
    }
    for role, mean in means.items():
        assert (
            np.dot(mean, stored[role]["32"])
            / np.linalg.norm(mean)
            / np.linalg.norm(stored[role]["32"])
            > 0.8
        )


def test_other_sizes_are_refused_and_the_evaluation_gets_them(encoder):
    with pytest.raises(
        BadInput, match=r"stores no binary offsets for base at 9 dimensions \(stored: 8, 16, 32\)"
    ):
        encoder.encode(TEXTS, truncate_dim=9, precision="binary")
    given, plain = EncoderEmbedder(encoder), EncoderEmbedder(encoder, adapters=False)
    assert given.binary_offsets("retrieval").keys() == {
        "query",
        "document",
    } and given.binary_offsets("retrieval")["query"].keys() == {
        8,
        16,
        32,
    }
    assert not np.array_equal(
        given.binary_offsets("retrieval")["query"][32],
        plain.binary_offsets("retrieval")["query"][32],
    )
