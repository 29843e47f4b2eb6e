"""The HTTP teacher against a small server on the loopback that misbehaves on request."""

import base64
import email.utils
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from teacher_fakes import FakeTeacher, stored, vector

from taskdistill.errors import BadInput, WorkFailed
from taskdistill.recipe import TeacherSettings
from taskdistill.teacher.http import HttpTeacher
from taskdistill.teacher.make import make_teacher
from taskdistill.teacher.protocol import Identity
from taskdistill.teacher.store import open_store


def good(texts):
    return 200, {"data": [{"object": "embedding", "index": i, "embedding": vector(text).tolist()} for i, text in enumerate(texts)]}


def status(code, **headers):
    return lambda texts: (code, {"error": "the key secret-key is over its limit"}, headers)


def edited(change):
    """A good reply whose list of items went through `change`."""
    return lambda texts: (200, {"data": change(good(texts)[1]["data"])})


class Server(ThreadingHTTPServer):
    """Answers with the planned behaviours in turn, then well."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan, self.requests, self.times = [], [], []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.guard = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.guard:
            self.server.requests.append((self.path, body, self.headers.get("Authorization")))
            self.server.times.append(time.monotonic())
            behave = self.server.plan.pop(0) if self.server.plan else good
        answer, reply, *headers = behave(body["input"])
        data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        try:
            self.send_response(answer)
            for name, value in headers[0].items() if headers else ():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except BrokenPipeError:
            pass

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def teacher(server):
    return HttpTeacher(server.url, "served", api_key="secret-key", timeout=5.0, attempts=4, backoff=0.01, parallel=1)


def same(vectors, texts):
    return np.array_equal(vectors.astype(np.float16), stored(texts))


def test_it_asks_in_the_openai_shape_and_returns_unit_rows(server, teacher):
    vectors = teacher.embed(["a", "b"])
    assert vectors.dtype == np.float32 and np.allclose(np.linalg.norm(vectors, axis=1), 1) and same(vectors, ["a", "b"])
    assert server.requests == [
        ("/v1/embeddings", {"model": "served", "input": ["a", "b"], "encoding_format": "float"}, "Bearer secret-key")
    ]
    assert teacher.identity == Identity("http", "served") and teacher.embedding_dim == 8
    assert "secret-key" not in repr(teacher)
    assert teacher.embed([]).shape == (0, 8) and len(server.requests) == 1


def test_many_texts_go_in_batches_and_come_back_in_order(server, teacher):
    teacher.parallel = 4
    texts = [f"text {i}" for i in range(150)]
    assert same(teacher.embed(texts), texts)
    assert sorted(len(body["input"]) for _, body, _ in server.requests) == [22, 64, 64]
    server.requests.clear()
    long = ["x" * 150_000, "y" * 150_000, "z"]
    assert same(teacher.embed(long), long)
    assert sorted(len(body["input"]) for _, body, _ in server.requests) == [1, 2]


def _base64(items):
    return [item | {"embedding": base64.b64encode(np.array(item["embedding"], "<f4").tobytes()).decode()} for item in items]


@pytest.mark.parametrize("change", [_base64, lambda items: items[::-1]], ids=["base64", "reordered"])
def test_base64_and_another_order_are_read(server, teacher, change):
    server.plan = [edited(change)]
    assert same(teacher.embed(["a", "b", "c"]), ["a", "b", "c"])
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "fault",
    [
        status(429),
        status(500),
        status(503),
        edited(lambda items: items[:-1]),
        edited(lambda items: [items[0], items[0], items[2]]),
        edited(lambda items: [item | {"embedding": "%%%"} for item in items]),
        edited(lambda items: [item | {"embedding": []} for item in items]),
        lambda texts: (200, b"<html>maintenance</html>"),
        lambda texts: (200, {"object": "list"}),
    ],
    ids=["429", "500", "503", "short", "twice", "not base64", "empty vector", "html", "no data"],
)
def test_a_passing_fault_is_retried(server, teacher, fault):
    server.plan = [fault, fault]
    assert same(teacher.embed(["a", "b", "c"]), ["a", "b", "c"])
    assert [body["input"] for _, body, _ in server.requests] == [["a", "b", "c"]] * 3


def test_a_timeout_is_retried(server, teacher):
    def slow(texts):
        time.sleep(0.5)
        return good(texts)

    teacher = HttpTeacher(server.url, "served", timeout=0.15, backoff=0.01)
    server.plan = [slow]
    assert same(teacher.embed(["a"]), ["a"]) and len(server.requests) == 2


def test_retry_after_is_honoured_in_seconds_and_as_a_date(server, teacher):
    server.plan = [status(429, Retry_After="0.3")]
    teacher.embed(["a"])
    assert server.times[1] - server.times[0] >= 0.3
    server.plan = [status(429, Retry_After=email.utils.formatdate(time.time() - 60, usegmt=True))]
    teacher.embed(["a"])
    server.plan = [status(429, Retry_After="3600")]
    with pytest.raises(WorkFailed, match=r"failed 1 times: status 429.*asks to wait 3600 s"):
        teacher.embed(["a"])


def test_a_lasting_fault_says_how_much_is_safe_and_the_next_run_goes_on(tmp_path, server, teacher):
    texts = [f"text {i}" for i in range(300)]
    store = open_store(tmp_path, teacher.identity, None)
    server.plan = [good] * 4 + [status(500)] * 4
    with pytest.raises(WorkFailed) as error:
        store.fill(texts, teacher)
    said = str(error.value)
    assert "failed 4 times: status 500" in said and "256 of 300 texts are safe in the store" in said and "secret-key" not in said
    asked = len(server.requests)
    assert store.fill(texts, teacher).embedded == 44
    assert sum(len(body["input"]) for _, body, _ in server.requests[asked:]) == 45, "44 missing ones, one stored text to compare"
    assert np.array_equal(store.get(texts), stored(texts))


def test_no_server_is_a_failure_of_the_work(server):
    url = server.url
    server.server_close()
    with pytest.raises(WorkFailed, match=r"failed 2 times: no connection"):
        HttpTeacher(url, "served", attempts=2, backoff=0.01).embed(["a"])


@pytest.mark.parametrize(
    ("code", "message"), [(401, "refuses the key .status 401.*teacher.api_key_env"), (404, "status 404.*teacher.model"), (400, "400")]
)
def test_a_refusal_is_bad_input_at_once_and_keeps_the_key_secret(server, teacher, code, message):
    server.plan = [status(code)]
    with pytest.raises(BadInput, match=message) as error:
        teacher.embed(["a"])
    assert len(server.requests) == 1 and "secret-key" not in str(error.value) and "***" in str(error.value)


def test_a_changed_size_is_refused_within_a_reply_and_between_replies(server, teacher):
    def shorter(items):
        return [items[0], *(item | {"embedding": item["embedding"][:5]} for item in items[1:])]

    server.plan = [edited(shorter)]
    with pytest.raises(BadInput, match="different sizes for model 'served': 5, 8"):
        teacher.embed(["a", "b"])
    teacher.embed(["a"])
    server.plan = [edited(lambda items: [item | {"embedding": [1.0, 2.0]} for item in items])]
    with pytest.raises(BadInput, match="different sizes for model 'served': 2, 8"):
        teacher.embed(["b"])


def test_a_value_that_is_not_finite_reaches_the_quarantine_not_the_store(tmp_path, server, teacher):
    server.plan = [edited(lambda items: [items[0] | {"embedding": [None] * 8}, *items[1:]])]
    store = open_store(tmp_path, teacher.identity, None)
    report = store.fill(["a", "b"], teacher)
    assert (report.embedded, len(report.quarantined)) == (1, 1) and store.missing(["a", "b"]) == ["a"]


def test_the_recipe_makes_it(server):
    settings = TeacherSettings(
        kind="http", model="served", revision="r1", url=server.url, api_key_env="KEY", instructions=None, embedding_dim=8
    )
    teacher = make_teacher(settings, api_key="secret-key")
    assert teacher.identity == Identity("http", "served", "r1") and same(teacher.embed(["a"]), ["a"])
    with pytest.raises(BadInput, match=r"environment variable KEY, named by teacher.api_key_env, is not set"):
        make_teacher(settings)
    with pytest.raises(BadInput, match=r"teacher.kind is 'http' and teacher.url is None"):
        make_teacher(TeacherSettings(kind="http", model="served", instructions=None))
    with pytest.raises(BadInput, match="must start with http"):
        make_teacher(TeacherSettings(kind="http", model="served", url="ftp://x", instructions=None))


def test_the_fake_and_the_server_agree(teacher):
    assert np.allclose(teacher.embed(["a"]), FakeTeacher().embed(["a"]), atol=1e-7)
