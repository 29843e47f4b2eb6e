"""Memory and time of one long text: the packed stream against the same transformer by transformers alone, eager and sdpa.

    python benchmarks/long_text.py --shape nano --lengths 8192
    python benchmarks/long_text.py --shape small --layers 2 --lengths 8192,32768 --sides packed,sdpa

Random weights at the widths of the paper's models, in float32 on the CPU, one text. Each side runs in a process of its own;
memory is the largest resident size above that of the loaded model. Eager attention holds the scores of all pairs of tokens,
which at 32,768 tokens no small machine can. The last line is the memory of sdpa / packed at the greatest length.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import in_child, machine, options, parser, peak_memory, resident_memory, table

from common import finish  # isort: skip
from taskdistill.job.sketch import KNOWN
from taskdistill.model.backbone import build_backbone

SHAPES = {"nano": "EuroBERT/EuroBERT-210m", "small": "Qwen/Qwen3-0.6B-Base"}
SIDES = ("packed", "sdpa", "eager")


def main() -> None:
    """Run every side and length in a process of its own."""
    made = parser(__doc__, texts=1, rounds=1)
    made.add_argument("--shape", choices=SHAPES, default="nano")
    made.add_argument("--layers", type=int, help="fewer layers than the shape has")
    made.add_argument("--lengths", default="8192")
    made.add_argument("--sides", default=",".join(SIDES))
    made.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    asked = options(made, quick_texts=1)
    if asked.quick:
        asked.lengths, asked.layers = "512", 1
    if asked.side:
        print(json.dumps(measure(asked)))
        return
    print(machine(asked.threads))
    lengths, sides = [int(n) for n in asked.lengths.split(",")], asked.sides.split(",")
    common = ["--shape", asked.shape, "--threads", str(asked.threads), *(["--layers", str(asked.layers)] if asked.layers else [])]
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for length in lengths:
        for side in sides:
            found[length, side] = in_child([*common, "--lengths", str(length), "--side", side])
    rows = [
        [f"{length:,}", side, f"{each['bytes'] / 1e6:,.0f}", f"{each['bytes'] / length:,.0f}", f"{each['cpu_seconds']:.1f}"]
        for (length, side), each in found.items()
    ]
    layers = next(iter(found.values()))["layers"]
    table(f"{asked.shape}, {layers} layers, one text", ["tokens", "side", "MB above the model", "bytes a token", "CPU seconds"], rows)
    most = max(lengths)
    ratio = found[most, "sdpa"]["bytes"] / found[most, "packed"]["bytes"] if {"sdpa", "packed"} <= set(sides) else 1.0
    finish(ratio, {f"{length} {side}": each for (length, side), each in found.items()}, asked.json)


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Encode one text of the length."""
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    config = dict(KNOWN[SHAPES[asked.shape]])
    length = int(asked.lengths)
    config |= {"max_position_embeddings": length} | ({"num_hidden_layers": asked.layers} if asked.layers else {})
    backbone = build_backbone(config)
    ids = np.random.default_rng(0).integers(0, config["vocab_size"], length).astype(np.int32)
    if asked.side != "packed":
        backbone.set_attn_implementation(asked.side)
    Path("/proc/self/clear_refs").write_text("5")
    before, began = resident_memory(), time.process_time()
    with torch.inference_mode():
        if asked.side == "packed":
            from taskdistill.model.student import TransformerModel
            from taskdistill.vocabulary import Pooling

            vector = TransformerModel(backbone, Pooling.LAST).embed([ids])[0]
        else:
            cached = {"use_cache": False} if asked.shape == "small" else {}
            vector = backbone(input_ids=torch.from_numpy(ids.astype(np.int64))[None], **cached).last_hidden_state[0, -1]
    return {
        "bytes": peak_memory() - before,
        "cpu_seconds": time.process_time() - began,
        "layers": config["num_hidden_layers"],
        "norm": float(vector.norm()),
    }


if __name__ == "__main__":
    main()
