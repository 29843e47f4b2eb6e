"""One more adapter: the others stay as they are to the byte, an interruption is continued, and a
worse one is not written.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.tiny_run import Recorder, stop_before
from safetensors.torch import load_file

from taskdistill.cli.main import run as command
from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput, WorkFailed
from taskdistill.evaluate.dev import DevComparison, compare, dev_units
from taskdistill.io.folders import check_folder, read_manifest
from taskdistill.model.add_adapter import with_section
from taskdistill.model.folder import read_model, write_model
from taskdistill.model.golden import FILE, embed_with, golden_vectors
from taskdistill.search.build import build_index
from taskdistill.search.corpus import Document
from taskdistill.tasks import Task
from taskdistill.train.context import Interrupted
from taskdistill.types import RowKind
from taskdistill.workflows.adapt import adapt
from taskdistill.workflows.adapt_settings import AdaptRequest, choose_settings
from taskdistill.workflows.info import verify_model

FEW = {"steps": 6, "rank": 4, "alpha": 4, "batch_size": 8, "checkpoint_every": 2, "max_length": 32}
TEXTS = ["the ship sails", "a judge and a jury"]


@pytest.fixture
def data(tmp_path):
    return tiny.write_data(tmp_path / "data")


@pytest.fixture
def folder(tmp_path):
    module = tiny.student()
    made = tiny.model(module, tiny.write_tokenizer(tmp_path / "tok"))
    made.adapter_configs["retrieval"] = tiny.add_adapter(module, "retrieval")
    golden = golden_vectors(embed_with(made), ["retrieval"])
    write_model(
        tmp_path / "m/model",
        made,
        extra_files={FILE: json.dumps(golden), "README.md": "# tiny\n\n## Limits\nnone\n"},
    )
    return tmp_path / "m/model"


def hashes(folder) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def wanted(data, **other) -> AdaptRequest:
    given = {"task": Task.CLASSIFICATION, "name": "topics", "settings": FEW} | other
    return AdaptRequest(data=data / "labelled/topics.train.jsonl.gz", **given)


def test_a_model_with_binary_offsets_gets_some_for_the_new_adapter(folder, data):
    model = read_model(folder)
    sides = {
        role: {str(dim): [0.0] * dim for dim in model.settings.matryoshka_dims}
        for role in ("query", "document")
    }
    model.settings = replace(model.settings, binary_offsets={"base": sides, "retrieval": sides})
    write_model(folder, model, replace_existing=True)
    adapt(folder, wanted(data))
    encoder = Encoder.load(folder, threads=1)
    assert encoder.model.settings.binary_offsets["retrieval"] == sides
    lines = (
        gzip.decompress((data / "labelled/topics.train.jsonl.gz").read_bytes())
        .decode()
        .splitlines()
    )
    rows = [json.loads(line)["text"] for line in lines]
    mean = encoder.encode(rows, task="topics").mean(0)
    assert np.allclose(
        encoder.model.settings.binary_offsets["topics"]["document"]["32"], mean, atol=1e-5
    )
    assert encoder.encode(TEXTS, task="topics", precision="binary").shape == (2, 4)


def test_the_backbone_s_own_dropout_is_off(folder, data):
    """Draws from torch's own generator between steps move nothing, as they would a dropout of the
    backbone.
    """
    kept = []
    for draws in (0, 3):

        def never(count: int = draws) -> bool:
            return bool(torch.rand(count).sum() > count)

        adapt(folder, wanted(data, name=f"d{draws}"), should_stop=never)
        kept.append(hashes(folder)[f"adapters/d{draws}/adapter_model.safetensors"])
    assert kept[0] == kept[1]


def test_the_other_adapters_and_their_golden_vectors_stay_to_the_byte(folder, data):
    before, vectors = (
        hashes(folder),
        Encoder.load(folder, threads=1).encode(TEXTS, task="retrieval"),
    )
    golden = json.loads((folder / FILE).read_text())["vectors"]
    told = adapt(folder, wanted(data))
    after = hashes(folder)
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {FILE, "README.md", "taskdistill.json"}
    assert set(after) - set(before) == {
        f"adapters/topics/{name}" for name in ("adapter_model.safetensors", "adapter_config.json")
    }
    now = json.loads((folder / FILE).read_text())["vectors"]
    assert {name: now[name] for name in golden} == golden and now.keys() - golden.keys() == {
        "topics"
    }
    assert min(verify_model(folder).values()) > 1 - 1e-5
    encoder = Encoder.load(folder, threads=1)
    assert np.array_equal(encoder.encode(TEXTS, task="retrieval"), vectors)
    assert encoder.tasks == ("retrieval", "topics") and encoder.adapter_tasks == {
        "topics": "classification"
    }
    assert np.abs(encoder.encode(TEXTS, task="topics") - encoder.encode(TEXTS)).max() > 1e-4
    assert encoder.encode(TEXTS, task="topics", precision="int8").shape == (2, 32)
    manifest = read_manifest(folder)
    assert (
        check_folder(folder, manifest) == []
        and manifest["adapted"]["topics"]["rows"] == told["rows"] == 64
    )
    assert (
        "## Limits\nnone" in (folder / "README.md").read_text()
        and "## Adapter `topics`" in (folder / "README.md").read_text()
    )
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]


def test_an_index_from_before_is_still_filled_by_the_model(folder, data, tmp_path):
    first = [Document("a", "the ship sails")]
    build_index(Encoder.load(folder, threads=1), first, tmp_path / "index", task="retrieval")
    adapt(folder, wanted(data))
    encoder = Encoder.load(folder, threads=1)
    index, report = build_index(
        encoder, [*first, Document("b", "a judge")], tmp_path / "index", task="retrieval"
    )
    assert (index.documents, report.unchanged) == (2, 1)
    named, _ = build_index(encoder, first, tmp_path / "named", task="topics")
    assert named.settings.query_prompt == "document"
    adapt(folder, wanted(data, replace=True, settings={**FEW, "steps": 3}))
    with pytest.raises(BadInput, match="the index has model_hash"):
        build_index(Encoder.load(folder, threads=1), first, tmp_path / "named", task="topics")


def test_an_adapter_is_replaced_only_when_asked_for(folder, data):
    adapt(folder, wanted(data))
    once = hashes(folder)
    with pytest.raises(BadInput, match=r"already has an adapter 'topics'; .*--replace"):
        adapt(folder, wanted(data))
    assert hashes(folder) == once
    adapt(folder, wanted(data, replace=True, settings={**FEW, "steps": 8}))
    again = hashes(folder)
    assert (
        again["adapters/topics/adapter_model.safetensors"]
        != once["adapters/topics/adapter_model.safetensors"]
    )
    assert (
        again["adapters/retrieval/adapter_model.safetensors"]
        == once["adapters/retrieval/adapter_model.safetensors"]
    )
    assert read_model(folder).settings.extends == []
    with pytest.raises(BadInput, match=r"--replace has no effect: .* no adapter 'other'"):
        adapt(folder, wanted(data, name="other", replace=True))


def test_an_interrupted_run_continues_to_the_same_adapter(folder, data):
    before = hashes(folder)
    with pytest.raises(Interrupted, match="run the same command again"):
        adapt(folder, wanted(data), should_stop=stop_before(3))
    assert hashes(folder) == before
    progress = Recorder()
    adapt(folder, wanted(data), progress=progress)
    assert [record["step"] for record in progress.records] == [3, 4, 5]
    stopped = hashes(folder)["adapters/topics/adapter_model.safetensors"]
    adapt(folder, wanted(data, name="whole"))
    assert hashes(folder)["adapters/whole/adapter_model.safetensors"] == stopped


@pytest.mark.parametrize(
    ("task", "file", "kind"),
    [
        (Task.RETRIEVAL, "pairs/qa.train.jsonl.gz", None),
        (Task.TEXT_MATCHING, "scored/sts.train.jsonl.gz", None),
        (Task.TEXT_MATCHING, "pairs/qa.train.jsonl.gz", RowKind.PAIRS),
        (Task.CLUSTERING, "labelled/topics.train.jsonl.gz", None),
    ],
)
def test_every_task_learns_without_a_teacher(folder, data, task, file, kind):
    told = adapt(
        folder, AdaptRequest(data=data / file, task=task, name="new", kind=kind, settings=FEW)
    )
    assert told["task"] == task and told["kind"] == (
        kind or {"s": "scored", "p": "pairs", "l": "labelled"}[file[0]]
    )
    encoder = Encoder.load(folder, threads=1)
    assert np.abs(encoder.encode(TEXTS, task="new") - encoder.encode(TEXTS)).max() > 1e-4


def test_development_rows_are_scored_and_a_worse_adapter_is_not_written(folder, data, monkeypatch):
    dev = data / "labelled/topics.dev.jsonl.gz"
    told = adapt(folder, wanted(data, dev=dev, settings={**FEW, "lr": 1e-6}))
    assert told["dev"]["base"] == told["dev"]["adapter"] and told["dev"]["difference"] == [0, 0, 0]
    assert "On `topics.dev.jsonl.gz`: accuracy" in (folder / "README.md").read_text()
    before = hashes(folder)
    worse = DevComparison(
        metric="accuracy", before=0.8, after=0.7, difference=(-0.1, -0.2, 0.0), rows=18
    )
    monkeypatch.setattr("taskdistill.workflows.adapt.compare", lambda *_: worse)
    with pytest.raises(
        WorkFailed, match=r"the adapter has accuracy 70\.0, the base 80\.0: nothing was written"
    ):
        adapt(folder, wanted(data, name="bad", dev=dev))
    assert hashes(folder) == before
    with pytest.raises(BadInput, match="64 of 64 development rows are among the training rows"):
        adapt(folder, wanted(data, name="bad", dev=data / "labelled/topics.train.jsonl.gz"))


class Table:
    """Looks vectors up."""

    def __init__(self, vectors):
        self.vectors = vectors

    def encode(self, texts, *, task, prompt_name):
        return np.array([self.vectors[text] for text in texts], dtype=np.float32)


def test_scores_are_those_of_the_metric(data):
    from taskdistill.data.rows import LabeledText, Pair, ScoredPair, make_dataset

    table = Table({"q": [1, 0], "p": [1, 0], "n": [0.9, 0.1], "r": [0, 1], "s": [0.1, 1]})
    rows = make_dataset("d", RowKind.PAIRS, [Pair("q", "n", ("p",)), Pair("s", "r")])
    metric, units = dev_units(table, None, Task.RETRIEVAL, rows, rows)
    assert metric == "nDCG@10" and np.allclose(units, [1 / np.log2(3), 1])
    labelled = make_dataset(
        "d",
        RowKind.LABELLED,
        [
            LabeledText("q", "x"),
            LabeledText("n", "x"),
            LabeledText("r", "y"),
            LabeledText("s", "y"),
        ],
    )
    test = make_dataset("t", RowKind.LABELLED, [LabeledText("p", "x"), LabeledText("s", "x")])
    assert dev_units(table, None, Task.CLASSIFICATION, labelled, test)[1].tolist() == [1.0, 0.0]
    scored = make_dataset(
        "d",
        RowKind.SCORED,
        [ScoredPair("q", "p", 1.0), ScoredPair("q", "n", 0.5), ScoredPair("q", "r", 0.0)],
    )
    same = compare(table, "a", Task.TEXT_MATCHING, scored, scored)
    assert (same.metric, round(same.before, 6), same.difference) == (
        "Spearman",
        1.0,
        (0.0, 0.0, 0.0),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {
                "settings": {"weights": {"distill": 1.0}},
                "task": Task.RETRIEVAL,
                "kind": RowKind.PAIRS,
            },
            "need a teacher",
        ),
        ({"settings": {"average": {}}}, "average has no effect"),
        ({"settings": {"rope_theta": 10.0}}, "rope_theta has no effect"),
        ({"settings": {"step": 3}}, "unknown key 'step'; did you mean 'steps'"),
        ({"kind": RowKind.TEXTS}, "is trained on labelled rows, not on texts"),
        ({"name": "a/b"}, "letters, digits"),
        ({"name": "base"}, "cannot be called 'base'"),
        ({"strength": 0.0}, "strength is 0.0; give the share"),
        ({"strength": 1.5}, "strength is 1.5; give the share"),
    ],
)
def test_what_cannot_work_is_refused_before_training(folder, data, change, message):
    before = hashes(folder)
    asked = wanted(data, **{"settings": FEW} | change)
    if change.get("kind") is RowKind.PAIRS:
        asked = AdaptRequest(data=data / "pairs/qa.train.jsonl.gz", name="new", **change)
    with pytest.raises(BadInput, match=message):
        adapt(folder, asked)
    assert hashes(folder) == before


def test_a_share_of_the_trained_change_is_kept(folder, data, tmp_path):
    shutil.copytree(folder, tmp_path / "whole/model")
    told = [
        adapt(path, wanted(data, **given))
        for path, given in ((folder, {}), (tmp_path / "whole/model", {"strength": 1.0}))
    ]
    assert [each["strength"] for each in told] == [0.7, 1.0]
    part, whole = (
        load_file(path / "adapters/topics/adapter_model.safetensors")
        for path in (folder, tmp_path / "whole/model")
    )
    assert (
        whole.keys() == part.keys()
        and max(tensor.abs().max() for name, tensor in whole.items() if "lora_B" in name) > 0
    )
    for name, tensor in whole.items():
        assert torch.allclose(part[name], tensor * (0.7 if "lora_B" in name else 1.0), atol=1e-7)
    assert (folder / "README.md").read_text("utf-8").count("0.7 of the change kept") == 1
    assert "--strength 1.0" in (tmp_path / "whole/model/README.md").read_text("utf-8")


def test_steps_follow_from_the_number_of_rows(folder):
    from taskdistill.data.rows import LabeledText, make_dataset

    module = read_model(folder).module
    rows = [LabeledText(f"text {n}", str(n % 7)) for n in range(770)]
    request = AdaptRequest(data=Path("d"), task=Task.CLASSIFICATION)
    few = choose_settings(request, make_dataset("d", RowKind.LABELLED, rows[:20]), module)
    many = choose_settings(request, make_dataset("d", RowKind.LABELLED, rows), module)
    assert few.batch_size == 20 and few.steps < many.steps <= 400 and many.batch_size > 20


def test_a_section_of_the_card_is_put_in_place():
    text = with_section("# a\n\n## Adapter `x`\nold\n\n## End\nz\n", "Adapter `x`", ["new"])
    assert text == "# a\n\n## End\nz\n\n## Adapter `x`\nnew\n"


def test_the_command_adds_an_adapter_that_other_commands_take(folder, data, tmp_path, capsys):
    rows = tmp_path / "rows.csv"
    rows.write_text(
        "text,intent\n" + "".join(f"the ship {n},a\nthe judge {n},b\n" for n in range(6))
    )
    options = [
        "--name",
        "mine",
        "--column",
        "label=intent",
        "--set",
        "steps=2",
        "--set",
        "batch_size=4",
        "--set",
        "negatives=1",
    ]
    assert (
        command(
            [
                "adapt",
                str(folder),
                str(rows),
                "--task",
                "classification",
                *options,
                "--json",
                str(tmp_path / "told.json"),
            ]
        )
        == 0
    )
    assert json.loads((tmp_path / "told.json").read_text())["adapter"] == "mine"
    (tmp_path / "in.txt").write_text("the ship\n")
    assert (
        command(
            [
                "encode",
                str(folder),
                str(tmp_path / "in.txt"),
                "--task",
                "mine",
                "--out",
                str(tmp_path / "out.npy"),
            ]
        )
        == 0
    )
    assert np.load(tmp_path / "out.npy").shape == (1, 32)
    assert (
        command(["adapt", str(folder), str(rows), "--task", "classification", "--column", "label"])
        == 2
    )
    assert "needs the form FIELD=COLUMN" in capsys.readouterr().err
