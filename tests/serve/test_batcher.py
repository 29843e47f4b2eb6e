"""The batching queue: nothing lost, doubled, mixed or starved; a poisoned text and a panic fail
alone; dropped places are free.
"""

from __future__ import annotations

import asyncio
import random
import time

import numpy as np
import pytest
from helpers.serve_fakes import FakeEngine, expected
from hypothesis import given, settings
from hypothesis import strategies as st

from taskdistill.errors import WorkFailed
from taskdistill.serve.batcher import DynamicBatcher, ServerStopping
from taskdistill.serve.scheduler import (
    PATIENCE,
    SHORT,
    UNMEASURED_TOKENS,
    EmbedJob,
    FairScheduler,
    QueueFull,
)

TEXTS, TOKENS, BUDGET = 60, 6000, 256
TASKS = [None, "retrieval", "clustering"]

arrival = st.tuples(
    st.just("come"), st.sampled_from(TASKS), st.lists(st.integers(1, 400), min_size=1, max_size=12)
)
leaving = st.tuples(st.just("leave"), st.integers(0, 50), st.just(None))
batch = st.tuples(st.just("take"), st.sampled_from([BUDGET, 64]), st.booleans())


def ids_of(length: int, value: int = 1) -> np.ndarray:
    return np.full(length, value, np.int32)


def waiting(**options) -> FairScheduler:
    return FairScheduler(**({"texts": TEXTS, "tokens": TOKENS, "seconds": 0.0} | options))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(arrival, arrival, batch, batch, leaving), max_size=80))
def test_any_history_keeps_every_promise(history):
    queue, jobs = waiting(), []
    alive: dict[tuple[int, int], tuple] = {}
    for what, first, second in history:
        if what == "come":
            fits = len(alive) + len(second) <= TEXTS and (
                not alive or sum(size for size, *_ in alive.values()) + sum(second) <= TOKENS
            )
            try:
                job = queue.admit(len(second), sum(second))
            except QueueFull:
                assert not fits
                continue
            assert fits
            queue.put(job, [ids_of(size) for size in second], first, 0.0)
            for index, size in enumerate(second):
                tag = queue.clock + PATIENCE * sum(second[: index + 1])
                alive[len(jobs), index] = (size, first, tag)
            jobs.append(job)
        elif what == "leave" and jobs:
            number = first % len(jobs)
            left = [key for key in alive if key[0] == number]
            assert queue.drop(jobs[number]) == len(left)
            assert queue.drop(jobs[number]) == 0
            for key in left:
                del alive[key]
        elif what == "take":
            clock = queue.clock
            got, pause = queue.take(first, 0.0, short_only=second)
            assert pause is None
            candidates = [value for value in alive.values() if value[0] <= SHORT or not second]
            assert (got is None) == (not candidates)
            if got is None:
                continue
            keys = [(jobs.index(item.job), item.index) for item in got.items]
            taken = [alive.pop(key) for key in keys]
            assert {task for _, task, _ in taken} == {got.task}
            assert {size <= SHORT for size, *_ in taken} == {got.short}
            assert got.tokens == sum(size for size, *_ in taken)
            assert got.tokens <= first or len(taken) == 1
            assert min(tag for *_, tag in taken) == min(tag for *_, tag in candidates)
            assert queue.clock == clock + got.tokens
        assert (queue.texts, queue.tokens) == (len(alive), sum(size for size, *_ in alive.values()))
    while (got := queue.take(BUDGET, 0.0)[0]) is not None:
        for item in got.items:
            del alive[jobs.index(item.job), item.index]
    assert not alive
    assert (queue.texts, queue.tokens) == (0, 0)


def test_no_text_is_overtaken_for_longer_than_its_tag_and_a_full_queue_allow():
    rng = random.Random(5)
    queue, born, worst = waiting(), {}, 0
    for _ in range(4000):
        sizes = rng.choice(
            [[rng.randint(1, 30)], [400], [rng.randint(1, 400) for _ in range(rng.randint(1, 30))]]
        )
        try:
            job = queue.admit(len(sizes), sum(sizes))
        except QueueFull:
            pass
        else:
            queue.put(job, [ids_of(size) for size in sizes], rng.choice(TASKS), 0.0)
            born[job] = (queue.clock, sizes)
        clock = queue.clock
        got, _ = queue.take(BUDGET, 0.0)
        for item in got.items if got else ():
            start, sizes = born[item.job]
            own = PATIENCE * sum(sizes[: item.index + 1])
            worst = max(worst, clock - start - own)
    assert worst <= TOKENS


