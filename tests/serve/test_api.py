"""The routes against a live server: the official client unchanged, Jina's and TEI's fields, parity
with the library, errors.
"""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from helpers.serve_fakes import late_vectors, live, tiny_encoder

from taskdistill.errors import BadInput
from taskdistill.serve.settings import ServerSettings

openai = pytest.importorskip("openai", reason="the official openai client is not installed")

TEXTS = ["a red house", "ein Haus am See", "火星は太陽系", "x" * 200, "the end"]


@pytest.fixture(scope="module")
def server():
    encoder = tiny_encoder()
    with live(encoder) as (url, _):
        yield url, encoder


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=server[0], timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server[0]}/v1", api_key="not-needed", max_retries=0)


def rows(answer) -> np.ndarray:
    return np.array([each["embedding"] for each in answer.json()["data"]], np.float32)


def test_the_official_client_gets_the_librarys_vectors_through_base64(client, server):
    answer = client.embeddings.create(model="tiny", input=TEXTS)
    wanted = server[1].encode(TEXTS)
    assert np.abs(np.array([each.embedding for each in answer.data]) - wanted).max() <= 1e-5
    assert [each.index for each in answer.data] == list(range(len(TEXTS)))
    tokens = sum(
        map(len, server[1].model.tokenizer.ids(TEXTS, prompt="Document: ", max_length=300).ids)
    )
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens, answer.model) == (
        tokens,
        tokens,
        "tiny",
    )


def test_the_official_client_passes_dimensions_format_and_task(client, server):
    answer = client.embeddings.create(
        model="tiny",
        input="a red house",
        dimensions=16,
        encoding_format="float",
        user="me",
        extra_body={"task": "retrieval.query"},
    )
    wanted = server[1].encode(
        ["a red house"], task="retrieval", prompt_name="query", truncate_dim=16
    )
    assert np.abs(np.array([answer.data[0].embedding]) - wanted).max() <= 1e-5
    assert [each.id for each in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


@pytest.mark.parametrize(
    ("fields", "task", "prompt_name"),
    [
        ({}, None, "document"),
        ({"prompt_name": "query"}, None, "query"),
        ({"task": "retrieval.passage"}, "retrieval", "document"),
        ({"task": "retrieval"}, "retrieval", "document"),
        ({"task": "retrieval", "prompt_name": "query"}, "retrieval", "query"),
        ({"task": "text-matching"}, "text-matching", "document"),
        ({"task": "classification"}, "classification", "document"),
        ({"task": "clustering"}, "clustering", "document"),
        ({"task": "separation"}, "clustering", "document"),
    ],
)
def test_tasks_and_prompts_are_the_librarys(http, server, fields, task, prompt_name):
    answer = http.post(
        "/v1/embeddings", json={"input": [{"text": text} for text in TEXTS], **fields}
    )
    wanted = server[1].encode(TEXTS, task=task, prompt_name=prompt_name)
    assert np.abs(rows(answer) - wanted).max() <= 1e-5


def test_tasks_mixed_at_one_moment_do_not_mix_their_adapters(server):
    tasks = [None, "retrieval", "text-matching", "clustering", "classification"]
    wanted = {task: server[1].encode(TEXTS, task=task) for task in tasks}
    from concurrent.futures import ThreadPoolExecutor

    def ask(turn: int) -> float:
        task = tasks[turn % len(tasks)]
        answer = httpx.post(
            f"{server[0]}/v1/embeddings",
            json={"input": TEXTS, **({"task": task} if task else {})},
            timeout=30,
        )
        return float(np.abs(rows(answer) - wanted[task]).max())

    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(ask, range(40))) <= 1e-5


def test_every_embedding_type(http, server):
    encoder = server[1]
    kinds = ["float", "base64", "binary", "ubinary", "int8"]
    answer = http.post(
        "/v1/embeddings",
        json={
            "input": TEXTS,
            "task": "retrieval.passage",
            "dimensions": 16,
            "embedding_type": kinds,
        },
    )
    forms = [each["embeddings"] for each in answer.json()["data"]]
    unit = encoder.encode(TEXTS, task="retrieval", truncate_dim=16)
    packed = encoder.encode(TEXTS, task="retrieval", truncate_dim=16, precision="binary")
    assert np.abs(np.array([form["float"] for form in forms]) - unit).max() <= 1e-5
    decoded = np.array([np.frombuffer(base64.b64decode(form["base64"]), "<f4") for form in forms])
    np.testing.assert_array_equal(decoded, np.array([form["float"] for form in forms], np.float32))
    np.testing.assert_array_equal([form["ubinary"] for form in forms], packed)
    np.testing.assert_array_equal([form["binary"] for form in forms], packed.astype(np.int16) - 128)
    codes = encoder.encode(TEXTS, task="retrieval", truncate_dim=16, precision="int8").astype(int)
    assert np.abs(np.array([form["int8"] for form in forms]) - codes).max() <= 1
    for field in ("encoding_format", "embedding_type"):
        one = http.post(
            "/v1/embeddings",
            json={"input": TEXTS, "dimensions": 16, "task": "retrieval", field: "ubinary"},
        )
        np.testing.assert_array_equal([each["embedding"] for each in one.json()["data"]], packed)


