"""The optimiser's groups, the learning-rate schedules and clipping, by numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from taskdistill.recipe.phases import PhaseConfig
from taskdistill.train.optim import (
    HeadSchedule,
    clip,
    gradient_norm,
    make_optimizer,
    rate_factor,
    set_rate,
)


def phase(**fields: object) -> PhaseConfig:
    return PhaseConfig(
        **{"sources": {"a": 1}, "steps": 10, "batch_size": 1, "lr": 0.5, "warmup": 0.2, **fields}
    )


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("cosine", [0.5, 1, *((1 + math.cos(math.pi * n / 8)) / 2 for n in range(8))]),
    ],
)
def test_schedules(schedule, wanted):
    made = phase(schedule=schedule)
    assert [rate_factor(made, step) for step in range(10)] == pytest.approx(wanted)


def test_no_warm_up_and_nothing_but_warm_up():
    assert rate_factor(phase(warmup=0), 0) == 1.0
    assert [rate_factor(phase(warmup=1), step) for step in (0, 4, 9)] == pytest.approx(
        [0.1, 0.5, 1.0]
    )
    assert rate_factor(phase(steps=1), 0) == 1.0


def test_matrices_decay_vectors_do_not_and_heads_have_their_own_rate():
    model = {"weight": nn.Parameter(torch.zeros(2, 2)), "bias": nn.Parameter(torch.zeros(2))}
    heads = {
        "projection.weight": nn.Parameter(torch.zeros(2, 2)),
        "log_temperature": nn.Parameter(torch.tensor(0.0)),
    }
    made = make_optimizer(
        phase(weight_decay=0.1, betas=(0.8, 0.9)), model, heads, HeadSchedule(lr=0.25)
    )
    groups = [(g["lr"], g["weight_decay"], g["betas"], len(g["params"])) for g in made.param_groups]
    assert groups == [
        (0.5, 0.1, (0.8, 0.9), 1),
        (0.5, 0.0, (0.8, 0.9), 1),
        (0.25, 0.1, (0.8, 0.9), 1),
        (0.25, 0.0, (0.8, 0.9), 1),
    ]
    set_rate(made, phase(), 0)
    assert [g["lr"] for g in made.param_groups] == pytest.approx([0.25, 0.25, 0.125, 0.125])
    assert make_optimizer(phase(), model, heads, None).param_groups[2]["lr"] == 0.5


def test_heads_warm_up_and_decay_by_their_own_settings():
    model, heads = (
        {"w": nn.Parameter(torch.zeros(2, 2))},
        {"projection.weight": nn.Parameter(torch.zeros(2, 2))},
    )
    made = make_optimizer(
        phase(weight_decay=0.1), model, heads, HeadSchedule(lr=0.2, warmup=0.5, weight_decay=0.0)
    )
    assert [g["weight_decay"] for g in made.param_groups] == [0.1, 0.0]
    set_rate(
        made, phase(), 2
    )  # the phase has warmed up after two of its ten steps, the heads after five
    assert [g["lr"] for g in made.param_groups] == pytest.approx([0.5, 0.2 * 3 / 5])
    set_rate(made, phase(), 5)
    assert [g["lr"] for g in made.param_groups] == pytest.approx([0.5 * 5 / 8, 0.2])


def test_one_update_is_adamw_by_hand():
    weight = nn.Parameter(torch.tensor([[2.0]]))
    made = make_optimizer(phase(weight_decay=0.1), {"w": weight}, {}, None)
    weight.grad = torch.tensor([[3.0]])
    made.step()
    assert weight.item() == pytest.approx(
        2.0 * (1 - 0.5 * 0.1) - 0.5
    )  # decay, then a step of the sign of the gradient


def test_the_norm_is_over_all_gradients_and_shows_what_is_not_finite():
    parameters = {name: nn.Parameter(torch.zeros(2)) for name in "ab"}
    assert gradient_norm(parameters) == 0
    parameters["a"].grad, parameters["b"].grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    assert gradient_norm(parameters) == 5
    clip(parameters, 5.0, 10.0)
    assert parameters["a"].grad.tolist() == [3, 0]
    clip(parameters, 5.0, 1.0)
    assert gradient_norm(parameters) == pytest.approx(1.0) and parameters[
        "a"
    ].grad.tolist() == pytest.approx([0.6, 0])
    parameters["b"].grad[0] = torch.nan
    assert math.isnan(gradient_norm(parameters))
    parameters["b"].grad[0] = torch.inf
    assert math.isinf(gradient_norm(parameters))
