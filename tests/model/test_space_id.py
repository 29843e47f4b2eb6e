"""One hash tells models apart, and one id their spaces: whatever decides a vector moves them, and
what an older version called them is known.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.resealed import reseal
from safetensors.torch import load_file, save_file
from tokenizers.normalizers import Strip

from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput
from taskdistill.io.folders import file_table, read_manifest
from taskdistill.model.folder import read_model, write_model
from taskdistill.model.golden import embed_with, golden_vectors
from taskdistill.model.model import Model, base_space_id
from taskdistill.search.build import build_index
from taskdistill.search.corpus import Document
from taskdistill.search.index import Index
from taskdistill.search.settings import same_space
from taskdistill.teacher.local import LocalTeacher
from taskdistill.types import MANIFEST, Pooling

KEPT = Path(__file__).parents[1] / "kept"
TEXTS = ["the old harbour by the sea", "a judge in court.", "what is a violin?"]


def calibrated(dim: int) -> dict[str, object]:
    return {str(dim): {"minimum": [-1.0] * dim, "maximum": [1.0] * dim}}


def model(folder: Path, family: str = "qwen3") -> Model:
    """A model with an adapter, calibrated for int8 and with offsets."""
    made = tiny.model(
        tiny.student(family),
        tiny.write_tokenizer(folder / "tokenizer", end=family != "bert"),
        end=family != "bert",
    )
    made.adapter_configs["retrieval"] = tiny.add_adapter(made.module, "retrieval")
    ranges = {"base": calibrated(8), "retrieval": calibrated(8)}
    offsets = {
        task: {role: {"8": [0.1] * 8} for role in ("query", "document")}
        for task in ("base", "retrieval")
    }
    made.settings = replace(
        made.settings,
        int8_ranges=ranges,
        binary_offsets=offsets,
        rope_theta=1000.0 if family != "bert" else None,
    )
    return made


def write(folder: Path, made: Model) -> Path:
    golden = golden_vectors(embed_with(made), made.module.tasks)
    write_model(
        folder, made, extra_files={"golden.json": json.dumps(golden)}, replace_existing=True
    )
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("identity")
    return write(root / "model", model(root))


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def settings(folder: Path) -> dict[str, object]:
    """The settings of a folder's manifest, apart from its other parts."""
    found: dict[str, object] = json.loads((folder / MANIFEST).read_text())["settings"]
    return found


BASE = {
    "prompts": {"query": "Query: ", "document": "Text: "},
    "max_length": 63,
    "int8_ranges": {
        "base": {"8": {"minimum": [-0.5] + [-1.0] * 7, "maximum": [1.0] * 8}},
        "retrieval": calibrated(8),
    },
    "binary_offsets": {
        task: {role: {"8": [0.2] * 8} for role in ("query", "document")}
        for task in ("base", "retrieval")
    },
}
TASKS = {
    "int8_ranges": {
        "base": calibrated(8),
        "retrieval": {"8": {"minimum": [-0.5] * 8, "maximum": [1.0] * 8}},
    },
    "binary_offsets": {
        task: {role: {"8": [0.1 if task == "base" else 0.3] * 8} for role in ("query", "document")}
        for task in ("base", "retrieval")
    },
    "matryoshka_dims": [8, 32],
    "adapter_tasks": {"retrieval": "text-matching"},
}


@pytest.mark.parametrize(
    ("changes", "moves_space"),
    [*(({k: v}, True) for k, v in BASE.items()), *(({k: v}, False) for k, v in TASKS.items())],
    ids=lambda v: str(v)[:24],
)
def test_every_setting_that_decides_a_vector_moves_the_hash_and_that_of_the_base_the_space(
    copy, folder, changes, moves_space, monkeypatch
):
    whole = read_model(folder)
    with (
        monkeypatch.context() as patched
    ):  # another document prompt has other golden vectors; this is about ids
        patched.setattr("taskdistill.model.folder.check_vectors", lambda *_: None)
        reseal(copy, settings=settings(copy) | changes)
        changed = read_model(copy)
    assert changed.hash != whole.hash and (changed.space_id != whole.space_id) is moves_space
    assert changed.settings.former_space_ids == (
        [] if moves_space else whole.settings.former_space_ids
    )
    assert Encoder(changed, threads=1).space_id == changed.space_id == changed.settings.space_id


