"""The whole regimen on an accelerator: every phase, every way to continue, every command; with the
CPU's results.
"""

from __future__ import annotations

import gc
import gzip
import itertools
import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers import tiny, tiny_ablation, tiny_run, twin
from safetensors.torch import load_file

from taskdistill.ablate.experiment import ablate
from taskdistill.ablate.settings import Experiment, make_experiment
from taskdistill.cli.main import run as command
from taskdistill.device import RuntimeOptions
from taskdistill.encode.encoder import Encoder
from taskdistill.evaluate.datasets import EvalSelection
from taskdistill.io.folders import read_manifest
from taskdistill.model.folder import read_model, write_model
from taskdistill.model.merging import weights_of
from taskdistill.model.model import base_space_id
from taskdistill.pipeline.train import train
from taskdistill.progress import SilentProgress
from taskdistill.recipe.recipe import parse_recipe
from taskdistill.stats.intervals import Estimate, PairedDifference
from taskdistill.train import loop
from taskdistill.train.context import Interrupted
from taskdistill.train.log import read_lines
from taskdistill.workflows import merge as merging_job
from taskdistill.workflows.merge import merge

PLACES = {"cpu": "cpu", "twin": "twin:0"}
PHASES = (
    "stage1",
    "long",
    "adapters.retrieval",
    "adapters.text-matching",
    "adapters.clustering",
    "adapters.classification",
)


def recipe(home: Path, device: str) -> dict[str, Any]:
    """Every phase with what crosses devices: averages, a gate, scores that choose weights, a
    projection that an adapter trains.
    """
    raw = tiny.recipe(home / "data", home / "teacher", steps=3)
    for phase in (raw["stage1"], *raw["adapters"].values()):
        phase |= {"checkpoint_every": 1}
    raw["long"] = {
        **raw["stage1"],
        "steps": 2,
        "rope_theta": 500.0,
        "weights": {"distill": 1, "relative": 1, "rkd_angle": 1, "list_kl": 1},
    }
    adapters = raw["adapters"]
    adapters["retrieval"] |= {
        "average": {"earlier": 0.4, "mode": "factors", "gate": False},
        "weights": {
            "info_nce": 1,
            "distill": 2,
            "gor": 1,
            "relational": 1,
            "teacher_nce": 1,
            "int8_info_nce": 1,
            "rkd_distance": 1,
        },
        "sharpen": {"focal": 1.0, "hardness": 2.0, "mixed_negatives": 1},
    }
    adapters["text-matching"] |= {"average": {"earlier": 0.4, "mode": "product", "gate": True}}
    adapters["clustering"] |= {"train_projection": True}
    adapters["classification"] |= {"dropout": 0.2, "learn_temperature": True}
    during = {"every": 2, "sets": ["sts/sts"], "max_queries": 12, "keep": "mean"}
    raw["evaluation"] = {
        "dev": ["sts/sts"],
        "sets": ["sts/sts"],
        "max_queries": 12,
        "during": during,
    }
    return raw | {"device": device, "precision": "float32"}


class Home(NamedTuple):
    """Data, a teacher, and a run on the CPU and one on the accelerator that nothing disturbed."""

    path: Path
    told: dict[str, tiny_run.Recorder]


@pytest.fixture(scope="session")
def home(tmp_path_factory) -> Home:
    if os.environ.get("TWIN_HOME"):
        return Home(Path(os.environ["TWIN_HOME"]), {})
    # what pytest and torch hold is not looked through again each time a run gives memory back
    gc.freeze()
    path, told = tmp_path_factory.mktemp("accelerator"), {}
    tiny.write_data(path / "data")
    teacher = tiny.model(
        tiny.student("qwen3", seed=5),
        tiny.write_tokenizer(path / "tokenizer", end=True),
        prompts={},
        end=True,
    )
    teacher.settings = replace(teacher.settings, space_id=base_space_id(teacher))
    write_model(path / "teacher", teacher)
    for name, device in PLACES.items():
        told[name] = tiny_run.Recorder()
        made = parse_recipe(recipe(path, device))
        train(
            made, path / name, progress=told[name], assess=None if name == "twin" else lambda *_: {}
        )
    return Home(path, told)