def test_late_chunking_gives_each_text_a_vector_that_has_seen_the_others(http, server):
    texts = ["a red house", "on the shore", "of a lake in the north"]
    apart = rows(http.post("/v1/embeddings", json={"input": texts, "task": "retrieval"}))
    answer = http.post(
        "/v1/embeddings",
        json={"input": texts, "task": "retrieval", "late_chunking": True, "dimensions": 16},
    )
    wanted = late_vectors(server[1], texts, task="retrieval", truncate_dim=16)
    assert np.abs(rows(answer) - wanted).max() <= 1e-5
    assert np.abs(rows(answer) - apart[:, :16]).max() > 0.05
    whole = len(
        server[1].model.tokenizer.ids([" ".join(texts)], prompt="Document: ", max_length=300).ids[0]
    )
    assert answer.json()["usage"]["total_tokens"] == whole
    alone = http.post("/v1/embeddings", json={"input": texts[:1], "late_chunking": True})
    assert np.abs(rows(alone) - server[1].encode(texts[:1])).max() <= 1e-5


def test_late_chunking_mixes_with_other_requests(server):
    texts = [f"chunk {i} of some" for i in range(6)]
    with ThreadPoolExecutor(12) as threads:
        bodies = [{"input": texts[: 2 + i % 3], "late_chunking": i % 2 == 0} for i in range(60)]
        answers = list(
            threads.map(
                lambda body: httpx.post(f"{server[0]}/v1/embeddings", json=body, timeout=30), bodies
            )
        )
    for body, answer in zip(bodies, answers, strict=True):
        wanted = (
            late_vectors(server[1], body["input"])
            if body["late_chunking"]
            else server[1].encode(body["input"])
        )
        assert np.abs(rows(answer) - wanted).max() <= 1e-5


def test_vectors_need_not_be_normalised(http):
    raw = rows(http.post("/v1/embeddings", json={"input": TEXTS, "normalized": False}))
    unit = rows(http.post("/v1/embeddings", json={"input": TEXTS}))
    length = np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.abs(length - 1).max() > 0.1
    assert np.abs(raw / length - unit).max() <= 1e-6


def test_a_text_too_long_is_an_error_unless_truncation_is_asked_for(http, server):
    long = "y" * 1000
    refused = http.post("/v1/embeddings", json={"input": ["short", long]})
    assert (refused.status_code, refused.json()["error"]["code"]) == (
        400,
        "context_length_exceeded",
    )
    assert "input[1] is longer than the 300 tokens" in refused.json()["error"]["message"]
    cut = http.post("/v1/embeddings", json={"input": ["short", long], "truncate": True})
    assert cut.json()["truncated"] == [1]
    assert np.abs(rows(cut) - server[1].encode_reporting(["short", long]).vectors).max() <= 1e-5


def test_embed_as_text_embeddings_inference_has_it(http, server):
    answer = http.post(
        "/embed",
        json={
            "inputs": TEXTS,
            "truncate": True,
            "normalize": True,
            "prompt_name": "query",
            "dimensions": 16,
        },
    )
    wanted = server[1].encode(TEXTS, prompt_name="query", truncate_dim=16)
    assert np.abs(np.array(answer.json()) - wanted).max() <= 1e-5
    assert np.array(http.post("/embed", json={"inputs": "one"}).json()).shape == (1, 32)
    empty = http.post("/embed", json={"inputs": ""})
    assert (empty.status_code, empty.json()["error_type"]) == (400, "Empty")
    wrong = http.post("/embed", json={"inputs": 5})
    assert (wrong.status_code, wrong.json()["error_type"], set(wrong.json())) == (
        422,
        "Validation",
        {"error", "error_type"},
    )


