"""A smaller model without training: tokens that no text uses, layers that matter least, neurons
that are used least.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from taskdistill.cli.main import run as command
from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput
from taskdistill.model.folder import write_model
from taskdistill.model.layers import layers_of
from taskdistill.model.prune import choose_layers, embed_all, narrow
from taskdistill.model.prune_vocabulary import prune_embeddings, prune_tokenizer, used_tokens
from taskdistill.model.student import StaticModel
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.progress import SilentProgress
from taskdistill.train.vocab import learn_vocabulary
from taskdistill.workflows.shrink import ShrinkRequest, read_texts, shrink

SEA = [tiny.sentence("sea", np.random.default_rng(i)) for i in range(30)]
TOWN = [tiny.sentence("town", np.random.default_rng(i)) for i in range(30)]


def byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(SEA + TOWN, trainer)
    return made


KINDS = {
    "WordPiece": tiny.tokenizer,
    "Unigram": lambda: learn_vocabulary(SEA + TOWN, 150),
    "BPE": byte_level,
}


@pytest.mark.parametrize("kind", KINDS)
def test_texts_whose_tokens_all_stay_are_cut_as_before(kind):
    whole = TextTokenizer(KINDS[kind]())
    cut, old = prune_tokenizer(whole, used_tokens(whole, SEA))
    assert len(cut) == len(old) < len(whole) and old.tolist() == sorted(set(old.tolist()))
    before, after = (tokenizer.ids(SEA, prompt="", max_length=99).ids for tokenizer in (whole, cut))
    assert all((old[new] == ids).all() for ids, new in zip(before, after, strict=True))
    foreign = cut.ids(["bridge market"], prompt="", max_length=99).ids[0]
    assert (
        cut.backend.decode(foreign.tolist()).replace("##", "").replace(" ", "") == "bridgemarket"
    )  # letters are left, no unknown token


def test_pruning_keeps_a_static_model_s_vectors_to_the_last_bit():
    whole = TextTokenizer(learn_vocabulary(SEA + TOWN, 150), special=False)
    module = StaticModel(torch.randn(len(whole), 8, generator=torch.Generator().manual_seed(1)))
    before = module.embed(whole.ids(SEA, prompt="", max_length=99).ids)
    cut, old = prune_tokenizer(whole, used_tokens(whole, SEA))
    prune_embeddings(module, old)
    assert len(module.table) == len(cut) < len(whole)
    assert torch.equal(module.embed(cut.ids(SEA, prompt="", max_length=99).ids), before)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A BERT-like model with prompts and an adapter, one without, and texts in two languages."""
    home = tmp_path_factory.mktemp("shrink")
    source = tiny.write_tokenizer(home / "tokenizer")
    module = tiny.student("bert", layers=3)
    write_model(home / "plain", tiny.model(module, source))
    made = tiny.model(tiny.student("bert", layers=3), source)
    made.adapter_configs["retrieval"] = tiny.add_adapter(made.module, "retrieval")
    write_model(home / "adapted", made)
    rows = [{"text": text, "lang": "xx"} for text in SEA] + [
        {"text": text, "lang": "yy"} for text in TOWN
    ]
    tiny.write_jsonl(home / "texts.jsonl.gz", rows)
    tiny.write_data(home / "data")
    return home


def test_a_pruned_folder_gives_the_same_vectors_with_every_adapter(home):
    found = shrink(
        str(home / "adapted"),
        home / "texts.jsonl.gz",
        home / "pruned",
        SilentProgress(),
        request=ShrinkRequest(vocabulary=True, languages=("xx",)),
    )
    whole, cut = Encoder.load(home / "adapted", threads=1), Encoder.load(home / "pruned", threads=1)
    for task in (None, "retrieval"):
        for prompt_name in ("query", "document"):
            before, after = (
                each.encode(SEA, task=task, prompt_name=prompt_name) for each in (whole, cut)
            )
            assert np.array_equal(before, after)
    first, last = found["rows"]
    assert [first["step"], last["step"]] == ["as it was", f"{last['tokens']} tokens"] and last[
        "cosine"
    ] == pytest.approx(1)
    assert first["parameters"] - last["parameters"] == 32 * (first["tokens"] - last["tokens"]) > 0
    assert cut.space_id != whole.space_id  # other texts have other vectors