def test_theta_pooling_and_weights_move_both(tmp_path):
    first = model(tmp_path)
    write(tmp_path / "m", first)
    hashes, spaces = {first.hash}, {first.space_id}
    for change in ("theta", "pooling", "weights", "tokenizer"):
        made = model(tmp_path)
        if change == "theta":
            made.settings = replace(made.settings, rope_theta=77.0)
        elif change == "pooling":
            made.module.pooling = Pooling.MEAN
        elif change == "weights":
            next(made.module.backbone.parameters()).data[9, 0] += 0.5
        else:
            made.tokenizer.backend.normalizer = Strip()
        write_model(tmp_path / f"with-{change}", made)
        hashes.add(made.hash)
        spaces.add(made.space_id)
        assert read_model(tmp_path / f"with-{change}").hash == made.hash
    assert len(hashes) == len(spaces) == 5


def test_an_adapter_moves_the_hash_and_not_the_space(tmp_path):
    made = model(tmp_path)
    write(tmp_path / "m", made)
    hash_, space = made.hash, made.space_id
    next(p for name, p in made.module.backbone.named_parameters() if "lora_B" in name).data += 0.5
    write(tmp_path / "m", made)
    assert made.hash != hash_ and made.space_id == space


def test_ids_in_memory_are_those_of_the_folder_and_follow_the_settings(tmp_path):
    made = model(tmp_path)
    assert made.hash == "" and made.space_id == ""
    write(tmp_path / "m", made)
    again = read_model(tmp_path / "m")
    assert (again.hash, again.space_id, again.settings) == (made.hash, made.space_id, made.settings)
    again.settings.prompts["document"] = "Another: "
    assert again.hash != made.hash and again.space_id != made.space_id


# What older versions wrote
# --------------------------------------------------------------------------------------------------
# -


@pytest.mark.parametrize("name", ["model-1", "static-1"])
def test_a_folder_of_the_first_format_keeps_the_id_that_its_indexes_know(name):
    stored = read_manifest(KEPT / name, "model")["settings"]["space_id"]
    encoder = Encoder.load(KEPT / name, threads=1)
    assert encoder.space_id != stored and encoder.former_space_ids == (stored,)


def old_index(path: Path, encoder: Encoder) -> Path:
    """An index as an earlier version made it: with the ids of then, in the first format."""
    build_index(
        encoder, [Document(f"d{i}", text) for i, text in enumerate(TEXTS)], path, task="retrieval"
    )
    manifest = json.loads((path / MANIFEST).read_text())
    del manifest["settings"]["former_space_ids"]
    manifest["settings"] |= {
        "space_id": encoder.former_space_ids[0],
        "model_hash": encoder.files_hash,
    }
    reseal(path, settings=manifest["settings"], format_version=1)
    return path


def test_an_index_with_the_ids_of_before_is_searched_and_filled_with_the_same_model(tmp_path):
    encoder = Encoder.load(KEPT / "model-1", threads=1)
    index = Index.open(old_index(tmp_path / "i", encoder))
    assert index.settings.space_id == encoder.former_space_ids[0] != encoder.space_id
    assert index.search([TEXTS[1]], 1, encoder=encoder)[0][0].id == "d1"
    index.add([Document("new", "a new text")], encoder)
    assert (
        build_index(encoder, [Document("d9", "text")], tmp_path / "i", task="retrieval")[
            0
        ].documents
        == 5
    )
    other = Encoder(
        replace(
            encoder.model,
            files={"x": "0"},
            settings=replace(encoder.model.settings, former_space_ids=[]),
        ),
        threads=1,
    )
    with pytest.raises(BadInput, match="the index has space_id"):
        index.search([TEXTS[1]], 1, encoder=other)


