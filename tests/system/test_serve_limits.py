"""Hostile clients and overload: bounded memory, the right refusals, everybody else served; stopping
loses nothing accepted.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import logging
import resource
import shutil
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest
from helpers.forked import Forked
from helpers.serve_fakes import Panic, live, tiny_encoder, tiny_model

from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput
from taskdistill.model.folder import write_model
from taskdistill.search.build import build_index
from taskdistill.search.corpus import Document
from taskdistill.serve import engine
from taskdistill.serve import server as run
from taskdistill.serve.app import make_app
from taskdistill.serve.engine import TorchAdapterView
from taskdistill.serve.settings import ServerSettings, check_host


@pytest.fixture(scope="module")
def server():
    limits = ServerSettings(
        body_bytes=100_000,
        head_seconds=1.5,
        body_seconds=1.5,
        connections=60,
        request_tokens=20_000,
    )
    with live(tiny_encoder(), settings=limits) as (url, served):
        yield url, served


def post(url: str, text: str = "a", **options) -> httpx.Response:
    return httpx.post(
        f"{url}/v1/embeddings",
        json={"input": text} | options.pop("fields", {}),
        timeout=30,
        **options,
    )


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def answer_of(connection: socket.socket) -> bytes:
    data = b""
    try:
        while part := connection.recv(65_536):
            data += part
    except ConnectionError:
        pass
    return data


HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def test_a_huge_body_is_refused_by_its_length_and_while_it_streams(server):
    url, _ = server
    with connect(url) as connection:
        connection.sendall(HEAD + b"Content-Length: 1000000000\r\n\r\n{")
        assert answer_of(connection).startswith(b"HTTP/1.1 413")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with connect(url) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        sent = 0
        try:
            while sent < 50_000_000:
                connection.sendall(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
                sent += 65_536
        except ConnectionError:
            pass
    assert sent < 20_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000
    assert post(url).status_code == 200


@pytest.mark.parametrize("head", [b"X-Long: " + b"x" * 1_000_000 + b"\r\n", b"X: y\r\n" * 100_000])
def test_a_huge_head_is_refused(server, head):
    with connect(server[0]) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(HEAD + head + b"\r\n")
        assert answer_of(connection)[:12] in (b"HTTP/1.1 431", b"")
    assert post(server[0]).status_code == 200


@pytest.mark.parametrize(
    "start", [b"", b"POST /v1/emb", HEAD, HEAD + b"Content-Length: 50\r\n\r\n{"]
)
def test_a_client_that_dawdles_is_cut_off(server, start):
    started = time.monotonic()
    with connect(server[0]) as connection:
        connection.sendall(start)
        for _ in range(4):
            time.sleep(0.2)
            connection.sendall(b"x" if start else b"P")
        assert answer_of(connection)[:12] in (b"", b"HTTP/1.1 408")
    assert time.monotonic() - started < 10
    assert post(server[0]).status_code == 200


def test_what_is_no_http_is_refused(server):
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00" * 10 + b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST /embed HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    ):
        with connect(server[0]) as connection:
            connection.sendall(data)
            assert answer_of(connection).startswith(b"HTTP/1.1 400")


def test_idle_connections_give_way_to_new_ones(server):
    idle = [connect(server[0]) for _ in range(150)]
    try:
        assert [post(server[0]).status_code for _ in range(5)] == [200] * 5
    finally:
        for connection in idle:
            connection.close()


def test_a_half_closed_client_frees_its_place(server):
    url, served = server
    with connect(url) as connection:
        connection.sendall(HEAD + b"Content-Length: 15\r\n\r\n" + b'{"input": "ab"}')
        connection.shutdown(socket.SHUT_WR)
        answer_of(connection)
    until(lambda: served.now.batcher.texts == 0)


def test_too_many_tokens_of_one_request(server):
    answer = post(server[0], fields={"input": ["z" * 250] * 90})
    assert (answer.status_code, answer.json()["error"]["param"]) == (413, "input")
    assert "the limit is 20,000 a request" in answer.json()["error"]["message"]


def test_no_text_and_no_key_reaches_the_log(caplog):
    key = "very-secret-key-0123"
    caplog.set_level(logging.DEBUG)
    with live(tiny_encoder(1), settings=ServerSettings(api_key=key)) as (url, served):
        right = {"Authorization": f"Bearer {key}"}
        post(url, "private-words", headers=right)
        post(url, "private-words", headers={"Authorization": "Bearer private-words"})
        post(url, "private-words", headers=right, fields={"private-words": 1})
        served.now.engine.tokens = lambda *_: (_ for _ in ()).throw(ValueError("private-words"))
        caplog.set_level(logging.INFO)
        broken = post(url, "private-words", headers=right)
        assert (broken.status_code, broken.json()["error"]["type"]) == (500, "server_error")
        assert broken.headers["X-Request-Id"] in caplog.text
    assert "private" not in caplog.text
    assert key not in caplog.text


def test_overload_is_answered_with_429_and_everything_accepted_is_computed(monkeypatch):
    plain = TorchAdapterView.embed
    monkeypatch.setattr(TorchAdapterView, "embed", lambda *given: time.sleep(0.02) or plain(*given))
    with live(tiny_encoder(1), settings=ServerSettings(queue_texts=8, request_texts=8)) as (
        url,
        served,
    ):
        statuses: list[int] = []

        def ask(_: int) -> None:
            with httpx.Client(base_url=url, timeout=60) as client:
                for _ in range(8):
                    answer = client.post("/v1/embeddings", json={"input": ["w" * 250] * 4})
                    statuses.append(answer.status_code)
                    if answer.status_code == 429:
                        assert 1 <= int(answer.headers["Retry-After"]) <= 60
                        assert answer.json()["error"]["type"] == "rate_limit_error"

        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            list(pool.map(ask, range(12)))
        assert set(statuses) == {200, 429}
        assert len(statuses) == 96
        assert (served.now.batcher.texts, served.now.batcher.tokens) == (0, 0)
        assert post(url).status_code == 200


def test_a_client_that_leaves_is_counted_and_its_texts_are_not_computed(monkeypatch):
    hold = threading.Event()
    plain = TorchAdapterView.embed
    monkeypatch.setattr(TorchAdapterView, "embed", lambda *given: hold.wait(20) and plain(*given))
    hold.set()
    with live(tiny_encoder(1)) as (url, served):
        hold.clear()
        first = threading.Thread(target=post, args=(url,))
        first.start()
        until(lambda: served.now.batcher._running)
        body = json.dumps({"input": ["abc"] * 20}).encode()
        leaving = [connect(url) for _ in range(5)]
        for connection in leaving:
            connection.sendall(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: served.now.batcher.texts == 100)
        for connection in leaving:
            connection.close()
        until(lambda: served.now.batcher.texts == 0)
        hold.set()
        first.join(20)
        text = httpx.get(f"{url}/metrics").text
        assert "taskdistill_dropped_texts_total 100.0" in text
        assert 'taskdistill_texts_total{task="base"} 1.0' in text


def until(true) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_panic_is_a_500_for_its_request_and_a_503_for_health_until_the_model_works_again(
    monkeypatch,
):
    plain, broken = TorchAdapterView.embed, threading.Event()

    def embed(self, ids, task):
        if broken.is_set():
            raise Panic("private-words")
        return plain(self, ids, task)

    monkeypatch.setattr(TorchAdapterView, "embed", embed)
    with live(tiny_encoder()) as (url, served):
        assert post(url).status_code == 200
        broken.set()
        answer = post(url)
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
        assert "private" not in answer.text
        assert [httpx.get(f"{url}/{path}").status_code for path in ("health", "ready")] == [
            503,
            503,
        ]
        broken.clear()
        assert [httpx.get(f"{url}/{path}").status_code for path in ("health", "ready")] == [
            200,
            200,
        ]
        assert post(url).status_code == 200
        assert served.now.batcher.worker_failures >= 2


def test_a_poisoned_text_fails_its_own_request_only(monkeypatch):
    plain = TorchAdapterView.embed
    poison = (
        tiny_encoder(1)
        .model.tokenizer.ids(["poison"], prompt="Document: ", max_length=300)
        .ids[0]
        .tolist()
    )

    def embed(self, ids, task):
        time.sleep(0.02)
        if any(row.tolist() == poison for row in ids):
            raise RuntimeError("cannot")
        return plain(self, ids, task)

    monkeypatch.setattr(TorchAdapterView, "embed", embed)
    with live(tiny_encoder(1)) as (url, _), concurrent.futures.ThreadPoolExecutor(12) as pool:
        texts = [f"good {i}" for i in range(11)] + ["poison"]
        statuses = list(pool.map(lambda text: post(url, text).status_code, texts))
        assert statuses == [200] * 11 + [500]


def test_a_server_keeps_its_model_when_the_folder_is_replaced_or_removed(tmp_path: Path):
    write_model(tmp_path / "model", tiny_model(tmp_path))
    encoder = Encoder.load(tmp_path / "model", threads=1)
    with live(encoder) as (url, _):
        before = post(url).json()["data"]
        for file in (tmp_path / "model").rglob("*"):
            if file.is_file():
                file.write_bytes(b"damaged")
        shutil.rmtree(tmp_path / "model")
        assert post(url).json()["data"] == before
        with pytest.raises(BadInput):
            Encoder.load(tmp_path / "model")
        assert post(url).json()["data"] == before


def test_a_server_that_others_reach_needs_a_key():
    with pytest.raises(BadInput, match="set an API key"):
        check_host("0.0.0.0", ServerSettings())
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        check_host(host, ServerSettings())
    check_host("0.0.0.0", ServerSettings(public=True))
    check_host("0.0.0.0", ServerSettings(api_key="x" * 32))
    with pytest.raises(BadInput, match="at least 16"):
        ServerSettings(api_key="short")
    with pytest.raises(BadInput, match="larger than the queue"):
        ServerSettings(request_texts=100, queue_texts=99)
    with pytest.raises(BadInput, match="body_bytes is 0"):
        ServerSettings(body_bytes=0)


def serve_slowly(folder: Path) -> None:
    plain = engine.TorchAdapterView.embed

    def slow(self, ids, task):
        time.sleep(0.2)
        return plain(self, ids, task)

    engine.TorchAdapterView.embed = slow
    run.serve(Encoder.load(folder, threads=1), port=0, started=lambda url: print(url, flush=True))


def test_sigterm_finishes_what_was_accepted_and_ends_with_status_0(tmp_path: Path):
    write_model(tmp_path / "model", tiny_model(tmp_path))
    with Forked(serve_slowly, tmp_path / "model") as child:
        try:
            url = child.stdout.readline().strip()
            with concurrent.futures.ThreadPoolExecutor(12) as pool:
                asked = [pool.submit(post, url, "m" * 250) for _ in range(12)]
                deadline = time.monotonic() + 20
                while time.monotonic() < deadline:
                    text = httpx.get(f"{url}/metrics", timeout=20).text
                    waiting = next(
                        float(line.split()[1])
                        for line in text.splitlines()
                        if line.startswith("taskdistill_queue_texts ")
                    )
                    if waiting >= 6:
                        break
                    time.sleep(0.02)
                child.send_signal(signal.SIGTERM)
                answers = [each.result() for each in asked]
            assert [answer.status_code for answer in answers] == [200] * 12
            assert child.wait(20) == 0
            with pytest.raises(httpx.TransportError):
                post(url)
        finally:
            child.kill()


async def ask(app, path, parts, headers=()):
    """Send a request to an application in this process; `parts` gives its body, and may wait for
    ever.
    """
    sent = []
    pending = list(parts)

    async def receive():
        if not pending:
            await asyncio.Event().wait()
        part = pending.pop(0)
        return {
            "type": "http.request",
            "body": part,
            "more_body": bool(pending) or part.endswith(b"..."),
        }

    async def send(message):
        sent.append(message)

    fields = [(b"host", b"localhost"), (b"content-type", b"application/json"), *headers]
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": fields,
    }
    await app(
        scope
        | {
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "scheme": "http",
            "http_version": "1.1",
            "asgi": {},
        },
        receive,
        send,
    )
    return sent[0]["status"]


def in_process(scene, index=None, **limits):
    app = make_app(tiny_encoder(1), index, ServerSettings(**limits))

    async def run():
        async with app.router.lifespan_context(app):
            await scene(app)

    asyncio.run(run())


@pytest.fixture(scope="module")
def small_index(tmp_path_factory):
    return build_index(
        tiny_encoder(1), [Document("d", "a text")], tmp_path_factory.mktemp("stalled") / "index"
    )[0]


def test_bodies_that_stall_take_no_route_away(small_index):
    """More requests than there are places send the head and a byte of their body; everybody else is
    answered.
    """

    async def scene(app):
        stalled = [
            asyncio.ensure_future(ask(app, path, [b'{"query": "..."'[:10] + b"..."]))
            for path in ("/search", "/embed", "/v1/embeddings")
            for _ in range(40)
        ]
        await asyncio.sleep(0.05)
        assert not any(each.done() for each in stalled)
        for _ in range(3):
            assert await ask(app, "/search", [b'{"query": "a"}']) == 200
            assert await ask(app, "/v1/embeddings", [b'{"input": "a"}']) == 200
        for each in stalled:
            each.cancel()

    in_process(scene, small_index, searches=4)


def test_large_bodies_that_stall_keep_no_small_one_out():
    async def scene(app):
        stalled = [
            asyncio.ensure_future(ask(app, "/embed", [b" " * 400_000 + b"..."])) for _ in range(8)
        ]
        await asyncio.sleep(0.05)
        states = [each.result() if each.done() else None for each in stalled]
        assert states.count(None) == 2 and set(states) == {None, 429}
        assert await ask(app, "/v1/embeddings", [b'{"input": "a"}']) == 200
        assert await ask(app, "/v1/embeddings", [b'{"input": "a"' + b" " * 60_000 + b"}"]) == 200
        assert await ask(app, "/v1/embeddings", [b'{"input": "a"' + b" " * 400_000 + b"}"]) == 429
        for each in stalled:
            each.cancel()
        await asyncio.gather(*stalled, return_exceptions=True)
        assert await ask(app, "/v1/embeddings", [b'{"input": "a"' + b" " * 400_000 + b"}"]) == 200

    in_process(scene, body_bytes=500_000, all_body_bytes=1_000_000)


def test_searches_at_work_are_counted(small_index, monkeypatch):
    entered, go = threading.Semaphore(0), threading.Event()
    search = type(small_index).search

    def slow(self, *arguments, **options):
        entered.release()
        go.wait(10)
        return search(self, *arguments, **options)

    monkeypatch.setattr(type(small_index), "search", slow)

    async def scene(app):
        work = [asyncio.ensure_future(ask(app, "/search", [b'{"query": "a"}'])) for _ in range(6)]
        await asyncio.sleep(0.3)
        assert sorted(each.result() for each in work if each.done()) == [429] * 4
        go.set()
        assert sorted(await asyncio.gather(*work)) == [200] * 2 + [429] * 4
        assert await ask(app, "/search", [b'{"query": "a"}']) == 200

    in_process(scene, small_index, searches=2)


def test_a_server_knows_its_rate_before_it_listens(server):
    assert server[1].now.batcher._scheduler.rate > 0


def test_a_head_in_one_piece_that_is_too_large_is_refused(server):
    for head in ([(b"x", b"y" * 40_000)], [(f"x{i}".encode(), b"y" * 30) for i in range(1_500)]):

        async def scene(app, head=head):
            assert await ask(app, "/embed", [b'{"inputs": "a"}'], head) == 431

        in_process(scene)


def test_connections_that_stall_in_a_body_give_way_to_new_ones(server):
    stalled = []
    try:
        for _ in range(80):
            stalled.append(connect(server[0]))
            stalled[-1].sendall(HEAD + b"Content-Length: 50\r\n\r\n{")
        time.sleep(0.1)
        assert [post(server[0]).status_code for _ in range(5)] == [200] * 5
    finally:
        for connection in stalled:
            connection.close()