def test_every_weight_has_the_bits_of_the_cpu(home):
    found = tiny_run.weights(home.path / "twin")
    assert found == tiny_run.weights(home.path / "cpu") and len(found) == 14
    assert [name for name in tiny_run.steps(home.path / "twin") if name != "static"] == list(PHASES)
    assert tiny_run.steps(home.path / "twin") == tiny_run.steps(home.path / "cpu")


def test_the_run_says_where_it_ran(home):
    assert (
        "device twin:0 (pretend accelerator), passes of training in float32"
        in home.told["twin"].notes
    )
    assert (
        "scores are taken on device twin:0 (pretend accelerator), float32"
        in home.told["twin"].notes
    )
    assert "device cpu (this CPU), passes of training in float32" in home.told["cpu"].notes
    records = [
        record
        for _, record in read_lines(home.path / "twin" / "log.jsonl")
        if "runs_from" in record
    ]
    assert [record["phase"] for record in records] == ["static", *PHASES]
    for record in records:
        assert (record["device"], record["precision"], record["threads"]) == ("twin", "float32", 1)
    for record in records[1:]:
        assert (
            record["budget"]["micro_batch_tokens"] == 32_768
            and record["free_megabytes"] == 4 * twin.GIGABYTE // 10**6
        )
    cpu = [
        record for _, record in read_lines(home.path / "cpu" / "log.jsonl") if "runs_from" in record
    ]
    assert {record["budget"]["micro_batch_tokens"] for record in cpu[1:]} == {512}


def test_the_finished_run_was_scored_and_its_model_opens_anywhere(home):
    metrics = json.loads((home.path / "twin" / "metrics.json").read_text())
    assert (
        0 <= metrics["results"]["scores"]["adapters"]["sts/sts"]["score"] <= 1
        and (home.path / "twin" / "report.html").is_file()
    )
    folders = {name: home.path / name / "model" for name in PLACES}
    texts = ["the old ship", "a star near the moon and the comet"]
    expected = Encoder.load(folders["cpu"], device="cpu").encode(texts, task="clustering")
    for name, device in (("twin", "cpu"), ("twin", "twin:0"), ("cpu", "twin:0")):
        assert np.array_equal(
            Encoder.load(folders[name], device=device).encode(texts, task="clustering"), expected
        )
    assert read_model(folders["twin"]).projection is not None
    assert {p.device.type for p in read_model(folders["twin"]).module.parameters()} == {"cpu"}


def test_a_run_that_is_stopped_in_every_phase_and_changes_its_device_each_time_has_the_same_bits(
    home, tmp_path
):
    """Goes on from plain checkpoints, behind the snapshot of an average, with best states, and
    behind finished phases.
    """
    out, devices = tmp_path / "run", itertools.cycle(PLACES.values())
    begun = Counter[str]()
    for _ in range(20):
        told, raw = tiny_run.Recorder(), recipe(home.path, next(devices))
        del raw["static"]
        raw["teacher"]["store"] = str(home.path / "teacher-store")
        try:
            train(
                parse_recipe(raw),
                out,
                progress=told,
                assess=lambda *_: {},
                should_stop=tiny_run.stop_before(2),
            )
            break
        except Interrupted:
            begun.update(
                note.partition(": continued")[0]
                for note in told.notes
                if ": continued at step" in note
            )
    assert begun.keys() >= set(PHASES) - {"long"}, begun
    whole = {
        name: bits
        for name, bits in tiny_run.weights(home.path / "twin").items()
        if "static" not in name
    }
    assert tiny_run.weights(out) == whole and len(whole) == 12


def short(home: Home, device: str, **changes: Any) -> dict[str, Any]:
    """Two phases that differ most: the whole student, and an adapter with dropout, a learned
    temperature and the base's vectors.
    """
    raw = recipe(home.path, device)
    del raw["static"], raw["long"]
    raw["adapters"] = {"classification": raw["adapters"]["classification"] | {"steps": 2}}
    raw["evaluation"] = {}
    raw["stage1"] |= {"steps": 2}
    raw["teacher"]["store"] = str(home.path / "teacher-store")
    return raw | changes


@pytest.fixture(scope="session")
def undisturbed(home) -> dict[str, str]:
    tiny_run.train(short(home, "twin:0"), home.path / "undisturbed")
    return tiny_run.weights(home.path / "undisturbed")


