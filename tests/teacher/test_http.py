"""The HTTP teacher against a small server on the loopback that misbehaves on request."""

import base64
import email.utils
import threading
import time

import numpy as np
import pytest
from helpers.teacher_fakes import LIES, FakeTeacher, Server, edited, good, lying, status, stored

from taskdistill.errors import BadInput, WorkFailed
from taskdistill.recipe.teacher import TeacherConfig
from taskdistill.teacher.fill import fill_store
from taskdistill.teacher.http import HttpTeacher
from taskdistill.teacher.local import make_teacher
from taskdistill.teacher.protocol import TeacherIdentity
from taskdistill.teacher.store import open_store


@pytest.fixture
def server():
    with Server() as running:
        threading.Thread(
            target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        yield running
        running.shutdown()


@pytest.fixture
def teacher(server):
    return HttpTeacher(
        url=server.url,
        model="served",
        api_key="secret-key",
        timeout=5.0,
        attempts=4,
        backoff=0.01,
        parallel=1,
    )


def same(vectors, texts):
    return np.array_equal(vectors.astype(np.float16), stored(texts))


def test_it_asks_in_the_openai_shape_and_returns_unit_rows(server, teacher):
    vectors = teacher.embed(["a", "b"])
    assert (
        vectors.dtype == np.float32
        and np.allclose(np.linalg.norm(vectors, axis=1), 1)
        and same(vectors, ["a", "b"])
    )
    assert server.requests == [
        (
            "/v1/embeddings",
            {"model": "served", "input": ["a", "b"], "encoding_format": "float"},
            "Bearer secret-key",
        )
    ]
    assert (
        teacher.identity == TeacherIdentity(kind="http", model="served")
        and teacher.embedding_dim == 8
    )
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
    return [
        item
        | {"embedding": base64.b64encode(np.array(item["embedding"], "<f4").tobytes()).decode()}
        for item in items
    ]


@pytest.mark.parametrize(
    "change", [_base64, lambda items: items[::-1]], ids=["base64", "reordered"]
)
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

    teacher = HttpTeacher(url=server.url, model="served", timeout=0.15, backoff=0.01)
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
        fill_store(store, texts, teacher)
    said = str(error.value)
    assert (
        "failed 4 times: status 500" in said
        and "248 of 300 texts are safe in the store" in said
        and "secret-key" not in said
    )
    asked = len(server.requests)
    assert fill_store(store, texts, teacher).embedded == 52
    sent = [len(body["input"]) for _, body, _ in server.requests[asked:]]
    assert sorted(sent) == [
        1,
        1,
        1,
        52,
    ], "a stored text, the missing ones, and of those two one again, alone, and the stored one"
    assert np.array_equal(store.get(texts), stored(texts))


def test_no_server_is_a_failure_of_the_work(server):
    url = server.url
    server.server_close()
    with pytest.raises(WorkFailed, match=r"failed 2 times: no connection"):
        HttpTeacher(url=url, model="served", attempts=2, backoff=0.01).embed(["a"])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (401, "refuses the key .status 401.*teacher.api_key_env"),
        (404, "status 404.*teacher.model"),
        (400, "400"),
    ],
)
def test_a_refusal_is_bad_input_at_once_and_keeps_the_key_secret(server, teacher, code, message):
    server.plan = [status(code)]
    with pytest.raises(BadInput, match=message) as error:
        teacher.embed(["a"])
    assert (
        len(server.requests) == 1
        and "secret-key" not in str(error.value)
        and "***" in str(error.value)
    )


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
    report = fill_store(store, ["a", "b"], teacher)
    assert (report.embedded, len(report.quarantined)) == (1, 1) and store.missing(["a", "b"]) == [
        "a"
    ]


def test_the_recipe_makes_it(server):
    settings = TeacherConfig(
        kind="http",
        model="served",
        revision="r1",
        url=server.url,
        api_key_env="KEY",
        instructions=None,
        embedding_dim=8,
    )
    teacher = make_teacher(settings, api_key="secret-key")
    assert teacher.identity == TeacherIdentity(kind="http", model="served", revision="r1") and same(
        teacher.embed(["a"]), ["a"]
    )
    with pytest.raises(
        BadInput, match=r"environment variable KEY, named by teacher.api_key_env, is not set"
    ):
        make_teacher(settings)
    with pytest.raises(BadInput, match=r"teacher.kind is 'http' and teacher.url is None"):
        make_teacher(TeacherConfig(kind="http", model="served", instructions=None))
    with pytest.raises(BadInput, match="must start with http"):
        make_teacher(TeacherConfig(kind="http", model="served", url="ftp://x", instructions=None))


