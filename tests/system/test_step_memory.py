"""A step that does not fit into memory is run again in halves, with the same masks and the same
sums.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import gradient_cases, tiny, tiny_run

from taskdistill.errors import WorkFailed
from taskdistill.model.lora import SeededDropout, seed_dropout
from taskdistill.tasks import Task
from taskdistill.train import gradient_step, gradients
from taskdistill.train.gradient_step import Passes, StepLoss
from taskdistill.train.log import read_lines
from taskdistill.train.memory import is_out_of_memory
from taskdistill.train.microbatch import micro_batches, split
from taskdistill.train.workers import workers

ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you"
    " tried to allocate 9 bytes."
)


class Room:
    """Lets a pass fail that has more tokens than fit, or while graphs are kept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tokens: int, error: Exception) -> None:
        self.failed = 0
        inner = gradient_step._forward

        def forward(model, ids, piece, *options):
            if sum(len(ids[i]) for i in piece.rows) > tokens:
                self.failed += 1
                raise error
            return inner(model, ids, piece, *options)

        monkeypatch.setattr(gradient_step, "_forward", forward)


def run(case: gradient_cases.Case, threads: int = 1, micro: int = 48, share=None):
    case.clear()
    with workers(threads) as made:
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
            Passes(seed=11, micro_batch_tokens=micro),
            threads=made,
        )
    return case.collect(), told, made.halvings


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("family", "task"),
    [("bert", Task.RETRIEVAL), ("qwen3", Task.CLASSIFICATION), ("eurobert", None)],
)
def test_halved_micro_batches_have_the_gradients_of_whole_ones(family, task, threads, monkeypatch):
    case = gradient_cases.case(family, task)
    wanted, told, none = run(case)
    room = Room(monkeypatch, 18, MemoryError())
    found, again, halvings = run(case, threads)
    assert none == 0 and halvings >= 1 and room.failed >= halvings
    assert (
        gradient_cases.worst(found, wanted) <= 1e-12
        and again[0] == pytest.approx(told[0], rel=1e-12)
        and again[2] == told[2]
    )


def test_a_distillation_that_is_carried_back_piece_by_piece_is_halved_too(monkeypatch):
    case = gradient_cases.case("bert", Task.CLUSTERING)
    share = gradient_cases.stage_1_share(case)
    wanted, _, _ = run(case, share=share)
    Room(monkeypatch, 18, RuntimeError(ALLOCATOR))
    found, _, halvings = run(case, share=share)
    assert halvings >= 1 and gradient_cases.worst(found, wanted) <= 1e-12


def test_memory_that_runs_out_on_the_way_back_leaves_no_gradient_twice(monkeypatch):
    case = gradient_cases.case("bert", Task.RETRIEVAL)
    wanted, told, _ = run(case)
    grad, left = torch.autograd.grad, [2]

    def once(*given, **named):
        left[0] -= 1
        if left[0] == 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return grad(*given, **named)

    monkeypatch.setattr(torch.autograd, "grad", once)
    found, again, halvings = run(case)
    assert halvings == 1 and again[0] == pytest.approx(told[0], rel=1e-12)
    assert (
        gradient_cases.worst(found, wanted) <= 1e-12
    )  # the heads' gradients were there before the failure


def test_a_text_that_does_not_fit_by_itself_ends_the_work_and_other_errors_stay_what_they_are(
    monkeypatch,
):
    case = gradient_cases.case("bert", Task.CLUSTERING)
    with monkeypatch.context() as patched:
        Room(patched, 2, MemoryError())
        with pytest.raises(
            WorkFailed,
            match=(
                r"does not fit into memory even text by text \(the longest of its 7 texts has \d+"
                r" tokens\); lower max"
            ),
        ):
            run(case)
    with monkeypatch.context() as patched:
        Room(patched, 18, RuntimeError("shapes differ"))
        with pytest.raises(RuntimeError, match="shapes differ"):
            run(case)


def test_what_counts_as_out_of_memory():
    assert all(
        map(is_out_of_memory, (MemoryError(), torch.OutOfMemoryError(), RuntimeError(ALLOCATOR)))
    )
    assert not any(
        map(is_out_of_memory, (RuntimeError("size mismatch"), ValueError("can't allocate memory")))
    )


def test_pieces_are_parts_of_their_micro_batch_in_order():
    lengths = np.random.default_rng(0).integers(2, 30, 40)
    batches = micro_batches(lengths, 100, 1)
    for halvings in (0, 1, 2, 9):
        made = split(batches, range(len(batches)), lengths, halvings)
        for number, batch in enumerate(batches):
            own = [piece for piece in made if piece.number == number]
            assert (
                np.concatenate([piece.rows for piece in own]).tolist() == batch.tolist()
                and len(own) <= 2**halvings
            )
            sizes = [int(lengths[piece.rows].sum()) for piece in own]
            assert [piece.first for piece in own] == [0, *np.cumsum(sizes)[:-1].tolist()]
            assert all(piece.whole == sum(sizes) for piece in own)
    assert all(len(piece.rows) == 1 for piece in made)


def test_a_part_of_a_stream_has_the_masks_of_its_place():
    drop, values = SeededDropout(0.5).train(), torch.ones(1, 10, 4)
    seed_dropout(torch.Generator().manual_seed(1), (0, 10))
    whole = [drop(values) for _ in range(2)]
    seed_dropout(torch.Generator().manual_seed(1))
    assert all(torch.equal(drop(values), mask) for mask in whole)
    for first, last in ((0, 3), (3, 10)):
        seed_dropout(torch.Generator().manual_seed(1), (first, 10))
        assert all(torch.equal(drop(values[:, first:last]), mask[:, first:last]) for mask in whole)
    seed_dropout(None)


def test_a_run_goes_on_in_halves_and_says_so(tmp_path, monkeypatch):
    raw = tiny.recipe(
        tiny.write_data(tmp_path / "data"), tiny.write_teacher(tmp_path / "teacher"), steps=4
    )
    del raw["static"]
    raw["adapters"] = {}
    wanted = tiny_run.train(raw, tmp_path / "whole").records
    Room(monkeypatch, 70, MemoryError())
    records = tiny_run.train(raw, tmp_path / "halved").records
    logged = [
        record for _, record in read_lines(tmp_path / "halved" / "log.jsonl") if "step" in record
    ]
    retries = [record.get("out_of_memory", 0) for record in logged]
    assert (
        retries[0] >= 1
        and sum(retries) <= 3
        and not any("out_of_memory" in record for record in wanted)
    )
    assert [r["loss"] for r in records] == pytest.approx([r["loss"] for r in wanted], rel=1e-4)
