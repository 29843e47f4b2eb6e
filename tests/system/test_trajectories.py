"""Twenty steps by two and by three processes have the losses, gradient norms and weights of one,
whatever happens on the way.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from helpers import process_child, trajectories
from helpers.trajectories import Case

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4}
"""Relative, of losses and gradient norms.

Sums in another order differ by an epsilon (1e-16 and 6e-8) of the largest summand. AdamW divides
gradients by their size, so that where a gradient is mathematically zero (the key biases of
attention, which no loss sees) rounding itself becomes an update of up to the learning rate: in
float32 1e-9 / (1e-9 + 1e-8), a tenth of it, in float64 a hundred-millionth. Such weights move no
loss; the others differ by about 20 steps x epsilon x the condition of the loss, which clipping to
0.05 and prefixes of 4 numbers make about 100: 20 x 6e-8 x 100 = 1e-4.
"""


@cache
def alone(name: str) -> dict[str, Any]:
    case = next(case for case in trajectories.cases() if case.name == name)
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        return trajectories.run_case(case, Path(folder))


@pytest.mark.parametrize(
    ("size", "which"),
    [
        (2, "core"),
        (3, "few"),
        pytest.param(2, "all", marks=pytest.mark.slow),
        pytest.param(3, "all", marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(
    1500
)  # where many other programs run: every exchange waits for the slowest process
def test_twenty_steps_of_every_phase_are_those_of_one_process(tmp_path, size, which):
    process_child.run(size, "trajectories", str(tmp_path), which, limit=1400)
    every = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(size)]
    for case in trajectories.tier(which):
        compare(case, alone(case.name), [found[case.name] for found in every])
    base, texts = trajectories.base_of()
    assert all(
        torch.equal(found["base"][0], base) for found in every
    )  # the same bits, though each process embedded a share
    assert sum(found["base"][1] for found in every) == texts and all(
        0 < found["base"][1] < texts for found in every
    )


def test_a_temperature_below_its_floor_is_learned_from_there_and_logged_as_it_was_used():
    found = alone("retrieval, near the floor")["temperatures"]
    assert found[0] == pytest.approx(0.001, rel=1e-6) and min(found) >= 0.001 * (1 - 1e-6)
    assert len(set(found)) == len(found) and max(found) > 0.0011


def compare(case: Case, one: dict[str, Any], several: list[dict[str, Any]]) -> None:
    first, steps = several[0], trajectories.STEPS * (1 + case.twice)
    assert len(first["losses"]) == len(one["losses"]) == steps, case.name
    assert first["skipped"] == one["skipped"] and sum(one["skipped"]) == case.skips, case.name
    for part in ("losses", "norms"):
        assert [number for number in first[part] if math.isfinite(number)] == pytest.approx(
            [number for number in one[part] if math.isfinite(number)], rel=TOLERANCE[case.dtype]
        ), f"{case.name}: {part}"
    if case.dtype is torch.float64:
        for name, wanted in one["weights"].items():
            assert float((first["weights"][name] - wanted).abs().max()) <= 1e-10, (
                f"{case.name}: {name}"
            )
    if case.stays:
        table = (
            trajectories.big_student(case.family, case.dtype).backbone.get_input_embeddings().weight
        )
        moved = (next(iter(first["weights"].values())) != table).any(1)
        assert not moved[: trajectories.STAYS].any() and moved[trajectories.STAYS :].any(), (
            case.name
        )
    for other in several[1:]:
        assert all(
            torch.equal(first["weights"][name], other["weights"][name]) for name in one["weights"]
        ), case.name
        assert [str(number) for number in first["losses"]] == [
            str(number) for number in other["losses"]
        ], case.name
    assert [step for step, times in enumerate(first["ran out"]) if times] == sorted(case.short), (
        case.name
    )
    assert sum(one["ran out"]) == 0
