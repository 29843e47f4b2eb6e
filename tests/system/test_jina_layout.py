"""The published jina-v5 layout: read without its code, equal to plain transformers and peft, with
the errors of the model cards.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_jina import TASKS, TEXTS, expected, write_merged, write_repository

from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput, TruncationWarning
from taskdistill.model.backbone import build_backbone
from taskdistill.model.lora import adapter_parameters, attach, lora_config, set_active_adapter

FAMILIES = ["qwen3", "eurobert"]


@pytest.fixture(scope="module", params=FAMILIES)
def repository(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "repository"
    return request.param, write_repository(folder, request.param)


@pytest.fixture(scope="module")
def loaded(repository):
    family, folder = repository
    return family, folder, Encoder.load(folder, threads=1)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("task", TASKS)
def test_every_task_equals_plain_transformers_and_peft_under_either_padding(loaded, task, side):
    family, folder, encoder = loaded
    for role, prompt in (("query", "Query: "), ("document", "Document: ")):
        ours = encoder.encode(TEXTS, task=task, prompt_name=role)
        theirs = expected(folder, family, TEXTS, task, prompt, side).numpy()
        assert np.abs(ours - theirs).max() <= 1e-5


def test_tasks_differ_and_truncation_precedes_normalisation(loaded):
    family, folder, encoder = loaded
    by_task = {task: encoder.encode(TEXTS, task=task) for task in TASKS}
    assert np.abs(by_task["retrieval"] - by_task["clustering"]).max() > 0.05
    theirs = expected(folder, family, TEXTS, "clustering", "Document: ")[:, :8]
    ours = encoder.encode(TEXTS, task="clustering", truncate_dim=8)
    np.testing.assert_allclose(
        ours, torch.nn.functional.normalize(theirs, dim=-1).numpy(), atol=1e-5
    )


def test_what_the_repository_says_is_what_the_encoder_says(loaded):
    family, _, encoder = loaded
    assert encoder.tasks == tuple(TASKS)
    assert encoder.max_length == 128
    assert dict(encoder.prompts) == {"query": "Query: ", "document": "Document: "}
    assert encoder.matryoshka_dims == (32,)
    assert encoder.model.settings.rope_theta == {"qwen3": 3_500_000, "eurobert": 1_000_000}[family]
    assert encoder.model.module.backbone.config.model_type == family


def test_the_shipped_code_never_runs(loaded):
    _, folder, _ = loaded
    assert (folder / "modeling_jina_embeddings_v5.py").is_file()
    assert not (folder / "canary").exists()


def test_the_errors_of_the_model_cards(loaded):
    _, folder, encoder = loaded
    with pytest.raises(ValueError, match=r"^Unknown task: retreival; did you mean 'retrieval'"):
        encoder.encode(TEXTS, task="retreival")
    with pytest.raises(ValueError, match=r"^Unknown prompt_name: passage"):
        encoder.encode(TEXTS, task="retrieval", prompt_name="passage")
    with pytest.raises(
        BadInput,
        match=r"needs a task .*encode\(texts, task='retrieval'\).*default_task='retrieval'",
    ):
        encoder.encode(TEXTS)
    with pytest.raises(BadInput, match=r"^Unknown task: ranking"):
        Encoder.load(folder, default_task="ranking")


def test_prompt_name_none_is_document_and_a_default_task_stands_in(loaded):
    _, folder, encoder = loaded
    document = encoder.encode(TEXTS, task="clustering", prompt_name="document")
    assert np.array_equal(encoder.encode(TEXTS, task="clustering", prompt_name=None), document)
    assert np.array_equal(
        Encoder.load(folder, default_task="clustering", threads=1).encode(TEXTS), document
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_leading_model_prefix_bf16_and_no_end_token(tmp_path, family):
    plain = write_repository(tmp_path / "plain", family, dtype=torch.bfloat16, end=False)
    prefixed = write_repository(
        tmp_path / "prefixed", family, prefix="model.", dtype=torch.bfloat16, end=False
    )
    one = Encoder.load(plain, threads=1).encode(TEXTS, task="retrieval")
    two = Encoder.load(prefixed, threads=1).encode(TEXTS, task="retrieval")
    assert np.array_equal(one, two)


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_repository_equals_the_adapter(tmp_path, family):
    merged = Encoder.load(write_merged(tmp_path / "merged", family, "text-matching"), threads=1)
    theirs = expected(
        tmp_path / "merged-combined", family, TEXTS, "text-matching", "Document: "
    ).numpy()
    assert merged.tasks == ()
    assert np.abs(merged.encode(TEXTS) - theirs).max() <= 1e-5
    with pytest.raises(BadInput, match=r"^Unknown task: retrieval; this model has no adapters"):
        merged.encode(TEXTS, task="retrieval")


@pytest.mark.parametrize("family", FAMILIES)
def test_cut_texts_keep_prefix_and_end_and_are_reported(tmp_path, family):
    encoder = Encoder.load(write_repository(tmp_path / "r", family, tasks=["retrieval"]), threads=1)
    huge = "the red planet of the sun " * 200_000
    ids = encoder.model.tokenizer.ids([huge, "short"], prompt="Document: ", max_length=40)
    start = encoder.model.tokenizer.ids(["the red"], prompt="Document: ", max_length=40).ids[0]
    assert len(ids.ids[0]) == 40 and ids.ids[0][-1] == 0
    assert list(ids.ids[0][:4]) == list(start[:4])
    assert list(ids.truncated) == [True, False]
    report = encoder.encode_reporting([huge, "short"], task="retrieval")
    assert list(report.truncated) == [True, False]
    with pytest.raises(BadInput, match="truncation is refused"):
        encoder.encode([huge], task="retrieval", refuse_truncation=True)
    with pytest.warns(
        TruncationWarning,
        match="1 of 2 texts are longer than the 128 tokens that r reads; their ends were cut",
    ):
        encoder.encode([huge, "short"], task="retrieval")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode([huge], task="retrieval", max_length=40)  # the call chose the limit itself


PUBLISHED = {
    "small": (
        {
            "model_type": "qwen3",
            "vocab_size": 151_936,
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
        }
        | {
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 32_768,
            "tie_word_embeddings": True,
            "rope_theta": 3_500_000,
        },
        596_049_920,
        155_582_464,
        20_185_088,
        676_790_272,
    ),
    "nano": (
        {
            "model_type": "eurobert",
            "vocab_size": 128_256,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
        }
        | {
            "num_key_value_heads": 12,
            "max_position_embeddings": 8_192,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1_000_000,
        },
        211_766_016,
        98_500_608,
        6_782_976,
        238_897_920,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_of_the_published_models(name):
    config, base, table, adapter, total = PUBLISHED[name]
    backbone = build_backbone(config, device="meta")
    count = sum(p.numel() for p in backbone.parameters())
    assert count == base
    assert backbone.get_input_embeddings().weight.numel() == table
    with torch.device("meta"):
        for task in TASKS:
            attach(backbone, task, lora_config(backbone))
    set_active_adapter(backbone, None)
    assert all(p.device.type == "meta" for p in backbone.parameters())
    assert [
        sum(p.numel() for p in adapter_parameters(backbone, task).values()) for task in TASKS
    ] == [adapter] * 4
    assert sum(p.numel() for p in backbone.parameters()) == total


def test_a_hub_id_may_name_its_revision_and_code_files_are_not_fetched(repository, monkeypatch):
    import huggingface_hub

    asked = []

    def download(name, *, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(repository[1])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    plain = Encoder.load("jinaai/some-model", threads=1)
    exact = Encoder.load("jinaai/some-model@8a7f00aa", default_task="retrieval", threads=1)
    assert [(name, revision) for name, revision, _ in asked] == [
        ("jinaai/some-model", None),
        ("jinaai/some-model", "8a7f00aa"),
    ]
    assert not any(
        ".py" in pattern or pattern == "*" for _, _, patterns in asked for pattern in patterns
    )
    assert plain.name == "jinaai/some-model" and np.array_equal(
        exact.encode(TEXTS), plain.encode(TEXTS, task="retrieval")
    )


GOLDEN = {"SMALL": [0.486, 0.76114, 0.5914, 0.6188], "NANO": [0.50306, 0.79173, 0.61259, 0.57484]}
QUERY = "Which planet is known as the Red Planet?"
DOCUMENTS = [
    "Venus is often called Earth's twin because of its similar size and proximity.",
    "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
    "Jupiter, the largest planet in our solar system, has a prominent red spot.",
    "Saturn, famous for its rings, is sometimes mistaken for the Red Planet.",
]


def published_weights(name: str) -> str | None:
    """A folder that the environment names, or what the local Hub cache holds of the combined or the
    retrieval repository.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if folder := os.environ.get(f"TASKDISTILL_JINA_V5_{name}"):
        return folder
    for ending in ("", "-retrieval"):
        with contextlib.suppress(LocalEntryNotFoundError):
            found = snapshot_download(
                f"jinaai/jina-embeddings-v5-text-{name.lower()}{ending}", local_files_only=True
            )
            if (Path(found) / "model.safetensors").is_file():
                return found
    return None


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_similarities_of_the_published_weights(name):
    folder = published_weights(name)
    if folder is None:
        pytest.skip(
            f"the published {name.lower()} weights are not in the Hub cache; set"
            f" TASKDISTILL_JINA_V5_{name} to a copy of them to run the golden similarities of"
            " section 3.5"
        )
    encoder = Encoder.load(folder)
    task = "retrieval" if encoder.tasks else None
    query = encoder.encode([QUERY], task=task, prompt_name="query")
    similarities = (query @ encoder.encode(DOCUMENTS, task=task, prompt_name="document").T)[0]
    np.testing.assert_allclose(similarities, GOLDEN[name], rtol=0.01)


def test_half_a_surrogate_pair_is_no_character(loaded):
    _, _, encoder = loaded
    with pytest.raises(
        BadInput,
        match=r"half of a surrogate pair, which is no character, in 'Document: a\\ud83d b'",
    ):
        encoder.encode(["fine", "a\ud83d b"], task="retrieval")
    with pytest.raises(BadInput, match="half of a surrogate pair"):
        encoder.model.tokenizer.offsets("\ud800", prompt="")


def test_an_adapter_that_is_listed_but_absent_is_named(tmp_path):
    folder = write_repository(tmp_path / "r", "eurobert", tasks=["retrieval"])
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(raw | {"task_names": ["retrieval", "clustering"]})
    )
    with pytest.raises(BadInput, match=r"adapters/clustering/adapter_config.json is missing"):
        Encoder.load(folder)