@pytest.mark.parametrize(
    ("body", "status", "param", "said"),
    [
        ({"input": [1, 2, 3]}, 400, "input", "check_embedding_ctx_length=False"),
        ({"input": [[1, 2], [3]]}, 400, "input", "check_embedding_ctx_length=False"),
        ({"input": []}, 400, "input", "empty list"),
        ({"input": ""}, 400, "input", "empty string"),
        ({"input": ["a", ""]}, 400, "input", "input[1] is an empty string"),
        ({"input": ["a", None]}, 400, "input", "input[1] is a JSON NoneType"),
        ({"input": {"text": "a", "image": "b"}}, 400, "input", "JSON dict"),
        ({"input": ["a"] * 3000}, 413, "input", "the limit is 2,048"),
        ({}, 400, "input", "missing"),
        ({"input": "a", "dimension": 16}, 400, "dimension", "did you mean 'dimensions'"),
        ({"input": "a", "dimensions": 0}, 400, "dimensions", "greater than or equal to 1"),
        ({"input": "a", "dimensions": 33}, 400, "dimensions", "give 1 to 32"),
        ({"input": "a", "dimensions": True}, 400, "dimensions", "valid integer"),
        ({"input": "a", "dimensions": 16.0}, 400, "dimensions", "valid integer"),
        ({"input": "a", "task": "retreival"}, 400, "task", "did you mean 'retrieval'"),
        (
            {"input": "a", "task": "retrieval.query", "prompt_name": "document"},
            400,
            None,
            "give one of the two",
        ),
        ({"input": "a", "prompt_name": "docment"}, 400, None, "did you mean 'document'"),
        (
            {"input": "a", "late_chunking": True, "truncate": True},
            400,
            "truncate",
            "leave truncate out",
        ),
        (
            {"input": ["a" * 100] * 4, "late_chunking": True},
            400,
            "input",
            "reads 300 tokens at most; send fewer of its 415",
        ),
        (
            {"input": ["a" * 5000] * 4, "late_chunking": True},
            400,
            "input",
            "send fewer of its 20,000 characters",
        ),
        ({"input": "a", "encoding_format": "float16"}, 400, "encoding_format", "float"),
        ({"input": "a", "embedding_type": []}, 400, "embedding_type", "empty list"),
        (
            {"input": "a", "embedding_type": "int8", "dimensions": 17},
            400,
            "embedding_type",
            "stored: 16, 32",
        ),
        (
            {"input": "a", "embedding_type": "int8", "normalized": False},
            400,
            "normalized",
            "length one",
        ),
        (
            {"input": "a", "model": "text-embedding-3-small"},
            404,
            "model",
            "the model served is 'tiny'",
        ),
    ],
)
def test_bad_requests_name_the_field_and_the_limit_in_openais_shape(
    http, body, status, param, said
):
    answer = http.post("/v1/embeddings", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, set(error), error["param"]) == (
        status,
        {"message", "type", "param", "code"},
        param,
    )
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[1]", "send an object"),
        (b"null", "send an object"),
        (b'{"input": NaN}', "not a finite number (NaN)"),
        (b'{"input": "a", "dimensions": Infinity}', "not a finite number (Infinity)"),
        (b'{"input": "a", "input": "b"}', "duplicate JSON key"),
        (b'{"input": "\xff"}', "not UTF-8 at byte 11"),
        (b'{"input": "\\ud800"}', "surrogate"),
        (b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "nested too deeply"),
        (b'{"dimensions": ' + b"9" * 10_000 + b"}", "a number of too many digits"),
        (b'{"input": [' + b"[]," * 60_000 + b"[]]}", "too many elements"),
        (b'{"input": "a\x00b\n"}', "not valid JSON"),
    ],
)
def test_what_is_no_strict_json_is_refused(http, data, said):
    answer = http.post("/v1/embeddings", content=data, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


def test_odd_but_valid_texts_are_embedded_as_the_library_does(http, server):
    texts = [" ", "\x00", "\u202e", "e\u0301" * 9, "👩‍🚀🚀", "\ufeff", "<s>[SEP]</s>", "\\", '"']
    answer = http.post("/v1/embeddings", json={"input": texts})
    assert np.abs(rows(answer) - server[1].encode(texts)).max() <= 1e-5


def test_paths_methods_and_media_types_have_the_right_status(http):
    assert http.get("/nothing").json()["error"]["code"] == "not_found"
    wrong = http.get("/v1/embeddings")
    assert (wrong.status_code, wrong.headers["Allow"], wrong.json()["error"]["code"]) == (
        405,
        "POST",
        "method_not_allowed",
    )
    assert http.post("/v1/embeddings", content=b"input=a").status_code == 415
    zipped = http.post(
        "/v1/embeddings",
        content=b"x",
        headers={"Content-Type": "application/json", "Content-Encoding": "gzip"},
    )
    assert (zipped.status_code, zipped.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert http.post("/search", json={"query": "a"}).json()["error"]["code"] == "no_index"
    assert http.get("/v1/models/other").status_code == 404


def test_health_ready_metrics_and_docs(http, server):
    assert http.get("/health").json() == {"status": "ok", "last_reload": None}
    assert http.get("/ready").json() == {"status": "ready"}
    http.post("/v1/embeddings", json={"input": "secret-word-in-a-text"})
    text = http.get("/metrics").text
    assert 'taskdistill_requests_total{route="/v1/embeddings",status="200"}' in text
    assert "taskdistill_queue_tokens 0.0" in text
    assert "secret" not in text
    described = http.get("/openapi.json").json()["paths"]
    assert set(described) >= {
        "/v1/embeddings",
        "/embed",
        "/v1/models",
        "/search",
        "/health",
        "/ready",
        "/metrics",
    }
    schema = described["/v1/embeddings"]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    assert set(schema["properties"]) >= {
        "input",
        "task",
        "dimensions",
        "embedding_type",
        "truncate",
        "late_chunking",
    }


def test_a_key_is_asked_for_and_wrong_ones_are_limited():
    key = "k" * 10 + "0123456789"
    with (
        live(tiny_encoder(1), settings=ServerSettings(api_key=key, failed_keys=8)) as (url, _),
        httpx.Client(base_url=url) as http,
    ):

        def ask(**headers):
            return http.post("/v1/embeddings", json={"input": "a"}, headers=headers)

        assert ask(Authorization=f"Bearer {key}").status_code == 200
        assert [http.get(path).status_code for path in ("/health", "/ready", "/docs", "/")] == [
            200
        ] * 4
        assert [
            http.get(path).status_code
            for path in ("/page/about.json", "/page/docs.js", "/page/style.css")
        ] == [200] * 3
        closed = ("/metrics", "/v1/models", "/openapi.json", "/page/ranges.json?task=base&dim=16")
        assert [http.get(path).status_code for path in closed] == [401] * 4
        assert [
            http.get(path, headers={"Authorization": f"Bearer {key}"}).status_code
            for path in closed
        ] == [200] * 4
        for wrong in (
            {},
            {"Authorization": f"Bearer {key[:-1]}"},
            {"Authorization": f"Bearer {key}x"},
            {"Authorization": key},
        ):
            answer = ask(**wrong)
            assert (answer.status_code, answer.json()["error"]["type"]) == (
                401,
                "authentication_error",
            )
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert key not in answer.text
        assert ask().status_code == 429
        assert ask(Authorization=f"Bearer {key}").status_code == 429


def test_a_server_without_a_key_answers_under_loopback_names_only():
    with live(tiny_encoder(1), settings=ServerSettings(allowed_hosts=("inside.example",))) as (
        url,
        _,
    ):
        for host, status in (
            ("localhost:1", 200),
            ("127.0.0.1", 200),
            ("[::1]:80", 200),
            ("inside.example", 200),
            ("evil.example", 421),
            ("LOCALHOST:8080", 200),
            ("localhost.", 200),
            ("Inside.Example.:80", 200),
            ("localhost.evil.example", 421),
            ("[::1]", 200),
            ("", 421),
        ):
            assert httpx.get(f"{url}/ready", headers={"Host": host}).status_code == status, host


@pytest.mark.parametrize("field", ["prompt_name", "task", "model", "user", "encoding_format"])
def test_half_a_character_in_any_field_is_a_bad_request(http, field):
    answer = http.post(
        "/v1/embeddings",
        content=b'{"input": "a", "%s": "\\ud800"}' % field.encode(),
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 400 and answer.json()["error"]["param"] == field


def test_half_a_character_in_the_name_of_a_field_is_a_bad_request(http):
    for path, body in (
        ("/v1/embeddings", b'{"input": "a", "\\ud800": 1}'),
        ("/embed", b'{"inputs": "a", "\\udfff": 1}'),
    ):
        answer = http.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422) and "unknown field" in answer.text


@pytest.mark.parametrize("dim", ["", "0", "-1", "9" * 5000, "1e1", "16.0", "\u0661\u0666", "17"])
def test_ranges_of_no_size_are_a_bad_request(http, dim):
    answer = http.get("/page/ranges.json", params={"task": "base", "dim": dim})
    assert answer.status_code == 400 and set(answer.json()["error"]) == {
        "message",
        "type",
        "param",
        "code",
    }


def test_ranges_without_parameters_are_a_bad_request_in_the_same_shape(http):
    assert http.get("/page/ranges.json").json()["error"]["param"] == "dim"


def test_forwarded_addresses_are_believed_from_named_proxies_only():
    """Wrong keys count for the address that asks: a client that may name any address would never be
    refused, or lock out another.
    """
    key = "k" * 20
    for proxies, expected in (((), [401, 401, 429, 429]), (("127.0.0.1",), [401, 401, 401, 401])):
        with live(
            tiny_encoder(1), settings=ServerSettings(api_key=key, failed_keys=2, proxies=proxies)
        ) as (url, _):
            found = [
                httpx.get(
                    f"{url}/metrics", headers={"X-Forwarded-For": f"10.0.0.{number}"}
                ).status_code
                for number in range(4)
            ]
            assert found == expected
    with pytest.raises(BadInput, match="is no address"):
        ServerSettings(proxies=("proxy.example",))
