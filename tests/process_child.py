"""One of the processes that tests start together: `python process_child.py gradients|train OUT`, with torchrun's variables set."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def start(count: int, *arguments: str) -> list[subprocess.Popen[str]]:
    """Start processes that know of each other as torchrun's do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, str(HERE / "process_child.py"), *arguments],
            env={**os.environ, **common, "RANK": str(rank), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]


def run(count: int, *arguments: str) -> None:
    """Start processes, wait for all, and show what a failed one said."""
    for process in start(count, *arguments):
        told, _ = process.communicate(timeout=280)
        assert process.returncode == 0, told[-3000:]


def gradients(out: Path, together) -> None:
    import test_step
    import torch

    from taskdistill.vocabulary import Task

    found = {}
    for name, task, keep in (("retrieval", Task.RETRIEVAL, 10**9), ("cached", Task.RETRIEVAL, 0), ("stage1", None, 10**9)):
        found[name] = gradients_of(test_step.case("bert", task), keep, together)
    torch.save(found, out / f"{together.rank}.pt")


def gradients_of(case, keep: int, together, *, micro: int = 24, share=None):
    """The gradients of a case of test_step on some processes: named, with the told terms."""
    from taskdistill.train import step
    from taskdistill.train.workers import workers

    case.clear()
    with workers(1) as threads:
        told = step.gradients(
            case.model,
            case.ids,
            case.loss,
            case.weights,
            list(case.trained.values()),
            seed=11,
            threads=threads,
            micro_batch_tokens=micro,
            keep_tokens=keep,
            share=share,
            heads=list(case.heads.named().values()),
            processes=together,
        )
    return case.collect(), told


def train(out: Path, together) -> None:
    import tiny_run

    raw = json.loads((out / "recipe.json").read_text())
    told = tiny_run.train(raw, out / "run", processes=together)
    (out / f"{together.rank}.json").write_text(json.dumps([record["loss"] for record in told.records]))


def main() -> None:
    import torch

    from taskdistill.train.processes import joined

    torch.set_num_threads(1)
    with joined(int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])) as together:
        {"gradients": gradients, "train": train}[sys.argv[1]](Path(sys.argv[2]), together)


if __name__ == "__main__":
    main()
