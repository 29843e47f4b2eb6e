"""The published models' recipes: Table A1 number by number, and a scaled-down twin of each through
every phase.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import tiny, tiny_hub
from transformers import EuroBertModel, Qwen3Model

from taskdistill.encode.encoder import Encoder
from taskdistill.export.export import export
from taskdistill.model.folder import read_model
from taskdistill.pipeline.setup import start_student
from taskdistill.pipeline.train import train
from taskdistill.recipe.recipe import load_recipe, parse_recipe
from taskdistill.recipe.teacher import SEARCH_INSTRUCTION, TOPIC_INSTRUCTION
from taskdistill.tasks import Task

RECIPES = Path(__file__).parents[2] / "recipes"

# phase: steps, rows a step (devices x batch), tokens, learning rate, theta (Table A1)
TABLE = {
    "small": {
        "stage1": (50_000, 8 * 512, 512, 1e-4, 1e6),
        "long": (6_500, 2 * 64, 4096, 1e-4, 5e5),
        "adapters.retrieval": (8_000, 2 * 256, 384, 2e-5, 1e6),
        "adapters.text-matching": (20_000, 256, 384, 5e-5, 1e6),
        "adapters.clustering": (20_000, 512, 512, 1e-5, 1e5),
        "adapters.classification": (30_000, 4 * 64, 512, 4e-4, 3.5e6),
    },
    "nano": {
        "stage1": (50_000, 8 * 1024, 512, 1e-4, 2.5e5),
        "adapters.retrieval": (8_000, 2 * 384, 384, 2e-5, 2.5e5),
        "adapters.text-matching": (20_000, 256, 384, 5e-5, 2.5e5),
        "adapters.clustering": (20_000, 1024, 512, 1e-5, 2.5e4),
        "adapters.classification": (30_000, 4 * 128, 512, 4e-4, 1e6),
    },
}
LONG = {"small": [2 * 64, 4096], "nano": [2 * 96, 4096]}
FAMILY = {"small": "qwen3", "nano": "eurobert"}


@pytest.mark.parametrize("name", TABLE)
def test_every_phase_of_table_a1(name):
    recipe = load_recipe(RECIPES / f"jina-v5-{name}.yaml")
    phases = recipe.phases()
    found = {
        key: (p.steps, p.batch_size, p.max_length, p.lr, p.rope_theta) for key, p in phases.items()
    }
    assert found == TABLE[name]
    assert recipe.precision == "bfloat16"
    retrieval = recipe.adapters[Task.RETRIEVAL]
    assert {tuple(profile) for profile in retrieval.long_sources.values()} == {tuple(LONG[name])}
    assert (
        retrieval.weights == {"info_nce": 1, "distill": 2, "gor": 1}
        and retrieval.learn_temperature
        and retrieval.average
    )
    assert recipe.adapters[Task.TEXT_MATCHING].weights == {"info_nce": 1, "distill": 2, "cosent": 1}
    assert recipe.adapters[Task.TEXT_MATCHING].cosent_temperature == 0.05
    assert recipe.adapters[Task.CLUSTERING].weights == {"distill": 1}
    assert recipe.adapters[Task.CLASSIFICATION].weights == {"info_nce": 1, "relational": 20}
    assert recipe.adapters[Task.CLASSIFICATION].negatives == 7
    for task, adapter in recipe.adapters.items():
        assert (adapter.rank, adapter.alpha, adapter.dropout) == (
            32,
            32,
            0.05 if task is Task.CLASSIFICATION else 0.1,
        )
        assert adapter.temperature == 0.02


@pytest.mark.parametrize("name", TABLE)
def test_models_teacher_and_data(name):
    recipe = load_recipe(RECIPES / f"jina-v5-{name}.yaml")
    assert (
        recipe.teacher.model == "Qwen/Qwen3-Embedding-4B" and recipe.teacher.embedding_dim == 2560
    )
    instructions = recipe.teacher.instructions
    assert (instructions.query, instructions.document, instructions.topic) == (
        SEARCH_INSTRUCTION,
        None,
        TOPIC_INSTRUCTION,
    )
    assert instructions.template == "Instruct: {instruction}\nQuery:{text}"
    student = recipe.student
    expected = {
        "small": ("Qwen/Qwen3-0.6B-Base", 32_768, 3.5e6, 1024),
        "nano": ("EuroBERT/EuroBERT-210m", 8_192, 1e6, 768),
    }[name]
    assert (
        student.init,
        student.max_length,
        student.rope_theta,
        student.matryoshka_dims[-1],
    ) == expected
    assert student.prompts == {"query": "Query: ", "document": "Document: "}
    sources = recipe.data.sources
    assert all(
        source.licence and source.note and source.rows and source.tokens
        for source in sources.values()
    )
    spoken = {key: source.languages or list(source.subset) for key, source in sources.items()}
    assert (
        len({language for each in spoken.values() for language in each}) >= 30
    )  # "more than 30 languages"
    used = {source for phase in recipe.phases().values() for source in phase.sources}
    assert used == set(sources) and recipe.teacher.licence and recipe.student.licence


@pytest.fixture(scope="module", params=TABLE)
def hub(request, tmp_path_factory) -> tuple[str, Path]:
    """One of the two recipes and its backbone's folder in the form of the Hub, at full
    vocabulary.
    """
    folder = tmp_path_factory.mktemp("hub")
    return request.param, tiny_hub.write(
        FAMILY[request.param], folder / "backbone", canary=folder / "ran"
    )


def test_the_backbones_start_from_the_hubs_folders_without_their_code(hub, monkeypatch):
    """The family's own class reads them: `auto_map`, heads, bfloat16, a table with more rows than
    the tokenizer has ids.
    """
    name, folder = hub
    raw = yaml.safe_load((RECIPES / f"jina-v5-{name}.yaml").read_text("utf-8"))
    raw["student"] |= {"init": str(folder), "matryoshka_dims": [16]}
    for weights in (False, True):
        student = start_student(parse_recipe(raw), weights=weights)
    backbone = student.module.backbone
    assert (
        type(backbone).__module__ == f"transformers.models.{FAMILY[name]}.modeling_{FAMILY[name]}"
    )
    assert backbone.get_input_embeddings().weight.shape == (tiny_hub.ROWS[FAMILY[name]], 32)
    assert len(student.tokenizer) == student.tokenizer.rows == tiny_hub.IDS[FAMILY[name]]
    ids = student.tokenizer.ids(["Der alte Hafen, 港"], prompt="", max_length=64).ids[0]
    assert ids[-1] == {"small": 151_643, "nano": 128_001}[name]  # pooling takes the end of the text
    assert student.settings.rope_theta == {"small": 3.5e6, "nano": 1e6}[name]
    model = {"qwen3": Qwen3Model, "eurobert": EuroBertModel}[FAMILY[name]]
    theirs = model.from_pretrained(
        folder, dtype=torch.float32, rope_parameters=backbone.config.rope_parameters
    ).eval()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids.astype("int64"))[None]).last_hidden_state[0, -1]
        assert (student.module.embed([ids])[0] - expected).abs().max() <= 1e-5
    assert not (folder.parent / "ran").exists()


@pytest.mark.slow
def test_the_recipes_run_from_the_hubs_folders(hub, tmp_path):
    name, folder = hub
    raw = twin(name, tmp_path)
    raw["student"] = {
        key: value for key, value in raw["student"].items() if key not in ("config", "tokenizer")
    }
    raw["student"] |= {"init": str(folder), "matryoshka_dims": [16]}
    train(parse_recipe(raw), tmp_path / "run", assess=lambda run, model, static: {})
    model = read_model(tmp_path / "run" / "model")
    assert (
        model.module.tasks == [task.value for task in Task]
        and len(model.tokenizer) == tiny_hub.IDS[FAMILY[name]]
    )
    assert Encoder(model, threads=1).encode(["the old ship"], task="retrieval").shape == (1, 32)
    assert not (folder.parent / "ran").exists()


def test_both_recipes_name_the_same_data():
    small, nano = (
        yaml.safe_load((RECIPES / f"jina-v5-{name}.yaml").read_text("utf-8")) for name in TABLE
    )
    assert small["data"] == nano["data"]


def twin(name: str, folder: Path) -> dict[str, Any]:
    """The published recipe with its own losses, weights and thetas, at tiny sizes over
    tiny data.
    """
    raw = yaml.safe_load((RECIPES / f"jina-v5-{name}.yaml").read_text("utf-8"))
    root = tiny.write_data(folder / "data")
    small = tiny.recipe(root, tiny.write_teacher(folder / "teacher", family="qwen3"))
    by_kind = {"pairs": "qa", "texts": "lone", "scored": "sts", "labelled": "topics"}
    kinds = {source: by_kind[said["kind"]] for source, said in raw["data"]["sources"].items()}
    phases = [raw["stage1"], *([raw["long"]] if "long" in raw else []), *raw["adapters"].values()]
    for phase in phases:
        long = {"qa": (4, 32)} if phase.pop("long_sources", None) else {}
        phase["sources"] = {kinds[source]: weight for source, weight in phase["sources"].items()}
        phase |= {
            "steps": 2,
            "batch_size": 6,
            "max_length": 24,
            "long_sources": long,
            "micro_batch_tokens": 256,
            "checkpoint_every": 2,
        }
        if "rank" in phase:
            phase |= {"rank": 4, "alpha": 4}
    raw |= {"name": f"{name}-twin", "threads": 1, "data": small["data"], "precision": "auto"}
    raw["teacher"] |= {"model": str(folder / "teacher"), "max_length": 32, "embedding_dim": 32}
    raw["teacher"]["instructions"] = small["teacher"]["instructions"]  # which leave room for a text
    raw["student"] |= {
        "init": "config",
        "config": tiny.config(FAMILY[name]),
        "max_length": 64,
        "matryoshka_dims": [8, 16],
    }
    raw["student"]["tokenizer"] = str(tiny.write_tokenizer(folder / "tokenizer", end=True))
    raw["adapters"]["retrieval"].pop("average")
    return raw


@pytest.mark.parametrize("name", TABLE)
def test_a_scaled_down_twin_runs_through_every_phase_and_out_again(name, tmp_path):
    raw = twin(name, tmp_path)
    for kind in (
        "scored",
        "labelled",
        "retrieval",
    ):  # no evaluation sets, as where the recipe's own data come from the Hub
        for path in (tmp_path / "data" / kind).glob("*"):
            shutil.rmtree(path) if path.is_dir() else ("train" in path.name or path.unlink())
    recipe = parse_recipe(raw)
    assert list(recipe.phases()) == list(TABLE[name])
    metrics = train(recipe, tmp_path / "run")
    assert metrics["results"]["sets"] == [] and (tmp_path / "run" / "report.html").is_file()
    model = read_model(tmp_path / "run" / "model")
    assert model.module.backbone.config.model_type == FAMILY[name]
    assert model.module.tasks == [task.value for task in Task]
    assert model.settings.rope_theta == {"small": 3.5e6, "nano": 1e6}[name]
    parity = export(tmp_path / "run" / "model", "jina-v5", tmp_path / "published")
    assert parity.verdict == "equal"
    texts = ["the old ship", "a star near the moon"]
    ours = Encoder.load(tmp_path / "run" / "model", threads=1).encode(texts, task="clustering")
    again = Encoder.load(tmp_path / "published", threads=1).encode(texts, task="clustering")
    assert abs(ours - again).max() <= 1e-5
