"""A corpus to shards: the vectors of one call, whatever the processes; continued after kill -9
without repeating a shard; read as one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import tiny

from taskdistill.cli.main import run
from taskdistill.encode import corpus
from taskdistill.encode.corpus import ShardWorkers, encode_corpus
from taskdistill.encode.encoder import Encoder
from taskdistill.encode.shards import finished, shard_files
from taskdistill.encode.texts import EncodeStats, TextReader
from taskdistill.encode.vectors import VectorFolder, merge_vectors
from taskdistill.errors import BadInput, WorkFailed
from taskdistill.io.folders import check_folder, read_manifest
from taskdistill.io.records import TextSource
from taskdistill.model.folder import write_model

RNG = np.random.default_rng(1)
TEXTS = [" ".join(RNG.choice(tiny.WORDS, size=size)) for size in RNG.integers(1, 12, 53)]
ASKED = {"task": "retrieval", "prompt_name": "document", "truncate_dim": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    model = tiny.model(tiny.student("bert"), tiny.write_tokenizer(root / "tokenizer"))
    model.adapter_configs["retrieval"] = tiny.add_adapter(model.module, "retrieval")
    write_model(root / "model", model)
    return root / "model"


@pytest.fixture(scope="module")
def expected(folder) -> np.ndarray:
    return Encoder.load(folder, threads=1).encode(TEXTS, **ASKED)


def jsonl(path: Path, texts: list) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def stamps(out: Path) -> dict[str, tuple[int, int]]:
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in (out / "shards").iterdir()
    }


def test_shards_are_read_as_one_and_in_order(folder, expected, tmp_path):
    source = jsonl(tmp_path / "in.jsonl", TEXTS)
    told = []
    counts = encode_corpus(
        str(folder),
        TextSource(str(source)),
        tmp_path / "out",
        ASKED,
        shard_rows=10,
        progress=lambda done, rows: told.append((done, rows)),
    )
    assert (counts.read, counts.used, counts.rejected, counts.vectors) == (53, 53, 0, 53)
    assert told == [(n, 53) for n in (0, 10, 20, 30, 40, 50, 53)]
    made = VectorFolder(tmp_path / "out")
    rows, vectors = made.load()
    assert len(made) == 53 and made.width == 16 and made.dtype == np.float32 and made.shards == 6
    assert rows.tolist() == list(range(53)) and np.abs(vectors - expected).max() <= 2e-6
    assert check_folder(tmp_path / "out", made.manifest) == []
    assert (
        made.manifest["model_hash"] == made.manifest["inputs"]["model"]
        and made.manifest["task"] == "retrieval"
    )
    for name in ("all.npy", "all.parquet", "all.jsonl"):
        assert merge_vectors(tmp_path / "out", tmp_path / name) == 53
    assert np.array_equal(np.load(tmp_path / "all.npy"), vectors)
    assert pq.read_table(tmp_path / "all.parquet")["row"].to_pylist() == list(range(53))


def test_rejected_rows_have_no_vector_and_shift_nothing(folder, expected, tmp_path):
    texts: list = list(TEXTS[:20])
    texts[3], texts[10], texts[11] = "", None, 7
    source = jsonl(tmp_path / "in.jsonl", [*texts, *[" "] * 5])  # the last shard has no text at all
    counts = encode_corpus(
        str(folder), TextSource(str(source)), tmp_path / "out", ASKED, shard_rows=5
    )
    assert (counts.read, counts.used, counts.rejected) == (25, 17, 8) and len(counts.examples) == 5
    rows, vectors = VectorFolder(tmp_path / "out").load()
    assert rows.tolist() == [i for i in range(20) if i not in (3, 10, 11)]
    assert np.abs(vectors - expected[rows]).max() <= 2e-6
    with pytest.raises(BadInput, match="cannot say which rows have no vector"):
        merge_vectors(tmp_path / "out", tmp_path / "all.npy")
    assert merge_vectors(tmp_path / "out", tmp_path / "all.parquet") == 17


def test_a_finished_folder_is_not_done_again_and_damage_is(folder, tmp_path, monkeypatch):
    source = jsonl(tmp_path / "in.jsonl", TEXTS)
    first = encode_corpus(
        str(folder), TextSource(str(source)), tmp_path / "out", ASKED, shard_rows=10
    )
    before = stamps(tmp_path / "out")
    manifest = (tmp_path / "out" / "taskdistill.json").stat().st_mtime_ns
    assert (
        encode_corpus(str(folder), TextSource(str(source)), tmp_path / "out", ASKED, shard_rows=10)
        == first
    )
    assert (
        stamps(tmp_path / "out") == before
        and (tmp_path / "out" / "taskdistill.json").stat().st_mtime_ns == manifest
    )
    vectors, rows, report = shard_files(tmp_path / "out", 2)
    reference = VectorFolder(tmp_path / "out").load()[1]
    content = bytearray(vectors.read_bytes())
    content[-1] ^= 1
    vectors.write_bytes(content)
    report.with_name(f".{report.name}.taskdistill-0123abcd").write_text("left by a killed writer")
    (tmp_path / "out" / "notes.txt").write_text("of the owner")
    assert finished(tmp_path / "out", 2) is None and finished(tmp_path / "out", 1) is not None
    assert (
        encode_corpus(str(folder), TextSource(str(source)), tmp_path / "out", ASKED, shard_rows=10)
        == first
    )
    after = stamps(tmp_path / "out")
    assert {name for name in before if before[name] != after[name]} == {
        path.name for path in (vectors, rows, report)
    }
    assert read_manifest(tmp_path / "out")["files"].keys() == {
        "job.json",
        *(f"shards/{name}" for name in after),
    }
    assert after.keys() == before.keys() and np.array_equal(
        VectorFolder(tmp_path / "out").load()[1], reference
    )


def test_another_job_in_the_same_folder_is_refused_with_the_difference(folder, tmp_path):
    source = jsonl(tmp_path / "in.jsonl", TEXTS[:6])
    encode_corpus(str(folder), TextSource(str(source)), tmp_path / "out", ASKED, shard_rows=3)
    with pytest.raises(
        BadInput, match="truncate_dim 16 instead of 8; width 16 instead of 8; give another --out"
    ):
        encode_corpus(
            str(folder),
            TextSource(str(source)),
            tmp_path / "out",
            {**ASKED, "truncate_dim": 8},
            shard_rows=3,
        )
    jsonl(source, TEXTS[:7])
    with pytest.raises(BadInput, match=r"source_sha256 .* rows 6 instead of 7"):
        encode_corpus(str(folder), TextSource(str(source)), tmp_path / "out", ASKED, shard_rows=3)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("keep")
    with pytest.raises(BadInput, match="holds no shards of vectors"):
        encode_corpus(str(folder), TextSource(str(source)), tmp_path / "other", ASKED)
    with pytest.raises(BadInput, match="save standard input to one"):
        encode_corpus(str(folder), TextSource("-"), tmp_path / "new", ASKED)
    with pytest.raises(BadInput, match="at least 1"):
        encode_corpus(
            str(folder), TextSource(str(source)), tmp_path / "new", ASKED, ShardWorkers(processes=0)
        )
    with pytest.raises(BadInput, match="device cuda:7 is not here"):
        encode_corpus(
            str(folder),
            TextSource(str(source)),
            tmp_path / "new",
            ASKED,
            ShardWorkers(devices=["cuda:7"]),
        )
    jsonl(source, ["", " "])
    with pytest.raises(BadInput, match="no row with a usable text"):
        encode_corpus(str(folder), TextSource(str(source)), tmp_path / "none", ASKED)
    assert not (tmp_path / "none").exists()
    with pytest.raises(BadInput, match="is not a folder"):
        VectorFolder(tmp_path / "none")


@pytest.mark.slow
def test_two_processes_give_the_vectors_of_one(folder, expected, tmp_path):
    source = jsonl(tmp_path / "in.jsonl", TEXTS)
    counts = encode_corpus(
        str(folder),
        TextSource(str(source)),
        tmp_path / "out",
        ASKED,
        ShardWorkers(processes=2),
        shard_rows=10,
    )
    assert counts.used == 53
    rows, vectors = VectorFolder(tmp_path / "out").load()
    assert rows.tolist() == list(range(53)) and np.abs(vectors - expected).max() <= 2e-6


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_fault_in_a_worker_is_told_and_finished_shards_are_kept(
    folder, expected, tmp_path, processes
):
    asked = {**ASKED, "max_length": 10, "refuse_truncation": True}
    source = jsonl(tmp_path / "in.jsonl", [*["a b"] * 9, "star " * 20])
    with pytest.raises(BadInput, match="shard 3, rows from 9: text 0 has more than 10 tokens"):
        encode_corpus(
            str(folder),
            TextSource(str(source)),
            tmp_path / "out",
            asked,
            ShardWorkers(processes=processes),
            shard_rows=3,
        )
    assert not (tmp_path / "out" / "taskdistill.json").exists()
    kept = [number for number in range(4) if finished(tmp_path / "out", number)]
    assert kept and 3 not in kept and kept == list(range(len(kept)))


def test_other_ways_to_run_shards_are_handed_the_same_job(folder, tmp_path):
    source = jsonl(tmp_path / "in.jsonl", TEXTS[:6])
    seen = []

    def execute(job, pending, devices):
        seen.append((list(pending), list(devices), job.shard_rows))
        worker = corpus.ShardWorker(job, job.open(devices[0]))
        for number in reversed(pending):  # in any order: the file is opened again
            yield number, worker.run(number)

    counts = encode_corpus(
        str(folder),
        TextSource(str(source)),
        tmp_path / "out",
        ASKED,
        ShardWorkers(processes=2, execute=execute),
        shard_rows=2,
    )
    assert seen == [([0, 1, 2], ["cpu", "cpu"], 2)] and counts.used == 6
    assert VectorFolder(tmp_path / "out").load()[0].tolist() == list(range(6))


COMMAND = [sys.executable, "-m", "taskdistill.cli", "encode"]


def children(pid: int) -> list[int]:
    return [
        int(word)
        for path in Path(f"/proc/{pid}/task").glob("*/children")
        for word in path.read_text().split()
    ]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc to find the workers")
@pytest.mark.parametrize("processes", [1, 2])
def test_kill_9_in_the_middle_repeats_no_finished_shard(folder, tmp_path, processes):
    texts = [TEXTS[i % 53] for i in range(4000)]
    source = jsonl(tmp_path / "in.jsonl", texts)
    out = tmp_path / "out"
    words = [
        str(folder),
        str(source),
        "--out",
        str(out),
        "--task",
        "retrieval",
        "--dim",
        "16",
        "--shard-rows",
        "10",
    ]
    words += ["--processes", str(processes), "--quiet"]
    with subprocess.Popen([*COMMAND, *words], stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and len(list(out.glob("shards/??????.json"))) < 12:
            time.sleep(0.02)
        workers = children(process.pid)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(workers) >= processes * (processes > 1) and not any(
        map(alive, workers)
    )  # nobody goes on without the parent
    done = [number for number in range(400) if finished(out, number)]
    assert 12 <= len(done) < 400 and not (out / "taskdistill.json").exists()
    before = stamps(out)
    names = {path.name for number in done for path in shard_files(out, number)}
    assert run(["encode", *words]) == 0
    after = stamps(out)
    assert all(after[name] == before[name] for name in names)
    assert len(after) == 3 * 400  # and nothing is left of what was half written
    rows, vectors = VectorFolder(out).load()
    assert rows.tolist() == list(range(4000))
    expected = Encoder.load(folder, threads=1).encode(TEXTS, **ASKED)
    assert np.abs(vectors - expected[np.arange(4000) % 53]).max() <= 2e-6


@pytest.mark.slow
def test_a_worker_that_is_killed_is_told(folder, tmp_path):
    source = jsonl(tmp_path / "in.jsonl", [TEXTS[i % 53] for i in range(4000)])
    results = []

    def killing(job, pending, devices):
        from taskdistill.encode.process_executor import run_processes

        for done in run_processes(job, pending, devices):
            results.append(done)
            if len(results) == 3:
                os.kill(children(os.getpid())[-1], signal.SIGKILL)
            yield done

    with pytest.raises(WorkFailed, match="a worker ended before its work"):
        encode_corpus(
            str(folder),
            TextSource(str(source)),
            tmp_path / "out",
            ASKED,
            ShardWorkers(processes=2, execute=killing),
            shard_rows=10,
        )
    assert all(isinstance(finished(tmp_path / "out", number), EncodeStats) for number, _ in results)


def test_the_command_says_what_has_no_effect_and_merges(folder, tmp_path, capsys):
    source = jsonl(tmp_path / "in.jsonl", TEXTS[:9])
    base = ["encode", str(folder), str(source), "--task", "retrieval", "--dim", "16"]
    for words, says in (
        (["--out", str(tmp_path / "v.npy"), "--processes", "2"], "no effect on one file"),
        (["--out", str(tmp_path / "v.npy"), "--shard-rows", "2"], "no effect on one file"),
        (
            ["--out", str(tmp_path / "v.npy"), "--merge", str(tmp_path / "w.npy")],
            "no effect on one file",
        ),
        (["--out", str(tmp_path / "v"), "--windows"], "one file"),
        (
            ["--out", str(tmp_path / "v"), "--merge", str(tmp_path / "w.txt")],
            "vectors are written as",
        ),
    ):
        assert run([*base, *words]) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "v").exists()
    words = [
        "--out",
        str(tmp_path / "v"),
        "--shard-rows",
        "4",
        "--merge",
        str(tmp_path / "w.npy"),
        "--json",
        str(tmp_path / "said.json"),
    ]
    assert run([*base, *words]) == 0
    assert "9 rows read, 9 encoded" in capsys.readouterr().out
    assert np.array_equal(np.load(tmp_path / "w.npy"), VectorFolder(tmp_path / "v").load()[1])
    assert json.loads((tmp_path / "said.json").read_text())["used"] == 9
    assert run(["info", str(tmp_path / "v")]) == 0
    told = capsys.readouterr().out
    assert "vectors" in told and "retrieval" in told


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".csv", ".parquet"])
def test_rows_can_be_passed_over_in_every_kind_of_file(tmp_path, ending):
    import pyarrow as pa

    texts = [f"row {i}" for i in range(30)]
    path = tmp_path / f"in{ending}"
    if ending == ".parquet":
        pq.write_table(pa.table({"text": texts}), path, row_group_size=7)
    elif ending == ".jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n\n" for text in texts))
    else:
        path.write_text(("text\n" if ending == ".csv" else "") + "\n".join(texts) + "\n")
    rows, counts = TextReader(TextSource(str(path))), EncodeStats()
    with contextlib.closing(rows):
        assert rows.skip(4) == 4
        assert list(rows.take(counts, 3)) == [(4, "row 4"), (5, "row 5"), (6, "row 6")]
        assert rows.place == 7 and rows.skip(20) == 20
        assert [row for row, _ in rows.take(counts)] == [27, 28, 29]
        assert counts.read == 6 and rows.skip() == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="ray is not installed here (pip install 'taskdistill[ray]')",
)
def test_two_ray_workers_give_the_vectors_of_one(folder, expected, tmp_path):
    import ray

    from taskdistill.encode.ray_executor import run_ray

    source = jsonl(tmp_path / "in.jsonl", TEXTS)
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        counts = encode_corpus(
            str(folder),
            TextSource(str(source)),
            tmp_path / "out",
            ASKED,
            ShardWorkers(processes=2, threads=1, execute=run_ray),
            shard_rows=10,
        )
    finally:
        ray.shutdown()
    assert counts.used == 53
    rows, vectors = VectorFolder(tmp_path / "out").load()
    assert rows.tolist() == list(range(53)) and np.abs(vectors - expected).max() <= 2e-6


def test_ray_that_is_not_installed_is_said(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    source = jsonl(tmp_path / "in.jsonl", TEXTS[:3])
    assert (
        run(
            [
                "encode",
                str(folder),
                str(source),
                "--task",
                "retrieval",
                "--out",
                str(tmp_path / "v"),
                "--ray",
            ]
        )
        == 2
    )
    assert "pip install 'taskdistill[ray]'" in capsys.readouterr().err
