"""Long text: late chunking, windows, theta, bounded memory, and truncation that is never silent."""

from __future__ import annotations

import json
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.tiny_jina import TEXTS, tiny_backbone, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen3Config, Qwen3Model

from taskdistill.encode.encoder import Encoder
from taskdistill.encode.long_text import encode_chunks, encode_windows
from taskdistill.errors import BadInput
from taskdistill.model.backbone import build_backbone
from taskdistill.model.folder import read_model, write_model
from taskdistill.model.model import Model
from taskdistill.model.packed_attention import ATTENTION
from taskdistill.model.rope import rope_theta, set_rope_theta
from taskdistill.model.settings import ModelSettings
from taskdistill.model.student import StaticModel, TransformerModel
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.quantization import pack_bits
from taskdistill.tasks import Role
from taskdistill.types import Pooling, Precision

LONG = "The market by the river was held twice a year. 火星は赤い。 " * 12
PROMPTS = {"query": "Query: ", "document": "Document: "}


def encoder_of(kind: str, tmp_path, *, max_length: int = 128) -> Encoder:
    if kind == "static":
        torch.manual_seed(0)
        module: object = StaticModel(torch.randn(320, 32))
        tokenizer = TextTokenizer(tiny_tokenizer(), special=False)
    else:
        backbone = tiny_backbone("eurobert" if kind == "mean" else kind)
        backbone.set_attn_implementation(ATTENTION)
        module = TransformerModel(backbone, Pooling.MEAN if kind == "mean" else Pooling.LAST)
        tokenizer = TextTokenizer(tiny_tokenizer())
    return Encoder(
        Model(
            module=module,
            tokenizer=tokenizer,
            settings=ModelSettings(prompts=PROMPTS, max_length=max_length),
            name="t",
            source=tmp_path,
        ),
        threads=1,
    )


KINDS = ["qwen3", "eurobert", "mean", "static"]


@pytest.mark.parametrize("kind", KINDS)
def test_one_chunk_is_the_vector_of_the_text(tmp_path, kind):
    encoder = encoder_of(kind, tmp_path, max_length=512)
    for text in TEXTS:
        chunks = encode_chunks(encoder, text, chunk_tokens=10_000)
        assert chunks.spans.tolist() == [[0, len(text)]] and chunks.passes == 1
        assert np.abs(chunks.vectors - encoder.encode([text])).max() <= 1e-5
        cut = encode_chunks(encoder, text, chunk_tokens=10_000, truncate_dim=8)
        assert np.abs(cut.vectors - encoder.encode([text], truncate_dim=8)).max() <= 1e-5


@settings(max_examples=30, deadline=None)
@given(text=st.text(min_size=1, max_size=60), size=st.integers(1, 9))
def test_chunks_cover_the_text_once_whatever_its_script(text, size):
    encoder = encoder_of("qwen3", None)
    try:
        chunks = encode_chunks(encoder, text, chunk_tokens=size)
    except BadInput as error:
        assert "no token" in str(error)
        return
    assert "".join(text[first:last] for first, last in chunks.spans) == text
    assert np.abs(np.linalg.norm(chunks.vectors, axis=1) - 1).max() <= 1e-5


def test_a_chunk_has_seen_the_rest_of_the_document(tmp_path):
    encoder = encoder_of("eurobert", tmp_path)
    spans = [(0, 10), (10, 30)]
    one = encode_chunks(encoder, "The sun is rising over the sea", spans=spans)
    two = encode_chunks(encoder, "The sun is rising over the hut", spans=spans)
    assert one.spans.tolist() == [list(span) for span in spans]
    assert (
        np.abs(one.vectors[0] - two.vectors[0]).max() > 1e-3
    )  # both directions: the first chunk sees the end
    causal = encoder_of("qwen3", tmp_path)
    one = encode_chunks(causal, "The sun is rising over the sea", spans=spans)
    two = encode_chunks(causal, "The sun is rising over the hut", spans=spans)
    assert (
        np.abs(one.vectors[0] - two.vectors[0]).max() <= 1e-5
    )  # causal: it sees only what came before
    assert np.abs(one.vectors[1] - two.vectors[1]).max() > 1e-3


def test_mean_pooled_chunks_are_means_of_one_pass(tmp_path):
    encoder = encoder_of("mean", tmp_path)
    text = "The red planet is the fourth planet of the sun"
    ids, places = encoder.model.tokenizer.offsets(text, prompt="Document: ")
    states = encoder.token_states(ids).numpy()
    middle = [i for i, (first, _) in enumerate(places) if 8 <= first < 20]
    expected = states[middle].mean(0)
    given_vector = encode_chunks(encoder, text, spans=[(8, 20)]).vectors[0]
    np.testing.assert_allclose(given_vector, expected / np.linalg.norm(expected), atol=1e-5)


