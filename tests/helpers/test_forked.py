"""Child processes of the tests: quick to start, with streams, signals and exit codes as other
processes have them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers.forked import Forked, command


def speaks(words: str) -> None:
    print(words, os.environ["SAID"])
    print("and more", file=sys.stderr)
    raise SystemExit(3)


def trains() -> None:
    weight = torch.nn.Parameter(torch.ones(64, 64))
    (weight @ weight).sum().backward()
    print(float(weight.grad.sum()))


def waits() -> None:
    print("begun")
    time.sleep(60)


def test_streams_environment_and_exit_code():
    with Forked(speaks, "a word", environment={"SAID": "was said"}) as child:
        assert (
            child.communicate(20) == ("a word was said\nand more\n", None) and child.returncode == 3
        )
    assert "SAID" not in os.environ


def test_it_has_no_threads_of_this_process_and_can_train():
    torch.nn.Parameter(
        torch.ones(4)
    ).sum().backward()  # from here on this process has threads of autograd
    for _ in range(2):
        with Forked(trains) as child:
            assert child.communicate(20)[0] == f"{2.0 * 64**3}\n" and child.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_signal_ends_it(number):
    with Forked(waits) as child:
        assert child.stdout.readline() == "begun\n" and child.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.01)
        child.send_signal(number)
        assert child.wait(20) == -number


def test_a_command_line_ends_with_its_code():
    with Forked(command, "info", "nowhere") as child:
        said, _ = child.communicate(20)
        assert child.returncode == 2 and said.startswith("error: ")
