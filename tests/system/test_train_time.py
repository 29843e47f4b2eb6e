"""Where a run's time went: every part of a step has its seconds, threads or not; the work of a
step; and the profiler's trace.
"""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny, tiny_run

from taskdistill.model.flops import matrix_parameters, step_flops
from taskdistill.model.lora import adapter_parameters
from taskdistill.pipeline.profile import matrix_rate, where_time_went
from taskdistill.pipeline.train import Launch
from taskdistill.report.pages import profile_table
from taskdistill.train.log import read_lines
from taskdistill.train.timer import Timer, between, moment

CPU = torch.device("cpu")


def test_parts_that_threads_worked_on_at_once_share_the_time_that_passed():
    clock, marks = Timer(), []
    with clock.shared(marks, CPU):
        start = time.perf_counter()
        time.sleep(0.05)
        marks += [("forward", 0.0, 3.0), ("backward", 3.0, 4.0), ("forward", 0.0, 3.0)]
    passed = time.perf_counter() - start
    assert sum(clock.seconds.values()) == pytest.approx(passed, abs=0.02)
    assert clock.seconds["forward"] == pytest.approx(6 * clock.seconds["backward"])
    first = moment(CPU)
    assert 0 <= between(first, moment(CPU)) < 1


def test_the_clock_adds_up():
    clock = Timer()
    for _ in range(2):
        with clock("data"):
            time.sleep(0.01)
    clock.add("loss", 2.0)
    assert clock.seconds["data"] >= 0.02 and clock.seconds["loss"] == 2.0


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_work_of_a_step_is_counted_from_shapes(family):
    model, lengths = tiny.student(family), np.array([3, 5, 2])
    hidden, inner, layers = 32, 48, 2
    keys = hidden if family == "bert" else hidden // 2
    attention = 2 * hidden * hidden + 2 * hidden * keys
    matrices = layers * (attention + (2 if family == "bert" else 3) * hidden * inner)
    assert matrix_parameters(model) == matrices
    scores = 3 * 4 * (9 + 25 + 4) * hidden * layers
    assert (
        step_flops(model, lengths, list(model.parameters()), None) == 3 * 2 * 10 * matrices + scores
    )
    tiny.add_adapter(model, "retrieval", rank=4)
    tiny.add_adapter(model, "clustering", rank=8)
    adapter = adapter_parameters(model.backbone, "retrieval")
    own = sum(p.numel() for p in adapter.values())
    assert (
        matrix_parameters(model) == matrices
        and matrix_parameters(model, "retrieval") == matrices + own
    )
    assert (
        step_flops(model, lengths, list(adapter.values()), "retrieval")
        == 2 * 10 * (2 * (matrices + own) + own) + scores
    )


@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_says_where_its_time_went(tmp_path, threads):
    raw = tiny.recipe(
        tiny.write_data(tmp_path / "data"), tiny.write_teacher(tmp_path / "teacher"), steps=4
    )
    raw["threads"] = threads
    raw["adapters"] = {"classification": raw["adapters"]["classification"]}
    raw["evaluation"] = {"dev": ["sts/sts"], "during": {"every": 2}}
    start = time.monotonic()
    records = tiny_run.train(raw, tmp_path / "run").records
    passed = time.monotonic() - start
    for record in records:
        assert set(record["seconds"]) == {
            "data",
            "tokenise",
            "teacher",
            "forward",
            "loss",
            "backward",
            "optimiser",
        }
        assert all(seconds >= 0 for seconds in record["seconds"].values())
        assert (record["work"] > 0) is (record["phase"] != "static")
    found = where_time_went(tmp_path / "run" / "log.jsonl", 1e9)
    parts = [
        "data",
        "tokenise",
        "teacher",
        "forward",
        "loss",
        "backward",
        "optimiser",
        "checkpoint",
        "evaluation",
        "model folder",
    ]
    assert list(found["seconds"]) == parts and sum(found["seconds"].values()) <= passed
    logged = [
        record for _, record in read_lines(tmp_path / "run" / "log.jsonl") if "step" in record
    ]
    forward = sum(record["seconds"]["forward"] for record in logged)
    assert found["seconds"]["forward"] == pytest.approx(forward, abs=0.006)
    assert (
        set(found["phases"]) == {"static", "stage1", "adapters.classification"}
        and found["phases"]["static"]["passes"] is None
    )
    passes = sum(
        r["seconds"]["forward"] + r["seconds"]["backward"] for r in logged if r["phase"] == "stage1"
    )
    work = sum(r["work"] for r in logged if r["phase"] == "stage1")
    assert found["phases"]["stage1"]["passes"] == pytest.approx(work / passes / 1e9, abs=6e-4)
    assert found["reached"]["steps"] < found["reached"]["passes"]
    columns, rows, lines = profile_table(found)
    assert columns == ["part", "seconds", "share"] and [row[0] for row in rows] == parts
    assert (
        lines[0] == "this machine multiplies matrices at 1.0 GF/s"
        and "in its forward and backward passes" in lines[1]
    )


def test_the_matrix_rate_is_measured_and_the_threads_are_put_back():
    before = torch.get_num_threads()
    rate = matrix_rate(0.05, threads=1)
    assert 1e8 < rate < 1e14 and torch.get_num_threads() == before


def test_the_profiler_writes_a_trace_of_every_phase_with_all_threads(tmp_path):
    raw = tiny.recipe(
        tiny.write_data(tmp_path / "data"), tiny.write_teacher(tmp_path / "teacher"), steps=6
    )
    raw["threads"], raw["adapters"] = 2, {"retrieval": raw["adapters"]["retrieval"]}
    tiny_run.train(raw, tmp_path / "run", launch=Launch(profile=True))
    assert sorted(path.name for path in (tmp_path / "run/profile").iterdir()) == sorted(
        f"{phase}.{kind}"
        for phase in ("static", "stage1", "adapters.retrieval")
        for kind in ("json.gz", "txt")
    )
    events = trace(tmp_path / "run/profile/stage1.json.gz")
    products = [
        event
        for event in events
        if event.get("name") == "aten::mm" or event.get("name") == "aten::addmm"
    ]
    assert products and len({event["tid"] for event in products}) >= 2
    assert "Self CPU" in (tmp_path / "run/profile/stage1.txt").read_text()


def trace(path: Path) -> list[dict]:
    return json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


def test_a_short_phase_is_traced_too_and_without_the_option_nothing_is_written(tmp_path):
    raw = tiny.recipe(
        tiny.write_data(tmp_path / "data"), tiny.write_teacher(tmp_path / "teacher"), steps=1
    )
    del raw["static"]
    raw["adapters"] = {}
    tiny_run.train(raw, tmp_path / "one", launch=Launch(profile=True))
    assert any(
        event.get("name", "").startswith("aten::")
        for event in trace(tmp_path / "one/profile/stage1.json.gz")
    )
    tiny_run.train(raw, tmp_path / "none")
    assert not (tmp_path / "none/profile").exists()
