"""Seeds of any 64 bits: none overflows a generator, all bits count, and small ones give the numbers
that they always gave.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import tiny
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from taskdistill.ablate.phases import Hyperparameters
from taskdistill.ablate.run_spec import TrainingRun
from taskdistill.ablate.settings import Ablation, make_experiment
from taskdistill.ablate.training_run import TRIAL_SEED
from taskdistill.cli.main import app
from taskdistill.errors import BadInput
from taskdistill.seeding import (
    MICRO_BATCH_STRIDE,
    SEEDS,
    STEP_STRIDE,
    derive_seed,
    later_seed,
    torch_seed,
)

seeds = st.one_of(
    st.integers(0, SEEDS - 1),
    st.sampled_from([0, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, SEEDS - 1]),
)
steps = st.integers(0, 10**7)


@given(seed=seeds, step=steps, number=st.integers(0, 10**6))
def test_every_generator_takes_every_derived_seed(seed, step, number):
    of_step = derive_seed(torch_seed(seed), step, STEP_STRIDE)
    of_micro_batch = derive_seed(of_step, number, MICRO_BATCH_STRIDE)
    for each in (torch_seed(seed), of_step, of_micro_batch):
        assert 0 <= each < 2**63
        torch.Generator().manual_seed(each)
        np.random.default_rng(each)
    assert 0 <= later_seed(seed, number) < SEEDS


@given(seed=st.integers(0, 2**20), step=st.integers(0, 10**5), number=st.integers(0, 10**4))
def test_small_seeds_give_the_sums_and_products_that_they_always_gave(seed, step, number):
    of_step = derive_seed(torch_seed(seed), step, STEP_STRIDE)
    assert torch_seed(seed) == seed and of_step == seed * 7_919 + step
    assert (
        derive_seed(of_step, number, MICRO_BATCH_STRIDE)
        == (seed * 7_919 + step) * 1_000_003 + number
    )
    assert later_seed(seed, number) == seed + number


@given(seed=st.integers(0, 2**32 - 1), high=st.integers(1, 2**32 - 1))
def test_two_seeds_that_differ_in_high_bits_alone_draw_other_numbers(seed, high):
    low, other = (
        torch.Generator().manual_seed(torch_seed(each)) for each in (seed, seed + (high << 32))
    )
    assert not torch.equal(torch.rand(4, generator=low), torch.rand(4, generator=other))


@given(seed=seeds, count=st.integers(2, 8))
def test_repetitions_and_trials_of_an_experiment_have_seeds_and_folders_of_their_own(seed, count):
    point = Hyperparameters(1e-3, 0.1, 1.0)
    runs = [
        TrainingRun(
            kind="run", arm="D->D", seed=later_seed(seed, k), steps=8, point=point, first=point
        )
        for k in range(count)
    ]
    trial = TrainingRun(
        kind="trial",
        arm="D->D",
        seed=later_seed(seed, TRIAL_SEED),
        steps=8,
        point=point,
        first=point,
    )
    firsts = [cell.needs() for cell in (*runs, trial)]
    assert (
        len({first.key for first in firsts})
        == len({cell.seed for cell in (*runs, trial)})
        == count + 1
    )
    assert firsts[-1].key == "first/trials" and firsts[0].key == f"first/seed-{seed}"


def test_an_experiment_repeats_over_the_largest_seed(tmp_path):
    raw = tiny.recipe(tmp_path, tmp_path, steps=100) | {"seed": SEEDS - 1}
    raw["adapters"], raw["static"] = {}, None
    experiment = make_experiment(tiny.parsed(raw), Ablation(seeds=3, base_from_teacher=True))
    assert experiment.seeds_of(next(arm for arm in experiment.arms() if arm.name == "D")) == [
        SEEDS - 1,
        0,
        1,
    ]


@pytest.mark.parametrize("seed", [0, SEEDS - 1])
def test_a_recipe_takes_every_seed_of_64_bits(tmp_path, seed):
    assert tiny.parsed(tiny.recipe(tmp_path, tmp_path) | {"seed": seed}).seed == seed


@pytest.mark.parametrize("seed", [-1, SEEDS])
def test_no_other_seed_is_taken(tmp_path, seed):
    with pytest.raises(BadInput, match="64 bits; give one from 0 to 18446744073709551615"):
        torch_seed(seed)
    with pytest.raises(BadInput, match="seed"):
        tiny.parsed(tiny.recipe(tmp_path, tmp_path) | {"seed": seed})

    for command in (
        ["adapt", "m", "d", "--task", "retrieval"],
        ["shrink", "m"],
        ["needle", "m"],
        ["compare-teachers", "m"],
        ["migrate", "i", "m"],
        ["data", "docs"],
    ):
        told = CliRunner().invoke(app, [*command, "--seed", str(seed)])
        assert told.exit_code == 2 and "'--seed'" in told.output, command