def test_a_short_request_overtakes_the_tail_of_a_long_one():
    queue = waiting(texts=5000, tokens=10**6)
    long = queue.admit(1000, 30_000)
    queue.put(long, [ids_of(30)] * 1000, None, 0.0)
    queue.take(BUDGET, 0.0)
    short = queue.admit(1, 30)
    queue.put(short, [ids_of(30)], None, 0.0)
    batches = 0
    while not any(item.job is short for item in queue.take(BUDGET, 0.0)[0].items):
        batches += 1
    assert batches <= 1


def test_clients_that_come_and_go_leave_nothing_behind():
    queue = waiting(texts=5000, tokens=10**6)
    stays = queue.admit(1, 10)
    queue.put(stays, [ids_of(10)], None, 0.0)
    for _ in range(200):
        job = queue.admit(100, 100)
        queue.put(job, [ids_of(1)] * 100, None, 0.0)
        queue.drop(job)
    assert (queue.texts, queue.tokens) == (1, 10)
    assert sum(map(len, queue._heaps.values())) < 1200


def test_a_batch_that_is_not_full_waits_for_company_and_no_longer():
    queue = waiting(max_wait=0.01)
    job = queue.admit(1, 10)
    queue.put(job, [ids_of(10)], None, 100.0)
    assert queue.take(BUDGET, 100.004) == (None, pytest.approx(0.006))
    assert len(queue.take(BUDGET, 100.01)[0].items) == 1
    full = queue.admit(30, 300)
    queue.put(full, [ids_of(10)] * 30, None, 200.0)
    assert len(queue.take(BUDGET, 200.0)[0].items) == 25


def test_a_wait_that_would_be_too_long_is_refused_but_never_the_first_request():
    queue = waiting(seconds=2.0)
    queue.rate = 100.0
    job = queue.admit(1, 5000)
    with pytest.raises(QueueFull) as full:
        queue.admit(1, 1)
    assert full.value.seconds == 50.0
    queue.drop(job)
    queue.admit(1, 150)
    queue.admit(1, 50)


def test_little_is_accepted_while_it_is_not_known_how_fast_the_model_is():
    """150 requests of 4,000 tokens: with no rate the first and no other, with a rate those that are
    done in time.
    """
    for rate, seconds, accepted in (
        (None, 8.0, 1),
        (5_000.0, 8.0, 10),
        (100.0, 8.0, 1),
        (1e9, 8.0, 150),
        (None, 0.0, 150),
    ):
        queue = FairScheduler(texts=16_384, tokens=600_000, seconds=seconds)
        queue.rate = rate
        assert sum(admitted(queue, 1, 4_000) for _ in range(150)) == accepted
    queue = FairScheduler(texts=16_384, tokens=600_000, seconds=8.0, unmeasured=1_000)
    assert [admitted(queue, 1, 300) for _ in range(5)] == [True, True, True, False, False]


def admitted(queue: FairScheduler, texts: int, tokens: int) -> bool:
    try:
        queue.admit(texts, tokens)
    except QueueFull:
        return False
    return True


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("rate", [200.0, 5_000.0, 20_000.0])
def test_what_is_accepted_is_computed_in_time_on_a_cold_server_too(rate, measured):
    """60 clients send 64 texts each and go on for half a minute of a clock that only computing
    moves; another one sends short texts.
    """
    seconds, texts = 8.0, [ids_of(30)] * 64
    queue = FairScheduler(texts=16_384, tokens=600_000, seconds=seconds)
    queue.rate = rate if measured else None
    clock, waits, short_answers = 0.0, [], []
    open_jobs: dict[EmbedJob, float] = {}
    next_short = 0.0
    while clock < 30:
        while len(
            [job for job in open_jobs if job.texts and job.tokens > 30]
        ) < 60 and admitted_job(queue, texts, clock, open_jobs):
            pass
        if clock >= next_short:
            next_short = clock + 0.5
            admitted_job(queue, [ids_of(5)], clock, open_jobs)
        batch, _ = queue.take(BUDGET, clock)
        if batch is None:
            clock += 0.1
            continue
        clock += batch.tokens / rate
        queue.rate = rate
        for item in batch.items:
            item.job.left -= 1
            if item.job.left == 0:
                (short_answers if len(item.ids) == 5 else waits).append(
                    clock - open_jobs.pop(item.job)
                )
    first = 0 if measured else UNMEASURED_TOKENS / rate
    longest = max(seconds, 64 * 30 / rate, first)
    assert max(waits + short_answers) <= 1.1 * longest + 2 * BUDGET / rate + 0.1, (
        "short texts may overtake for a little"
    )
    assert len(waits) >= 0.8 * 30 * rate / (64 * 30) - 60 and short_answers


