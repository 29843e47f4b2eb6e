"""Training with two workers of one intra-op thread each against one worker with both threads; same
student, loss and data.

    python benchmarks/train_workers.py

The last line is the ratio on mixed lengths: above 1 the workers are faster.
"""

from __future__ import annotations

from typing import Any

import torch
from common import MODEL, Side, finish, load_texts, machine, options, parser, table
from train_speed import BATCH, _ours

from taskdistill import Encoder
from taskdistill.train.workers import workers


def main() -> None:
    """Run the comparison."""
    made = parser(__doc__, texts=1280, rounds=5)
    made.add_argument("--steps", type=int, default=5, help="counted steps of a turn")
    asked = options(made, quick_texts=256)
    steps = 1 if asked.quick else asked.steps
    print(machine(asked.threads))
    found: dict[str, Any] = {}
    for kind in ("mixed", "short"):
        texts = load_texts(kind, asked.texts, asked.data)
        targets = Encoder.load(MODEL).encode(texts)
        one, many = (
            f"1 worker, {asked.threads} intra-op threads",
            f"{asked.threads} workers, 1 intra-op thread each",
        )
        sides = {one: Side(), many: Side()}
        with workers(1) as alone, workers(asked.threads) as together:
            turns = {
                one: _ours(texts, targets, steps, alone),
                many: _ours(texts, targets, steps, together),
            }
            for _ in range(asked.rounds):
                for name, turn in turns.items():
                    torch.set_num_threads(asked.threads)
                    for seconds, cpu, foreign in turn():
                        sides[name].seconds.append(seconds)
                        sides[name].cpu.append(cpu)
                        sides[name].foreign.append(foreign)
        base = sides[one]
        rows = [
            [
                name,
                f"{BATCH / s.median:,.1f}",
                f"{base.median / s.median:.2f}",
                f"{base.median_cpu / s.median_cpu:.2f}",
                f"{s.median_foreign:.1f}",
            ]
            for name, s in sides.items()
        ]
        table(
            f"{kind}: batches of {BATCH}",
            ["side", "texts/s", "ratio", "ratio of cpu time", "cores used by others"],
            rows,
        )
        found[kind] = {"ratio": base.median / sides[many].median}
    finish(found["mixed"]["ratio"], found, asked.json)


if __name__ == "__main__":
    main()
