"""Training on 1 to 256 GPUs, simulated from constants: step time, traffic and memory; and what this
machine says to the same formulas.

    python benchmarks/scaling_table.py # the table, from stated constants of one kind of GPU python
    benchmarks/scaling_table.py --check # also measures this machine's constants, predicts one and
    two CPU # processes by the same formulas, runs both, and prints prediction beside time

The formulas are those of the code: every process tokenises its share of the batch, runs its share
of the micro-batches, gathers tokens and vectors of all, takes the loss of the whole batch, and the
gradients are summed; with divided weights (FSDP2) every layer is gathered twice a micro-batch and
its gradient summed once. Nothing is taken to overlap but FSDP's gathering with its own compute. The
last line is the speed-up of stage 1 of the larger student from 1 to 256 GPUs.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from common import finish, gemm_rate, machine, options, parser, table

COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Hardware:
    """Constants of one kind of machine; per second and per processor unless they say otherwise."""

    name: str
    matrix_rate: float
    """Floating-point operations of matrix products."""
    reached: float
    """Share of it that passes reach."""
    near: float
    """Bytes between processors of one host, each way."""
    far: float
    """Bytes between hosts, each way."""
    latency: float
    """Seconds of an exchange, whatever its size."""
    a_host: int
    """Processors of a host."""
    tokenised: float
    """Tokens that a process tokenises, on its share of the host's cores."""
    memory: float
    """Bytes of a processor."""


H100 = Hardware(
    "H100 SXM, 8 a host, NVLink 450 GB/s, 400 Gb/s InfiniBand a GPU",
    989e12,
    0.4,
    450e9,
    50e9,
    3e-5,
    8,
    2e6,
    80e9,
)
"""Vendor's figures for dense bfloat16, NVLink and InfiniBand; the share reached, the latency and
the tokens are assumptions.
"""


@dataclass(frozen=True)
class Student:
    """Sizes that decide cost."""

    name: str
    layers: int
    hidden: int
    matrices: float
    """Entries of the matrices of all layers."""
    parameters: float
    """All entries, token table included."""


SMALL = Student("596M (Qwen3-0.6B)", 28, 1024, 440e6, 596e6)
NANO = Student("212M (EuroBERT-210m)", 12, 768, 113e6, 212e6)


@dataclass(frozen=True)
class Phase:
    """One step of a phase."""

    name: str
    texts: int
    tokens: int
    """Of all texts together."""
    trained: float | None
    """Trained parameters; None for all."""
    candidates: int
    """Candidates of the contrastive loss; 0 without one."""
    teacher: int
    """Size of the teacher's vectors; 0 without distillation."""
    micro: int = 32_768


def adapter_size(student: Student, rank: int = 32) -> float:
    """Count a LoRA adapter on seven maps a layer, three of them to or from an inner size of three
    hidden sizes.
    """
    return student.layers * rank * student.hidden * (4 * 2 + 3 * 4)


def phases(student: Student) -> list[Phase]:
    """Take the batches of recipes/jina-v5-*.yaml at a mean of 128 tokens a text."""
    return [
        Phase("stage 1", 2 * 4096, 2 * 4096 * 128, None, 0, 2560),
        Phase("retrieval adapter", 512 * 9, 512 * 9 * 128, adapter_size(student), 512 * 8, 2560),
    ]


ACTIVATION = 31_000 / 384 / 2
"""Bytes a token, layer and hidden unit: half of what `activation_memory` measured in float32."""