@pytest.mark.parametrize("kind", ["qwen3", "mean"])
def test_documents_beyond_the_limit_are_chunked_in_several_passes(tmp_path, kind):
    encoder = encoder_of(kind, tmp_path, max_length=64)
    chunks = encode_chunks(encoder, LONG, chunk_tokens=20, overlap=16)
    assert chunks.tokens > 400 and chunks.passes > 8
    assert "".join(LONG[first:last] for first, last in chunks.spans) == LONG
    assert len(chunks.vectors) >= chunks.tokens // 20
    first = encode_chunks(encoder, LONG, spans=[(0, 10)], overlap=16).vectors
    ids, _ = encoder.model.tokenizer.offsets(LONG, prompt="Document: ")
    assert len(ids) > 64 and np.isfinite(first).all()


@pytest.mark.parametrize("kind", KINDS)
def test_windows_leave_nothing_out_and_one_window_is_encode(tmp_path, kind):
    encoder = encoder_of(kind, tmp_path, max_length=64)
    short = encode_windows(encoder, TEXTS[:2])
    assert short.windows.tolist() == [1, 1]
    assert np.abs(short.vectors - encoder.encode(TEXTS[:2])).max() <= 1e-5
    long = encode_windows(encoder, [LONG], overlap=4)
    assert long.windows[0] > 8 and np.abs(np.linalg.norm(long.vectors, axis=1) - 1).max() <= 1e-5
    changed = encode_windows(encoder, [LONG[:-20] + " entirely other end"], overlap=4)
    assert (
        np.abs(changed.vectors - long.vectors).max() > 1e-4
    )  # the end counts, which a cut text's would not
    assert encoder.encode_reporting([LONG]).truncated.tolist() == [True]


def test_sizes_that_leave_no_room(tmp_path):
    encoder = encoder_of("qwen3", tmp_path, max_length=64)
    with pytest.raises(BadInput, match="overlap 64 is not between"):
        encode_windows(encoder, [LONG], overlap=64)
    with pytest.raises(BadInput, match="a pass of 5 tokens"):
        encode_chunks(encoder, LONG, max_length=5)
    with pytest.raises(BadInput, match="non-empty part"):
        encode_chunks(encoder, "short", spans=[(2, 2)])
    with pytest.raises(BadInput, match="non-empty part"):
        encode_chunks(encoder, "short", spans=[(0, 99)])
    with pytest.raises(BadInput, match="no token"):
        encode_chunks(encoder, "")


# theta


@pytest.mark.parametrize("family", ["qwen3", "eurobert"])
def test_theta_at_inference_is_rebuilt_on_load(tmp_path, family):
    backbone = tiny_backbone(family)
    backbone.set_attn_implementation(ATTENTION)
    module = TransformerModel(backbone, Pooling.LAST)
    trained = Encoder(
        Model(
            module=module,
            tokenizer=TextTokenizer(tiny_tokenizer()),
            settings=ModelSettings(max_length=128),
            name="t",
            source=tmp_path,
        ),
        threads=1,
    ).encode([LONG])
    settings_ = ModelSettings(max_length=128, matryoshka_dims=(32,), rope_theta=5_000.0)
    write_model(
        tmp_path / "model",
        Model(
            module=module,
            tokenizer=TextTokenizer(tiny_tokenizer()),
            settings=settings_,
            name="t",
            source=tmp_path,
        ),
    )
    read = read_model(tmp_path / "model")
    assert rope_theta(read.module.backbone) == 5_000.0
    again = Encoder(read, threads=1).encode([LONG])
    assert np.abs(again - trained).max() > 1e-3
    raw = json.loads((tmp_path / "model" / "config.json").read_text())
    fresh = build_backbone(
        {key: value for key, value in raw.items() if key != "rope_parameters"}
        | {"rope_theta": 5_000.0}
    )
    fresh.load_state_dict(backbone.state_dict())
    settings_plain = ModelSettings(max_length=128)
    plain = Encoder(
        Model(
            module=TransformerModel(fresh, Pooling.LAST),
            tokenizer=TextTokenizer(tiny_tokenizer()),
            settings=settings_plain,
            name="t",
            source=tmp_path,
        ),
        threads=1,
    )
    assert np.abs(plain.encode([LONG]) - again).max() <= 1e-6


def test_theta_reaches_the_frequencies():
    backbone = tiny_backbone("qwen3")
    before = backbone.rotary_emb.inv_freq.clone()
    set_rope_theta(backbone, 10_000.0)
    expected = 10_000.0 ** -(torch.arange(0, 16, 2) / 16)
    assert torch.allclose(backbone.rotary_emb.inv_freq, expected)
    assert not torch.allclose(before, expected)


# memory


def long_encoder(tokens: int, tmp_path) -> Encoder:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=tokens,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )
    backbone = Qwen3Model(config).eval()
    backbone.set_attn_implementation(ATTENTION)
    model = Model(
        module=TransformerModel(backbone, Pooling.LAST),
        tokenizer=TextTokenizer(tiny_tokenizer()),
        settings=ModelSettings(max_length=tokens),
        name="t",
        source=tmp_path,
    )
    return Encoder(model, threads=1)


