"""One call of the encoder: several tasks at once, independence of the batch, splitting what does
not fit, streams, half precision.
"""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch
from helpers import tiny

from taskdistill.encode.batches import run_batches, token_batches
from taskdistill.encode.encoder import Encoder
from taskdistill.encode.placement import to_device
from taskdistill.encode.runner import prefetch
from taskdistill.errors import BadInput, WorkFailed
from taskdistill.quantization import Int8Ranges

TOLERANCE = 2e-6
"""Largest difference of a coordinate between a text encoded alone and among others, in float32;
docs/performance.md states it.
"""

RNG = np.random.default_rng(0)
TEXTS = [" ".join(RNG.choice(tiny.WORDS, size=size)) for size in RNG.integers(1, 30, 60)]
TASKS = ["retrieval", "clustering"]


def encoder_of(tmp_path, family: str = "bert", *, threads: int = 2, **options) -> Encoder:
    module = tiny.student(family)
    model = tiny.model(
        module,
        tiny.write_tokenizer(tmp_path / "tokenizer", end=family != "bert"),
        end=family != "bert",
    )
    for i, task in enumerate(TASKS):
        model.adapter_configs[task] = tiny.add_adapter(module, task, seed=i)
    return Encoder(model, threads=threads, **options)


def test_a_task_a_text_equals_one_call_a_task(tmp_path):
    encoder = encoder_of(tmp_path)
    tasks = [(None, *TASKS)[i % 3] for i in range(len(TEXTS))]
    together = encoder.encode(TEXTS, task=tasks, prompt_name="query", truncate_dim=16)
    for task in (None, *TASKS):
        rows = [i for i, name in enumerate(tasks) if name == task]
        apart = encoder.encode(
            [TEXTS[i] for i in rows], task=task, prompt_name="query", truncate_dim=16
        )
        assert np.abs(together[rows] - apart).max() <= TOLERANCE
    assert (
        np.abs(together[1] - encoder.encode([TEXTS[1]], prompt_name="query", truncate_dim=16)).max()
        > 0.01
    )
    assert encoder.encode([], task=[]).shape == (0, 32)


