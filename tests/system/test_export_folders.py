"""Exports that are folders of weights: merged sentence-transformers and the jina-v5 layout."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers.tiny_jina import TASKS, TEXTS, tiny_backbone, write_repository
from peft import PeftConfig, PeftMixedModel, PeftModel
from safetensors.torch import load_file
from transformers import AutoTokenizer, EuroBertConfig, EuroBertModel, Qwen3Config, Qwen3Model

from taskdistill.cli.main import run
from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput
from taskdistill.export.export import export
from taskdistill.model.reference_texts import TEXTS as PARITY_TEXTS

FAMILIES = ["qwen3", "eurobert"]


@pytest.fixture(scope="module", params=FAMILIES)
def repository(request, tmp_path_factory):
    return request.param, write_repository(
        tmp_path_factory.mktemp(request.param) / "repository", request.param
    )


def test_thirty_two_texts_of_several_scripts():
    assert len(set(PARITY_TEXTS)) == 32


def test_merged_folder_is_what_stock_tools_read(repository, tmp_path):
    family, folder = repository
    parity = export(folder, "sentence-transformers", tmp_path / "out", task="clustering")
    assert parity.verdict == "equal"
    assert {r.checked_with.split()[0] for r in parity.results} == {
        "taskdistill",
        "sentence-transformers",
    }
    assert all(r.largest_difference <= 1e-5 for r in parity.results)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == [{"qwen3": "Qwen3Model", "eurobert": "EuroBertModel"}[family]]
    assert config["rope_theta"] == {"qwen3": 3_500_000, "eurobert": 1_000_000}[family]
    expected = Encoder.load(folder, threads=1).encode(TEXTS, task="clustering")
    assert np.abs(Encoder.load(tmp_path / "out", threads=1).encode(TEXTS) - expected).max() <= 1e-5
    assert json.loads((tmp_path / "out" / "parity.json").read_text()) == parity.to_json()


def test_the_command_prints_what_was_compared_and_writes_the_certificate(
    repository, tmp_path, capsys
):
    words = [
        "export",
        str(repository[1]),
        "--format",
        "sentence-transformers",
        "--task",
        "retrieval",
        "--out",
        str(tmp_path / "out"),
    ]
    assert run([*words, "--json", str(tmp_path / "parity.json"), "--quiet"]) == 0
    printed = capsys.readouterr()
    assert (
        "Parity: equal" in printed.out
        and "checked with" in printed.out
        and f"export  {tmp_path / 'out'}" in printed.out
    )
    assert (
        "Default prompt name" not in printed.out + printed.err
    )  # what other libraries say stays off the terminal
    written = json.loads((tmp_path / "parity.json").read_text())
    assert written.pop("created_by")["taskdistill"] and written == json.loads(
        (tmp_path / "out" / "parity.json").read_text()
    )
    assert "difference 1e-05" in (tmp_path / "out" / "README.md").read_text()
    assert run(words) == 2
    assert "already exists" in capsys.readouterr().err


def test_what_does_not_go_together(repository, tmp_path):
    _, folder = repository
    with pytest.raises(BadInput, match=r"unknown format 'onxx'; did you mean 'onnx'\?"):
        export(folder, "onxx", tmp_path / "out")
    with pytest.raises(BadInput, match=r"no adapter for task 'ranking'"):
        export(folder, "sentence-transformers", tmp_path / "out", task="ranking")
    with pytest.raises(BadInput, match=r"holds every adapter, so task 'retrieval' has no effect"):
        export(folder, "jina-v5", tmp_path / "out", task="retrieval")
    (tmp_path / "there").mkdir()
    with pytest.raises(BadInput, match="already exists"):
        export(folder, "onnx", tmp_path / "there")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["there"]


def test_tasks_of_the_layout_stay_apart(repository):
    assert Encoder.load(repository[1], threads=1).tasks == tuple(TASKS)


def test_the_layout_is_written_as_published(repository, tmp_path):
    family, folder = repository
    parity = export(folder, "jina-v5", tmp_path / "out")
    assert parity.verdict == "equal"
    assert [r.task for r in parity.results] == TASKS
    out = tmp_path / "out"
    config = json.loads((out / "config.json").read_text())
    original = json.loads((folder / "config.json").read_text())
    for key in (
        "architectures",
        "model_type",
        "task_names",
        "hidden_size",
        "num_hidden_layers",
        "rope_theta",
        "rope_scaling",
        "is_decoder",
    ):
        assert config[key] == original[key]
    code = {
        "qwen3": "jinaai/jina-embeddings-v5-text-small",
        "eurobert": "jinaai/jina-embeddings-v5-text-nano",
    }[family]
    assert (
        config["auto_map"]["AutoModel"]
        == f"{code}--modeling_jina_embeddings_v5.JinaEmbeddingsV5Model"
    )
    assert not list(out.rglob("*.py"))
    readme = (out / "README.md").read_text()
    assert (
        readme.startswith("---\n")
        and "base and adapters retrieval, text-matching, clustering, classification" in readme
    )
    assert readme.count("| equal |") == 4
    assert set(load_file(out / "model.safetensors")) == set(load_file(folder / "model.safetensors"))
    for task in TASKS:
        names = set(load_file(out / "adapters" / task / "adapter_model.safetensors"))
        assert names == set(load_file(folder / "adapters" / task / "adapter_model.safetensors"))
    again, first = Encoder.load(out, threads=1), Encoder.load(folder, threads=1)
    for task in TASKS:
        assert np.array_equal(again.encode(TEXTS, task=task), first.encode(TEXTS, task=task))


@pytest.mark.parametrize("task", TASKS)
def test_a_loader_as_the_published_one_describes_itself_reads_it(
    repository, tmp_path_factory, task
):
    """Section 3.1: backbone by its own class, peft's mixed model, every adapter by name."""
    family, folder = repository
    out = tmp_path_factory.mktemp("layout") / "out"
    export(folder, "jina-v5", out)
    raw = json.loads((out / "config.json").read_text())
    config_class, model_class = {
        "qwen3": (Qwen3Config, Qwen3Model),
        "eurobert": (EuroBertConfig, EuroBertModel),
    }[family]
    config = config_class(
        **{
            key: value
            for key, value in raw.items()
            if key not in {"auto_map", "model_type", "architectures"}
        }
    )
    base = model_class.from_pretrained(str(out), config=config, dtype=torch.float32)
    retrieval = str(out / "adapters" / "retrieval")
    model = PeftMixedModel(base, PeftConfig.from_pretrained(retrieval), adapter_name="retrieval")
    for name in raw["task_names"]:
        model.load_adapter(str(out / "adapters" / name), adapter_name=name)
    model.set_adapter([task])
    tokenizer = AutoTokenizer.from_pretrained(str(out))
    batch = tokenizer(
        [f"Query: {text}" for text in TEXTS],
        return_tensors="pt",
        padding=True,
        truncation=True,
        max_length=128,
    )
    with torch.no_grad():
        hidden = model.eval()(**batch).last_hidden_state
    pooled = hidden[torch.arange(len(TEXTS)), batch["attention_mask"].sum(1) - 1]
    expected = torch.nn.functional.normalize(pooled, dim=-1).numpy()
    assert (
        np.abs(
            Encoder.load(out, threads=1).encode(TEXTS, task=task, prompt_name="query") - expected
        ).max()
        <= 1e-5
    )


