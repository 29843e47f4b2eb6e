"""A model that takes another's place under a running server, and what is refused (case 73)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
import torch
from helpers.serve_fakes import live, tiny_model

from taskdistill.encode.encoder import Encoder
from taskdistill.model.folder import write_model
from taskdistill.model.golden import embed_with, golden_vectors
from taskdistill.serve.engine import TorchAdapterView

TEXT = "a red house"


def write(
    folder: Path,
    *,
    scale: float = 1.0,
    tasks: int = 4,
    golden: bool = True,
    old_space: bool = False,
) -> None:
    """Write a model whose adapters, and whose weights too unless the space stays, are scaled."""
    model = tiny_model()
    with torch.no_grad():
        for name, tensor in model.module.named_parameters():
            if "lora_B" in name or (not old_space and "output.dense.base_layer.weight" in name):
                tensor.mul_(scale)
    for task in list(model.module.tasks)[tasks:]:
        model.module.tasks.remove(task)
        del model.adapter_configs[task]
    kept = golden_vectors(embed_with(model), model.module.tasks)
    if not golden:
        kept["vectors"]["base"] = [(-np.asarray(row)).tolist() for row in kept["vectors"]["base"]]
    write_model(folder, model, extra_files={"golden.json": json.dumps(kept)}, replace_existing=True)


def ask(url: str, **fields) -> np.ndarray:
    answer = httpx.post(f"{url}/v1/embeddings", json={"input": TEXT, **fields}, timeout=30)
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()["data"][0]["embedding"], np.float32)


def reloaded(url: str, served, outcome: str) -> None:
    """Ask for a reload and wait for its outcome."""
    served.reloaded = None
    served.ask_reload()
    deadline = time.monotonic() + 30
    while served.reloaded is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert served.reloaded == outcome
    assert httpx.get(f"{url}/health").json() == {"status": "ok", "last_reload": outcome}
    assert f'taskdistill_reloads_total{{outcome="{outcome}"}} ' in httpx.get(f"{url}/metrics").text


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "model")
    return tmp_path / "model"


def test_a_new_model_takes_over_and_requests_that_began_are_finished_by_the_old_one(
    folder, monkeypatch
):
    plain, held, begun = TorchAdapterView.embed, threading.Event(), threading.Event()

    def embed(self, ids, task):
        if not held.is_set():
            begun.set()
            assert held.wait(30)
        return plain(self, ids, task)

    old = Encoder.load(folder, threads=1)
    before = old.encode([TEXT])[0]
    with live(old, load=lambda: Encoder.load(folder, threads=1)) as (url, served):
        first = served.now
        monkeypatch.setattr(TorchAdapterView, "embed", embed)
        found: list[np.ndarray] = []
        early = threading.Thread(target=lambda: found.append(ask(url)))
        early.start()
        assert begun.wait(30)
        write(folder, scale=2.0)
        monkeypatch.setattr(TorchAdapterView, "embed", plain)
        reloaded(url, served, "ok")
        after = Encoder.load(folder).encode([TEXT], task="retrieval")[0]
        assert np.abs(ask(url, task="retrieval.passage") - after).max() <= 1e-5
        held.set()
        early.join(30)
        assert np.abs(found[0] - before).max() <= 1e-5 and np.abs(found[0] - ask(url)).max() > 1e-3
        deadline = time.monotonic() + 20
        while first.batcher._threads:
            assert time.monotonic() < deadline, "the old model's threads must end"
            time.sleep(0.01)
        reloaded(url, served, "same")


@pytest.mark.parametrize("fault", ["flipped", "gone", "golden", "fewer tasks", "half"])
def test_a_bad_model_is_refused_and_the_old_one_keeps_answering(folder, fault, caplog):
    before = Encoder.load(folder).encode([TEXT], task="clustering")[0]
    with live(Encoder.load(folder, threads=1), load=lambda: Encoder.load(folder, threads=1)) as (
        url,
        served,
    ):
        if fault == "golden":
            write(folder, scale=2.0, golden=False)
        elif fault == "fewer tasks":
            write(folder, scale=2.0, tasks=2)
        elif fault == "gone":
            shutil.rmtree(folder)
        elif fault == "half":
            (folder / "taskdistill.json").unlink()
        else:
            weights = folder / "model.safetensors"
            content = bytearray(weights.read_bytes())
            content[-100] ^= 0xFF
            weights.write_bytes(content)
        first = served.now
        reloaded(url, served, "refused")
        assert served.now is first
        assert np.abs(ask(url, task="clustering") - before).max() <= 1e-5
        assert "the old one keeps answering" in caplog.text


def test_a_model_of_another_space_is_refused_beside_an_index_and_one_of_the_same_space_is_not(
    folder,
):
    encoder = Encoder.load(folder, threads=1)
    index = SimpleNamespace(
        settings=SimpleNamespace(space_id=encoder.space_id, former_space_ids=())
    )
    with live(encoder, index=index, load=lambda: Encoder.load(folder, threads=1)) as (url, served):
        write(folder, scale=2.0)
        reloaded(url, served, "refused")
        write(folder, scale=3.0, old_space=True)
        reloaded(url, served, "ok")


def test_sighup_reads_the_model_again(folder):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [
        sys.executable,
        "-m",
        "taskdistill.cli",
        "serve",
        str(folder),
        "--port",
        "0",
        "--threads",
        "1",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as child:
        try:
            assert child.stdout is not None
            line = next(line for line in child.stdout if "http://" in line)
            url = line[line.index("http://") :].split(";")[0].strip()
            before = ask(url)
            write(folder, scale=2.0)
            child.send_signal(signal.SIGHUP)
            deadline = time.monotonic() + 30
            while httpx.get(f"{url}/health").json()["last_reload"] is None:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert httpx.get(f"{url}/health").json()["last_reload"] == "ok"
            assert np.abs(ask(url) - before).max() > 1e-3
            child.send_signal(signal.SIGTERM)
            assert child.wait(20) == 0
        finally:
            child.kill()