def admitted_job(
    queue: FairScheduler, texts: list[np.ndarray], clock: float, open_jobs: dict[EmbedJob, float]
) -> bool:
    try:
        job = queue.admit(len(texts), sum(map(len, texts)))
    except QueueFull:
        return False
    open_jobs[job] = clock
    queue.put(job, texts, None, clock)
    return True


def test_the_rate_is_measured_by_the_second_run_and_refined_by_large_batches():
    class Slow(FakeEngine):
        def embed(self, ids, task):
            time.sleep(0.2 if not self.batches else 0.01)
            return super().embed(ids, task)

    queue = running(engine := Slow(workers=2, has_short_worker=False), seconds=8.0)
    assert asyncio.run(queue.measure([ids_of(20)] * 5, 10.0)) == queue._scheduler.rate
    assert 2 * 100 / 0.2 < queue._scheduler.rate <= 2 * 100 / 0.01
    assert len(engine.batches) == 2
    queue.close()
    queue = running(
        FakeEngine(workers=1, has_short_worker=False, seconds_per_token=1e-3), seconds=8.0
    )
    assert asyncio.run(queue.measure([ids_of(100)], 0.02)) is None, (
        "a model that does not answer in time has no rate"
    )
    asyncio.run(embed(queue, [ids_of(10)]))
    assert queue._scheduler.rate <= 1000
    queue.close()


def running(engine: FakeEngine, **options) -> DynamicBatcher:
    queue = DynamicBatcher(engine, waiting(**({"texts": 10_000, "tokens": 10**6} | options)))
    queue.start()
    return queue


