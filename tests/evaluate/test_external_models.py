"""Whatever a person names as a model: folders, sentence-transformers modules, endpoints and vectors
on disk.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny import add_adapter, model, student, write_teacher, write_tokenizer

from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput
from taskdistill.evaluate.models.external import PROBES, open_model, parse_spec
from taskdistill.model.folder import write_model
from taskdistill.workflows.evaluate import open_models

ASK = {"task": "retrieval", "prompt_name": "query"}


class Endpoint(ThreadingHTTPServer):
    """Answers with vectors of a text's length and first letter, times a factor; remembers bodies
    and keys.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url, self.bodies, self.keys, self.turn = (
            f"http://127.0.0.1:{self.server_port}/v1",
            [],
            [],
            0.0,
        )


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.keys.append(self.headers.get("Authorization"))
        rows = [[len(text), ord(text[0]), self.server.turn] for text in body["input"]]
        data = json.dumps(
            {"data": [{"index": i, "embedding": row} for i, row in enumerate(rows)]}
        ).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint():
    server = Endpoint()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def adapted(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("adapted")
    built = model(student(), write_tokenizer(root / "tokenizer"))
    built.adapter_configs["retrieval"] = add_adapter(built.module, "retrieval")
    write_model(root / "run" / "model", built)
    return root / "run" / "model"


def test_options_follow_a_hash():
    spec = parse_spec("http://host/v1#model=a/b&query=Query:%20&tasks=yes")
    assert (spec.kind, spec.place, spec.name) == ("endpoint", "http://host/v1", "a/b")
    assert (
        spec.options["query"] == "Query: "
        and parse_spec("http://h/v1#model=a&name=ours").name == "ours"
    )
    assert (parse_spec("runs/a/model").name, parse_spec("runs/a/model#adapters=off").name) == (
        "a/model",
        "a/model without adapters",
    )
    assert parse_spec("vectors.parquet").kind == "vectors"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "http://host/v1",
            "an endpoint serves many models; name one, such as http://host/v1#model=NAME",
        ),
        (
            "http://host/v1#modle=x",
            "'modle=x' is no option of a model of kind endpoint; did you mean 'model'",
        ),
        ("folder#query=x", "'query=x' is no option of a model of kind folder"),
        ("folder#adapters=maybe", "adapters is 'maybe'; it must be on or off"),
        ("folder#adapters", "'adapters' is no option"),
    ],
)
def test_bad_options_are_refused(text, says):
    with pytest.raises(BadInput, match=says.replace("?", r"\?")):
        parse_spec(text)


def test_our_folder_with_and_without_adapters(adapted):
    complete, base = open_models(
        [parse_spec(str(adapted)), parse_spec(f"{adapted}#adapters=off")], None, {}
    )
    encoder = Encoder.load(adapted, threads=1)
    assert np.allclose(
        complete.encode(["ship"], **ASK),
        encoder.encode(["ship"], task="retrieval", prompt_name="query"),
        atol=1e-6,
    )
    assert np.allclose(
        base.encode(["ship"], **ASK), encoder.encode(["ship"], prompt_name="query"), atol=1e-6
    )
    assert (
        complete.name == "run/model"
        and base.name == "run/model without adapters"
        and complete.fingerprint() != base.fingerprint()
    )


def test_models_of_one_name_are_called_by_their_place(tmp_path):
    first, second = (
        write_teacher(tmp_path / "a" / "bert"),
        write_teacher(tmp_path / "b" / "bert", seed=6),
    )
    assert [
        each.name
        for each in open_models([parse_spec(str(first)), parse_spec(str(second))], None, {})
    ] == [str(first), str(second)]
    assert [
        each.name
        for each in open_models(
            [parse_spec(f"{first}#name=one"), parse_spec(str(second))], None, {}
        )
    ] == ["one", "bert"]


def test_adapters_of_a_model_without_any_have_no_effect(tmp_path):
    with pytest.raises(BadInput, match="`adapters` has no effect on a model without adapters"):
        open_model(parse_spec(f"{write_teacher(tmp_path / 'plain')}#adapters=off"))


