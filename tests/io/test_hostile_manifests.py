"""Whatever a manifest, a configuration or a recipe holds, it is read or refused in a sentence with
the file's name: never a traceback, never a wait.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import threading

import pytest
from helpers import tiny
from helpers.search_fakes import FakeEncoder
from helpers.teacher_fakes import FakeTeacher

from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput, WorkFailed
from taskdistill.io.json import open_regular, read_file
from taskdistill.io.sealed import seal_json
from taskdistill.model.backbone import read_json
from taskdistill.model.folder import write_model
from taskdistill.model.model import base_space_id
from taskdistill.recipe.recipe import load_recipe
from taskdistill.search.build import build_index
from taskdistill.search.corpus import Document
from taskdistill.search.index import Index
from taskdistill.teacher.fill import fill_store
from taskdistill.teacher.store import TeacherStore, open_store, repair
from taskdistill.types import MANIFEST
from taskdistill.workflows.info import describe_folder

OTHERS = [None, 5, -1, 0, 1.5, "128", "", [], {}, [1], {"a": 1}, True, 10**30, "x" * 10, [[[]]]]
"""Values of every type and sign, put in the place of any other."""


def places(value, way=()):
    """Every place in a value, of long lists and tables the first two."""
    if way:
        yield way
    inner = (
        list(value.items())[:40]
        if isinstance(value, dict)
        else list(enumerate(value))[:2]
        if isinstance(value, list)
        else ()
    )
    for name, each in inner:
        yield from places(each, (*way, name))


def changed(value, way, other, *, gone):
    value = here = copy.deepcopy(value)
    for name in way[:-1]:
        here = here[name]
    if gone:
        del here[way[-1]]
    else:
        here[way[-1]] = other
    return value


def check(folder, tmp_path, use, count, *, file=MANIFEST, sealed=True, least=0.25):
    """Put other values into a file of a folder, one at a time, and use the folder."""
    rng = random.Random(file)
    value = json.loads((folder / file).read_text())
    value.pop("sha256", None)
    ways = [way for way in places(value) if way[0] != "created_by"]
    refused = 0
    for number in range(count):
        way, other, gone = rng.choice(ways), rng.choice(OTHERS), rng.random() < 0.2
        shutil.copytree(folder, tmp_path / str(number))
        new = changed(value, way, other, gone=gone)
        (tmp_path / str(number) / file).write_text(seal_json(new) if sealed else json.dumps(new))
        try:
            use(tmp_path / str(number))
        except (BadInput, WorkFailed) as error:
            refused += 1
            assert "\n" not in str(error), (way, other)
        except Exception as error:
            raise AssertionError(
                f"{'.'.join(map(str, way))} = {'nothing' if gone else other!r}:"
                f" {type(error).__name__}: {error}"
            ) from error
        shutil.rmtree(tmp_path / str(number))
    assert refused >= least * count


def test_an_index_with_any_manifest(tmp_path):
    index, _ = build_index(
        FakeEncoder(),
        [Document(f"d{i}", f"word{i}", {"i": i}) for i in range(9)],
        tmp_path / "index",
    )
    index.delete(["d1"])
    index.build_bm25()

    def use(folder):
        opened = Index.open(folder)
        opened.search(["word3"], 3, encoder=FakeEncoder(), filter="i>=2")
        opened.search(["word3"], 3, encoder=FakeEncoder(), hybrid=True)
        opened.describe()
        describe_folder(folder)
        opened.delete(["d3"])

    check(tmp_path / "index", tmp_path, use, 150)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile") / "model"
    module = tiny.student(seed=1)
    made = tiny.model(module, tiny.write_tokenizer(folder.with_name("tokenizer")))
    made.adapter_configs["retrieval"] = tiny.add_adapter(module, "retrieval")
    write_model(folder, made)
    assert base_space_id(made)
    return folder


def use_model(folder):
    encoder = Encoder.load(folder, threads=1)
    encoder.encode(["ship"], task="retrieval", prompt_name="query")
    describe_folder(folder)


def test_a_model_with_any_manifest(model, tmp_path):
    check(model, tmp_path, use_model, 50)


@pytest.mark.parametrize(
    "file", ["config.json", "1_Pooling/config.json", "config_sentence_transformers.json"]
)
def test_a_model_with_any_configuration(model, tmp_path, file):
    plain = tmp_path / "plain"
    shutil.copytree(model, plain, ignore=shutil.ignore_patterns("adapters", MANIFEST))

    def use(folder):
        Encoder.load(folder, threads=1).encode(["ship"])

    check(plain, tmp_path, use, 25, file=file, sealed=False, least=0.0)


@pytest.mark.parametrize("file", [MANIFEST, "shards/00000.json"])
def test_a_teacher_store_with_any_json(tmp_path, file):
    teacher = FakeTeacher()
    store = open_store(tmp_path / "stores", teacher.identity, None)
    fill_store(store, [f"t{i}" for i in range(5)], teacher)

    def use(folder):
        describe_folder(folder)
        TeacherStore(folder, teacher.identity, None, None).get(["t1"])
        repair(folder)

    check(store.folder, tmp_path, use, 60, file=file)


def test_a_number_of_labels_is_bounded_before_a_name_is_made_for_each(model, tmp_path):
    shutil.copytree(model, tmp_path / "m", ignore=shutil.ignore_patterns("adapters", MANIFEST))
    config = json.loads((tmp_path / "m/config.json").read_text())
    for labels in (10**9, -1, "7", True, 1.5):
        (tmp_path / "m/config.json").write_text(json.dumps(config | {"num_labels": labels}))
        with pytest.raises(BadInput, match="num_labels is"):
            Encoder.load(tmp_path / "m")
    (tmp_path / "m/config.json").write_text(json.dumps(config | {"num_labels": 3}))
    Encoder.load(tmp_path / "m", threads=1)


def within(seconds, work):
    """Run something that must not wait for ever."""
    found = []
    thread = threading.Thread(target=lambda: found.append(outcome(work)), daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, f"still waiting after {seconds} s"
    return found[0]


def outcome(work):
    try:
        return work()
    except BaseException as error:
        return error


@pytest.mark.parametrize(
    "file",
    [
        "config.json",
        "modules.json",
        "tokenizer.json",
        "1_Pooling/config.json",
        "config_sentence_transformers.json",
        "model.safetensors",
    ],
)
def test_a_pipe_in_a_model_folder_is_refused_at_once(model, tmp_path, file):
    shutil.copytree(model, tmp_path / "m", ignore=shutil.ignore_patterns("adapters", MANIFEST))
    (tmp_path / "m" / file).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "m" / file)
    assert isinstance(within(20, lambda: Encoder.load(tmp_path / "m", threads=1)), BadInput)


def test_a_pipe_in_place_of_any_json_is_refused_at_once(model, tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    for read in (open_regular, read_file, read_json, load_recipe):
        assert isinstance(within(10, lambda read=read: read(tmp_path / "pipe.json")), BadInput), (
            read
        )
    shutil.copytree(model, tmp_path / "m")
    (tmp_path / "m" / MANIFEST).unlink()
    os.mkfifo(tmp_path / "m" / MANIFEST)
    assert isinstance(within(10, lambda: describe_folder(tmp_path / "m")), BadInput)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"a": 1, "a": 2}',
        '{"n": ' + "9" * 5000 + "}",
        "[1]",
        "nothing",
        "\ud800",
        '{"a": 1e999}',
    ],
    ids=lambda text: text[:12],
)
def test_any_text_in_place_of_a_configuration_is_one_sentence(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(BadInput, match=r"config\.json") as error:
        read_json(tmp_path / "config.json")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "? [a]\n: 1\n",
        "? {a: 1}\n: 1\n",
        "name: " + "9" * 5000,
        "seed: 2024-99-99\n",
        "name: !!int x\n",
        "name: !!timestamp 2024-01-01T99:00:00\n",
        "a: " + "[" * 1200,
        "\x00",
        "name: &a [*a]\n",
    ],
    ids=lambda text: text[:20],
)
def test_any_recipe_is_one_sentence(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(BadInput) as error:
        load_recipe(tmp_path / "r.yaml")
    assert "\n" not in str(error.value)
    with pytest.raises(BadInput):
        load_recipe(tmp_path / "r.yaml", [f"seed={'9' * 5000}"])
