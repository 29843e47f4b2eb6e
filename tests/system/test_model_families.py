"""Families beside our three: their vectors are those of transformers itself, whether their
attention can be packed or not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny, tiny_families
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PreTrainedModel

from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput
from taskdistill.model.backbone import build_backbone, first_position, longest_text
from taskdistill.model.families import (
    ENCODERS,
    PACKED,
    PADDED,
    Batching,
    batching_of,
    heeds_padding,
)
from taskdistill.model.packed import pack
from taskdistill.model.student import TransformerModel
from taskdistill.pipeline.train import train
from taskdistill.recipe.recipe import parse_recipe
from taskdistill.types import Pooling

HEADS = {"num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "xlm-roberta": {},
    "camembert": {},
    "mpnet": {},
    "electra": {},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "albert": {},
    "modernbert": {"eos_token_id": 3, "bos_token_id": 2, "cls_token_id": 2, "sep_token_id": 3},
    "nomic_bert": {},
    "llama": HEADS,
    "mistral": HEADS,
    "qwen2": HEADS,
    "gemma3_text": HEADS | {"head_dim": 8},
}
SINGLE = {"mpnet", "deberta-v2"}
"""Families that compute attention by themselves; their texts run in ordinary batches of equal
length.
"""
OFFSET = {"roberta", "xlm-roberta", "camembert", "mpnet"}


def config(family: str) -> dict[str, Any]:
    sizes = {
        "vocab_size": tiny.tokenizer().get_vocab_size(),
        "num_hidden_layers": 2,
        "max_position_embeddings": 66,
        "pad_token_id": 1,
    }
    return {"model_type": family, **sizes, **tiny.SHAPE, **FAMILIES[family]}


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


def made(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return build_backbone(config(family))


def texts() -> list[np.ndarray]:
    random = np.random.default_rng(1)
    return [random.integers(5, 150, size=n) for n in (9, 3, 9, 1, 20, 64)]


def test_vectors_are_those_of_each_text_by_itself(family):
    backbone = made(family)
    model = TransformerModel(backbone, Pooling.MEAN)
    assert model.packs is (family not in SINGLE) and (first_position(backbone) == 2) is (
        family in OFFSET
    )
    assert longest_text(backbone, 0) == (64 if family in OFFSET else 66)
    with torch.no_grad():
        together = model.embed(texts())
        packed = pack(texts())
        from_rows = model.pooled(packed, model.token_vectors(packed))[packed.order.argsort()]
        if model.packs:
            backbone.set_attn_implementation("eager")
        alone = torch.cat(
            [
                backbone(input_ids=torch.from_numpy(text)[None]).last_hidden_state.mean(1)
                for text in texts()
            ]
        )
    assert (together - alone).abs().max() <= 1e-5
    assert (from_rows - alone).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "family", ["xlm-roberta", "mpnet", "electra", "modernbert", "deberta-v2"], indirect=True
)
def test_a_folder_of_sentence_transformers_gives_its_vectors(family, tmp_path):
    stock = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed"
    )
    from sentence_transformers.models import Pooling as StockPooling
    from sentence_transformers.models import Transformer

    source = tiny.write_tokenizer(tmp_path / "source")
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(**config(family))).save_pretrained(source)
    body = Transformer(str(source), max_seq_length=32)
    theirs = stock.SentenceTransformer(modules=[body, StockPooling(32, "mean")], device="cpu")
    theirs.save_pretrained(str(tmp_path / "model"), create_model_card=False)
    sentences = ["the old harbour by the sea", "a judge in court.", "Ship", "cow " * 90]
    ours = Encoder.load(Path(tmp_path / "model"), threads=1)
    assert ours.max_length == 32
    assert (
        np.abs(ours.encode(sentences) - theirs.encode(sentences, normalize_embeddings=True)).max()
        <= 1e-5
    )


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
FACTORS = {"short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0]}


@pytest.mark.parametrize("kind", ["qwen3", "llama", "phi3"])
def test_frequencies_that_follow_the_longest_text_are_those_of_each_text(kind):
    """LongRoPE takes other factors for all texts of a batch as soon as one is long, so texts of one
    length only run together.
    """
    made = tiny_families.backbone(
        kind, rope_parameters=LONGROPE | FACTORS, original_max_position_embeddings=32
    )
    texts = tiny_families.texts((20, 40, 20, 32, 33))
    with torch.no_grad():
        together, alone = tiny_families.together(made, texts), tiny_families.alone(made, texts)
        short = tiny_families.together(made, texts[:1])[0]
    assert batching_of(made) is Batching.EQUAL and not heeds_padding(made)
    assert max(float((a - b).abs().max()) for a, b in zip(together, alone, strict=True)) <= 1e-5
    assert torch.equal(short, together[0])


def test_a_text_is_never_so_long_that_dynamic_frequencies_change(tmp_path):
    """Their `dynamic` type goes by the longest text that the model ever saw, beyond its
    positions.
    """
    source = tiny.write_tokenizer(tmp_path / "model")
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text(
        '{"word_embedding_dimension": 32, "pooling_mode_mean_tokens": true}'
    )
    parts = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules = [
        {"idx": n, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(parts)
    ]
    (source / "modules.json").write_text(json.dumps(modules))
    raw = config("llama") | {
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    }
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(**raw)).save_pretrained(source)
    (source / "sentence_bert_config.json").write_text('{"max_seq_length": 500}')
    ours = Encoder.load(source, threads=1)
    assert ours.max_length == 66
    first = ours.encode(["cow"])
    ours.encode(["cow " * 90])
    assert np.array_equal(ours.encode(["cow"]), first)


@pytest.mark.parametrize(
    ("kind", "changes"), [("xlnet", {"attn_type": "uni"}), ("xlnet", {"bi_data": True})]
)
def test_settings_under_which_a_family_fails_are_refused_when_it_is_loaded(kind, changes):
    """A family is proven in its usual settings; padded ones are compared again."""
    with pytest.raises(BadInput, match="the family xlnet"):
        build_backbone(tiny_families.config(kind, **changes))


def test_feed_forward_in_chunks_changes_nothing():
    made = build_backbone(config("bert") | {"chunk_size_feed_forward": 3})
    plain = build_backbone(config("bert"))
    plain.load_state_dict(made.state_dict())
    with torch.no_grad():
        assert torch.equal(
            *(TransformerModel(each, Pooling.MEAN).embed(texts()) for each in (made, plain))
        )


# every text family of transformers: docs/families.md says what becomes of it

PAGE = tiny_families.lists()
SAMPLE = (
    *(
        "bert",
        "eurobert",
        "qwen3",
        "modernbert",
        "gemma3_text",
        "gpt_oss",
        "mixtral",
        "embedding_gemma2_text",
    ),
    *("deberta-v2", "t5", "xlnet", "big_bird"),
    *(
        "gemma2",
        "lfm2",
        "mamba",
        "qwen3_5_text",
        "rwkv",
        "convbert",
        "llama4_text",
        "bloom",
        "longformer",
    ),
    *("bart", "clip", "reformer", "bros"),
)


def test_the_page_lists_every_family_once_and_the_tables_as_they_are():
    names = [name for place in PAGE.values() for name in place]
    assert sorted(names) == sorted(set(names))
    types = {
        place: {CONFIG_MAPPING[name].model_type for name in PAGE[place]}
        for place in ("packed", "padded", "equal")
    }
    assert types["packed"] == PACKED and types["padded"] == PADDED
    assert not types["equal"] & (PACKED | PADDED) and set(ENCODERS) <= PADDED


@pytest.mark.slow
def test_the_page_lists_every_text_family_of_transformers():
    assert {name for place in PAGE.values() for name in place} >= set(
        tiny_families.text_families()
    ) - {"layoutlmv2"}


def agrees_with_the_page(kind: str) -> None:
    outcome = tiny_families.study(kind)
    assert kind in PAGE[outcome.place], outcome
    assert outcome.difference <= 2e-5
    if outcome.batching is not None:
        assert tiny_families.gradient_difference(kind) <= 5e-5


@pytest.mark.parametrize("kind", SAMPLE)
def test_a_family_is_what_the_page_says(kind):
    """States and gradients of texts of many windows in one batch are those of transformers' own
    forward over each alone.
    """
    agrees_with_the_page(kind)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", sorted({name for place in PAGE.values() for name in place} - set(SAMPLE))
)
def test_every_family_is_what_the_page_says(kind):
    agrees_with_the_page(kind)


@pytest.mark.parametrize(
    "kind", sorted({*PACKED, *PADDED, "gemma2", "lfm2", "mamba", "longformer"} - {"gpt-sw3"})
)
def test_a_plan_makes_every_family_without_weights(kind):
    """A run is checked before anything is read or computed, on the architecture alone."""
    assert (
        TransformerModel(
            build_backbone(tiny_families.config(kind), device="meta"), Pooling.MEAN
        ).embedding_scale
        > 0
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        "gemma2",
        "gemma3_text",
        "modernbert",
        "gpt_oss",
        "mixtral",
        "t5",
        "xlnet",
        "lfm2",
        "longformer",
    ],
)
def test_a_family_of_any_batching_is_trained_in_every_phase_and_encodes(kind, tmp_path):
    raw = tiny.recipe(
        tiny.write_data(tmp_path / "data"), tiny.write_teacher(tmp_path / "teacher"), steps=2
    )
    del raw["static"]
    made = tiny_families.config(kind) | {"vocab_size": tiny.tokenizer().get_vocab_size()}
    raw["evaluation"] = {"sets": []}
    raw["student"] = {
        "init": "config",
        "config": made,
        "tokenizer": str(tiny.write_tokenizer(tmp_path / "tokenizer", end=True)),
    }
    raw["student"] |= {"max_length": 64, "matryoshka_dims": [8, 16], "pooling": "mean"}
    train(parse_recipe(raw), tmp_path / "run", assess=lambda run, model, static: {})
    encoder = Encoder.load(tmp_path / "run" / "model", threads=1)
    texts = ["ship", "the old harbour by the sea " * 5, "a judge"]
    together = encoder.encode(texts, task="retrieval")
    alone = np.concatenate([encoder.encode([text], task="retrieval") for text in texts])
    assert np.abs(together - alone).max() <= 1e-5
