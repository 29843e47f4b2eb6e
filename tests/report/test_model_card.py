"""The model card: every number with its command, every source with its licence."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml
from helpers import tiny

from taskdistill.report.model_card import CardRun, CardScore, make_card

PHASE = {
    "steps": 50_000,
    "batch_size": 8192,
    "max_length": 512,
    "lr": 1e-4,
    "rope_theta": 250_000.0,
}
SOURCES = {
    "nq": {
        "path": "hub:someone/natural-questions",
        "kind": "pairs",
        "licence": "CC-BY-SA-3.0",
        "note": "questions",
    },
    "own": {"path": "own.jsonl", "kind": "texts"},
    "unread": {"path": "hub:someone/unread", "kind": "texts"},
}
COMMAND = "taskdistill evaluate model --data data --out scores"
SCORES = [
    CardScore(
        set="scifact",
        task="retrieval",
        metric="nDCG@10",
        score=0.7,
        interval=(0.65, 0.75),
        teacher=0.8,
        language="en",
        command=COMMAND,
    ),
    CardScore(
        set="sts",
        task=None,
        metric="Spearman",
        score=0.5,
        interval=(0.4, 0.6),
        teacher=None,
        language=None,
        command=COMMAND,
    ),
]


@pytest.fixture
def model(tmp_path):
    tiny_model = tiny.model(tiny.student(), tmp_path)
    tiny_model.settings = replace(
        tiny_model.settings,
        max_length=8192,
        rope_theta=1_000_000.0,
        teacher={"model": "Qwen/Qwen3-Embedding-4B"},
    )
    return tiny_model


@pytest.fixture
def card(model, tmp_path):
    raw = tiny.recipe(tmp_path, tmp_path / "teacher") | {"static": None}
    retrieval = PHASE | {"weights": {"info_nce": 1.0, "distill": 2.0}, "max_length": 384}
    raw["data"]["sources"] = SOURCES
    raw["stage1"] = PHASE | {"sources": {"nq": 1}}
    raw["adapters"] = {"retrieval": retrieval | {"sources": {"nq": 1}}}
    run = CardRun(
        recipe=tiny.parsed(raw),
        command="taskdistill train recipes/tiny.yaml --out runs/tiny",
        base_model="EuroBERT/EuroBERT-210m",
        base_licence="Apache-2.0",
        teacher_licence="Apache-2.0",
        rows={"nq": 1000, "own": 20},
        languages={"nq": ["en"], "own": ["de", "en"]},
        hashes={"recipe": "abc"},
        versions={"python": "3.11"},
        warnings=["the loss of stage1 rose"],
        scores=SCORES,
    )
    return make_card(model, ["retrieval", "clustering"], run)


def test_header_is_what_hubs_read(card):
    fields = yaml.safe_load(card.split("---")[1])
    assert fields["language"] == ["de", "en"]
    assert fields["datasets"] == ["someone/natural-questions"]
    assert fields["base_model"] == "EuroBERT/EuroBERT-210m"
    assert fields["license"] == "other"


def test_scores_with_retention_and_one_command(card):
    assert (
        "| scifact | en | retrieval | nDCG@10 | 70.00 (65.00 to 75.00) | 80.00 | 87.5% | 1 |"
        in card
    )
    assert "| sts | - | base | Spearman | 50.00 (40.00 to 60.00) | - | - | 1 |" in card
    assert card.count(COMMAND) == 1 and f"1. `{COMMAND}`" in card


def test_recipe_data_licences_and_limits(card):
    assert "| stage1 | 50,000 | 8192 | 512 | 0.0001 | 250,000 | as in the paper |" in card
    assert "| retrieval | 50,000 | 8192 | 384 | 0.0001 | 250,000 | info_nce 1, distill 2 |" in card
    assert (
        "| nq: hub:someone/natural-questions | pairs | 1,000 | en | CC-BY-SA-3.0 | questions |"
        in card
    )
    assert "unread" not in card
    assert "instructions: query `query`, topic `theme`; other texts as they are." in card
    assert "- data own: not stated" in card
    assert "- teacher Qwen/Qwen3-Embedding-4B: Apache-2.0" in card
    assert "- this model: not stated; those below bind it" in card
    assert "- The loss of stage1 rose." in card
    assert "trained on texts of at most 512 tokens; what it does with 8192 was not trained" in card
    assert "Languages other than de, en" in card
    assert "| retrieval | query | document | search, reranking |" in card


def test_a_model_that_was_not_trained_here_has_a_card_too(model):
    text = make_card(model, [])
    assert "None were measured" in text and "## Recipe" not in text and "## Data" not in text
    assert "None" not in text.replace("None were measured", "")
