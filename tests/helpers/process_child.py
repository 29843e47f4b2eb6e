"""One of the processes that tests start together, with torchrun's variables set: what is done by
its name, and a folder.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.forked import Forked


def start(count: int, *arguments: str) -> list[Forked]:
    """Start processes that run a part of this file."""
    return start_these(count, main, *arguments)


def start_these(count: int, target: Callable[..., Any], *arguments: str) -> list[Forked]:
    """Start processes that know of each other as torchrun's do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [
        Forked(
            target,
            *arguments,
            environment={**common, "RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"},
        )
        for rank in range(count)
    ]


def run(count: int, *arguments: str, limit: float = 280) -> None:
    """Start processes, wait for all, and show what a failed one said."""
    processes = start(count, *arguments)
    try:
        for process in processes:
            told, _ = process.communicate(timeout=limit)
            assert process.returncode == 0, told[-3000:]
    finally:
        for process in processes:
            process.kill()


def gradients_of(case, keep: int, together, *, micro: int = 24, share=None):
    """The gradients of a case of gradient_cases on some processes: named, with the told terms."""
    from taskdistill.train import gradients
    from taskdistill.train.gradient_step import Passes, StepLoss
    from taskdistill.train.workers import workers

    case.clear()
    with workers(1) as threads:
        told = gradients.gradients(
            case.model,
            case.ids,
            StepLoss(
                terms=case.loss,
                weights=case.weights,
                share=share,
                heads=list(case.heads.named().values()),
            ),
            list(case.trained.values()),
            Passes(seed=11, micro_batch_tokens=micro, keep_tokens=keep),
            threads=threads,
            processes=together,
        )
    return case.collect(), told


def launch(together) -> Any:
    from taskdistill.pipeline.train import Launch

    return Launch(together)


def train(out: Path, together) -> None:
    from helpers import tiny_run

    raw = json.loads((out / "recipe.json").read_text())
    told = tiny_run.train(raw, out / "run", launch=launch(together))
    (out / f"{together.rank}.json").write_text(
        json.dumps([record["loss"] for record in told.records])
    )


def trajectories(out: Path, together, which: str) -> None:
    from helpers import trajectories as cases

    cases.run_some(out, together, which)


def slow(out: Path, together) -> None:
    """Steps in which the first process takes longer to save and score than an exchange may take."""
    from dataclasses import replace

    from helpers import trajectories as cases

    plain = next(case for case in cases.cases() if case.name == "stage1, every term, none")
    case = replace(plain, name="slow", short={}, slow=1.3 * float(os.environ["CHILD_TIMEOUT"]))
    (out / f"{together.rank}.json").write_text(json.dumps(ending(case, out, together)))


def failures(out: Path, together) -> None:
    """What each process meets where one of them fails in a way that cannot be gone on from."""
    from dataclasses import replace

    from helpers import trajectories as cases

    from taskdistill.train import divided as divided_gradients
    from taskdistill.train import fsdp

    found = {}
    divided = next(case for case in cases.cases() if case.name == "stage1, every term, full")
    places = (
        "optimiser",
        "always first forward",
        "always loss",
        "other first forward",
        "other loss",
        "other backward",
    )
    for base in (replace(divided, shard="none"), divided):
        for place in places:
            case = replace(base, name=f"{place}, {base.shard}", short={1: (place, 1)})
            found[case.name] = ending(case, out, together)
    found["allocation"] = ending(
        replace(divided, name="allocation", short={1: ("allocation", 1)}), out, together
    )
    fsdp.can_start_again = divided_gradients.can_start_again = lambda model: (
        False
    )  # an older torch; this breaks the group
    found["old torch"] = ending(
        replace(divided, name="old torch", short={1: ("first forward", 1)}), out, together
    )
    (out / f"{together.rank}.json").write_text(json.dumps(found))


def alone(out: Path, together) -> None:
    """What each process meets where the first one fails at what it does alone, or one at what
    follows.
    """
    from helpers import tiny

    from taskdistill.errors import BadInput
    from taskdistill.pipeline import projection_start
    from taskdistill.pipeline import train as run

    def raising(error):
        def fail(*_, **__):
            raise error

        return fail

    def no_memory(*_, **__):
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
        )

    raw = json.loads((out / "recipe.json").read_text())
    cases = {
        "teacher": (0, run, "fill_stores", raising(OSError(28, "No space left on device"))),
        "vectors": (
            0,
            projection_start,
            "teacher_vectors",
            raising(BadInput("shard 00000 is damaged")),
        ),
        "memory": (0, projection_start, "fit_projection", no_memory),
        "reading by another": (
            1,
            projection_start,
            "load_file",
            raising(OSError(5, "Input/output error")),
        ),
    }
    found = {}
    for name, (rank, module, attribute, fault) in cases.items():
        held = getattr(module, attribute)
        if rank == together.rank:
            setattr(module, attribute, fault)
        try:
            run.train(tiny.parsed(raw), out / f"run-{name}", launch=launch(together))
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
        setattr(module, attribute, held)
        together.wait()
    (out / f"{together.rank}.json").write_text(json.dumps(found))


def ending(case, out: Path, together) -> str:
    from helpers import trajectories

    try:
        return f"ran out {sum(trajectories.run_case(case, out / 'run', together)['ran out'])} times"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def stopped(out: Path, together) -> None:
    """Train until the stop before the fourth step."""
    from helpers import tiny_run

    from taskdistill.train.context import Interrupted

    raw = json.loads((out / "recipe.json").read_text())
    try:
        tiny_run.train(
            raw, out / "run", launch=launch(together), should_stop=tiny_run.stop_before(3)
        )
    except Interrupted:
        return
    raise AssertionError("the run was not stopped")


def main(name: str, out: str, *more: str) -> None:
    from datetime import timedelta

    import torch

    from taskdistill.train.distributed import init_distributed

    torch.set_num_threads(1)
    timeout = timedelta(seconds=float(os.environ.get("CHILD_TIMEOUT", "600")))
    with init_distributed(
        int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"]), timeout
    ) as together:
        WORK[name](Path(out), together, *more)


WORK = {
    "train": train,
    "stopped": stopped,
    "trajectories": trajectories,
    "failures": failures,
    "slow": slow,
    "alone": alone,
}