def test_other_libraries_read_a_pruned_folder(home):
    sentence_transformers = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed"
    )
    if not (home / "pruned").exists():
        shrink(
            str(home / "adapted"),
            home / "texts.jsonl.gz",
            home / "pruned",
            SilentProgress(),
            request=ShrinkRequest(vocabulary=True, languages=("xx",)),
        )
    theirs = sentence_transformers.SentenceTransformer(str(home / "pruned"), device="cpu").encode(
        SEA[:4], prompt_name="document"
    )
    assert np.abs(theirs - Encoder.load(home / "pruned", threads=1).encode(SEA[:4])).max() < 1e-5


def test_the_search_drops_a_layer_that_does_nothing():
    module = tiny.student("bert", layers=3)
    for name, parameter in layers_of(module.backbone)[1].named_parameters():
        if (
            "output.dense" in name
        ):  # both ways back into the stream: the layer only normalises again
            parameter.data.zero_()
    ids = TextTokenizer(tiny.tokenizer()).ids(SEA, prompt="", max_length=64).ids
    before = embed_all(module, ids)
    kept, cosine = choose_layers(module, ids, 2)
    assert kept == [0, 2] and cosine > 0.9999
    assert torch.equal(embed_all(module, ids), before)  # the search leaves the model as it was
    with pytest.raises(BadInput, match="cannot keep 4 layers: the model has 3"):
        choose_layers(module, ids, 4)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_unused_neurons_go_first_and_cost_nothing(family):
    module = tiny.student(family)
    for layer in layers_of(module.backbone):
        back = layer.output.dense if family == "bert" else layer.mlp.down_proj
        back.weight.data[:, 8:24] = 0
    ids = TextTokenizer(tiny.tokenizer()).ids(SEA, prompt="", max_length=64).ids
    before = embed_all(module, ids)
    narrow(module, ids, 32)
    assert module.backbone.config.intermediate_size == 32
    assert torch.allclose(embed_all(module, ids), before, atol=1e-5)
    with pytest.raises(BadInput, match="cannot keep 33 neurons"):
        narrow(module, ids, 33)


def test_the_command_says_what_each_step_costs(home, tmp_path, capsys):
    arguments = [
        "shrink",
        str(home / "plain"),
        "--texts",
        str(home / "texts.jsonl.gz"),
        "--out",
        str(tmp_path / "small"),
        "--sample",
        "20",
    ]
    arguments += [
        "--layers",
        "2",
        "--width",
        "24",
        "--vocabulary",
        "--data",
        str(home / "data"),
        "--eval-set",
        "sts/sts",
        "--json",
        str(tmp_path / "r.json"),
    ]
    assert command(arguments) == 0
    rows = json.loads((tmp_path / "r.json").read_text("utf-8"))["rows"]
    assert [row["step"].split()[0] for row in rows][:3] == ["as", "layers", "24"] and rows[3][
        "step"
    ].endswith("tokens")
    assert [row["parameters"] for row in rows] == sorted(
        (row["parameters"] for row in rows), reverse=True
    )
    assert (
        rows[0]["cosine"] == pytest.approx(1)
        and rows[1]["cosine"] < 1
        and set(rows[0]["scores"]) == {"sts/sts"}
    )
    assert rows[0]["differences"]["sts/sts"] == [0, 0, 0]
    value, low, high = rows[3]["differences"]["sts/sts"]
    assert low <= value <= high and value == pytest.approx(
        rows[3]["scores"]["sts/sts"] - rows[0]["scores"]["sts/sts"]
    )
    small = Encoder.load(tmp_path / "small", threads=1)
    assert len(layers_of(small.model.module.backbone)) == 2 and small.encode(SEA).shape == (30, 32)
    assert f"{rows[3]['cosine']:.4f}" in capsys.readouterr().out
    assert command(["info", str(tmp_path / "small"), "--verify"]) == 0


def test_what_cannot_be_shrunk_is_refused(home, tmp_path):
    with pytest.raises(BadInput, match=r"has adapters \(retrieval\)"):
        shrink(
            str(home / "adapted"),
            home / "texts.jsonl.gz",
            tmp_path / "out",
            SilentProgress(),
            request=ShrinkRequest(layers=2),
        )
    with pytest.raises(BadInput, match="nothing to shrink"):
        shrink(
            str(home / "plain"),
            home / "texts.jsonl.gz",
            tmp_path / "out",
            SilentProgress(),
            request=ShrinkRequest(),
        )
    with pytest.raises(BadInput, match="has 0 texts in the languages zz"):
        read_texts(home / "texts.jsonl.gz", ["zz"])
    assert not (tmp_path / "out").exists()