def step(
    student: Student, phase: Phase, count: int, on: Hardware, divided: bool
) -> dict[str, float]:
    """Predict one step.

    Returns:
        Seconds by part, bytes sent by one process, and bytes of memory of one process.
    """
    trained = student.parameters if phase.trained is None else phase.trained
    products = 3 if phase.trained is None else 2
    share = phase.tokens / count
    compute = 2 * products * student.matrices * share / (on.matrix_rate * on.reached)
    loss_work = (
        6
        * phase.texts
        * student.hidden
        * (phase.teacher + phase.candidates * (phase.candidates > 0) / 4)
    )
    loss = loss_work / (on.matrix_rate * on.reached)
    line = on.near if count <= on.a_host else on.far
    ring = (count - 1) / count
    pieces = max(1, -(-int(share) // phase.micro))
    vectors = (4 * phase.texts * student.hidden + 4 * phase.tokens) * ring
    hidden = 0.0
    if divided and phase.trained is None and count > 1:
        sums = 3 * 4 * student.parameters * ring * pieces
        hidden = min(sums / line, compute)
        exchanges = 3 * (student.layers + 1) * pieces
        held = 16 * student.parameters / count + 2 * 4 * student.parameters / student.layers
    else:
        sums = 2 * 4 * trained * ring
        exchanges = max(1, trained / 8.4e6)
        held = 4 * student.parameters + 12 * trained
    exchange = (
        0.0 if count == 1 else (vectors + sums) / line - hidden + on.latency * (exchanges + 4)
    )
    tokens = phase.tokens / count / on.tokenised
    memory = (
        held
        + ACTIVATION * min(share, phase.micro) * student.layers * student.hidden
        + 8 * phase.texts * (student.hidden + phase.teacher)
    )
    return {
        "seconds": tokens + compute + loss + exchange,
        "tokenise": tokens,
        "passes": compute,
        "loss": loss,
        "exchange": exchange,
        "sent": vectors + sums if count > 1 else 0.0,
        "memory": memory,
    }


def show(student: Student, phase: Phase, on: Hardware) -> list[dict[str, Any]]:
    """Print the table of one phase and return its rows."""
    divided = phase.trained is None
    found = []
    for count in COUNTS:
        whole, parts = (
            step(student, phase, count, on, False),
            step(student, phase, count, on, divided),
        )
        best = parts if divided and whole["memory"] > on.memory else whole
        found.append(
            {
                "gpus": count,
                "divided": best is parts and divided,
                **best,
                "memory_whole": whole["memory"],
                "memory_divided": parts["memory"],
            }
        )
    first = found[0]
    rows = [
        [
            str(row["gpus"]),
            f"{row['seconds']:.2f}",
            f"{phase.texts / row['seconds']:,.0f}",
            f"{first['seconds'] / row['seconds']:.1f}",
            f"{row['tokenise']:.2f}",
            f"{row['passes']:.2f}",
            f"{row['loss']:.3f}",
            f"{row['exchange']:.3f}",
            f"{row['sent'] / 1e9:.2f}",
            f"{row['memory_whole'] / 1e9:.1f}",
            f"{row['memory_divided'] / 1e9:.1f}" if divided else "-",
        ]
        for row in found
    ]
    columns = [
        "GPUs",
        "s a step",
        "texts/s",
        "speed-up",
        "tokenise",
        "passes",
        "loss",
        "exchange",
        "GB sent",
        "GB whole",
        "GB divided",
    ]
    table(
        f"{student.name}, {phase.name}: {phase.texts:,} texts, {phase.tokens:,} tokens a step",
        columns,
        rows,
    )
    return found


def main() -> None:
    """Print the tables."""
    made = parser(__doc__, texts=256, rounds=3)
    made.add_argument(
        "--check",
        action="store_true",
        help="measure this machine, predict and run one and two CPU processes",
    )
    made.add_argument("--child", action="store_true", help="internal")
    asked = options(made, quick_texts=64)
    if asked.child:
        child(asked)
        return
    print(
        f"simulated: {H100.name}; {H100.reached:.0%} of {H100.matrix_rate / 1e12:.0f} TF/s reached,"
        f" {H100.tokenised / 1e6:.0f}M tokens/s tokenised"
    )
    found = {
        f"{student.name} {phase.name}": show(student, phase, H100)
        for student in (SMALL, NANO)
        for phase in phases(student)
    }
    if asked.check:
        found["check"] = check(asked)
    stage1 = found[f"{SMALL.name} stage 1"]
    finish(stage1[0]["seconds"] / stage1[-1]["seconds"], found, asked.json)


def check(asked: Any) -> list[dict[str, float]]:
    """Measure this machine's constants with one process, and hold one and two processes against the
    same formulas.
    """
    print("\n" + machine(1))
    alone, two = (launch(count, asked) for count in (1, 2))
    rate = gemm_rate(1)
    student = Student("3 layers of all-MiniLM-L6-v2", 3, 384, 3 * 1.77e6, 17.2e6)
    phase = Phase("distillation", alone["texts"], alone["tokens"], None, 0, 384, 1024)
    here = Hardware(
        "this machine",
        rate,
        alone["work"] / alone["passes"] / rate,
        two["bandwidth"],
        two["bandwidth"],
        two["latency"],
        2,
        alone["tokens"] / alone["tokenise"],
        8e9,
    )
    # the work counted by the code includes attention, so the matrices are taken to be what it says
    student = replace(student, matrices=alone["work"] / 6 / alone["tokens"])
    found = []
    for count, measured in ((1, alone), (2, two)):
        told = step(student, phase, count, here, False)
        found.append(
            {
                "processes": count,
                "predicted": told["seconds"],
                "measured": measured["step"],
                "exchange": told["exchange"],
                "measured_exchange": measured["exchange"],
            }
        )
    rows = [
        [
            str(row["processes"]),
            f"{row['predicted']:.2f}",
            f"{row['measured']:.2f}",
            f"{row['exchange']:.3f}",
            f"{row['measured_exchange']:.3f}",
        ]
        for row in found
    ]
    table(
        "CPU processes of one thread each",
        ["processes", "predicted s", "measured s", "exchange predicted", "measured"],
        rows,
    )
    return found


def launch(count: int, asked: Any) -> dict[str, Any]:
    """Run this file's child on some processes and return what the first one says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [
        sys.executable,
        __file__,
        "--child",
        "--texts",
        str(asked.texts),
        "--rounds",
        str(asked.rounds),
        "--threads",
        "1",
    ]
    command += ["--data", str(asked.data)] if asked.data else []
    running = [
        subprocess.Popen(
            command,
            env={**os.environ, **common, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    said = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit(f"a process failed:\n{said[0][-2000:]}")
    return json.loads(said[0].strip().splitlines()[-1])  # type: ignore[no-any-return]


def child(asked: Any) -> None:
    """Train a few steps of distillation and print medians, as JSON, from the first process."""
    import numpy as np
    import torch
    from common import load_texts
    from train_speed import MAX_LENGTH, RATE, student

    from taskdistill.data.batches import Batch
    from taskdistill.model.flops import step_flops
    from taskdistill.tasks import Role
    from taskdistill.train.collate import TrainBatch
    from taskdistill.train.distributed import init_distributed
    from taskdistill.train.gradient_step import Passes, StepLoss
    from taskdistill.train.gradients import gradients
    from taskdistill.train.targets import TargetLookup
    from taskdistill.train.timer import Timer
    from taskdistill.train.workers import workers
    from taskdistill.types import RowKind

    made = student()
    module, texts = made.module.train(), load_texts("mixed", asked.texts, asked.data)
    parameters = list(module.backbone.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=RATE, fused=True)
    targets = torch.nn.functional.normalize(
        torch.randn(len(texts), module.embedding_dim, generator=torch.Generator().manual_seed(0)),
        dim=1,
    )
    steps, clocks = [], []
    batch = TrainBatch(
        batch=Batch(
            step=0,
            index=0,
            dataset="texts",
            kind=RowKind.TEXTS,
            rows=(),
            row_ids=np.arange(len(texts)),
        ),
        texts=[(Role.DOCUMENT, text) for text in texts],
    )

    def distance(vectors: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        return (torch.nn.functional.normalize(vectors, dim=1) - goal).square().mean()

    with (
        init_distributed(
            int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
        ) as together,
        workers(1) as threads,
    ):
        phase = SimpleNamespace(settings=SimpleNamespace(long_sources={}, max_length=MAX_LENGTH))
        signals = TargetLookup(
            phase, module, SimpleNamespace(tokenizer=made.tokenizer, prompts={}, processes=together)
        )
        for number in range(asked.rounds + 1):
            clock, start = Timer(), time.perf_counter()
            with clock("tokenise"):
                ids = signals.ids(batch)
            gradients(
                module,
                ids,
                StepLoss(
                    terms=lambda vectors: ({"mse": distance(vectors, targets)}, 0.0),
                    share=lambda vectors, places: (
                        distance(vectors, targets[places]) * (len(places) / len(texts))
                    ),
                ),
                parameters,
                Passes(seed=number),
                threads=threads,
                processes=together,
                clock=clock,
            )
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            if number:
                steps.append(time.perf_counter() - start)
                clocks.append(clock.seconds)
        bandwidth, latency = exchange_rate(together)
        if not together.is_main:
            return
    lengths = np.array([len(row) for row in ids])

    def median(values: list[float]) -> float:
        return float(np.median(values))

    print(
        json.dumps(
            {
                "texts": len(texts),
                "tokens": int(lengths.sum()),
                "work": step_flops(module, lengths, parameters, None),
                "step": median(steps),
                "tokenise": median([each["tokenise"] for each in clocks]),
                "passes": median([each["forward"] + each["backward"] for each in clocks]),
                "exchange": median([each.get("exchange", 0.0) for each in clocks]),
                "bandwidth": bandwidth,
                "latency": latency,
            }
        )
    )


def exchange_rate(together: Any) -> tuple[float, float]:
    """Measure bytes a second that a sum over the processes sends one way, and the seconds of a tiny
    one.
    """
    import torch

    if together.size == 1:
        return 1e12, 0.0
    times = []
    for size in (1, 4_000_000):
        tensor, taken = torch.ones(size), []
        for _ in range(5):
            start = time.perf_counter()
            together.all_reduce_([tensor])
            taken.append(time.perf_counter() - start)
        times.append(sorted(taken)[2])
    sent = 2 * 4 * 4_000_000 * (together.size - 1) / together.size
    return sent / max(1e-9, times[1] - times[0]), times[0]


if __name__ == "__main__":
    main()
