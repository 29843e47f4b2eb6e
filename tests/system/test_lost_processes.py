"""A process that fails, dies or hangs ends all others soon and with one line; one that is only slow
at its own work ends none.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import process_child, tiny
from helpers.forked import command

from taskdistill.train.log import read_lines

ENDED = "LostProcess: the work of another process failed, so this one ends; its own output says why"


def found_by(count: int, folder: Path, what: str) -> list[Any]:
    process_child.run(count, what, str(folder), limit=800)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_the_first_process_does_alone_may_take_longer_than_an_exchange(tmp_path, monkeypatch):
    monkeypatch.setenv("CHILD_TIMEOUT", "5")
    assert found_by(2, tmp_path, "slow") == ["ran out 0 times"] * 2


@pytest.mark.timeout(900)
def test_every_failure_of_one_process_ends_all(tmp_path):
    first, second = found_by(2, tmp_path, "failures")
    for shard in ("none", "full"):
        for place, said in {
            "optimiser": (
                r"WorkFailed: stage1: memory ran out while the optimiser updated the"
                r" weights.*shard: full"
            ),
            "always first forward": (
                r"WorkFailed: a step does not fit into memory even text by text .* lower max_length"
                r" or batch_size"
            ),
            "always loss": (
                r"WorkFailed: the loss of a batch of \d+ texts does not fit into memory.* lower"
                r" batch_size"
            ),
        }.items():
            assert first[f"{place}, {shard}"] == second[f"{place}, {shard}"] and re.match(
                said, first[f"{place}, {shard}"]
            ), place
        for place in ("first forward", "loss", "backward"):
            told = second[f"other {place}, {shard}"]
            assert (
                told == "LookupError: a fault of this process alone"
                and first[f"other {place}, {shard}"] == ENDED
            ), place
    assert first["allocation"] == second["allocation"] == "ran out 1 times"
    assert second["old torch"].startswith(
        "WorkFailed: memory ran out in a step with divided weights, and torch before 2.13"
    )
    assert first["old torch"].startswith(
        "LostProcess: another process of this run ended or did not answer in time"
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_failure_of_the_first_process_at_what_it_does_alone_ends_all(tmp_path):
    """Filling the teacher store and fitting the projection: one line that says what was met, and
    one that another process failed.
    """
    raw = tiny.recipe(
        tiny.write_data(tmp_path / "data"), tiny.write_teacher(tmp_path / "teacher"), steps=2
    )
    del raw["static"]
    raw["adapters"], raw["evaluation"] = {}, {}
    raw["stage1"]["projection_init"] = "least_squares"
    (tmp_path / "recipe.json").write_text(json.dumps(raw))
    first, second = found_by(2, tmp_path, "alone")
    assert (
        second.pop("reading by another") == "OSError: [Errno 5] Input/output error"
        and first.pop("reading by another") == ENDED
    )
    said = {
        "teacher": r"OSError: \[Errno 28\] No space left on device",
        "vectors": r"BadInput: shard 00000 is damaged",
        "memory": (
            r"WorkFailed: stage1: memory ran out while the projection was fitted .*projection_init:"
            r" default"
        ),
    }
    assert first.keys() == second.keys() == said.keys()
    assert all(re.match(said[place], first[place]) and second[place] == ENDED for place in said), (
        first,
        second,
    )


class Run:
    """A training on two processes through the command line, as torchrun starts it."""

    def __init__(self, folder: Path, raw: dict, minutes: float, lines: int) -> None:
        self.out = folder / "run"
        (folder / "recipe.json").write_text(json.dumps(raw | {"process_timeout": minutes}))
        words = ["train", str(folder / "recipe.json"), "--out", str(self.out), "--quiet"]
        self.processes = process_child.start_these(2, command, *words)
        while self.steps() < lines:
            assert all(process.poll() is None for process in self.processes), self.processes[
                0
            ].communicate()[0]
            time.sleep(0.05)

    def steps(self) -> int:
        log = self.out / "log.jsonl"
        return sum("step" in record for _, record in read_lines(log)) if log.is_file() else 0

    def told(self, rank: int, limit: float) -> str:
        """What a process says at its end, which must come within some seconds, with exit code 1 and
        one line.
        """
        said, _ = self.processes[rank].communicate(timeout=limit)
        assert self.processes[rank].returncode == 1, said
        lines = [line for line in said.splitlines() if line.strip()]
        assert len(lines) == 1 and lines[0].startswith("error: "), said
        return lines[0]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("victim", "how"),
    [
        (1, signal.SIGKILL),
        pytest.param(0, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(1, signal.SIGSTOP, marks=pytest.mark.slow),
        pytest.param(0, signal.SIGSTOP, marks=pytest.mark.slow),
    ],
)
def test_a_process_that_dies_or_hangs_ends_the_other_with_one_line(tmp_path, victim, how):
    raw = tiny.recipe(
        tiny.write_data(tmp_path / "data"), tiny.write_teacher(tmp_path / "teacher"), steps=3000
    )
    del raw["static"]
    raw["adapters"], raw["evaluation"] = {}, {}
    raw["stage1"]["checkpoint_every"] = 10**6
    raw["student"] |= {"max_length": 64}
    run = Run(tmp_path, raw, minutes=0.1, lines=3)
    try:
        os.kill(run.processes[victim].pid, how)
        told = run.told(1 - victim, limit=60.0)
        assert re.search(
            r"another process of this run ended or did not answer in time .* raise"
            r" `process_timeout`",
            told,
        ), told
    finally:
        run.close()