def test_vllm_merges_the_named_adapter_from_the_same_names(repository, tmp_path):
    """What its loader does: names without `base_model.model.`, W + alpha / r B A (section 3.4)."""
    family, folder = repository
    export(folder, "jina-v5", tmp_path / "out")
    raw = json.loads(
        (tmp_path / "out" / "adapters" / "clustering" / "adapter_config.json").read_text()
    )
    tensors = load_file(tmp_path / "out" / "adapters" / "clustering" / "adapter_model.safetensors")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    for name in [name for name in tensors if ".lora_A." in name]:
        target = name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
        update = (
            tensors[name.replace(".lora_A.", ".lora_B.")]
            @ tensors[name]
            * raw["lora_alpha"]
            / raw["r"]
        )
        weights[target] = weights[target] + update
    plain = tiny_backbone(family)
    plain.load_state_dict(weights)
    wrapped = PeftModel.from_pretrained(
        tiny_backbone(family), str(folder / "adapters" / "clustering")
    ).merge_and_unload()
    for (name, one), two in zip(plain.named_parameters(), wrapped.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-6), name


def test_models_that_the_layout_cannot_hold_are_refused_before_anything_is_computed(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "taskdistill.export.export.embed_with", lambda model: pytest.fail("embedded")
    )
    folder = write_repository(tmp_path / "r", "qwen3", tasks=["text-matching"])
    with pytest.raises(BadInput, match=r"has tasks \['text-matching'\]"):
        export(folder, "jina-v5", tmp_path / "out")
    other = write_repository(tmp_path / "p", "qwen3", tasks=["retrieval"])
    (other / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "q: ", "document": ""}})
    )
    with pytest.raises(BadInput, match="has prompts"):
        export(other, "jina-v5", tmp_path / "out")
    assert not (tmp_path / "out").exists()
