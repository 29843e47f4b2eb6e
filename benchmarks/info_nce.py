"""InfoNCE over many candidates: row chunks with the gradient taken in the forward pass against
plain torch.

    python benchmarks/info_nce.py # 16,384 queries and candidates of 384 dimensions python
    benchmarks/info_nce.py --rows 65536 --only-ours

Loss and both gradients, embeddings given. Time alternates in one process; memory is that of a
process of its own for each side, above the inputs. Prints time and memory as shares of plain
torch's and how far the gradients lie apart; the last line is plain time / our time.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from common import (
    finish,
    in_child,
    in_turn,
    machine,
    options,
    parser,
    peak_memory,
    resident_memory,
    table,
)

from taskdistill.losses.streaming import streaming_info_nce
from taskdistill.memory import trim_memory

SIDES = ("plain torch", "row chunks")
TEMPERATURE = 0.05


def main() -> None:
    """Run the comparison."""
    made = parser(__doc__, texts=0, rounds=3)
    made.add_argument("--rows", type=int, default=16_384)
    made.add_argument("--dim", type=int, default=384)
    made.add_argument("--chunk", type=int, default=512, help="rows of similarities held at once")
    made.add_argument("--only-ours", action="store_true", help="sizes that plain torch cannot hold")
    made.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    asked = options(made)
    if asked.quick:
        asked.rows = min(asked.rows, 2048)
    if asked.side:
        print(json.dumps(memory(asked)))
        return
    print(machine(asked.threads))
    queries, documents = inputs(asked)
    chosen = SIDES[1:] if asked.only_ours else SIDES
    sides = in_turn(
        {name: lambda name=name: step(name, queries, documents, asked.chunk) for name in chosen},
        asked.rounds,
    )
    common = [
        "--rows",
        str(asked.rows),
        "--dim",
        str(asked.dim),
        "--chunk",
        str(asked.chunk),
        "--threads",
        str(asked.threads),
    ]
    used = {name: in_child([*common, "--side", name])["bytes"] for name in chosen}
    base = chosen[0]
    rows = [
        [
            name,
            f"{side.median:.2f}",
            f"{side.median / sides[base].median:.2f}",
            f"{used[name] / 1e6:,.0f}",
            f"1/{used[base] / used[name]:.0f}",
            f"{side.median_foreign:.1f}",
        ]
        for name, side in sides.items()
    ]
    columns = ["side", "seconds", "share of plain", "MB", "share of plain", "cores used by others"]
    table(
        f"{asked.rows:,} x {asked.dim}, chunks of {asked.chunk} rows, loss"
        f" {sides[SIDES[1]].result[0]:.4f}",
        columns,
        rows,
    )
    if not asked.only_ours:
        apart = [
            float((a - b).norm() / a.norm())
            for a, b in zip(sides[base].result[1:], sides[SIDES[1]].result[1:], strict=True)
        ]
        print(f"gradients differ by {max(apart):.1e} of their length")
    ratio = sides[base].median / sides[SIDES[1]].median
    finish(
        ratio, {"time": 1 / ratio, "memory": used[SIDES[1]] / used[base], "bytes": used}, asked.json
    )


def inputs(asked: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw unit rows; each query lies near its document, as in training."""
    torch.manual_seed(0)
    documents = torch.nn.functional.normalize(torch.randn(asked.rows, asked.dim), dim=1)
    queries = torch.nn.functional.normalize(
        documents + 0.12 * torch.randn(asked.rows, asked.dim), dim=1
    )
    return queries, documents


def step(
    name: str, queries: torch.Tensor, documents: torch.Tensor, chunk: int
) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Compute the loss and both gradients."""
    q, d = queries.detach().requires_grad_(), documents.detach().requires_grad_()
    positives = torch.arange(len(q))
    if name == SIDES[0]:
        loss = torch.nn.functional.cross_entropy(q @ d.T / TEMPERATURE, positives)
    else:
        loss = streaming_info_nce(q, d, positives, TEMPERATURE, chunk=chunk)
    loss.backward()
    return float(loss), q.grad, d.grad


def memory(asked: argparse.Namespace) -> dict[str, Any]:
    """Measure the largest resident size of one step above the inputs."""
    queries, documents = inputs(asked)
    step(asked.side, queries[:64], documents[:64], asked.chunk)
    trim_memory()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_memory()
    step(asked.side, queries, documents, asked.chunk)
    return {"bytes": peak_memory() - before}


if __name__ == "__main__":
    sys.exit(main())
