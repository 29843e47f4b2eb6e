"""Exchanges with the server: every route, the fields of its requests, and what is refused how."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from golden import entry
from golden.summaries import summarize
from golden.workshop import Workshop

TEXTS = ["the old ship", "a judge and a jury", "bread and butter", "a star"]
ALL_TYPES = ["float", "base64", "binary", "ubinary", "int8"]
KEY = "0123456789abcdef-key"
V1, TEI = "/v1/embeddings", "/embed"

POSTS: tuple[tuple[str, dict[str, Any]], ...] = (
    (V1, {"input": TEXTS}),
    (V1, {"input": TEXTS[0], "model": "bert"}),
    (V1, {"input": [{"text": text} for text in TEXTS], "task": "retrieval.query"}),
    (
        V1,
        {
            "input": TEXTS,
            "task": "retrieval.passage",
            "dimensions": 16,
            "embedding_type": ALL_TYPES,
        },
    ),
    (V1, {"input": TEXTS, "task": "separation", "encoding_format": "base64"}),
    (V1, {"input": TEXTS, "task": "text-matching", "prompt_name": "query", "user": "me"}),
    (V1, {"input": TEXTS, "task": "classification", "normalized": False}),
    (V1, {"input": TEXTS, "task": "retrieval", "late_chunking": True}),
    (V1, {"input": ["the ship " * 80, "b"], "truncate": True}),
    (V1, {"input": ["the ship " * 80, "b"]}),
    (V1, {"input": TEXTS, "task": "retrival"}),
    (V1, {"input": TEXTS, "model": "another"}),
    (V1, {"input": TEXTS, "dimensions": 99}),
    (V1, {"input": TEXTS, "dimensions": 0}),
    (V1, {"input": []}),
    (V1, {"input": ["a", ""]}),
    (V1, {"input": [1, 2, 3]}),
    (V1, {"input": ["a", {"txt": "b"}]}),
    (V1, {"inputs": TEXTS}),
    (V1, {}),
    (V1, {"input": TEXTS, "embedding_type": ["float", "float"]}),
    (V1, {"input": TEXTS, "embedding_type": "int8", "normalized": False}),
    (V1, {"input": TEXTS, "late_chunking": True, "truncate": True}),
    (V1, {"input": TEXTS, "task": "retrieval.query", "prompt_name": "document"}),
    (V1, {"input": TEXTS, "prompt_name": "qury"}),
    (V1, {"input": TEXTS, "truncate": "yes"}),
    (TEI, {"inputs": TEXTS, "prompt_name": "query", "dimensions": 8}),
    (TEI, {"inputs": TEXTS[0], "normalize": False, "task": "clustering"}),
    (TEI, {"inputs": ["the ship " * 80]}),
    (TEI, {"inputs": TEXTS, "task": "nothing"}),
    ("/search", {"query": "the ship in the harbour"}),
    (
        "/search",
        {
            "query": ["a star", "a trial"],
            "top_k": 3,
            "filter": {"year": {">=": 1995}},
            "oversample": 4,
        },
    ),
    ("/search", {"query": "a star", "filter": ["topic=sky"], "hybrid": True, "refine": True}),
    ("/search", {"query": "a star", "top_k": 0}),
    ("/search", {"query": "a star", "filter": {"yeer": 1995}}),
    ("/search", {"query": "a star", "filter": "year almost 3"}),
    ("/search", {"question": "a star"}),
)
GETS = (
    "/health",
    "/ready",
    "/v1/models",
    "/v1/models/bert",
    "/v1/models/other",
    "/v1/index",
    "/page/about.json",
    "/page/ranges.json?task=retrieval&dim=16",
)
GETS += (
    "/page/ranges.json?dim=x",
    "/page/nothing.js",
    "/nowhere",
    "/",
    "/docs",
    "/metrics",
    "/openapi.json",
    V1,
)


def record(workshop: Workshop) -> dict[str, Any]:
    """Method, path and body to status, headers and answer."""
    import httpx

    model, index = workshop.models["bert"], workshop.path("served-index")
    workshop.run(
        "index", model, workshop.corpus, "--out", index, "--bm25", "--task", "retrieval", "--quiet"
    )
    found: dict[str, Any] = {}
    encoder = entry.Encoder.load(model, threads=1)
    with (
        entry.serving(encoder, entry.open_index(index), entry.ServerSettings(request_texts=6)) as (
            url,
            _,
        ),
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        for path, body in POSTS:
            found[f"POST {path} {json.dumps(body)[:120]}"] = _answer(
                workshop, client.post(path, json=body)
            )
        found["POST not JSON"] = _answer(
            workshop,
            client.post(V1, content=b'{"input": ', headers={"Content-Type": "application/json"}),
        )
        found["POST another type"] = _answer(
            workshop, client.post(V1, content=b"a=b", headers={"Content-Type": "text/plain"})
        )
        found["POST too many texts"] = _answer(workshop, client.post(V1, json={"input": ["a"] * 7}))
        for path in GETS:
            found[f"GET {path}"] = _answer(workshop, client.get(path))
    with (
        entry.serving(
            entry.Encoder.load(model, threads=1), None, entry.ServerSettings(api_key=KEY)
        ) as (url, _),
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        for name, headers in {
            "no": {},
            "a wrong": {"Authorization": "Bearer nothing"},
            "the": {"Authorization": f"Bearer {KEY}"},
        }.items():
            found[f"POST with {name} key"] = _answer(
                workshop, client.post(V1, json={"input": "a"}, headers=headers)
            )
        found["POST /search without an index"] = _answer(
            workshop,
            client.post("/search", json={"query": "a"}, headers={"Authorization": f"Bearer {KEY}"}),
        )
    return found


def _answer(workshop: Workshop, answer: Any) -> dict[str, Any]:
    kind = answer.headers.get("content-type", "")
    headers = {
        name: value
        for name, value in answer.headers.items()
        if name in ("content-type", "www-authenticate", "retry-after", "allow")
    }
    if "json" not in kind:
        lines = answer.text.splitlines()
        # Of a page its title, of the metrics their names.
        body: Any = [
            line for line in lines if "<title>" in line or line.startswith("# TYPE taskdistill")
        ]
    else:
        body = _summarized(workshop.mask.value(answer.json()))
    return {"status": answer.status_code, "headers": headers, "body": body}


def _summarized(value: Any) -> Any:
    """Vectors as their summaries, texts in base64 as their length."""
    if isinstance(value, dict):
        return {key: _summarized(each) for key, each in value.items()}
    if (
        isinstance(value, list)
        and len(value) >= 4
        and all(isinstance(each, int | float) for each in value)
    ):
        whole = all(isinstance(each, int) for each in value)
        return summarize(np.array(value, np.int64 if whole else np.float64))
    if isinstance(value, list):
        return [_summarized(each) for each in value]
    if (
        isinstance(value, str)
        and len(value) > 80
        and value.endswith(("=", "A", "Q", "g", "w"))
        and " " not in value
    ):
        import base64

        return summarize(np.frombuffer(base64.b64decode(value), "<f4"))
    return value