async def until(condition) -> None:
    """Wait for what a thread will do soon, however busy the machine is."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


async def taken(queue: DynamicBatcher) -> None:
    await until(lambda: bool(queue._running) and queue.texts == 0)


async def embed(
    queue: DynamicBatcher, ids: list[np.ndarray], task: str | None = None
) -> np.ndarray:
    job = queue.admit(len(ids), sum(map(len, ids)))
    try:
        return await queue.embed(job, ids, task)
    finally:
        queue.drop(job)


@pytest.mark.parametrize("seed", range(3))
def test_every_request_gets_its_own_vectors_whatever_else_happens(seed):
    rng = random.Random(seed)
    engine = FakeEngine(workers=3, seconds_per_token=1e-5)
    queue = running(engine)
    cancelled = 0

    async def client() -> None:
        nonlocal cancelled
        await asyncio.sleep(rng.random() * 0.2)
        poison = rng.random() < 0.1
        ids = [
            ids_of(rng.choice([3, 20, 200, 300]), rng.randint(1, 1000))
            for _ in range(rng.randint(1, 20))
        ]
        if poison:
            ids[rng.randrange(len(ids))][0] = rng.choice([-1, -2])
        work = asyncio.ensure_future(embed(queue, ids, rng.choice(TASKS)))
        if rng.random() < 0.2:
            await asyncio.sleep(rng.random() * 0.05)
            work.cancel()
        try:
            vectors = await work
        except asyncio.CancelledError:
            cancelled += 1
        except WorkFailed:
            assert poison
        else:
            assert not poison
            np.testing.assert_array_equal(
                vectors, np.array([expected(row) for row in ids], np.float32)
            )

    async def everyone() -> None:
        await asyncio.wait_for(asyncio.gather(*(client() for _ in range(200))), 60)

    asyncio.run(everyone())
    assert cancelled > 0
    assert (queue.texts, queue.tokens) == (0, 0)
    assert all(sum(sizes) <= engine.budget or len(sizes) == 1 for _, sizes in engine.batches)
    assert all(len({size <= SHORT for size in sizes}) == 1 for _, sizes in engine.batches)
    queue.close()
    assert not queue._threads


def test_a_dropped_client_frees_its_place_and_its_texts_are_not_computed():
    engine = FakeEngine(workers=1, has_short_worker=False)
    queue = running(engine)
    engine.held.clear()

    async def scene() -> None:
        first = asyncio.ensure_future(embed(queue, [ids_of(200)]))
        await taken(queue)
        second = asyncio.ensure_future(embed(queue, [ids_of(7)] * 50))
        await until(lambda: queue.texts == 50)
        second.cancel()
        await asyncio.wait({second})
        assert (queue.texts, queue.tokens) == (0, 0)
        engine.held.set()
        await first

    asyncio.run(scene())
    queue.close()
    assert engine.batches == [(None, [200])]


def test_a_poisoned_text_fails_alone():
    engine = FakeEngine(workers=1, has_short_worker=False)
    queue = running(engine)
    engine.held.clear()

    async def scene() -> list:
        blocker = asyncio.ensure_future(embed(queue, [ids_of(1)]))
        await taken(queue)
        rows = (
            [[ids_of(5, i + 1)] for i in range(9)]
            + [[ids_of(5, -1)]]
            + [[ids_of(5, i + 20)] for i in range(9)]
        )
        work = [asyncio.ensure_future(embed(queue, each)) for each in rows]
        await until(lambda: queue.texts == len(rows))
        engine.held.set()
        await blocker
        return await asyncio.gather(*work, return_exceptions=True)

    answers = asyncio.run(scene())
    assert [i for i, answer in enumerate(answers) if isinstance(answer, WorkFailed)] == [9]
    assert [float(answer[0, 0]) for i, answer in enumerate(answers) if i != 9] == [
        5.0 * i for i in [*range(1, 10), *range(20, 29)]
    ]
    assert not queue.unhealthy
    queue.close()


def test_a_panic_fails_one_request_replaces_the_worker_and_counts_as_sick_until_it_works_again():
    engine = FakeEngine(workers=1, has_short_worker=False)
    queue = running(engine)

    async def scene() -> None:
        threads = set(queue._threads)
        with pytest.raises(WorkFailed):
            await embed(queue, [ids_of(5, -2)])
        assert queue.unhealthy
        assert not queue.recently_succeeded
        engine.panicking = True
        assert not await queue.probe([ids_of(1)], 5)
        engine.panicking = False
        assert await queue.probe([ids_of(1)], 5)
        assert queue.recently_succeeded
        assert not threads & queue._threads

    asyncio.run(scene())
    assert queue.worker_failures == 2
    queue.close()


def test_short_texts_need_not_wait_for_long_ones():
    engine = FakeEngine(workers=2, seconds_per_token=1e-3)
    queue = running(engine)

    async def scene() -> float:
        long = [asyncio.ensure_future(embed(queue, [ids_of(300)])) for _ in range(6)]
        await asyncio.sleep(0.05)
        started = time.monotonic()
        await embed(queue, [ids_of(10)])
        took = time.monotonic() - started
        await asyncio.gather(*long)
        return took

    assert asyncio.run(scene()) < 0.2
    queue.close()


def test_a_probe_passes_a_full_queue():
    engine = FakeEngine(workers=1, has_short_worker=False)
    queue = running(engine, texts=5)
    engine.held.clear()

    async def scene() -> None:
        work = [asyncio.ensure_future(embed(queue, [ids_of(9)] * 3)) for _ in range(1)]
        await taken(queue)
        work.append(asyncio.ensure_future(embed(queue, [ids_of(9)] * 5)))
        await until(lambda: queue.texts == 5)
        assert queue.full
        with pytest.raises(QueueFull):
            await embed(queue, [ids_of(9)])
        probe = asyncio.ensure_future(queue.probe([ids_of(1)], 5))
        await asyncio.sleep(0.02)
        engine.held.set()
        assert await probe
        await asyncio.gather(*work)

    asyncio.run(scene())
    queue.close()
    assert (queue.texts, queue.tokens) == (0, 0)


def test_closing_fails_what_still_waits_and_refuses_what_comes():
    engine = FakeEngine(workers=1, has_short_worker=False)
    queue = running(engine)
    engine.held.clear()

    async def scene() -> None:
        running = asyncio.ensure_future(embed(queue, [ids_of(256)]))
        await taken(queue)
        waits = asyncio.ensure_future(embed(queue, [ids_of(9)]))
        await until(lambda: queue.texts == 1)
        await asyncio.to_thread(queue.close, 0.1)
        with pytest.raises(ServerStopping):
            await waits
        with pytest.raises(ServerStopping):
            await embed(queue, [ids_of(9)])
        engine.held.set()
        assert (await running)[0, 1] == 256

    asyncio.run(scene())
