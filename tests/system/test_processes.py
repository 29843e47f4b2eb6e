"""A step cut into pieces, carried back piece by piece, or shared by two processes has the gradients
of one process.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers import gradient_cases, process_child, tiny, tiny_run

from taskdistill.tasks import Task
from taskdistill.train.context import Phase
from taskdistill.train.distributed import SINGLE, ProcessGroup, _buckets
from taskdistill.train.microbatch import PIECE_TOKENS, micro_batches, split, spread


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_micro_batches_hold_every_text_once_within_the_budget_and_balanced(workers):
    rng = np.random.default_rng(workers)
    for lengths in (
        rng.integers(3, 40, 120),
        rng.integers(3, 300, 64),
        np.full(7, 500),
        np.array([2000, 3, 3, 3]),
        np.array([9]),
    ):
        found = micro_batches(lengths, 1024, workers)
        assert sorted(np.concatenate(found).tolist()) == list(range(len(lengths)))
        assert all(len(part) == 1 or lengths[part].sum() <= 1024 for part in found)
        assert all((np.diff(lengths[part]) >= 0).all() for part in found)
    short = rng.integers(3, 40, 200)
    sums = [int(short[part].sum()) for part in micro_batches(short, 1024, workers)]
    assert len(sums) % max(2, workers) == 0 and max(sums) - min(sums) <= 80
    assert [part.tolist() for part in micro_batches(short, 1024, 1)] == [
        part.tolist() for part in micro_batches(short, 1024, 2)
    ]


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 8, 64])
def test_micro_batches_are_halved_only_where_that_keeps_more_workers_busy(workers):
    rng = np.random.default_rng(workers)
    for lengths in (
        rng.integers(3, 40, 12),
        rng.integers(3, 300, 64),
        rng.integers(10, 500, 400),
        np.full(7, 500),
        np.array([2000, 3]),
    ):
        batches = micro_batches(lengths, 1024, 2)
        halvings = spread(batches, lengths, workers)
        rounds, most = (
            -(-len(batches) * 2**halvings // workers) / 2**halvings,
            -(-len(batches) // workers),
        )
        assert rounds < most if halvings else rounds == most
        assert halvings == 0 or (
            workers > 2 and lengths.sum() / (len(batches) * 2**halvings) >= PIECE_TOKENS
        )
        parts = split(batches, range(len(batches)), lengths, halvings)
        assert sorted(np.concatenate([part.rows for part in parts]).tolist()) == list(
            range(len(lengths))
        )


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_distillation_carried_back_piece_by_piece_has_the_gradients_of_the_whole(family):
    case = gradient_cases.case(family, None)
    whole, told = process_child.gradients_of(case, 10**9, SINGLE)
    pieces, again = process_child.gradients_of(
        case, 10**9, SINGLE, share=gradient_cases.stage_1_share(case)
    )
    assert gradient_cases.worst(pieces, whole) <= 1e-12 and again == told
    assert "projection.weight" in whole


def test_only_a_loss_of_distillation_alone_is_carried_back_piece_by_piece():
    case = gradient_cases.case("bert", Task.RETRIEVAL)
    assert (
        Phase(
            name="a",
            settings=gradient_cases.STAGE1,
            plan=None,
            prepare=None,
            objective=case.objective,
            weights=case.weights,
            trained=case.trained,
        ).partial_loss(case.prepared, case.targets)
        is None
    )


def test_a_recipe_on_two_processes_trains_as_on_one_and_only_the_first_writes(tmp_path):
    raw = tiny.recipe(
        tiny.write_data(tmp_path / "data"), tiny.write_teacher(tmp_path / "teacher"), steps=4
    )
    (tmp_path / "recipe.json").write_text(json.dumps(raw))
    process_child.run(2, "train", str(tmp_path))
    losses = json.loads((tmp_path / "0.json").read_text())
    alone = [record["loss"] for record in tiny_run.train(raw, tmp_path / "alone").records]
    assert losses == pytest.approx(
        alone, rel=1e-2
    )  # AdamW turns the last bits of tiny gradients into signs
    followed = json.loads((tmp_path / "1.json").read_text())
    assert followed == losses[-len(followed) :] and len(followed) < len(losses)
    assert (tmp_path / "run" / "model" / "taskdistill.json").is_file()


def test_what_is_exchanged_by_one_process_is_its_own():
    rows = torch.randn(3, 2)
    assert (
        SINGLE.gather(rows, [3]) is rows
        and SINGLE.any_rank(True)
        and not SINGLE.any_rank(False)
        and SINGLE.broadcast("x") == "x"
    )
    SINGLE.all_reduce_([rows])
    with SINGLE.main_process_first():
        assert SINGLE.is_main and not ProcessGroup(1, 2).is_main


def test_sums_are_exchanged_in_buckets_of_one_type(monkeypatch):
    monkeypatch.setattr("taskdistill.train.distributed.BUCKET", 10)
    tensors = [
        torch.zeros(4),
        torch.zeros(5),
        torch.zeros(3),
        torch.zeros(2, dtype=torch.float64),
        torch.zeros(30),
    ]
    assert [[t.numel() for t in bucket] for bucket in _buckets(tensors)] == [[4, 5], [3], [2], [30]]
