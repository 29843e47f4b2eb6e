"""A tiny ablation: hashes of its weights, scores, intervals, contrasts and verdict."""

from __future__ import annotations

from typing import Any

from golden import entry
from golden.compare import SCORES
from golden.parts.scores import headings
from golden.workshop import Workshop

TOLERANCE = SCORES
SETTINGS = {
    "arms": ["A0", "D", "C", "DC", "DC+gor"],
    "seeds": 2,
    "pilot_seeds": 2,
    "trials": 1,
    "points": 2,
    "trial_share": 0.5,
}


def record(workshop: Workshop) -> dict[str, Any]:
    """Every part of results.json, and what the command said."""
    raw = entry.raw_ablation(workshop.data, workshop.teacher) | {"ablation": SETTINGS}
    recipe, out = workshop.write_recipe("ablation", raw), workshop.path("ablation-run")
    found: dict[str, Any] = {}
    workshop.command(found, "ablate", recipe, "--out", out, "--quiet", made=out)
    results = workshop.read(out / "results.json")
    results["frozen"].pop("digest")  # of the recipe with the folders of this run in it
    found |= {f"results: {key}": value for key, value in results.items()}
    found["headings of the report"] = headings(out / "report.html")
    return found
