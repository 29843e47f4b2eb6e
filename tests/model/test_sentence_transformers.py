"""Stock sentence-transformers, without this package's code, gives our vectors from our folders."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import pytest
import torch
from helpers import tiny

from taskdistill.encode.encoder import Encoder
from taskdistill.model.folder import write_model
from taskdistill.model.model import Model
from taskdistill.model.settings import ModelSettings
from taskdistill.model.student import StaticModel
from taskdistill.model.tokenizer import TextTokenizer

stock = pytest.importorskip(
    "sentence_transformers", reason="sentence-transformers is not installed"
)
TEXTS = [
    "the old harbour by the sea",
    "a judge in court.",
    "what is a violin?",
    "Ship",
    "cow " * 90,
]


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def folder(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    end = request.param != "bert"
    model = tiny.model(
        tiny.student(request.param), tiny.write_tokenizer(root / "tokenizer", end=end), end=end
    )
    for number, task in enumerate(("retrieval", "text-matching", "clustering", "classification")):
        model.adapter_configs[task] = tiny.add_adapter(model.module, task, seed=number, dropout=0.1)
    write_model(root / "model", model)
    return root / "model"


def test_base_and_adapters_are_equal_and_no_key_is_missed(folder, caplog):
    ours = Encoder.load(folder, threads=1)
    with warnings.catch_warnings(record=True) as warned, caplog.at_level(logging.WARNING):
        warnings.simplefilter("always")
        theirs = stock.SentenceTransformer(str(folder), device="cpu")
        assert theirs.max_seq_length == 64 and theirs.prompts == {
            "query": "Query: ",
            "document": "Document: ",
        }
        assert theirs.default_prompt_name == "document" and theirs.similarity_fn_name == "cosine"
        for prompt in ("query", "document"):
            wanted = ours.encode(TEXTS, prompt_name=prompt)
            assert np.abs(theirs.encode(TEXTS, prompt_name=prompt) - wanted).max() <= 1e-5
        assert np.abs(theirs.encode(TEXTS) - ours.encode(TEXTS)).max() <= 1e-5
        theirs.load_adapter(str(folder / "adapters" / "retrieval"), adapter_name="retrieval")
        said = " ".join([*(str(each.message) for each in warned), caplog.text]).lower()
        assert (
            "missing" not in said and "unexpected" not in said and "exclude_modules" not in said
        ), said
        for task in (
            ours.tasks
        ):  # of a second adapter, transformers reports the first one's keys as missing
            if task != "retrieval":
                theirs.load_adapter(str(folder / "adapters" / task), adapter_name=task)
            theirs.set_adapter(task)
            wanted = ours.encode(TEXTS, task=task, prompt_name="query")
            assert np.abs(theirs.encode(TEXTS, prompt_name="query") - wanted).max() <= 1e-5
            assert np.abs(wanted - ours.encode(TEXTS, prompt_name="query")).max() > 0.01
        theirs.disable_adapters()
        assert np.abs(theirs.encode(TEXTS) - ours.encode(TEXTS)).max() <= 1e-5


def test_truncated_vectors_are_equal(folder):
    theirs = stock.SentenceTransformer(str(folder), device="cpu", truncate_dim=8)
    cut = theirs.encode(TEXTS, normalize_embeddings=True)
    assert np.abs(cut - Encoder.load(folder, threads=1).encode(TEXTS, truncate_dim=8)).max() <= 1e-5


def test_the_static_folder_is_equal(tmp_path):
    rows = tiny.tokenizer().get_vocab_size()
    torch.manual_seed(0)
    settings = ModelSettings(max_length=1_000_000, matryoshka_dims=(8,))
    tokenizer = TextTokenizer(tiny.tokenizer(), special=False)
    write_model(
        tmp_path / "table",
        Model(
            module=StaticModel(torch.randn(rows, 8)),
            tokenizer=tokenizer,
            settings=settings,
            name="table",
            source=tmp_path,
        ),
    )
    theirs = stock.SentenceTransformer(str(tmp_path / "table"), device="cpu")
    assert (
        np.abs(
            theirs.encode(TEXTS) - Encoder.load(tmp_path / "table", threads=1).encode(TEXTS)
        ).max()
        <= 1e-5
    )


def test_a_folder_that_they_wrote_is_read_with_the_same_vectors(folder, tmp_path):
    theirs = stock.SentenceTransformer(str(folder), device="cpu")
    theirs.save_pretrained(str(tmp_path / "theirs"), create_model_card=False)
    ours = Encoder.load(tmp_path / "theirs", threads=1)
    for prompt in ("query", "document"):
        assert (
            np.abs(
                theirs.encode(TEXTS, prompt_name=prompt) - ours.encode(TEXTS, prompt_name=prompt)
            ).max()
            <= 1e-5
        )