def test_tasks_a_text_are_checked_and_counted(tmp_path):
    encoder = encoder_of(tmp_path)
    with pytest.raises(BadInput, match="3 texts came with 2 tasks"):
        encoder.encode(TEXTS[:3], task=TASKS)
    with pytest.raises(BadInput, match="Unknown task: clusterin; did you mean 'clustering'"):
        encoder.encode(TEXTS[:2], task=["retrieval", "clusterin"])
    with pytest.raises(BadInput, match="one task for all its texts"):
        next(encoder.encode_stream(TEXTS, task=TASKS))
    told = []
    encoder.encode(
        TEXTS,
        task=[TASKS[i % 2] for i in range(60)],
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == sorted(told) and told[-1] == (60, 60)
    codes = encoder.encode(TEXTS, task=[TASKS[i % 2] for i in range(60)], precision="binary")
    assert codes.shape == (60, 4) and codes.dtype == np.uint8


def test_int8_ranges_are_those_of_each_texts_own_task(tmp_path):
    encoder = encoder_of(tmp_path)
    stored = encoder.model.settings.int8_ranges
    stored["retrieval"] = {"32": Int8Ranges.fit(encoder.encode(TEXTS, task="retrieval")).to_json()}
    with pytest.raises(BadInput, match="no int8 ranges for clustering"):
        encoder.encode(TEXTS[:2], task=TASKS, precision="int8")
    stored["clustering"] = {
        "32": Int8Ranges.fit(3 * encoder.encode(TEXTS, task="clustering")).to_json()
    }
    tasks = [TASKS[i % 2] for i in range(60)]
    together = encoder.encode(TEXTS, task=tasks, precision="int8")
    for place, task in enumerate(TASKS):
        apart = encoder.encode(TEXTS[place::2], task=task, precision="int8")
        assert (
            np.abs(together[place::2].astype(int) - apart).max() <= 1
        )  # a value on an edge may fall to either side


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_vectors_do_not_depend_on_batch_order_or_workers(tmp_path, family):
    encoder = encoder_of(tmp_path, family)
    reference = encoder.encode(TEXTS)
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    assert np.abs(alone - reference).max() <= TOLERANCE
    order = RNG.permutation(len(TEXTS))
    assert np.abs(encoder.encode([TEXTS[i] for i in order]) - reference[order]).max() <= TOLERANCE
    for threads, budget in ((1, 8), (2, 33), (3, 10_000)):
        other = encoder_of(tmp_path, family, threads=threads, token_budget=budget)
        assert np.abs(other.encode(TEXTS) - reference).max() <= TOLERANCE
    assert np.array_equal(encoder.encode(TEXTS), reference)  # the same call gives the same bits


def test_a_batch_that_does_not_fit_is_split_and_tried_again(tmp_path, monkeypatch):
    encoder = encoder_of(tmp_path)
    reference, embed, sizes = encoder.encode(TEXTS), encoder.backend.embed, []

    def small(ids):
        sizes.append(len(ids))
        if len(ids) > 3:
            raise torch.OutOfMemoryError("out of memory") if len(ids) % 2 else MemoryError
        return embed(ids)

    monkeypatch.setattr(encoder.backend, "embed", small)
    told = []
    given = encoder.encode(TEXTS, progress=lambda done, total: told.append(done))
    assert np.abs(given - reference).max() <= TOLERANCE
    assert (
        max(sizes) > 3 and sum(size for size in sizes if size <= 3) == len(TEXTS) and told[-1] == 60
    )
    monkeypatch.setattr(encoder.backend, "embed", lambda ids: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):  # a single text that does not fit is told, not skipped
        encoder.encode(TEXTS[:2])


def test_an_error_in_one_worker_ends_the_call():
    def work(batch):
        if 7 in batch:
            raise WorkFailed("seven")

    with pytest.raises(WorkFailed, match="seven"):
        run_batches([np.array([i]) for i in range(20)], work, 3, None)
    assert torch.get_num_threads() >= 1


def test_token_batches_cover_every_text_once_within_the_budget():
    lengths = RNG.integers(1, 50, 200)
    found = token_batches(lengths, 64)
    assert sorted(np.concatenate(found).tolist()) == list(range(200))
    assert all(lengths[batch].sum() <= 64 for batch in found)
    assert token_batches(np.array([100, 2]), 64)[0].tolist() == [
        0
    ]  # a text longer than the budget is alone
    assert token_batches(np.zeros(0, int), 64) == []


def test_a_stream_equals_a_call_and_reads_one_chunk_ahead(tmp_path):
    encoder = encoder_of(tmp_path)
    read = 0

    def source():
        nonlocal read
        for text in TEXTS:
            read += 1
            yield text

    stream = encoder.encode_stream(source(), window=10, task="retrieval")
    first = next(stream)
    assert read == 20 and len(first) == 10
    whole = np.concatenate([first, *stream])
    assert np.abs(whole - encoder.encode(TEXTS, task="retrieval")).max() <= TOLERANCE
    with pytest.raises(BadInput, match="text 11 is a int"):
        list(encoder.encode_stream([*TEXTS[:11], 3], window=10))
    with pytest.raises(BadInput, match=r"text 21 has more than 8 tokens and truncation is refused"):
        list(
            encoder.encode_stream(
                ["a"] * 21 + ["star " * 20], window=10, max_length=8, refuse_truncation=True
            )
        )


def test_one_ahead_works_while_the_caller_is_busy():
    started, threads = [], set()

    def work(item):
        started.append(item)
        threads.add(threading.get_ident())
        return item * item

    results = prefetch(range(4), work)
    assert next(results) == 0
    deadline = time.monotonic() + 5
    while started != [0, 1] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert started == [0, 1] and threads != {threading.get_ident()}
    assert list(results) == [1, 4, 9]
    assert list(prefetch([], work)) == []


@pytest.mark.parametrize("family", ["bert", "qwen3"])
def test_half_precision_moves_weights_only_and_stays_close(tmp_path, family):
    encoder = encoder_of(tmp_path, family)
    expected = encoder.encode(TEXTS, task="retrieval")
    to_device(encoder.model.module, torch.device("cpu"), torch.bfloat16)
    assert {p.dtype for p in encoder.model.module.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in encoder.model.module.buffers()} <= {torch.float32, torch.int64}
    given = encoder.encode(TEXTS, task="retrieval")
    assert given.dtype == np.float32 and (given * expected).sum(1).min() > 0.99
