"""The model card: every number with its command, every source with its licence."""

from __future__ import annotations

import yaml

from taskdistill.report.model_card import make_card

SETTINGS = {
    "prompts": {"query": "Query: ", "document": "Document: "},
    "max_length": 8192,
    "matryoshka_dims": [32, 64, 768],
    "rope_theta": 1_000_000.0,
    "teacher": {"model": "Qwen/Qwen3-Embedding-4B"},
}
PHASE = {
    "steps": 50_000,
    "batch_size": 8192,
    "max_length": 512,
    "lr": 1e-4,
    "rope_theta": 250_000.0,
}
RECIPE = {
    "name": "tiny",
    "seed": 17,
    "data": {
        "sources": {
            "nq": {
                "path": "hub:someone/natural-questions",
                "kind": "pairs",
                "languages": ["en"],
                "licence": "CC-BY-SA-3.0",
                "note": "questions",
            },
            "own": {
                "path": "own.jsonl",
                "kind": "texts",
                "languages": ["de", "en"],
                "licence": None,
                "note": None,
            },
        }
    },
    "stage1": PHASE,
    "long": None,
    "adapters": {
        "retrieval": PHASE | {"weights": {"info_nce": 1.0, "distill": 2.0}, "max_length": 384}
    },
}
COMMAND = "taskdistill evaluate model --data data --out scores"


def card() -> str:
    scores = [
        {
            "set": "scifact",
            "task": "retrieval",
            "metric": "nDCG@10",
            "score": 0.7,
            "teacher": 0.8,
            "language": "en",
            "command": COMMAND,
        }
        | {"interval": [0.65, 0.75]},
        {
            "set": "sts",
            "task": None,
            "metric": "Spearman",
            "score": 0.5,
            "teacher": None,
            "language": None,
            "command": COMMAND,
        },
    ]
    return make_card(
        name="tiny",
        settings=SETTINGS,
        tasks=["retrieval", "clustering"],
        embedding_dim=768,
        recipe=RECIPE,
        scores=scores,
        base_model="EuroBERT/EuroBERT-210m",
        base_licence="Apache-2.0",
        teacher_licence="Apache-2.0",
        parameters=211_766_016,
        command="taskdistill train recipes/tiny.yaml --out runs/tiny",
    )


def test_header_is_what_hubs_read():
    fields = yaml.safe_load(card().split("---")[1])
    assert fields["language"] == ["de", "en"]
    assert fields["datasets"] == ["someone/natural-questions"]
    assert fields["base_model"] == "EuroBERT/EuroBERT-210m"
    assert fields["license"] == "other"


def test_scores_with_retention_and_one_command():
    text = card()
    assert (
        "| scifact | en | retrieval | nDCG@10 | 70.00 (65.00 to 75.00) | 80.00 | 87.5% | 1 |"
        in text
    )
    assert "| sts | - | base | Spearman | 50.00 | - | - | 1 |" in text
    assert text.count(COMMAND) == 1 and f"1. `{COMMAND}`" in text


def test_recipe_data_licences_and_limits():
    text = card()
    assert "| stage1 | 50,000 | 8192 | 512 | 0.0001 | 250,000 | as in the paper |" in text
    assert "| retrieval | 50,000 | 8192 | 384 | 0.0001 | 250,000 | info_nce 1, distill 2 |" in text
    assert (
        "| nq: hub:someone/natural-questions | pairs | - | en | CC-BY-SA-3.0 | questions |" in text
    )
    assert "- data own: not stated" in text
    assert "- teacher Qwen/Qwen3-Embedding-4B: Apache-2.0" in text
    assert "- this model: not stated; those below bind it" in text
    assert "trained on texts of at most 512 tokens; what it does with 8192 was not trained" in text
    assert "Languages other than de, en" in text
    assert "| retrieval | query | document | search, reranking |" in text


def test_a_model_that_was_not_trained_here_has_a_card_too():
    text = make_card(name="plain", settings={}, tasks=[], embedding_dim=384)
    assert "None were measured" in text and "## Recipe" not in text and "## Data" not in text
    assert "None" not in text.replace("None were measured", "")
