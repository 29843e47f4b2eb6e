"""POST /v1/embeddings as OpenAI and Jina have it, POST /embed as text-embeddings-inference has it,
GET /v1/models.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import orjson
from fastapi import FastAPI, Request
from starlette.responses import Response
from starlette.types import Receive

from taskdistill.serve.errors import TEI_PATH, ApiError
from taskdistill.serve.schemas import EmbeddingRequest, TeiRequest, parse, parse_task, texts_of
from taskdistill.serve.service import EmbeddingResult, EmbeddingService, overloaded
from taskdistill.serve.site import Site
from taskdistill.serve.vectors import BITS, binary_offset, cut, int8_ranges, sent_as

_INLINE = 65_536
"""Numbers written as JSON on the event loop; more are written in a thread."""

Result = TypeVar("Result")


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Do something, and stop when the client leaves.

    Raises ApiError 499, which nobody reads, if the client has left.
    """

    async def left() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.result():
            working.cancel()
            await asyncio.wait({working})
            raise ApiError(499, "the client has left", close=True)
        return working.result()
    finally:
        leaving.cancel()
        working.cancel()


def add_routes(app: FastAPI, site: Site) -> None:
    """Add the routes that embed, and those that say what the model is."""
    holder, settings = site.holder, site.holder.settings

    @app.post(
        "/v1/embeddings",
        openapi_extra=_takes(EmbeddingRequest),
        response_class=Response,
        tags=["embed"],
    )
    async def embeddings(request: Request) -> Response:
        """Embed texts; as OpenAI's route of this name, with Jina's further fields."""
        if holder.now.batcher.full:
            raise overloaded(1)
        fields = parse(EmbeddingRequest, await site.bodies.json(request))
        service, encoder = holder.now, holder.now.encoder
        texts = texts_of(fields.input, "input", settings.request_texts)
        task, prompt_name = parse_task(fields.task, fields.prompt_name)
        service.check(fields.model, task, fields.dimensions)
        if fields.late_chunking and fields.truncate:
            raise ApiError(
                400,
                "late_chunking reads the texts as one and cuts none of them; leave truncate out",
                param="truncate",
            )
        dim, kinds = fields.dimensions or encoder.embedding_dim, fields.kinds()
        if "int8" in kinds and not fields.normalized:
            raise ApiError(
                400,
                "int8 codes are of vectors of length one; leave normalized out",
                param="normalized",
            )
        ranges = int8_ranges(encoder, task, dim) if "int8" in kinds else None
        offset = binary_offset(encoder, task, dim, prompt_name) if set(BITS) & set(kinds) else None
        if offset is not None and not fields.normalized:
            raise ApiError(
                400,
                "binary codes of this model are of vectors of length one; leave normalized out",
                param="normalized",
            )
        prompt = encoder.prompt_text(prompt_name)
        work = service.embed(
            texts,
            task=task,
            prompt=prompt,
            truncate=fields.truncate,
            field="input",
            late_chunking=fields.late_chunking,
        )
        result = await unless_gone(request.receive, work)

        def body() -> bytes:
            vectors = cut(result.vectors, dim, normalized=fields.normalized)
            forms = {kind: sent_as(vectors, kind, ranges, offset) for kind in kinds}
            return _json(
                _reply(encoder.name, forms, result, several=isinstance(fields.embedding_type, list))
            )

        return await _respond(body, result.vectors.size)

    @app.post(
        TEI_PATH,
        description=(
            "Embed texts; as text-embeddings-inference's route of this name. "
            "The reply is a bare list of vectors."
        ),
        openapi_extra=_takes(TeiRequest),
        response_class=Response,
        tags=["embed"],
    )
    async def embed(request: Request) -> Response:
        if holder.now.batcher.full:
            raise overloaded(1)
        fields = parse(TeiRequest, await site.bodies.json(request))
        service, encoder = holder.now, holder.now.encoder
        texts = texts_of(fields.inputs, "inputs", settings.request_texts)
        task, prompt_name = parse_task(fields.task, fields.prompt_name)
        service.check(None, task, fields.dimensions)
        prompt = encoder.prompt_text(prompt_name)
        work = service.embed(
            texts, task=task, prompt=prompt, truncate=fields.truncate, field="inputs"
        )
        result = await unless_gone(request.receive, work)
        dim = fields.dimensions or encoder.embedding_dim
        return await _respond(
            lambda: _json(cut(result.vectors, dim, normalized=fields.normalize)),
            result.vectors.size,
        )

    @app.get("/v1/models", tags=["about"])
    async def models() -> dict[str, Any]:
        """List the model served, with its tasks, prompts, sizes and limits."""
        return {"object": "list", "data": [_model(holder.now)]}

    @app.get("/v1/models/{name:path}", tags=["about"])
    async def model(name: str) -> dict[str, Any]:
        """Describe the model served."""
        holder.now.check(name, None, None)
        return _model(holder.now)


def _takes(model: type[EmbeddingRequest] | type[TeiRequest]) -> dict[str, Any]:
    """Describe a JSON body for /docs; the body is read by `Bodies`, not by FastAPI."""
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": model.model_json_schema()}},
        }
    }


def _model(service: EmbeddingService) -> dict[str, Any]:
    encoder = service.encoder
    return {
        "id": encoder.name,
        "object": "model",
        "created": 0,
        "owned_by": "taskdistill",
        "tasks": list(encoder.tasks),
        "prompts": dict(encoder.prompts),
        "embedding_dim": encoder.embedding_dim,
        "matryoshka_dims": list(encoder.matryoshka_dims),
        "int8_dims": {
            task: [int(dim) for dim in dims]
            for task, dims in encoder.model.settings.int8_ranges.items()
        },
        "max_length": encoder.max_length,
        "space_id": encoder.space_id,
        "model_hash": encoder.model_hash,
        "request_texts": service.settings.request_texts,
    }


def _reply(
    name: str, forms: dict[Any, Any], result: EmbeddingResult, *, several: bool
) -> dict[str, Any]:
    first = next(iter(forms.values()))
    rows = (
        [{"embeddings": {kind: rows[i] for kind, rows in forms.items()}} for i in range(len(first))]
        if several
        else [{"embedding": row} for row in first]
    )
    reply = {
        "object": "list",
        "data": [{"object": "embedding", "index": index, **row} for index, row in enumerate(rows)],
        "model": name,
        "usage": {"prompt_tokens": result.tokens, "total_tokens": result.tokens},
    }
    return reply | ({"truncated": result.cut} if result.cut else {})


def _json(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


async def _respond(body: Any, numbers: int) -> Response:
    data = await asyncio.to_thread(body) if numbers > _INLINE else body()
    return Response(data, media_type="application/json")
