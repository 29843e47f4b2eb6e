"""Plans: hand-computed work, the paper's own recipes without hub, weights or data, and what is
missing said by name.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from helpers import tiny

from taskdistill.cli.main import run
from taskdistill.errors import BadInput
from taskdistill.model import backbone
from taskdistill.model.flops import ModelSize, adapter_size, size_of
from taskdistill.model.sketch import KNOWN, sketch
from taskdistill.pipeline import setup
from taskdistill.pipeline.costs import CARD_REACHED, CARDS
from taskdistill.pipeline.plan import plan_run
from taskdistill.pipeline.plan_tables import plan_tables
from taskdistill.progress import SilentProgress
from taskdistill.recipe.recipe import load_recipe, parse_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
RATE = CARDS["h100"][0] * CARD_REACHED


class Notes(SilentProgress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def no_weights(monkeypatch):
    """Loading any weight is a failure."""

    def refuse(*_, **__):
        raise AssertionError("a plan loads no weights")

    monkeypatch.setattr(setup, "load_backbone", refuse)
    monkeypatch.setattr(backbone.AutoModel, "from_pretrained", refuse)


@pytest.mark.parametrize(
    ("model", "parameters", "matrix"),
    [
        ("Qwen/Qwen3-0.6B-Base", 596_049_920, 440_401_920),
        ("EuroBERT/EuroBERT-210m", 211_766_016, 113_246_208),
        ("Qwen/Qwen3-Embedding-4B", 4_021_774_336, 3_633_315_840),
    ],
)
def test_the_known_architectures(model, parameters, matrix):
    found = sketch(model)
    size = size_of(found.backbone)
    assert (size.parameters, size.matrix) == (parameters, matrix)
    assert all(p.device.type == "meta" for p in found.backbone.parameters())
    assert size.causal == (KNOWN[model]["model_type"] == "qwen3")
    expected = {"Qwen/Qwen3-0.6B-Base": 20_185_088, "EuroBERT/EuroBERT-210m": 6_782_976}
    if model in expected:
        assert adapter_size(found.backbone, 32) == expected[model]


def test_work_of_a_forward_pass():
    assert (
        ModelSize(parameters=0, matrix=100, layers=2, width=8, attention=16, causal=False).forward(
            10
        )
        == 2 * 100 * 10 + 4 * 16 * 10 * 10
    )
    assert (
        ModelSize(parameters=0, matrix=100, layers=2, width=8, attention=16, causal=True).forward(
            10
        )
        == 2 * 100 * 10 + 4 * 16 * 10 * 10 / 2
    )


@pytest.mark.parametrize(("name", "weights"), [("small", 596_049_920), ("nano", 211_766_016)])
def test_the_papers_recipes_without_hub_weights_or_data(
    name, weights, no_weights, capsys, tmp_path
):
    progress = Notes()
    found = plan_run(load_recipe(RECIPES / f"jina-v5-{name}.yaml"), RECIPES, progress)
    assert found["student"]["parameters"] == weights
    assert found["total"]["steps"] == {"small": 134_500, "nano": 128_000}[name]
    assert all(phase["gpu_hours"] > 0 for phase in found["phases"].values())
    teacher, total = found["teacher"], found["total"]
    assert (
        10e6 < teacher["texts"] < 100e6
        and teacher["texts"] * 5 < teacher["tokens"] < teacher["texts"] * 512
    )
    assert teacher["disk_megabytes"] == pytest.approx(
        teacher["texts"] * (2 * 2560 + 16) / 1e6, rel=1e-3
    )
    assert total["gpu_hours"] == pytest.approx(
        teacher["gpu_hours"] + total["training_gpu_hours"], abs=0.2
    )
    assert 0 < total["gpu_memory_gigabytes"] < 80
    assert total["memory_megabytes"] > 0 and total["disk_megabytes"] > teacher["disk_megabytes"]
    assert any("the known architecture" in note for note in progress.notes)
    assert any(note.startswith("msmarco: 503,000 rows, stated") for note in progress.notes)
    shown = {title: rows for title, _, rows in plan_tables(found)}
    assert [row[0] for row in shown["Phases"]] == list(found["phases"])
    assert {row[0] for row in shown["Costs"]} >= {
        "teacher",
        "training",
        "in all",
        "GPU memory",
        "memory",
        "disk",
        "formula",
    }
    assert all(len(row) == 8 for row in shown["Phases"])


def stated(tmp_path: Path, **changes) -> dict:
    """A recipe of two Hub sources and a known backbone."""
    phase = {"steps": 10, "batch_size": 4, "max_length": 100, "lr": 1e-4}
    pairs = {
        "path": "hub:a/pairs",
        "kind": "pairs",
        "rows": 30,
        "tokens": {"query": 10, "positive": 200},
    }
    labels = {"path": "hub:a/labels", "kind": "labelled", "rows": 500, "tokens": {"text": 20}}
    return {
        "name": "stated",
        "data": {"root": str(tmp_path), "sources": {"pairs": pairs, "labels": labels}},
        "teacher": {
            "model": "Qwen/Qwen3-Embedding-4B",
            "instructions": {"document": None},
            "max_length": 150,
        },
        "student": {"init": "EuroBERT/EuroBERT-210m", "pooling": "last", "matryoshka_dims": [768]},
        "stage1": {**phase, "sources": {"pairs": 1}},
        "adapters": {"classification": {**phase, "sources": {"labels": 1}, "negatives": 3}},
        "evaluation": {"sets": []},
    } | changes


def test_numbers_of_a_small_plan_by_hand(tmp_path, no_weights):
    found = plan_run(parse_recipe(stated(tmp_path)), tmp_path, SilentProgress())
    student, teacher = (
        size_of(sketch("EuroBERT/EuroBERT-210m").backbone),
        size_of(sketch("Qwen/Qwen3-Embedding-4B").backbone),
    )
    stage1, adapter = found["phases"]["stage1"], found["phases"]["adapters.classification"]
    assert stage1["tokens"] == 10 * 4 * (10 + 100)  # the positive is cut at 100
    assert stage1["largest_batch_tokens"] == 4 * 110
    assert stage1["gpu_hours"] == pytest.approx(
        round(3 * 40 * (student.forward(10) + student.forward(100)) / RATE / 3600, 2)
    )
    assert adapter["tokens"] == 10 * 4 * 5 * 20  # an anchor, a positive and three negatives
    assert adapter["gpu_hours"] == pytest.approx(
        round(3.2 * 40 * 5 * student.forward(20) / RATE / 3600, 2)
    )
    # 40 draws of 30 rows: every row once under each view; classification asks no teacher
    told = parse_recipe(stated(tmp_path)).teacher.instructions
    query = 10 + len((told.template + told.query).encode()) / 4
    assert found["teacher"]["texts"] == 60
    assert found["teacher"]["tokens"] == round(30 * query + 30 * 150)
    assert found["teacher"]["disk_megabytes"] == round(60 * (2 * 2560 + 16) / 1e6, 1)
    hours = 30 * (teacher.forward(query) + teacher.forward(150)) / RATE / 3600
    assert found["teacher"]["gpu_hours"] == round(hours, 1)
    source = found["phases"]["stage1"]["sources"][0]
    assert (source["rows"], source["batches"]) == (30, 10) and source["epochs"] == pytest.approx(
        40 / 30
    )


def test_everything_that_is_missing_is_named_at_once(tmp_path):
    raw = stated(tmp_path)
    for source in raw["data"]["sources"].values():
        del source["rows"]
    with pytest.raises(BadInput, match="how many rows these have: pairs, labels; add rows"):
        plan_run(parse_recipe(raw), tmp_path, SilentProgress())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"student": {"init": "someone/unknown", "pooling": "last", "matryoshka_dims": [8]}},
            "the size of someone/unknown is not known",
        ),
        (
            {"student": {"init": "EuroBERT/EuroBERT-210m", "matryoshka_dims": [768]}},
            "student.pooling is missing",
        ),
        (
            {
                "student": {
                    "init": "EuroBERT/EuroBERT-210m",
                    "pooling": "last",
                    "matryoshka_dims": [999],
                }
            },
            r"matryoshka_dims names \[999\]",
        ),
        (
            {
                "student": {
                    "init": "EuroBERT/EuroBERT-210m",
                    "pooling": "last",
                    "max_length": 9000,
                    "matryoshka_dims": [768],
                }
            },
            "max_length is 9000, the backbone has positions for 8192",
        ),
        (
            {
                "teacher": {
                    "model": "Qwen/Qwen3-Embedding-4B",
                    "instructions": None,
                    "embedding_dim": 1024,
                }
            },
            "has 2560; correct the recipe",
        ),
        (
            {
                "teacher": {
                    "model": "Qwen/Qwen3-Embedding-4B",
                    "instructions": None,
                    "max_length": 50_000,
                }
            },
            "reads at most 40960 tokens",
        ),
    ],
)
def test_bad_settings_are_found_without_the_models(tmp_path, change, said):
    with pytest.raises(BadInput, match=said):
        plan_run(parse_recipe(stated(tmp_path, **change)), tmp_path, SilentProgress())


def test_bad_sources_are_found_without_the_data(tmp_path):
    raw = stated(tmp_path)
    raw["stage1"]["batch_size"] = 31
    with pytest.raises(BadInput, match="batch of 31 is larger than data set 'pairs' with 30 rows"):
        plan_run(parse_recipe(raw), tmp_path, SilentProgress())
    raw = stated(tmp_path)
    raw["data"]["sources"]["pairs"]["tokens"] = {"querry": 3}
    with pytest.raises(BadInput, match=r"tokens names \['querry'\].*did you mean 'query'"):
        plan_run(parse_recipe(raw), tmp_path, SilentProgress())
    raw = stated(tmp_path)
    raw["adapters"]["classification"]["sources"] = {"pairs": 1}
    with pytest.raises(
        BadInput, match="source 'pairs' has pairs rows, this task learns from labelled"
    ):
        plan_run(parse_recipe(raw), tmp_path, SilentProgress())
    with pytest.raises(BadInput, match="unknown GPU 'h1000'; did you mean 'h100'"):
        plan_run(parse_recipe(stated(tmp_path)), tmp_path, SilentProgress(), card="h1000")


def test_a_card_is_refused_where_nothing_is_on_the_hub():
    with pytest.raises(BadInput, match="the card 'a100' has no effect"):
        plan_run(load_recipe(RECIPES / "quickstart.yaml"), RECIPES, SilentProgress(), card="a100")


def test_files_beside_hub_sources_are_read(tmp_path):
    root = tiny.write_data(tmp_path / "data")
    raw = stated(root)
    raw["data"]["sources"]["own"] = {"path": "pairs/qa.train.jsonl.gz", "kind": "pairs"}
    raw["stage1"]["sources"] = {"pairs": 1, "own": 1}
    found = plan_run(parse_recipe(raw), tmp_path, SilentProgress())
    assert found["sources"]["own"]["from"] == "read" and found["sources"]["own"]["rows"] == 48
    assert 3 < found["sources"]["own"]["tokens"]["positive"] < 30


def test_a_plan_of_local_files_loads_no_weights_and_prints(tmp_path, no_weights, capsys):
    raw = tiny.recipe(
        tiny.write_data(tmp_path / "data"), tiny.write_teacher(tmp_path / "teacher"), steps=2
    )
    raw["student"]["pooling"] = "mean"
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(raw))
    assert run(["plan", str(tmp_path / "r.yaml"), "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "distinct texts" in printed and "minutes = floating-point work" in printed