def test_the_fake_and_the_server_agree(teacher):
    assert np.allclose(teacher.embed(["a"]), FakeTeacher().embed(["a"]), atol=1e-7)


SHARD = 512


def lied(tmp_path, server, lie, first, count, texts, known=()):
    """Fill a store from a server that lies for a while; returns the texts that were stored and the
    error, if there was one.
    """
    teacher = HttpTeacher(
        url=server.url, model="served", timeout=5.0, attempts=2, backoff=0.01, parallel=1
    )
    store = open_store(tmp_path, teacher.identity, None)
    if known:
        fill_store(store, known, teacher)
        server.requests.clear()
    server.behave = lying(lie, first, count)
    try:
        report = fill_store(store, texts, teacher, shard_rows=SHARD)
    except (WorkFailed, BadInput) as error:
        server.behave = lambda number: good
        return store, str(error)
    server.behave = lambda number: good
    return store, report


def wrong(store, texts):
    """How many stored vectors are not those of their texts."""
    have = [text for text, row in zip(texts, store.locate(texts), strict=True) if row >= 0]
    return int((store.get(have) != stored(have)).any(axis=1).sum()) if have else 0


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("known", [False, True], ids=["empty store", "with a store"])
def test_a_plausible_lie_from_anywhere_on_is_not_stored(tmp_path, server, lie, known):
    """Whatever the request at which it begins, and whether or not it ends: no wrong vector stays,
    and what was stored before does.
    """
    rng = np.random.default_rng(len(lie))
    texts = [f"text {i} {'of more words ' * int(rng.integers(0, 4))}" for i in range(700)]
    for number in range(3):
        first, count = int(rng.integers(0, 12)), int(rng.choice([1, 2, 1000]))
        store, said = lied(
            tmp_path / str(number),
            server,
            lie,
            first,
            count,
            texts,
            ["known a", "known b"] if known else [],
        )
        assert wrong(store, texts) == 0, (lie, first, count)
        if isinstance(said, str):
            assert "'served'" in said and "\n" not in said and "Traceback" not in said
        if lie != "sorted by length" and first + count <= len(
            server.requests
        ):  # texts of one length are sorted already
            assert isinstance(said, str), (lie, first, count)
        assert fill_store(
            store, texts, HttpTeacher(url=server.url, model="served", parallel=1)
        ).embedded + len(store) >= len(texts)
        assert np.array_equal(store.get(texts), stored(texts))
        server.requests.clear()


@pytest.mark.parametrize("lie", [lie for lie in LIES if lie != "mixed"])
def test_a_lie_told_of_every_text_is_said_in_one_line(tmp_path, server, lie):
    store, said = lied(
        tmp_path, server, lie, 0, 10_000, [f"text {i} {'w' * (i % 9)}" for i in range(200)]
    )
    if lie == "another model":  # from the first text on it is simply the model
        assert said.embedded == 200
        return
    assert (
        ("asked again" in said or "gave one vector for" in said)
        and "\n" not in said
        and len(store) == 0
    )


