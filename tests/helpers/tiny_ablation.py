"""A tiny ablation: a random student of one layer, the tiny data folder, seconds on one core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from helpers import tiny

from taskdistill.ablate.settings import Ablation, Experiment, make_experiment
from taskdistill.recipe.recipe import parse_recipe


def raw(root: Path, teacher: Path, *, steps: int = 8) -> dict[str, Any]:
    """A recipe whose student is a random one-layer model with the tiny tokenizer."""
    made = tiny.recipe(root, teacher, steps=steps)
    config = tiny.config("bert", layers=1)
    student = {
        "init": "config",
        "config": config,
        "tokenizer": str(teacher),
        "pooling": "mean",
        "max_length": 64,
        "matryoshka_dims": [8],
    }
    return {
        "name": "tiny-ablation",
        "seed": 3,
        "data": {"root": made["data"]["root"], "sources": {"qa": made["data"]["sources"]["qa"]}},
        "teacher": made["teacher"],
        "student": student,
        "stage1": {
            "sources": {"qa": 1},
            "steps": steps,
            "batch_size": 6,
            "max_length": 32,
            "lr": 1e-3,
        },
        "evaluation": {"dev": ["retrieval/qa-dev"], "sets": ["retrieval/qa", "sts/sts"]},
    }


def settings(**changed: Any) -> Ablation:
    """Two seeds, two trials, three points."""
    given: dict[str, Any] = {
        "arms": ["A0", "D", "C", "DC"],
        "seeds": 2,
        "pilot_seeds": 2,
        "trials": 2,
        "points": 2,
        "trial_share": 0.5,
    }
    return Ablation.model_validate({**given, **changed})


def experiment(root: Path, teacher: Path, *, steps: int = 8, **changed: Any) -> Experiment:
    """The tiny experiment with some settings changed."""
    return make_experiment(parse_recipe(raw(root, teacher, steps=steps)), settings(**changed))
