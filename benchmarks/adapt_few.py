"""An adapter from a few rows a class against a linear probe on the teacher's vectors of the same
rows.

    python benchmarks/adapt_few.py --model runs/english/model --set banking77

Some rows of every class are drawn from the training split, `taskdistill adapt` adds an adapter to a
copy of the model folder, and a logistic regression is fitted on the vectors of exactly those rows:
of the teacher, of the base, and of the adapter. All of them predict `--score-on test`, or
`held-out`: other rows of the training split, on which settings are chosen. Two regularisations: C =
1, as the classification protocol takes it, and the C of 1, 3, 10, 30, 100 with the best five-fold
accuracy on the same rows, chosen for each side. The last line is the accuracy of the adapter /
teacher at C = 1.
"""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
import time
import warnings
from argparse import Namespace
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from common import finish, machine, options, parser, table
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

from taskdistill.encode.encoder import Encoder
from taskdistill.recipe.load import overridden
from taskdistill.stats.intervals import paired_difference
from taskdistill.tasks import Task
from taskdistill.workflows.adapt import adapt
from taskdistill.workflows.adapt_settings import AdaptRequest

GRID = {"C": [1, 3, 10, 30, 100]}
HELD_OUT = 20
"""Rows a class of the training split that are scored with `--score-on held-out`."""


def main() -> None:
    """Draw, adapt, fit, predict, and print the table."""
    made = parser(__doc__, texts=0, rounds=1)
    made.add_argument(
        "--model", type=Path, required=True, help="model folder; a copy of it is adapted"
    )
    made.add_argument("--teacher", default="all-MiniLM-L6-v2")
    made.add_argument(
        "--set",
        dest="name",
        default="banking77",
        help="NAME of labelled/NAME.train.jsonl.gz and .test.jsonl.gz",
    )
    made.add_argument("--per-label", type=int, default=10)
    made.add_argument("--seeds", type=int, default=1, help="draws of rows")
    made.add_argument("--score-on", choices=("test", "held-out"), default="test")
    made.add_argument(
        "--strength",
        type=float,
        help="share of the trained change that is kept; default: that of `adapt`",
    )
    made.add_argument(
        "--adapter", action="append", default=[], help="field=value of the adapter's settings"
    )
    asked = options(made)
    print(machine(asked.threads))
    found = [one(asked, seed) for seed in range(asked.seeds)]
    rows = []
    for probe in ("C = 1", "C by cross-validation"):
        for seed, each in enumerate(found):
            right = each[probe]
            gap = paired_difference({"": right["adapter"]}, {"": right["teacher"]}).estimate
            means = {side: f"{100 * units.mean():.2f}" for side, units in right.items()}
            told = f"{100 * gap.value:+.2f} ({100 * gap.low:+.2f} to {100 * gap.high:+.2f})"
            rows.append(
                [
                    f"{probe}, draw {seed}",
                    means["teacher"],
                    means["base"],
                    means["adapter"],
                    told,
                    f"{each['seconds']:.0f}",
                ]
            )
    table(
        f"{asked.name}, {asked.per_label} rows a class, accuracy on {asked.score_on}",
        ["probe", "teacher", "base", "adapter", "adapter - teacher, 95 %", "adapt, s"],
        rows,
    )
    ratio = np.mean(
        [each["C = 1"]["adapter"].mean() / each["C = 1"]["teacher"].mean() for each in found]
    )
    finish(float(ratio), {"rows": rows, "settings": asked.adapter}, asked.json)


def one(asked: Namespace, seed: int) -> dict[str, Any]:
    """Measure one draw of rows."""
    root = (asked.data or Path(__file__).resolve().parents[2] / "shared" / "data") / "labelled"
    rows, by_label = read(root / f"{asked.name}.train.jsonl.gz"), defaultdict(list)
    for at in np.random.default_rng(seed).permutation(len(rows)):
        by_label[rows[at]["label"]].append(rows[at])
    few = [row for label in sorted(by_label) for row in by_label[label][: asked.per_label]]
    if asked.score_on == "test":
        scored = read(root / f"{asked.name}.test.jsonl.gz")
    else:
        scored = [
            row
            for label in sorted(by_label)
            for row in by_label[label][asked.per_label : asked.per_label + HELD_OUT]
        ]
    with tempfile.TemporaryDirectory(prefix="adapt-few-") as folder:
        model, file = Path(folder) / "model", Path(folder) / "few.jsonl"
        shutil.copytree(asked.model, model)
        file.write_text("".join(json.dumps(row) + "\n" for row in few))
        start = time.perf_counter()
        adapt(
            model,
            AdaptRequest(
                data=file,
                task=Task.CLASSIFICATION,
                name="few",
                settings=overridden(asked.adapter),
                seed=seed,
                strength=asked.strength,
            ),
        )
        seconds = time.perf_counter() - start
        ours = Encoder.load(model, threads=asked.threads)
        sides = {
            "teacher": (Encoder.load(asked.teacher, threads=asked.threads), None),
            "base": (ours, None),
            "adapter": (ours, "few"),
        }
        found: dict[str, Any] = {"seconds": seconds, "C = 1": {}, "C by cross-validation": {}}
        labels, gold = [row["label"] for row in few], np.array([row["label"] for row in scored])
        for side, (encoder, task) in sides.items():
            train = encoder.encode([row["text"] for row in few], task=task)
            test = encoder.encode([row["text"] for row in scored], task=task)
            probe = LogisticRegression(max_iter=1000)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                plain = probe.fit(train, labels).predict(test)
                tuned = (
                    GridSearchCV(LogisticRegression(max_iter=300), GRID, cv=5)
                    .fit(train, labels)
                    .predict(test)
                )
            found["C = 1"][side] = (plain == gold).astype(np.float64)
            found["C by cross-validation"][side] = (tuned == gold).astype(np.float64)
    return found


def read(path: Path) -> list[dict[str, Any]]:
    """Read labelled rows."""
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


if __name__ == "__main__":
    main()