@pytest.mark.parametrize("stop", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_stopped_run_goes_on_to_the_same_bits(home, undisturbed, tmp_path, stop):
    with pytest.raises(Interrupted):
        tiny_run.train(
            short(home, "twin:0"), tmp_path / "run", should_stop=tiny_run.stop_before(stop)
        )
    told = tiny_run.train(short(home, "twin:0"), tmp_path / "run")
    assert tiny_run.weights(tmp_path / "run") == undisturbed
    note = next(note for note in told.notes if "continued at step 1" in note)
    assert (
        "not bit-identical to an uninterrupted run: an accelerator adds up in no fixed order"
        in note
    )


@pytest.mark.parametrize(("begun", "continued"), [("cpu", "twin:0"), ("twin:0", "cpu")])
def test_a_run_moves_to_another_device(home, undisturbed, tmp_path, begun, continued):
    with pytest.raises(Interrupted):
        tiny_run.train(short(home, begun), tmp_path / "run", should_stop=tiny_run.stop_before(1))
    told = tiny_run.train(short(home, continued), tmp_path / "run")
    assert any("an accelerator adds up in no fixed order" in note for note in told.notes)
    assert tiny_run.weights(tmp_path / "run") == undisturbed, (
        "with the pretend accelerator even these have the same bits"
    )


def test_a_continued_run_cuts_its_batches_as_before_though_less_memory_is_free(
    home, undisturbed, tmp_path
):
    cut = []
    gradients = loop.gradients

    def watched(*args: Any, **options: Any) -> Any:
        cut.append((args[4].micro_batch_tokens, args[4].keep_tokens))
        return gradients(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "gradients", watched)
        with pytest.raises(Interrupted):
            tiny_run.train(
                short(home, "twin:0"), tmp_path / "run", should_stop=tiny_run.stop_before(1)
            )
        with twin.limit_memory(3_000_000):
            tiny_run.train(short(home, "twin:0"), tmp_path / "run")
    assert cut[0] == cut[1] and cut[0][0] == 32_768, (
        "stage 1 goes on with the budget of its checkpoint"
    )
    assert cut[2] == cut[3] and cut[2][0] < 1_000, "the adapter begins with what is free now"
    manifest = read_manifest(next((tmp_path / "run" / "checkpoints" / "stage1").glob("step-*")))
    assert (
        manifest["budget"] == {"micro_batch_tokens": cut[0][0], "keep_tokens": cut[0][1]}
        and manifest["device"] == "twin"
    )


def test_precision_is_bfloat16_there_unless_the_recipe_says_otherwise(home, undisturbed, tmp_path):
    raw = short(home, "twin:0")
    del raw["precision"]
    told = tiny_run.train(raw, tmp_path / "run")
    assert "device twin:0 (pretend accelerator), passes of training in bfloat16" in told.notes
    losses = {
        phase: [loss for _, loss in steps]
        for phase, steps in tiny_run.steps(tmp_path / "run").items()
    }
    plain = {
        phase: [loss for _, loss in steps]
        for phase, steps in tiny_run.steps(home.path / "undisturbed").items()
    }
    assert losses != plain and all(
        losses[phase] == pytest.approx(plain[phase], rel=0.2) for phase in plain
    )
    for path in (tmp_path / "run").rglob("*.safetensors"):
        assert all(tensor.dtype is torch.float32 for tensor in load_file(path).values()), path


@pytest.mark.parametrize("several", ["concatenate", "heads"])
def test_several_teachers(home, tmp_path, several):
    tiny.write_teacher(tmp_path / "second", seed=9)
    found = []
    for device in PLACES.values():
        raw = short(home, device) | {"several": several}
        raw["teacher"] = {
            "model": str(home.path / "teacher"),
            "max_length": 32,
            "instructions": {"query": ""},
            "dtype": "float32",
            "device": device,
        }
        raw["teachers"] = {"second": {**raw["teacher"], "model": str(tmp_path / "second")}}
        raw["adapters"] = {
            "clustering": recipe(home.path, device)["adapters"]["clustering"] | {"steps": 2}
        }
        out = tmp_path / device.partition(":")[0]
        tiny_run.train(raw, out / "run")
        found.append(
            (
                tiny_run.weights(out / "run"),
                sorted(path.name for path in (out / "teacher-store").glob("*") if path.is_dir()),
            )
        )
    assert found[0] == found[1], "vectors of the teachers were made there too, under the same names"


def test_a_vocabulary_that_is_learned(home, tmp_path):
    found = []
    for device in PLACES.values():
        raw = short(home, device)
        raw["student"] |= {"vocabulary": {"size": 120}}
        raw["adapters"] = {}
        out = tmp_path / device.partition(":")[0]
        tiny_run.train(raw, out)
        found.append(tiny_run.weights(out))
    assert found[0] == found[1]


def both(tmp_path: Path, *words: Any, out: str = "") -> tuple[Path, Path]:
    """Run a command on the CPU and on the accelerator, each into a folder or file of its own."""
    made = []
    for name, device in PLACES.items():
        target = tmp_path / f"{name}{out}"
        assert command([*map(str, words), "--out", str(target), "--device", device]) == 0, words
        made.append(target)
    return made[0], made[1]


LINE = "device twin:0 (pretend accelerator), float32"


@pytest.fixture(scope="session")
def texts(home) -> Path:
    return tiny.write_jsonl(
        home.path / "texts.jsonl",
        [{"text": " ".join(tiny.WORDS[i : i + 3 + i % 4])} for i in range(0, 60, 3)],
    )


def test_encode(home, texts, tmp_path, capsys):
    one, two = both(
        tmp_path, "encode", home.path / "twin/model", texts, "--task", "retrieval", out=".npy"
    )
    assert np.array_equal(np.load(one), np.load(two)) and LINE in capsys.readouterr().out
    half = tmp_path / "half.npy"
    words = [
        "encode",
        home.path / "twin/model",
        texts,
        "--task",
        "retrieval",
        "--out",
        half,
        "--device",
        "twin",
        "--dtype",
        "bfloat16",
    ]
    assert (
        command(list(map(str, words))) == 0
        and "device twin:0 (pretend accelerator), bfloat16" in capsys.readouterr().out
    )
    assert 0.99 < (np.load(half) * np.load(one)).sum(1).min() < 1
    for extra in (["--windows", "--max-length", "12"], ["--chunks", "4"]):
        one, two = both(
            tmp_path, "encode", home.path / "twin/model", texts, *extra, out=f"{len(extra)}.jsonl"
        )
        assert one.read_bytes() == two.read_bytes()
    one, two = both(
        tmp_path,
        "encode",
        home.path / "twin/static-model",
        texts,
        "--chunks",
        "4",
        out="-static.jsonl",
    )
    assert one.read_bytes() == two.read_bytes()
    one, two = both(
        tmp_path, "encode", home.path / "twin/model", texts, "--shard-rows", "8", out="-shards"
    )
    assert [p.read_bytes() for p in sorted(one.rglob("*.npy"))] == [
        p.read_bytes() for p in sorted(two.rglob("*.npy"))
    ]
    assert (
        command(
            [
                "encode",
                str(home.path / "twin/model"),
                str(texts),
                "--out",
                str(half),
                "--device",
                "gpu",
            ]
        )
        == 2
    )
    assert "unknown device 'gpu'" in capsys.readouterr().err


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if "second" not in key}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def test_evaluate_needle_and_probe(home, tmp_path, capsys):
    data = ["--data", home.path / "data", "--eval-set", "retrieval/qa", "--eval-set", "sts/sts"]
    one, two = both(
        tmp_path, "evaluate", home.path / "twin/model", home.path / "teacher", *data, out="-eval"
    )
    scores = [
        without_times(json.loads((each / "results.json").read_text())["scores"])
        for each in (one, two)
    ]
    assert scores[0] == scores[1] and LINE in capsys.readouterr().out
    again = [
        "evaluate",
        home.path / "twin/model",
        *data,
        "--out",
        two,
        "--device",
        "twin:0",
        "--dtype",
        "bfloat16",
    ]
    assert command(list(map(str, again))) == 0
    half = json.loads((two / "results.json").read_text())
    assert (
        half["models"][0]["fingerprint"]
        != json.loads((one / "results.json").read_text())["models"][0]["fingerprint"]
    )
    one, two = both(
        tmp_path,
        "needle",
        home.path / "twin/model",
        "--lengths",
        "64",
        "--documents",
        "4",
        out="-needle",
    )
    assert (
        json.loads((one / "results.json").read_text())["rows"]
        == json.loads((two / "results.json").read_text())["rows"]
    )
    small = [
        "--max-texts",
        "30",
        "--steps",
        "4",
        "--data",
        home.path / "data",
        "--eval-set",
        "sts/sts",
    ]
    one, two = both(tmp_path, "probe", home.path / "teacher", *small, out="-probe")
    first, second = (
        without_times(json.loads((each / "probe.json").read_text())["teachers"])
        for each in (one, two)
    )
    assert first == second