@pytest.mark.parametrize("tokens", [8_192, pytest.param(32_768, marks=pytest.mark.slow)])
def test_long_texts_need_memory_that_grows_with_their_length_only(tmp_path, tokens):
    encoder = long_encoder(tokens, tmp_path)
    text = "zq " * tokens
    encoder.encode(["zq"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = encoder.encode_reporting([text])
    assert report.truncated.tolist() == [
        True
    ]  # as many tokens as the model reads, and it says that more were left out
    assert np.isfinite(report.vectors).all()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert (
        grown < tokens * 20_000
    )  # scores of all pairs would be 2 x 4 bytes x tokens, 65,536 or 262,144 bytes a token


# one window is the text itself


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory) -> dict[str, Encoder]:
    """Models of each pooling with ranges and, for each role, offsets of their own."""
    found, rng = {}, np.random.default_rng(5)
    for family in ("bert", "qwen3"):
        source = tiny.write_tokenizer(tmp_path_factory.mktemp(family), end=family != "bert")
        model = tiny.model(tiny.student(family), source, end=family != "bert")
        model.adapter_configs["retrieval"] = tiny.add_adapter(model.module, "retrieval")
        sizes, tasks = (8, 16, 32), ("base", "retrieval")
        ranges = {
            task: {str(d): {"minimum": [-0.4] * d, "maximum": [0.5] * d} for d in sizes}
            for task in tasks
        }
        offsets = {
            task: {
                role.value: {str(d): rng.normal(0, 0.2, d).tolist() for d in sizes} for role in Role
            }
            for task in tasks
        }
        model.settings = replace(model.settings, int8_ranges=ranges, binary_offsets=offsets)
        found[family] = Encoder(model, threads=1)
    table = StaticModel(
        torch.from_numpy(rng.normal(size=(len(model.tokenizer), 32)).astype(np.float32))
    )
    static = replace(
        model,
        module=table,
        adapter_configs={},
        tokenizer=TextTokenizer(tiny.tokenizer(), special=False),
    )
    return found | {"static": Encoder(static, threads=1)}


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["bert", "qwen3", "static"]),
    texts=st.lists(
        st.lists(st.sampled_from(tiny.WORDS), min_size=1, max_size=12).map(" ".join),
        min_size=1,
        max_size=4,
    ),
    task=st.sampled_from([None, "retrieval"]),
    role=st.sampled_from([None, "query", "document"]),
    dim=st.sampled_from([None, 8, 16]),
    precision=st.sampled_from(list(Precision)),
    window=st.sampled_from([None, 40]),
)
def test_a_document_of_one_window_has_the_vector_of_encode_to_the_bit(
    calibrated, kind, texts, task, role, dim, precision, window
):
    encoder = calibrated[kind]
    asked = {
        "task": None if kind == "static" else task,
        "prompt_name": role,
        "truncate_dim": dim,
        "precision": precision.value,
    }
    found = encode_windows(encoder, texts, window=window, **asked)
    assert found.windows.tolist() == [1] * len(texts)
    assert (
        np.array_equal(found.vectors, encoder.encode(texts, **asked))
        and found.vectors.dtype == encoder.encode(texts, **asked).dtype
    )


@pytest.mark.parametrize("role", ["query", "document"])
def test_documents_of_several_windows_and_chunks_take_the_offsets_of_their_role(calibrated, role):
    encoder = calibrated["bert"]
    for dim in (8, 32):
        offset = np.array(encoder.model.settings.binary_offsets["base"][role][str(dim)], np.float32)
        for make in (
            lambda **asked: encode_windows(encoder, [LONG], **asked),
            lambda **asked: encode_chunks(encoder, LONG, **asked),
        ):
            plain = make(prompt_name=role, truncate_dim=dim).vectors
            assert np.array_equal(
                make(prompt_name=role, truncate_dim=dim, precision="binary").vectors,
                pack_bits(plain - offset),
            )


@pytest.mark.parametrize("name", ["trucate_dim", "promt_name", "dim"])
def test_an_option_that_there_is_not_is_refused_by_every_way_of_encoding(name):
    encoder = Encoder(tiny.model(tiny.student(), Path()), threads=1)
    ways = [
        lambda **options: encoder.encode(["a text"], **options),
        lambda **options: encoder.encode_reporting(["a text"], **options),
        lambda **options: list(encoder.encode_stream(["a text"], **options)),
        lambda **options: encode_windows(encoder, ["a text"], **options),
        lambda **options: encode_chunks(encoder, "a text", **options),
    ]
    for way in ways:
        way(truncate_dim=8)
        with pytest.raises(TypeError, match=name):
            way(**{name: 8})
    with pytest.raises(TypeError, match="max_length"):
        encode_windows(encoder, ["a text"], max_length=8)
    with pytest.raises(TypeError, match="prompt"):
        encode_chunks(encoder, "a text", prompt="x")