def test_modules_that_only_sentence_transformers_knows(tmp_path):
    stock = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed"
    )
    from sentence_transformers.models import Dense

    plain = stock.SentenceTransformer(str(write_teacher(tmp_path / "plain")), device="cpu")
    complete = stock.SentenceTransformer(modules=[*list(plain)[:2], Dense(32, 12)], device="cpu")
    complete.prompts = {"query": "what is ", "document": ""}
    complete.save(str(tmp_path / "dense"))
    opened = open_model(parse_spec(str(tmp_path / "dense")))
    texts = ["the old harbour", "a judge in court"]
    assert np.allclose(
        opened.encode(texts, **ASK), complete.encode(texts, prompt="what is "), atol=1e-6
    )
    assert np.allclose(
        opened.encode(texts, task=None, prompt_name="document"),
        complete.encode(texts, prompt=""),
        atol=1e-6,
    )
    before = opened.fingerprint()
    assert open_model(parse_spec(str(tmp_path / "dense"))).fingerprint() == before
    config = tmp_path / "dense" / "config_sentence_transformers.json"
    config.write_text(config.read_text("utf-8").replace("cosine", "dot"), "utf-8")
    assert open_model(parse_spec(str(config.parent))).fingerprint() != before
    with pytest.raises(BadInput, match="`adapters` has no effect"):
        open_model(parse_spec(f"{tmp_path / 'dense'}#adapters=off"))


def test_a_folder_with_foreign_modules_is_not_run(tmp_path):
    folder = write_teacher(tmp_path / "plain")
    (folder / "taskdistill.json").unlink()
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "", "type": "evil.Module"})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(BadInput, match=r"asks for the module 'evil\.Module'"):
        open_model(parse_spec(str(folder)))


def test_an_endpoint_gets_prompts_tasks_and_the_key(endpoint, tmp_path):
    spec = parse_spec(f"{endpoint.url}#model=m&query=Q:%20&tasks=yes&key_env=SECRET")
    with pytest.raises(BadInput, match="SECRET, named by key_env, is not set"):
        open_model(spec)
    opened = open_model(spec, environment={"SECRET": "k"})
    result = opened.encode(["abc"], **ASK)
    assert np.allclose(result, [[6 / np.hypot(6, ord("Q")), ord("Q") / np.hypot(6, ord("Q")), 0]])
    opened.encode(["abc"], task="retrieval", prompt_name="document")
    opened.encode(["abc"], task="clustering", prompt_name="document")
    assert [(body["task"], body["input"]) for body in endpoint.bodies] == [
        ("retrieval.query", ["Q: abc"]), ("retrieval.passage", ["abc"]), ("clustering", ["abc"])
    ]  # fmt: skip
    assert set(endpoint.keys) == {"Bearer k"}
    plain = open_model(parse_spec(f"{endpoint.url}#model=m"))
    plain.encode(["abc"], **ASK)
    assert "task" not in endpoint.bodies[-1] and endpoint.bodies[-1]["input"] == ["abc"]


def test_an_endpoint_that_answers_differently_is_another_model(endpoint, tmp_path):
    spec = parse_spec(f"{endpoint.url}#model=m")
    first = open_model(spec, memory=tmp_path).fingerprint()
    assert open_model(spec, memory=tmp_path).fingerprint() == first and endpoint.bodies[-1][
        "input"
    ] == list(PROBES)
    endpoint.turn = 0.3
    assert open_model(spec, memory=tmp_path).fingerprint() == first, (
        "a wobble below the tolerance is the same model"
    )
    endpoint.turn = 60.0
    other = open_model(spec, memory=tmp_path).fingerprint()
    assert other != first and open_model(spec, memory=tmp_path).fingerprint() == other
    endpoint.turn = 0.0
    assert open_model(spec, memory=tmp_path).fingerprint() == first


def test_vectors_on_disk_are_found_by_text(tmp_path):
    folder = tmp_path / "vectors"
    folder.mkdir()
    (folder / "texts.jsonl").write_text('{"text": "one"}\n{"text": "ask: two"}\n')
    np.save(folder / "vectors.npy", np.array([[3, 4], [0, 2]], dtype=np.float32))
    opened = open_model(parse_spec(f"{folder}#query=ask:%20"))
    assert np.allclose(opened.encode(["two"], **ASK), [[0, 1]])
    assert np.allclose(opened.encode(["one"], task=None, prompt_name="document"), [[0.6, 0.8]])
    with pytest.raises(
        BadInput,
        match=r"1 of 2 texts have no vector in .*vectors, such as 'three'; .*--write-texts",
    ):
        opened.encode(["one", "three"], task=None, prompt_name="document")
    before = opened.fingerprint()
    np.save(folder / "vectors.npy", np.array([[3, 4], [0.1, 2]], dtype=np.float32))
    assert open_model(parse_spec(f"{folder}#query=ask:%20")).fingerprint() != before
    assert open_model(parse_spec(str(folder))).name == "vectors"