def hits(capsys: Any, *words: Any) -> tuple[str, str]:
    capsys.readouterr()
    assert command(list(map(str, words))) == 0
    shown = capsys.readouterr()
    return shown.out, shown.err


def test_index_search_tune_tiers_and_migrate(home, tmp_path, capsys):
    dev = home.path / "data/retrieval/qa-dev"
    one, two = both(
        tmp_path,
        "index",
        home.path / "twin/model",
        dev / "corpus.jsonl.gz",
        "--rescore-precision",
        "float32",
        out="-index",
    )
    assert LINE in capsys.readouterr().out
    expected, _ = hits(capsys, "search", one, "wheat milk cow", "--device", "cpu")
    for index, device in ((two, "twin:0"), (one, "twin:0"), (two, "cpu")):
        out, err = hits(capsys, "search", index, "wheat milk cow", "--device", device)
        assert out == expected and err.startswith(f"device {device}")
    tuned = [
        "search",
        "tune",
        two,
        "--dev",
        dev,
        "--dry-run",
        "--oversample",
        "2",
        "--no-refine",
        "--no-hybrid",
        "--dims",
        "32",
    ]
    assert LINE in hits(capsys, *tuned, "--device", "twin:0")[0]
    out, _ = hits(
        capsys,
        "tiers",
        home.path / "twin/model",
        "--teacher",
        home.path / "teacher",
        "--dev",
        dev,
        "--device",
        "twin:0",
    )
    assert LINE in out
    base, large, rng = tmp_path / "teacher-index", tmp_path / "large", np.random.default_rng(0)
    rows = [
        {"_id": f"d{i}", "text": tiny.sentence(list(tiny.TOPICS)[i % 8], rng)} for i in range(104)
    ]
    tiny.write_jsonl(large / "corpus.jsonl", rows)
    tiny.write_jsonl(
        large / "queries.jsonl", [{"_id": f"q{i}", "text": rows[i]["text"][:20]} for i in range(3)]
    )
    (large / "qrels.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td{i}\t1\n" for i in range(3))
    )
    hits(
        capsys,
        "index",
        home.path / "teacher",
        large / "corpus.jsonl",
        "--out",
        base,
        "--device",
        "twin:0",
    )
    moving = [
        "migrate",
        base,
        home.path / "twin/model",
        "--dev",
        large,
        "--threshold",
        "0",
        "--device",
        "twin:0",
        "--map",
        "procrustes",
    ]
    assert LINE in hits(capsys, *moving, "--out", tmp_path / "migration")[0]
    assert hits(capsys, "search", tmp_path / "migration", "wheat milk cow", "--device", "twin:0")[
        1
    ].startswith("device twin:0")


