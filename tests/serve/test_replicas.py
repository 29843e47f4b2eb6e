"""Two servers behind nginx, by the configuration of examples/: shared load, one of them stopped,
overload passed on. Needs nginx.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from helpers.serve_fakes import live, tiny_encoder

from taskdistill.cli.main import run
from taskdistill.serve.settings import ServerSettings

CONFIGURATION = Path(__file__).parents[2] / "examples" / "nginx.conf"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@contextmanager
def proxy(folder: Path, ports: tuple[int, int]):
    """Run nginx with the example's configuration, its addresses and folders changed for
    the test.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    text = CONFIGURATION.read_text("utf-8")
    for there, here in zip(
        ("127.0.0.1:8081", "127.0.0.1:8082", "127.0.0.1:8080"), (*ports, port), strict=True
    ):
        text = re.sub(rf"(server|listen) {there}", rf"\g<1> 127.0.0.1:{here}", text)
    folders = "".join(f"    {name}_temp_path {folder / name};\n" for name in TEMPORARY)
    told = (
        "log_format told '$status $upstream_addr $upstream_status $upstream_response_time';"
        f" access_log {folder / 'access'} told;"
    )
    (folder / "nginx.conf").write_text(
        text.replace("http {\n", "http {\n" + folders).replace("access_log off;", told)
    )
    command = [
        NGINX,
        "-p",
        str(folder),
        "-e",
        str(folder / "errors"),
        "-c",
        str(folder / "nginx.conf"),
    ]
    with subprocess.Popen([*command, "-g", f"daemon off; pid {folder / 'pid'};"]) as child:
        try:
            for _ in range(200):
                assert child.poll() is None, (folder / "errors").read_text()
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            child.terminate()
            child.wait(10)


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed: apt-get install nginx-light")
def test_two_servers_behind_nginx(tmp_path):
    encoder = tiny_encoder(1)
    wanted = encoder.encode(["a red house"])
    with ExitStack() as stack:
        first_stack = stack.enter_context(ExitStack())
        first, one = first_stack.enter_context(
            live(tiny_encoder(1), settings=ServerSettings(queue_texts=8, request_texts=8))
        )
        second_stack = stack.enter_context(ExitStack())
        second, two = second_stack.enter_context(
            live(tiny_encoder(1), settings=ServerSettings(queue_texts=8, request_texts=8))
        )
        url = stack.enter_context(proxy(tmp_path, (port_of(first), port_of(second))))

        def ask(number: int) -> httpx.Response:
            return httpx.post(f"{url}/v1/embeddings", json={"input": "a red house"}, timeout=30)

        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(ask, range(40)))
            assert {answer.status_code for answer in answers} == {200}
            assert (
                np.abs(np.array(answers[-1].json()["data"][0]["embedding"]) - wanted[0]).max()
                <= 1e-5
            )
            counts = [served.metrics.texts.labels("base")._value.get() for served in (one, two)]
            assert sum(counts) == 40 and min(counts) > 5
            job = one.now.batcher.admit(8, 8)
            assert {answer.status_code for answer in threads.map(ask, range(20))} == {200}, (
                "a full server's requests go to the other"
            )
            one.now.batcher.drop(job)
            second_stack.close()
            assert {answer.status_code for answer in threads.map(ask, range(20))} == {200}, (
                "a stopped server's requests go to the other"
            )
        jobs = one.now.batcher.admit(8, 8)
        for full in map(ask, range(6)):
            assert (
                full.status_code == 429
                and int(full.headers["Retry-After"]) >= 1
                and full.json()["error"]["message"]
            )
        one.now.batcher.drop(jobs)
        assert httpx.get(f"{url}/metrics").status_code == 404
        assert httpx.get(f"{url}/health").status_code == 200
        first_stack.close()
        none = ask(0)
        assert (
            none.status_code == 503
            and none.headers["Retry-After"] == "1"
            and none.json()["error"]["message"]
        )


def test_limits_are_set_by_name(monkeypatch, tmp_path, capsys):
    started = {}
    monkeypatch.setattr(
        "taskdistill.serve.server.serve", lambda encoder, **options: started.update(options)
    )
    monkeypatch.setattr(
        "taskdistill.encode.encoder.Encoder.load",
        lambda model, **options: SimpleNamespace(placement="device cpu, float32"),
    )
    assert (
        run(
            [
                "serve",
                "m",
                "--threads",
                "3",
                "--limit",
                "request_texts=5",
                "--limit",
                "queue_seconds=1.5",
            ]
        )
        == 0
    )
    assert (started["settings"].request_texts, started["settings"].queue_seconds) == (5, 1.5)
    for wrong, said in (
        ("request_text=5", "did you mean 'request_texts'"),
        ("request_texts=x", "needs a whole number"),
        ("public=1", "names no limit"),
    ):
        assert run(["serve", "m", "--limit", wrong]) == 2
        assert said in capsys.readouterr().err
