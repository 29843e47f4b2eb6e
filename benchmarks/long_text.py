"""Memory and speed of long texts: the packed stream against transformers by itself, alone and in a
padded batch.

    python benchmarks/long_text.py
    python benchmarks/long_text.py --shape nano --lengths 8192 --layers 12

Random weights at the width of one of the paper's models, in float32 on the CPU. Memory does not
depend on how many layers follow each other, so one layer of the many is run unless `--layers` says
more; time grows with them. Every side runs in a process of its own, which reads one short text
first; memory is the largest resident size above that of the loaded model.

`sdpa` and `eager` are transformers' attentions. Eager holds the scores of all pairs of tokens, so
it runs only where they fit `--most-gigabytes`. `sdpa, padded` and `packed, four` read the shortest
length of at least 8,192 tokens together with three texts of 256, as texts come in a batch. The last
line is `sdpa, padded` / `packed, four` in memory.
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
from taskdistill.model.backbone import build_backbone
from taskdistill.model.sketch import KNOWN
from taskdistill.model.student import TransformerModel
from taskdistill.types import Pooling

SHAPES = {"nano": "EuroBERT/EuroBERT-210m", "small": "Qwen/Qwen3-0.6B-Base"}
SIDES = ("packed", "sdpa", "eager", "packed, four", "sdpa, padded")
SHORT = 256
"""Tokens of each of the three texts beside the long one."""


def main() -> None:
    """Run every side and length in a process of its own."""
    made = parser(__doc__, texts=1, rounds=1)
    made.add_argument("--shape", choices=SHAPES, default="small")
    made.add_argument(
        "--layers", type=int, default=1, help="layers run, of those that the shape has"
    )
    made.add_argument("--lengths", default="2048,8192,32768")
    made.add_argument(
        "--stock-up-to",
        type=int,
        default=8192,
        help="longest text that transformers by itself reads too",
    )
    made.add_argument(
        "--most-gigabytes", type=float, default=2.0, help="scores that eager attention may hold"
    )
    made.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    asked = options(made, quick_texts=1)
    if asked.quick:
        asked.lengths = "512"
    if asked.side:
        print(json.dumps(measure(asked)))
        return
    print(machine(asked.threads))
    lengths = sorted(int(n) for n in asked.lengths.split(","))
    most = {
        "sdpa": asked.stock_up_to,
        "eager": min(asked.stock_up_to, int(_eager_limit(asked.shape, asked.most_gigabytes))),
    }
    together = next((n for n in lengths if n >= 8192), lengths[0])
    plan = [(n, side) for n in lengths for side in SIDES[:3] if n <= most.get(side, n)] + [
        (together, side) for side in SIDES[3:]
    ]
    common = [
        "--shape",
        asked.shape,
        "--threads",
        str(asked.threads),
        "--layers",
        str(asked.layers),
    ]
    found = {
        (n, side): in_child([*common, "--lengths", str(n), "--side", side]) for n, side in plan
    }
    rows = [
        [
            f"{n:,}",
            side,
            f"{each['bytes'] / 1e6:,.0f}",
            f"{each['bytes'] / each['tokens']:,.0f}",
            f"{each['tokens'] / each['cpu_seconds']:,.0f}",
            f"{each['seconds']:.1f}",
        ]
        for (n, side), each in found.items()
    ]
    columns = [
        "tokens",
        "side",
        "MB above the model",
        "bytes a token",
        "tokens a CPU second",
        "seconds",
    ]
    of = KNOWN[SHAPES[asked.shape]]["num_hidden_layers"]
    table(
        f"{asked.shape}, {asked.layers} of its {of} layers; tokens are those of the texts, without"
        " padding",
        columns,
        rows,
    )
    ratio = found[together, "sdpa, padded"]["bytes"] / found[together, "packed, four"]["bytes"]
    finish(ratio, {f"{n} {side}": each for (n, side), each in found.items()}, asked.json)


def _eager_limit(shape: str, gigabytes: float) -> float:
    """Count the tokens whose scores, twice over in float32, fill this memory."""
    return float((gigabytes * 1e9 / (2 * 4 * KNOWN[SHAPES[shape]]["num_attention_heads"])) ** 0.5)


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Read one short text, then the long one, alone or with three beside it."""
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    length = int(asked.lengths)
    config = dict(KNOWN[SHAPES[asked.shape]]) | {
        "max_position_embeddings": length,
        "num_hidden_layers": asked.layers,
        "vocab_size": 4096,
    }
    backbone = build_backbone(config)
    draw = np.random.default_rng(0)
    texts = [
        draw.integers(0, 4096, n).astype(np.int32)
        for n in (length, *([SHORT] * 3 if asked.side in SIDES[3:] else []))
    ]
    if not asked.side.startswith("packed"):
        backbone.set_attn_implementation(asked.side.partition(",")[0])
    run = _packed if asked.side.startswith("packed") else _stock
    with torch.inference_mode():
        run(backbone, [texts[0][:32]])
        Path("/proc/self/clear_refs").write_text("5")
        before, began, wall = resident_memory(), time.process_time(), time.perf_counter()
        vectors = run(backbone, texts)
    return {
        "bytes": peak_memory() - before,
        "cpu_seconds": time.process_time() - began,
        "seconds": time.perf_counter() - wall,
        "tokens": sum(map(len, texts)),
        "first": vectors[0, :4].tolist(),
    }


def _packed(backbone: Any, texts: list[np.ndarray]) -> torch.Tensor:
    return TransformerModel(backbone, Pooling.LAST).embed(texts)


def _stock(backbone: Any, texts: list[np.ndarray]) -> torch.Tensor:
    """Pad on the right, as a tokenizer does, and take each text's last token; one text alone needs
    no mask.
    """
    longest = max(map(len, texts))
    ids, mask = (torch.zeros(len(texts), longest, dtype=torch.int64) for _ in range(2))
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = torch.from_numpy(text.astype(np.int64)), 1
    keywords = {"use_cache": False} if backbone.config.model_type == "qwen3" else {}
    states = backbone(
        input_ids=ids, attention_mask=mask if len(texts) > 1 else None, **keywords
    ).last_hidden_state
    return states[torch.arange(len(texts)), mask.sum(1) - 1]  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
