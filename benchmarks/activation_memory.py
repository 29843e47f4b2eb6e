"""Memory of one training step beyond model, gradients and optimiser state: a padded batch against
the packed stream.

    python benchmarks/activation_memory.py

128 texts of mixed lengths, cut at 128 tokens, three layers of all-MiniLM-L6-v2, mean squared error
to the teacher. Each side runs in a process of its own, which first takes one small step, so that
gradients and optimiser state are there; then the largest resident size of one step is read, above
the size before it. The last line is padded / packed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    in_child,
    load_texts,
    machine,
    options,
    parser,
    peak_memory,
    resident_memory,
    table,
)

from common import finish  # isort: skip
from train_speed import MAX_LENGTH, student

from taskdistill.memory import trim_memory

SIDES = ("padded", "packed, graphs kept", "packed, second pass", "packed, each piece carried back")


def main() -> None:
    """Run every side in a process of its own."""
    made = parser(__doc__, texts=128, rounds=3)
    made.add_argument("--micro-batch-tokens", type=int, default=512)
    made.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    asked = options(made, quick_texts=32)
    if asked.side:
        print(json.dumps(measure(asked)))
        return
    print(machine(asked.threads))
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    common = [
        "--texts",
        str(asked.texts),
        "--threads",
        str(asked.threads),
        "--micro-batch-tokens",
        str(asked.micro_batch_tokens),
    ]
    for _ in range(asked.rounds):
        for side in SIDES:
            rounds[side].append(
                in_child(
                    [*common, "--side", side, *(["--data", str(asked.data)] if asked.data else [])]
                )
            )
    found = {
        side: sorted(each["bytes"] for each in turns)[len(turns) // 2]
        for side, turns in rounds.items()
    }
    tokens = rounds[SIDES[0]][0]["tokens"]
    rows = [
        [side, f"{size / 1e6:,.0f}", f"{found[SIDES[0]] / size:.1f}"]
        for side, size in found.items()
    ]
    table(
        f"{asked.texts} texts, {tokens:,} tokens, micro-batches of {asked.micro_batch_tokens:,}"
        " tokens",
        ["side", "MB", "padded / this"],
        rows,
    )
    finish(found[SIDES[0]] / found[SIDES[-1]], {"bytes": found, "tokens": tokens}, asked.json)


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Take one small step, then the measured one."""
    made = student()
    module = made.module.train()
    texts = load_texts("mixed", asked.texts, asked.data)
    ids = made.tokenizer.ids(texts, prompt="", max_length=MAX_LENGTH).ids
    targets = torch.nn.functional.normalize(torch.randn(len(texts), module.embedding_dim), dim=1)
    parameters = list(module.backbone.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    step = _padded_step if asked.side == SIDES[0] else _packed_step
    step(module, ids[:2], targets[:2], parameters, asked)
    optimiser.step()
    trim_memory()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_memory()
    step(module, ids, targets, parameters, asked)
    return {"bytes": peak_memory() - before, "tokens": sum(map(len, ids))}


def _padded_step(
    module: Any,
    ids: list[np.ndarray],
    targets: torch.Tensor,
    parameters: list[Any],
    asked: argparse.Namespace,
) -> None:
    module.backbone.set_attn_implementation("sdpa")
    longest = max(map(len, ids))
    rows, mask = (
        torch.zeros(len(ids), longest, dtype=torch.long),
        torch.zeros(len(ids), longest, dtype=torch.long),
    )
    for i, text in enumerate(ids):
        rows[i, : len(text)], mask[i, : len(text)] = torch.from_numpy(text.astype(np.int64)), 1
    hidden = module.backbone(input_ids=rows, attention_mask=mask).last_hidden_state
    vectors = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    (torch.nn.functional.normalize(vectors, dim=1) - targets).square().mean().backward()


def _packed_step(
    module: Any,
    ids: list[np.ndarray],
    targets: torch.Tensor,
    parameters: list[Any],
    asked: argparse.Namespace,
) -> None:
    from taskdistill.train.gradient_step import Passes, StepLoss
    from taskdistill.train.gradients import gradients
    from taskdistill.train.workers import workers

    def distance(vectors: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        return (torch.nn.functional.normalize(vectors, dim=1) - goal).square().mean()

    def share(vectors: torch.Tensor, places: np.ndarray) -> torch.Tensor:
        return distance(vectors, targets[places]) * (len(places) / len(ids))

    with workers(asked.threads) as threads:
        gradients(
            module,
            ids,
            StepLoss(
                terms=lambda vectors: ({"mse": distance(vectors, targets)}, 0.0),
                share=share if asked.side == SIDES[3] else None,
            ),
            parameters,
            Passes(
                seed=0,
                micro_batch_tokens=asked.micro_batch_tokens,
                keep_tokens=10**9 if asked.side == SIDES[1] else 0,
            ),
            threads=threads,
        )


if __name__ == "__main__":
    sys.exit(main())
