"""A teacher without a model: the vector of a text is drawn from the text's hash; and a server of it
that misbehaves on request.
"""

import functools
import hashlib
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from taskdistill.teacher.protocol import TeacherIdentity, unit_rows

DIM = 8


@functools.cache
def vector(text, dim=DIM):
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).normal(size=dim)


def stored(texts, dim=DIM):
    """What a store must give back: unit rows, rounded to float16."""
    return unit_rows(np.stack([vector(text, dim) for text in texts])).astype(np.float16)


class FakeTeacher:
    embedding_dim = None

    def __init__(self, identity=None, dim=DIM):
        self.identity = identity or TeacherIdentity(
            kind="local", model="fake/teacher", revision=None, weights="weights", max_length=256
        )
        self.dim = dim
        self.seen = Counter()

    def embed(self, texts):
        self.seen.update(texts)
        return unit_rows(np.stack([vector(text, self.dim) for text in texts]))


def good(texts):
    return 200, {
        "data": [
            {"object": "embedding", "index": i, "embedding": vector(text).tolist()}
            for i, text in enumerate(texts)
        ]
    }


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
        self.behave = lambda number: good
        """Behaviour by the number of the request, once the plan is done."""
        self.at_once, self.pause = 1 << 30, 0.0
        """Bytes sent at once, and seconds before the next ones."""
        self.slow_head = False
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.guard = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.guard:
            self.server.requests.append((self.path, body, self.headers.get("Authorization")))
            self.server.times.append(time.monotonic())
            number = len(self.server.requests) - 1
            behave = self.server.plan.pop(0) if self.server.plan else self.server.behave(number)
        answer, reply, *headers = behave(body["input"])
        data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        try:
            self.send_response(answer)
            for name, value in headers[0].items() if headers else ():
                self.send_header(name.replace("_", "-"), value)
            if self.server.slow_head:
                for _ in range(200):
                    self.wfile.write(b"X")
                    time.sleep(self.server.pause)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            for start in range(0, len(data), self.server.at_once):
                self.wfile.write(data[start : start + self.server.at_once])
                if self.server.pause:
                    time.sleep(self.server.pause)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def log_message(self, *_):
        pass


def rotated(items):
    """Right indices, vectors of the text beside."""
    vectors = [item["embedding"] for item in items]
    return [
        item | {"embedding": vector}
        for item, vector in zip(items, [*vectors[1:], vectors[0]], strict=True)
    ]


def by_length(texts):
    """Vectors in the order in which a server sorts texts to waste no padding, under the indices of
    the order in which they came.
    """
    order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
    vectors = [vector(texts[at]).tolist() for at in order]
    return 200, {"data": [{"index": at, "embedding": each} for at, each in enumerate(vectors)]}


def mixed(texts):
    """Vectors that depend on the texts beside them, as where padding is attended to."""
    shared = 10 * np.mean([vector(text) for text in texts], axis=0)
    return 200, {
        "data": [
            {"index": at, "embedding": (vector(text) + shared).tolist()}
            for at, text in enumerate(texts)
        ]
    }


def other_model(texts):
    return 200, {
        "data": [
            {"index": at, "embedding": vector(f"other {text}").tolist()}
            for at, text in enumerate(texts)
        ]
    }


LIES = {
    "rotated": edited(rotated),
    "reversed": edited(
        lambda items: [
            item | {"embedding": last["embedding"]}
            for item, last in zip(items, items[::-1], strict=True)
        ]
    ),
    "sorted by length": by_length,
    "one vector": edited(
        lambda items: [item | {"embedding": vector("one").tolist()} for item in items]
    ),
    "nearly one vector": edited(
        lambda items: [
            item | {"embedding": (vector("one") + 1e-3 * np.array(item["embedding"])).tolist()}
            for item in items
        ]
    ),
    "the first vector": edited(
        lambda items: [item | {"embedding": items[0]["embedding"]} for item in items]
    ),
    "another model": other_model,
    "mixed": mixed,
}
"""Replies in which nothing is wrong but the vectors."""


def lying(lie, first, count):
    """The behaviour of a server that lies in some requests."""
    return lambda number: LIES[lie] if first <= number < first + count else good