@pytest.mark.parametrize("by", ["teacher", "model"])
def test_mine(home, tmp_path, by):
    raw = recipe(home.path, "cpu")
    (tmp_path / "r.yaml").write_text(json.dumps(raw))
    chosen = ["--model", home.path / "twin/model"] if by == "model" else ["--dtype", "float32"]
    found = []
    for name, device in PLACES.items():
        out = tmp_path / name / "mined"
        out.parent.mkdir()
        words = [
            "mine",
            tmp_path / "r.yaml",
            "--source",
            "qa",
            "--out",
            out,
            "--device",
            device,
            "--quiet",
            *chosen,
        ]
        assert command(list(map(str, words))) == 0
        found.append(gzip.decompress((out / "pairs/qa.train.jsonl.gz").read_bytes()))
    assert found[0] == found[1]


def test_adapt(home, tmp_path, capsys):
    rows = home.path / "data/labelled/topics.train.jsonl.gz"
    settings = [
        f"--set={key}={value}"
        for key, value in {
            "steps": 3,
            "rank": 4,
            "alpha": 4,
            "batch_size": 8,
            "max_length": 32,
        }.items()
    ]
    found = []
    for name, device in PLACES.items():
        model = tmp_path / name / "model"
        shutil.copytree(home.path / "twin/model", model)
        words = [
            "adapt",
            model,
            rows,
            "--task",
            "classification",
            "--name",
            "topics",
            "--device",
            device,
            "--dtype",
            "float32",
            *settings,
        ]
        assert command(list(map(str, words))) == 0
        found.append(load_file(model / "adapters/topics/adapter_model.safetensors"))
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())
    assert "device twin:0 (pretend accelerator), passes in float32" in capsys.readouterr().out


