"""The model folder: what is written is what is read, and what is not whole or does not fit is
refused.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.resealed import reseal

from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput
from taskdistill.io.folders import file_table
from taskdistill.model.folder import read_model, write_model
from taskdistill.model.model import Model
from taskdistill.model.projection import Projection
from taskdistill.model.rope import set_rope_theta
from taskdistill.model.settings import ModelSettings
from taskdistill.model.student import StaticModel
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.types import MANIFEST

TEXTS = ["the old harbour by the sea", "a judge in court.", "what is a violin?"]


@pytest.fixture(params=tiny.FAMILIES)
def family(request) -> str:
    return request.param


def made(family: str, tmp_path: Path) -> Model:
    """A model with two adapters, a projection and, where there are rotary positions, a theta of its
    own.
    """
    source = tiny.write_tokenizer(tmp_path / "tokenizer", end=family != "bert")
    model = tiny.model(tiny.student(family), source, end=family != "bert")
    if family != "bert":
        set_rope_theta(model.module.backbone, 77.0)
        model.settings = replace(model.settings, rope_theta=77.0)
    for number, task in enumerate(("retrieval", "clustering")):
        model.adapter_configs[task] = tiny.add_adapter(model.module, task, seed=number)
    model.projection = Projection(32, 24)
    model.settings = replace(model.settings, teacher={"model": "t", "embedding_dim": 24})
    model.settings = replace(
        model.settings, int8_ranges={"base": {"8": {"minimum": [-1.0] * 8, "maximum": [1.0] * 8}}}
    )
    return model


def test_a_folder_gives_back_every_bit(family, tmp_path):
    model = made(family, tmp_path)
    before = Encoder(model, threads=1)
    wanted = {
        task: before.encode(TEXTS, task=task, prompt_name="query")
        for task in (None, "retrieval", "clustering")
    }
    write_model(
        tmp_path / "model", model, inputs={"recipe": "r"}, extra_files={"README.md": "# tiny\n"}
    )
    again = Encoder.load(tmp_path / "model", threads=1)
    for task, vectors in wanted.items():
        assert np.array_equal(again.encode(TEXTS, task=task, prompt_name="query"), vectors)
    assert not np.allclose(wanted[None], wanted["retrieval"], atol=1e-3)
    assert (
        again.model.settings == model.settings
        and again.tasks == ("retrieval", "clustering")
        and again.name == "tiny"
    )
    assert np.array_equal(
        again.project(wanted[None]), Encoder(model, threads=1).project(wanted[None])
    )
    assert again.project(wanted[None][:, :8]).shape == (3, 24)
    assert again.space_id == model.space_id == model.settings.space_id and len(again.space_id) == 32
    write_model(tmp_path / "second", again.model)
    assert read_model(tmp_path / "second").hash == again.model_hash
    wanted = (
        "1_Pooling 2_Normalize README.md adapters config.json config_sentence_transformers.json"
        " model.safetensors modules.json "
    )
    wanted += (
        f"projection.safetensors sentence_bert_config.json {MANIFEST} tokenizer.json"
        " tokenizer_config.json"
    )
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == sorted(wanted.split())


def test_the_hash_follows_what_decides_vectors_and_nothing_else(tmp_path):
    model = made("bert", tmp_path)
    hashes = []
    for number, change in enumerate((None, "card", "weight", "adapter")):
        if change == "weight":
            next(model.module.backbone.parameters()).data[9, 0] += 0.5
        if change == "adapter":
            next(p for name, p in model.module.backbone.named_parameters() if "lora_" in name).data[
                0, 0
            ] += 0.5
        write_model(tmp_path / f"m{number}", model, extra_files={"README.md": str(change)})
        hashes.append(read_model(tmp_path / f"m{number}").hash)
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3


def test_a_static_model_is_read_as_it_was_written(tmp_path):
    settings = ModelSettings(max_length=1_000_000, matryoshka_dims=(4, 8))
    rows = tiny.tokenizer().get_vocab_size()
    tokenizer = TextTokenizer(tiny.tokenizer(), special=False)
    model = Model(
        module=StaticModel(torch.randn(rows, 8)),
        tokenizer=tokenizer,
        settings=settings,
        name="table",
        source=tmp_path / "table",
    )
    write_model(tmp_path / "table", model)
    again = Encoder.load(tmp_path / "table", threads=1)
    assert np.array_equal(again.encode(TEXTS), Encoder(model, threads=1).encode(TEXTS))
    ids = tokenizer.ids(TEXTS[:1], prompt="", max_length=100).ids[0]
    assert 2 not in ids and 3 not in ids  # no special tokens
    mean = model.module.table.detach().numpy()[ids].mean(0)
    assert np.allclose(again.encode(TEXTS[:1])[0], mean / np.linalg.norm(mean), atol=1e-6)
    assert again.tasks == () and again.prompts == {}
    with pytest.raises(BadInput, match="Unknown task: retrieval; this model has no adapters"):
        again.encode(TEXTS, task="retrieval")


@pytest.fixture
def folder(tmp_path) -> Path:
    write_model(tmp_path / "model", made("bert", tmp_path))
    return tmp_path / "model"


def refused(folder: Path, match: str) -> None:
    with pytest.raises(BadInput, match=match):
        read_model(folder)


def test_a_folder_that_is_not_whole_is_refused(folder):
    (folder / "adapters/clustering/adapter_model.safetensors").unlink()
    refused(
        folder,
        r"model is damaged: adapters/clustering/adapter_model.safetensors: missing; copy it again",
    )


def test_a_swapped_tokenizer_is_refused(folder):
    tiny.tokenizer(end=True).save(str(folder / "tokenizer.json"))
    refused(folder, "is damaged: tokenizer.json")


def test_an_edited_weight_is_refused(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    refused(folder, "model.safetensors: content differs from its SHA-256")


def test_another_kind_of_folder_is_no_model(folder):
    reseal(folder, kind="checkpoint")
    refused(folder, "is a 'checkpoint' folder, but a model is needed here")


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {}},
        {"settings": None},
        {"tasks": 3},
        {"name": None, "settings": {"unknown": 1}},
    ],
)
def test_a_manifest_without_its_fields_is_refused_in_one_line(folder, change):
    reseal(folder, **change)
    refused(
        folder,
        "(lacks a field or holds another type|needs a list of different names).*copy the folder"
        " again",
    )


@pytest.mark.parametrize(
    "files",
    [
        [],
        "x",
        {"model.safetensors": {}},
        {"model.safetensors": 3},
        {"model.safetensors": {"bytes": "a", "sha256": 1}},
    ],
)
def test_a_manifest_with_a_broken_file_table_is_refused_in_one_line(folder, files):
    reseal(folder, files=files)
    refused(folder, "is damaged|manifest|taskdistill.json: files is no table of names")


def test_an_adapter_of_another_backbone_is_refused_with_the_difference(folder, tmp_path):
    other = tiny.model(tiny.student("bert", layers=1), tmp_path / "tokenizer")
    other.adapter_configs["retrieval"] = tiny.add_adapter(other.module, "retrieval", rank=2)
    write_model(tmp_path / "other", other)
    import shutil

    shutil.rmtree(folder / "adapters/retrieval")
    shutil.copytree(tmp_path / "other/adapters/retrieval", folder / "adapters/retrieval")
    reseal(folder, files=file_table(folder))
    refused(folder, r"does not fit this model: 12 tensors missing")


def test_nothing_appears_where_a_model_cannot_be_written(tmp_path):
    model = made("bert", tmp_path)
    model.projection.weight.data[0, 0] = 1.0
    with pytest.raises(TypeError):
        write_model(tmp_path / "model", model, meta={"bad": object()})
    assert not (tmp_path / "model").exists() and not list(tmp_path.glob(".model*"))
    write_model(tmp_path / "model", model)
    with pytest.raises(BadInput, match="already exists; give another folder or remove it first"):
        write_model(tmp_path / "model", model)