def test_a_folder_written_anew_is_known_by_its_id_of_before(folder, tmp_path):
    encoder = Encoder.load(folder, threads=1)
    assert encoder.former_space_ids == (base_space_id(encoder.model),)
    assert (
        Index.open(old_index(tmp_path / "i", encoder))
        .search([TEXTS[0]], 1, encoder=encoder)[0][0]
        .id
        == "d0"
    )


def test_ids_of_before_on_both_sides_prove_nothing():
    assert (
        same_space("a", [], "a", [])
        and same_space("a", ["b"], "b", [])
        and same_space("b", [], "a", ["b"])
    )
    assert not same_space("a", ["c"], "b", ["c"]), "they did not count prompts"


def test_another_prompt_is_refused_by_an_index_built_with_the_model_as_it_was(
    folder, copy, tmp_path, monkeypatch
):
    documents = [Document(f"d{i}", text) for i, text in enumerate(TEXTS)]
    index = build_index(
        Encoder.load(folder, threads=1), documents, tmp_path / "i", task="retrieval"
    )[0]
    said = settings(copy)
    reseal(copy, settings=said | {"prompts": said["prompts"] | {"query": "Quesy: "}})
    changed = Encoder.load(copy, threads=1)
    assert (
        np.abs(
            changed.encode(TEXTS, prompt_name="query")
            - Encoder.load(folder, threads=1).encode(TEXTS, prompt_name="query")
        ).max()
        > 1e-3
    )
    with pytest.raises(BadInput, match="the index has space_id"):
        index.search(TEXTS, 1, encoder=changed)
    with pytest.raises(BadInput, match="the index has space_id"):
        index.add(documents, changed)


def test_a_teacher_is_known_by_its_files_whatever_its_prompts_are(folder, copy):
    said = settings(copy)
    reseal(copy, settings=said | {"prompts": said["prompts"] | {"query": "Quesy: "}})
    made = [
        LocalTeacher(Encoder.load(each, threads=1), "t", max_length=16).identity
        for each in (folder, copy)
    ]
    assert made[0] == made[1] and made[0].weights == Encoder.load(folder, threads=1).files_hash


# What is refused
# --------------------------------------------------------------------------------------------------
# ------------


@pytest.mark.parametrize(
    "name",
    [
        *(
            "other.safetensors",
            "model.safetensors.index.json",
            "model-00001-of-00002.safetensors",
            "projection.safetensors",
        ),
        *(
            "special_tokens_map.json",
            "added_tokens.json",
            "vocab.txt",
            "adapters/clustering/adapter_config.json",
            "generation_config.json",
        ),
        *(
            "adapters/retrieval/model.safetensors",
            "1_Pooling/model.safetensors",
            "1_Pooling/adapter_config.json",
        ),
    ],
)
def test_a_file_that_a_loader_would_read_and_no_manifest_lists_is_refused(copy, name):
    (copy / name).parent.mkdir(parents=True, exist_ok=True)
    (copy / name).write_text("{}")
    with pytest.raises(
        BadInput,
        match=rf"copy/{name} does not belong to this model: taskdistill.json does not list it",
    ):
        read_model(copy)