def test_what_asking_again_costs(tmp_path, server, teacher):
    """Of 248 texts, one of each of the four requests and a stored one; at the end of a shard those
    of the last piece, one alone.
    """
    texts = [f"text {i}" for i in range(2048)]
    report = fill_store(open_store(tmp_path, teacher.identity, None), texts, teacher)
    sent = sum(len(body["input"]) for _, body, _ in server.requests)
    assert report.asked_again == sent - 2048 <= 45
    assert len(server.requests) <= -(-2048 // 62) + 3
    assert (
        f"{report.asked_again} texts asked for a second time, to compare the answers"
        in report.notes
    )


def test_an_endpoint_that_fails_before_it_can_be_asked_again_loses_the_last_piece_only(
    tmp_path, server
):
    teacher = HttpTeacher(url=server.url, model="served", attempts=2, backoff=0.01, parallel=1)
    server.behave = lambda number: good if number < 9 else status(500)
    store = open_store(tmp_path, teacher.identity, None)
    with pytest.raises(WorkFailed, match="248 of 700 texts are safe"):
        fill_store(store, [f"text {i}" for i in range(700)], teacher)
    assert len(store) == 248


def test_different_texts_with_one_vector_are_refused_whatever_the_teacher(tmp_path):
    class Flat(FakeTeacher):
        def embed(self, texts):
            return np.where(
                np.array([text.startswith("flat") for text in texts])[:, None],
                super().embed(["one"]),
                super().embed(texts),
            )

    texts = [f"flat {i}" for i in range(10)] + [f"text {i}" for i in range(9)]
    store = open_store(tmp_path, Flat().identity, None)
    with pytest.raises(
        WorkFailed, match="one vector for 10 of 19 different texts, such as 'flat 0' and 'flat 1'"
    ):
        fill_store(store, texts, Flat())
    assert len(store) == 0
    assert fill_store(store, texts[2:], Flat()).embedded == 17, (
        "fewer than half may be texts of which the model knows no word"
    )
    spellings = ["A b", "a b", "a  b", " a b", "a B"]
    other = open_store(tmp_path / "other", Flat().identity, None)
    assert fill_store(other, [f"flat{each}" for each in spellings], Flat()).embedded == 5


@pytest.mark.parametrize(
    "reply",
    [
        '{"data": [{"index": 0, "embedding": [%s]}]}' % ("1" + "0" * 400),
        '{"data": [{"index": 0, "embedding": [%s]}]}' % ("1" + "0" * 10_000),
        '{"data": [{"index": 0, "embedding": [1e999]}]}',
        '{"data": [{"index": Infinity, "embedding": [1, 2]}]}',
        '{"data": [{"index": NaN, "embedding": [1, 2]}]}',
        '{"data": [{"index": 0.0, "embedding": [1, 2]}]}',
        '{"data": [{"index": "0", "embedding": [1, 2]}]}',
        '{"data": [{"index": false, "embedding": [1, 2]}]}',
        '{"data": [{"index": -1, "embedding": [1, 2]}]}',
        '{"data": [{"index": 0, "index": 0, "embedding": [1, 2]}]}',
        '{"data": [{"index": 0, "embedding": [[1, 2]]}]}',
        '{"data": [{"index": 0, "embedding": ["1", "2"]}]}',
        '{"data": [{"index": 0, "embedding": [true, false]}]}',
        '{"data": [{"index": 0, "embedding": {"0": 1}}]}',
        '{"data": [{"index": 0, "embedding": "AAA="}]}',
        '{"data": {"index": 0, "embedding": [1, 2]}}',
        '{"data": [[0, [1, 2]]]}',
        '{"data": [null]}',
        '{"data": "text"}',
        '[{"index": 0, "embedding": [1, 2]}]',
        "[" * 200_000,
        '{"data": ' + "[" * 200_000 + "]" * 200_000 + "}",
        '{"data":' * 100_000,
        '"' * 100_000,
        "null",
        "",
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    ],
    ids=lambda reply: f"{reply[:60]}",
)
def test_a_reply_of_any_kind_is_one_line(server, reply):
    server.behave = lambda number: lambda texts: (200, reply.encode("latin-1"))
    teacher = HttpTeacher(url=server.url, model="served", attempts=2, backoff=0.001, parallel=1)
    with pytest.raises(WorkFailed, match="failed 2 times: the reply") as error:
        teacher.embed(["a"])
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_numbers_beyond_float32_go_to_the_quarantine(tmp_path, server, teacher):
    server.plan = [edited(lambda items: [items[0] | {"embedding": [1e300] * 8}, *items[1:]])]
    report = fill_store(open_store(tmp_path, teacher.identity, None), ["a", "b"], teacher)
    assert (report.embedded, len(report.quarantined)) == (1, 1)


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_reply_that_drips_ends_at_the_deadline(server, part):
    server.at_once, server.pause = 1, 0.05
    server.slow_head = part == "head"
    teacher = HttpTeacher(url=server.url, model="served", timeout=0.4, attempts=1, parallel=1)
    started = time.monotonic()
    with pytest.raises(WorkFailed, match=r"no whole reply within 0\.4 s"):
        teacher.embed(["a"])
    assert 0.35 < time.monotonic() - started < 2.0, "the whole reply would take more than 9 s"
    server.at_once, server.pause, server.slow_head = 1 << 30, 0.0, False
    assert same(teacher.embed(["a"]), ["a"])


def test_a_reply_without_end_is_cut(server, monkeypatch):
    monkeypatch.setattr("taskdistill.teacher.http.LARGEST_REPLY", 10_000)
    server.behave = lambda number: lambda texts: (200, b" " * 1_000_000)
    with pytest.raises(WorkFailed, match="larger than"):
        HttpTeacher(url=server.url, model="served", attempts=1).embed(["a"])


@pytest.mark.parametrize(
    "asked",
    [
        "0",
        "-5",
        "nan",
        "inf",
        "-inf",
        "1e999",
        "soon",
        "",
        "9" * 5000,
        "Thu, 99 Foo 9999 99:99:99 GMT",
    ],
)
def test_an_endpoint_cannot_ask_to_be_asked_at_once(server, asked):
    server.plan = [status(429, Retry_After=asked)] * 3
    HttpTeacher(url=server.url, model="served", attempts=4, backoff=0.1, parallel=1).embed(["a"])
    waits = np.diff(server.times)
    assert (waits >= [0.05, 0.1, 0.2]).all()
