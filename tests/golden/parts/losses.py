"""Twenty losses of every phase as hexadecimal numbers, with each term's value: a plain recipe, and
one that names every term.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from golden import entry
from golden.compare import SCORES
from golden.summaries import hexadecimal
from golden.workshop import Workshop

TOLERANCE = SCORES
STAGE1 = {
    "distill": 1.0,
    "l2": 0.5,
    "mse": 1.0,
    "score_softmax": 0.3,
    "score_kl": 0.2,
    "similarity": 1.0,
    "relative": 0.5,
    "rkd_distance": 0.5,
    "rkd_angle": 0.5,
    "teacher_nce": 0.2,
    "list_kl": 0.3,
}
PAIRS = {
    "info_nce": 1.0,
    "binary_info_nce": 0.2,
    "int8_info_nce": 0.2,
    "gor": 1.0,
    "gor_hinged": 0.5,
    "centre": 0.5,
    "relational": 2.0,
    **STAGE1,
}


def record(workshop: Workshop) -> dict[str, Any]:
    """Phase to its losses, by recipe."""
    folder, said = workshop.trained
    found: dict[str, Any] = {"plain: the command": said, "plain: files": workshop.files(folder)}
    found |= {f"plain: {phase}": losses for phase, losses in traces(folder).items()}
    found |= {
        f"plain: {name}": workshop.read(folder / name)
        for name in ("metrics.json", "model/taskdistill.json", "taskdistill.json")
    }
    every = workshop.path("runs/every")
    entry.train_recipe(
        entry.load_recipe(workshop.write_recipe("every", every_term(workshop))),
        every,
        assess=_nothing,
    )
    return found | {f"every term: {phase}": losses for phase, losses in traces(every).items()}


def every_term(workshop: Workshop) -> dict[str, Any]:
    """A recipe that names every loss term and the settings that change how a phase goes."""
    menu = {"couples": 200, "corners": 6, "kl_temperature": 0.1}
    stage1 = {
        "weights": STAGE1,
        "menu": menu,
        "negatives": 1,
        "schedule": "cosine",
        "weight_schedule": {"l2": {"start": 0.1, "until": 0.5}},
    }
    raw = workshop.recipe(
        steps=20,
        static={
            "weights": {"distill": 1.0, "teacher_nce": 0.3, "cosent": 0.5},
            "sources": {"lone": 1, "sts": 1},
        },
        stage1={**stage1, "projection_lr": 1e-3, "reduction": "sum", "freeze_embeddings": True},
        long={
            "weights": {"distill": 1.0, "score_kl": 0.5},
            "schedule": "constant",
            "clip": 0.05,
            "micro_batch_tokens": 40,
        },
        adapters={
            "retrieval": {
                "weights": PAIRS,
                "menu": menu,
                "sharpen": {"focal": 0.5, "hardness": 1.0, "mixed_negatives": 1},
                "dropout": 0.1,
            },
            "text-matching": {
                "weights": {"cosent": 1.0, "relational": 1.0, "gor": 0.3},
                "negatives_of_others": False,
                "train_projection": True,
            },
            "clustering": {
                "weights": {"distill": 1.0, "rkd_angle": 0.5, "similarity": 0.5},
                "menu": {"corners": 4},
                "matryoshka": False,
            },
            "classification": {
                "learn_temperature": True,
                "mask_same_label": False,
                "relational_mean_gradient": False,
            },
        },
        student={"binary_offsets": True},
    )
    raw["adapters"]["retrieval"]["average"] = {"earlier": 0.5, "weight": 0.7, "gate": False}
    return raw


def traces(folder: Path) -> dict[str, dict[str, list[Any]]]:
    """Phase to loss, gradient norm, dataset and each term of every step."""
    found: dict[str, dict[str, list[Any]]] = {}
    for line in entry.read_log(folder):
        if "step" in line:
            phase = found.setdefault(line["phase"], {})
            phase.setdefault("dataset", []).append(line["dataset"])
            numbers = {
                "loss": line["loss"],
                "gradient norm": line["grad_norm"],
                **{f"term {name}": value for name, value in line["terms"].items()},
            }
            for name, value in numbers.items():
                phase.setdefault(name, []).append(hexadecimal(value))
    return found


def _nothing(*_: object) -> dict[str, Any]:
    return {"scores": "not taken"}