def test_what_no_loader_reads_may_lie_there(copy):
    for name in (
        "notes.txt",
        "plots/config.json",
        ".git/config",
        "onnx/model.onnx",
        "metrics.json",
    ):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text("{}")
    read_model(copy)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"prompts": {"query": 5}}, "prompts is .* needs an object of strings"),
        ({"max_length": "128"}, "max_length is 128, needs a whole number above 0"),
        ({"max_length": True}, "max_length is True"),
        ({"rope_theta": -1}, "rope_theta is -1, needs a number above 0, or null"),
        ({"matryoshka_dims": [8, 33]}, "matryoshka_dims is .*, needs ascending sizes from 1 to 32"),
        ({"matryoshka_dims": [16, 8]}, "matryoshka_dims"),
        (
            {"adapter_tasks": {"other": "retrieval"}},
            "adapter_tasks is .* for adapters among retrieval",
        ),
        (
            {"int8_ranges": {"base": calibrated(8) | {"16": calibrated(8)["8"]}}},
            "int8_ranges.base is not what this model stores",
        ),
        ({"int8_ranges": {"other": calibrated(8)}}, "int8_ranges.other is not"),
        ({"int8_ranges": {"base": {"64": calibrated(8)["8"]}}}, "int8_ranges.base"),
        ({"int8_ranges": [1]}, "int8_ranges is .* needs an object"),
        (
            {"binary_offsets": {"base": {"query": {"8": [0.1]}}}},
            "binary_offsets.base.query is not what this model stores",
        ),
        ({"binary_offsets": {"base": {"query": {"8": [[0.1] * 8]}}}}, "binary_offsets.base.query"),
        (
            {"binary_offsets": {"base": {"queries": {"8": [0.1] * 8}}}},
            "binary_offsets.base.queries",
        ),
        ({"binary_offsets": {"base": [1]}}, "binary_offsets is .* needs an object of objects"),
        ({"extends": [3]}, "extends is .* needs a list of strings"),
        ({"unknown": 3}, "lacks a field or holds another type"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_settings_of_another_type_or_length_are_refused_naming_them(copy, changes, match):
    reseal(copy, settings=settings(copy) | changes)
    with pytest.raises(BadInput, match=match):
        read_model(copy)


def reweigh(folder: Path, change) -> None:
    """Change weights and make every hash right again."""
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: change(name, tensor) for name, tensor in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    reseal(folder, files=file_table(folder))


def divide(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(raw | {"rms_norm_eps": 1e30, "layer_norm_eps": 1e30})
    )
    reseal(folder, files=file_table(folder))


@pytest.mark.parametrize("golden", [True, False])
@pytest.mark.parametrize("family", ["bert", "qwen3"])
@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (
            lambda folder: reweigh(folder, lambda name, tensor: torch.zeros_like(tensor)),
            "a zero vector|one vector for different texts",
        ),
        (divide, "a zero vector|one vector for different texts|not give its golden"),
        (
            lambda folder: reweigh(folder, lambda name, tensor: torch.full_like(tensor, torch.nan)),
            "not finite",
        ),
    ],
    ids=["zeros", "eps", "nan"],
)
def test_a_model_that_computes_nothing_is_refused_by_name_whatever_its_hashes_say(
    tmp_path, family, damage, match, golden
):
    folder = write(tmp_path / "m", model(tmp_path, family))
    if not golden:
        (folder / "golden.json").unlink()
    damage(folder)
    with pytest.raises(BadInput, match=rf"(?s)/m.*({match})"):
        read_model(folder)


def test_weights_that_are_not_those_of_the_golden_vectors_are_refused(copy):
    reweigh(copy, lambda name, tensor: tensor + 0.3 if "embed" in name else tensor)
    with pytest.raises(
        BadInput,
        match=(
            r"does not give its golden vector of 'a' \(cosine -?0\.\d+\): its weights or settings"
            r" are damaged"
        ),
    ):
        read_model(copy)


def test_a_prompt_that_fills_the_model_is_refused_where_it_is_said(copy, folder):
    prompt = "the sea and the ship of the old harbour " * 8
    reseal(copy, settings=settings(copy) | {"prompts": {"query": prompt, "document": "Document: "}})
    with pytest.raises(
        BadInput,
        match=(
            r"copy: the prompt 'query' takes 89 tokens and the model reads 64, so nothing of any"
            r" text would be left"
        ),
    ):
        read_model(copy)
    encoder = Encoder.load(folder, threads=1)
    for asked in ({"prompt": prompt}, {"prompt_name": "query", "max_length": 3}):
        with pytest.raises(
            BadInput,
            match=(
                r"the prompt takes \d+ tokens .* nothing of a text would be left; give a shorter"
                r" prompt"
            ),
        ):
            encoder.encode(TEXTS, **asked)
    assert len(np.unique(encoder.encode(TEXTS, prompt_name="query", max_length=5), axis=0)) > 1
