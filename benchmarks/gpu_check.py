"""One call for a day on which a real accelerator is at hand: is it right there, and how fast is it?

    python benchmarks/gpu_check.py --device cuda           # under ten minutes
    python benchmarks/gpu_check.py --device cpu --quick    # does it run?

First the tiny recipe of the tests is trained on the CPU and on the device in float32: every phase,
both ways to average an adapter, stopped and continued. Vectors of the device's model, read on the
device and on the CPU, are compared with those of the CPU's model, in float32 and in bfloat16 where
the device has it. Then the architecture of Qwen3-0.6B with random weights takes steps of stage 1 as
a recipe with `precision: auto` would, in batches of equal texts: tokens a second, and the share of
the rate that the device reaches in matrix products alone, measured in the same number type. Exit
code 1 if a comparison fails.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import table

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from helpers import tiny, tiny_run

from taskdistill import Encoder
from taskdistill.device import computes_in, free_memory_of, placement, resolve_device, synchronize
from taskdistill.model.backbone import build_backbone
from taskdistill.model.flops import step_flops
from taskdistill.model.student import TransformerModel
from taskdistill.pipeline.profile import matrix_rate
from taskdistill.train.arithmetic import choose_arithmetic, tf32_products
from taskdistill.train.budget import choose_budget
from taskdistill.train.context import Interrupted
from taskdistill.train.gradient_step import Passes, StepLoss
from taskdistill.train.gradients import gradients
from taskdistill.train.workers import workers
from taskdistill.types import Pooling

LEAST = {"float32": 0.999, "bfloat16": 0.98}
"""Cosine that the vectors of the tiny model must at least have with those of the CPU's run. Six
steps of AdamW let differences in the last bits grow where a gradient is nearly zero, so weights
are not compared one by one.
"""
SMALL = {
    "model_type": "qwen3",
    "vocab_size": 151_669,
    "hidden_size": 1_024,
    "intermediate_size": 3_072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
}
"""Shape of Qwen3-0.6B, the student of recipes/jina-v5-small.yaml."""
QUICK = {
    "vocab_size": 500,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
QUICK |= {"num_key_value_heads": 2, "head_dim": 8}


def main(arguments: list[str] | None = None) -> int:
    """Run the checks.

    Args:
        arguments: Command line; None for that of the process.

    Returns:
        Exit code.
    """
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--device", default="auto", help="auto, cuda, cuda:1, mps, or any that torch knows"
    )
    made.add_argument(
        "--texts", type=int, default=512, help="texts of one step of the large architecture"
    )
    made.add_argument("--tokens", type=int, default=128, help="tokens of each")
    made.add_argument("--steps", type=int, default=8, help="counted steps")
    made.add_argument(
        "--quick", action="store_true", help="a tiny architecture, one step: does it run?"
    )
    made.add_argument("--json", type=Path, help="write the figures as JSON")
    asked = made.parse_args(arguments)
    if asked.quick:
        asked.texts, asked.tokens, asked.steps = 8, 16, 1
    device = resolve_device(asked.device)
    print(
        f"{placement(device, torch.float32)}; torch {torch.__version__};"
        f" {(free_memory_of(device) or 0) / 1e9:.1f} GB free"
    )
    with tempfile.TemporaryDirectory() as folder:
        checks = compare(
            Path(folder), device, steps=2 if asked.quick else 6, tasks=2 if asked.quick else 4
        )
    table(
        "against the CPU",
        ["what", "figure", "needed", ""],
        [[*each[:3], "" if each[3] else "FAILED"] for each in checks],
    )
    speed = measure(
        device, SMALL | (QUICK if asked.quick else {}), asked.texts, asked.tokens, asked.steps
    )
    table(
        "one step of stage 1",
        ["what", "figure"],
        [
            [name, f"{value:,.4g}" if isinstance(value, float) else value]
            for name, value in speed.items()
        ],
    )
    good = all(each[3] for each in checks)
    if asked.json is not None:
        asked.json.write_text(
            json.dumps(
                {"device": str(device), "right": good, "checks": checks, "speed": speed}, indent=1
            ),
            "utf-8",
        )
    print(
        f"\n{'right' if good else 'WRONG'}; {speed['tokens a second']:,.0f} tokens/s,"
        f" {100 * speed['share of peak']:.0f} % of peak"
    )
    return 0 if good else 1


def compare(
    root: Path, device: torch.device, steps: int, tasks: int
) -> list[tuple[str, str, str, bool]]:
    """Train on the CPU and on a device, continue, average, encode.

    Args:
        root: An empty folder.
        device: The device.
        steps: Of every phase.
        tasks: How many adapters are trained.

    Returns:
        What was compared, the figure, what is needed, whether that is reached.
    """
    raw = tiny.recipe(
        tiny.write_data(root / "data"),
        tiny.write_teacher(root / "teacher", family="qwen3"),
        steps=steps,
    )
    raw |= {
        "evaluation": {},
        "precision": "float32",
        "adapters": dict(list(raw["adapters"].items())[:tasks]),
    }
    for phase in (raw["stage1"], *raw["adapters"].values()):
        phase["checkpoint_every"] = 1
    raw["adapters"]["retrieval"]["average"] = {"earlier": 0.5, "mode": "factors", "gate": False}
    raw["adapters"]["text-matching"]["average"] = {"earlier": 0.5, "mode": "product", "gate": False}
    raw["teacher"] |= {"device": "cpu", "dtype": "float32", "store": str(root / "store")}

    def run(out: str, place: torch.device, stop: int | None = None) -> None:
        options = {} if stop is None else {"should_stop": tiny_run.stop_before(stop)}
        tiny_run.train(copy.deepcopy(raw) | {"device": str(place)}, root / out, **options)

    run("cpu", torch.device("cpu"))
    run("device", device)
    for stop in (1, steps):  # in the static student or stage 1, and further on
        try:
            run("continued", device, stop)
        except Interrupted:
            continue
    run("continued", device)
    texts = [" ".join(tiny.WORDS[i : i + 4 + i % 9]) for i in range(0, 60, 2)]
    found = list[tuple[str, str, str, bool]]()

    def add(what: str, model: str, place: torch.device, dtype: str) -> None:
        least = 1.0
        for task in raw["adapters"]:
            here = Encoder.load(root / "cpu/model", device="cpu").encode(texts, task=task)
            there = Encoder.load(root / model / "model", device=str(place), dtype=dtype).encode(
                texts, task=task
            )
            least = min(least, float((here * there).sum(1).min()))
        found.append(
            (
                what,
                f"{least:.6f}",
                f"{LEAST[dtype]}",
                bool(np.isfinite(least)) and least >= LEAST[dtype],
            )
        )

    add("the CPU's model, read on the device", "cpu", device, "float32")
    add("trained on the device, read on the CPU", "device", torch.device("cpu"), "float32")
    add("trained and read on the device", "device", device, "float32")
    add("stopped twice and continued there", "continued", device, "float32")
    if device.type != "cpu" and computes_in(torch.bfloat16, device):
        add("the CPU's model, read on the device in bfloat16", "cpu", device, "bfloat16")
    return found


def measure(
    device: torch.device, config: dict[str, Any], texts: int, tokens: int, steps: int
) -> dict[str, Any]:
    """Time whole training steps of an architecture with random weights: passes, loss and update.

    Args:
        device: Where.
        config: The architecture.
        texts: Of a step.
        tokens: Of each text.
        steps: Counted ones; two more come before.

    Returns:
        Figures by name.
    """
    arithmetic = choose_arithmetic("auto", device)
    torch.manual_seed(0)
    model = TransformerModel(build_backbone(config), Pooling.LAST).to(device).train()
    trained = list(model.backbone.parameters())
    budget = choose_budget(
        model, sum(p.numel() for p in trained), device=device, compute=arithmetic.compute
    )
    optimiser = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    draws = np.random.default_rng(0)
    target = torch.nn.functional.normalize(
        torch.randn(texts, model.embedding_dim, device=device), dim=1
    )
    seconds, work = list[float](), 0.0

    def loss(vectors: torch.Tensor) -> tuple[dict[str, torch.Tensor], float]:
        return {"distill": (1 - torch.nn.functional.cosine_similarity(vectors, target)).mean()}, 0.0

    with workers(1) as threads, tf32_products(arithmetic.tf32):
        for number in range(steps + 2):
            ids = [
                draws.integers(5, config["vocab_size"], size=tokens).astype(np.int32)
                for _ in range(texts)
            ]
            synchronize(device)
            start = time.perf_counter()
            gradients(
                model,
                ids,
                StepLoss(terms=loss),
                trained,
                Passes(seed=number, compute=arithmetic.compute, **budget.to_json()),
                threads=threads,
            )
            optimiser.step()
            synchronize(device)
            seconds.append(time.perf_counter() - start)
            work = step_flops(model, np.full(texts, tokens), trained, None)
    step = statistics.median(seconds[2:])
    peak = matrix_rate(device=device, dtype=arithmetic.compute or torch.float32)
    return {
        "arithmetic": str(arithmetic),
        "parameters": sum(p.numel() for p in trained),
        "tokens a pass": budget.micro_batch_tokens,
        "tokens kept": budget.keep_tokens,
        "out of memory": threads.halvings,
        "seconds a step": step,
        "tokens a second": texts * tokens / step,
        "TF/s": work / step / 1e12,
        "TF/s of products alone": peak / 1e12,
        "share of peak": work / step / peak,
    }


if __name__ == "__main__":
    sys.exit(main())