def test_merge_and_shrink(home, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(
        merging_job,
        "paired_difference",
        lambda *_: PairedDifference(Estimate(0.02, 0.01, 0.03), 0.01),
    )
    other = read_model(home.path / "twin/model")
    for tensor in weights_of(other).values():
        tensor.data.add_(
            0.02 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0))
        )
    write_model(tmp_path / "other", other)
    two = [str(home.path / "twin/model"), str(tmp_path / "other")]
    for method in ("greedy", "spherical"):
        found = []
        for name, device in PLACES.items():
            out = tmp_path / f"{name}-{method}"
            told = merge(
                two,
                EvalSelection(home.path / "data", ["sts/sts"]),
                out,
                SilentProgress(),
                method=method,
                runtime=RuntimeOptions(device, threads=1),
            )
            found.append(
                (
                    {**told, "model": None},
                    tiny_run.weights(out.parent / out.name),
                    load_file(out / "model.safetensors"),
                )
            )
        assert found[0][0] == found[1][0]
        assert all(torch.equal(tensor, found[1][2][name]) for name, tensor in found[0][2].items())
    options = [
        "--texts",
        texts,
        "--vocabulary",
        "--layers",
        "1",
        "--width",
        "20",
        "--sample",
        "10",
        "--data",
    ]
    one, two = both(
        tmp_path,
        "shrink",
        home.path / "teacher",
        *options,
        home.path / "data",
        "--eval-set",
        "sts/sts",
        out="-small",
    )
    first, second = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert first.keys() == second.keys() and all(
        torch.equal(tensor, second[name]) for name, tensor in first.items()
    )


def test_export_and_verify(home, texts, tmp_path, capsys):
    words = [
        "export",
        home.path / "twin/model",
        "--format",
        "sentence-transformers",
        "--task",
        "retrieval",
        "--out",
        tmp_path / "out",
    ]
    assert command(list(map(str, words))) == 0
    assert (
        command(
            [
                "info",
                str(home.path / "twin/model"),
                "--verify",
                "--backend",
                "torch",
                "--device",
                "twin:0",
            ]
        )
        == 0
    )
    assert LINE in capsys.readouterr().out
    assert command(["info", str(home.path / "twin/model"), "--device", "twin:0"]) == 2
    assert "no effect without --verify" in capsys.readouterr().err


def experiment(home: Home, device: str) -> Experiment:
    raw = tiny_ablation.raw(home.path / "data", home.path / "teacher", steps=4)
    raw["student"] |= {
        "config": tiny.config("qwen3", layers=1),
        "pooling": "last",
        "tokenizer": str(home.path / "teacher"),
    }
    raw["stage1"] |= {"rope_theta": 50.0}
    raw["evaluation"] = {"dev": ["retrieval/qa-dev"], "sets": ["retrieval/qa"], "max_queries": 8}
    settings = tiny_ablation.settings(
        seeds=1, pilot_seeds=1, trials=1, points=2, arms=["A0", "D", "C", "DC", "D-shuffled"]
    )
    return make_experiment(parse_recipe(raw | {"device": device, "precision": "float32"}), settings)


def test_ablate_honours_device_and_theta(home, tmp_path):
    theta, found = [], {}
    real = loop.gradients

    def watched(model: Any, *args: Any, **options: Any) -> Any:
        theta.append((model.backbone.config.rope_parameters["rope_theta"], model.device.type))
        return real(model, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "gradients", watched)
        for name, device in PLACES.items():
            told = tiny_run.Recorder()
            results = ablate(experiment(home, device), tmp_path / name / "out", progress=told)
            found[name] = (
                {
                    arm: [run["hashes"] for run in each["runs"]]
                    for arm, each in results["arms"].items()
                },
                [[run["score"] for run in each["runs"]] for each in results["arms"].values()],
            )
    assert found["cpu"] == found["twin"] and set(theta) == {(50.0, "cpu"), (50.0, "twin")}
    assert "device twin:0 (pretend accelerator), passes of training in float32" in told.notes
    base = read_model(home.path / "teacher").module.backbone.config.rope_parameters["rope_theta"]
    assert base == 1000.0
