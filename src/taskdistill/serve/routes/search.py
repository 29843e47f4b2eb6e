"""POST /search over an open index: queries through the queue like all other texts, ranking in
threads of its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request
from pydantic import Field
from starlette.responses import JSONResponse

from taskdistill.encode.projected import ProjectedEncoder, in_space
from taskdistill.errors import BadInput, WorkFailed
from taskdistill.quantization import normalize
from taskdistill.search.filters import Condition, parse_filter
from taskdistill.search.storage.snapshot import Hit
from taskdistill.serve.errors import ApiError
from taskdistill.serve.routes.embeddings import unless_gone
from taskdistill.serve.schemas import RequestBody, parse, texts_of
from taskdistill.serve.service import overloaded
from taskdistill.serve.site import SearchIndex, Site

MOST_HITS = 1000
"""Largest top_k."""

REFRESH_SECONDS = 5.0
"""How often a search looks whether another process has written to the index."""

_log = logging.getLogger(__name__)


class SearchRequest(RequestBody):
    """POST /search."""

    query: Any = Field(
        description="A query, or a list of queries", json_schema_extra={"type": ["string", "array"]}
    )
    top_k: int = Field(10, ge=1, le=MOST_HITS, description="Passages a query")
    filter: Any = Field(
        None,
        description=(
            'Conditions on metadata: {"lang": "en", "year": {">=": 2020}} or ["lang=en",'
            ' "year>=2020"]'
        ),
        json_schema_extra={"type": ["object", "array", "string", "null"]},
    )
    oversample: int | None = Field(
        None, ge=1, le=1000, description="Candidates of the first pass for each passage asked for"
    )
    hybrid: bool | None = Field(
        None,
        description="Whether the ranking is joined with BM25's; as the index is tuned if not given",
    )
    refine: bool | None = Field(
        None,
        description=(
            "Whether queries move towards their best passages; as the index is tuned if not given"
        ),
    )


def add_routes(app: FastAPI, site: Site) -> None:
    """Add /search and /v1/index; without an index they answer 404."""
    holder, index = site.holder, site.index
    threads = ThreadPoolExecutor(2, thread_name_prefix="search")
    running = 0
    refreshed = time.monotonic()

    def refreshed_index(index: SearchIndex) -> SearchIndex:
        nonlocal refreshed
        if time.monotonic() - refreshed > REFRESH_SECONDS:
            refreshed = time.monotonic()
            try:
                index.refresh()
            except (BadInput, WorkFailed) as error:
                _log.error("the index cannot be read again, the old state keeps serving: %s", error)
        return index

    async def find(
        index: SearchIndex, fields: SearchRequest, queries: list[str]
    ) -> tuple[list[list[Hit]], float]:
        service = holder.now
        asker = in_space(service.encoder, index.settings.space_id, *index.settings.former_space_ids)
        projected = isinstance(asker, ProjectedEncoder)
        if projected and index.settings.task is not None:
            raise ApiError(
                400,
                f"the index holds vectors for task {index.settings.task!r}, which a projection does"
                " not reach",
            )
        prompt = service.encoder.prompt_text(index.settings.query_prompt)
        task = None if projected else index.settings.task
        result = await service.embed(
            queries, task=task, prompt=prompt, truncate=True, field="query"
        )
        vectors = (
            asker.carry(normalize(result.vectors))
            if isinstance(asker, ProjectedEncoder)
            else result.vectors
        )

        def work() -> tuple[list[list[Hit]], float]:
            started = time.monotonic()
            hits = refreshed_index(index).search(
                queries,
                fields.top_k,
                encoder=asker,
                vectors=vectors,
                filter=fields.filter,
                oversample=fields.oversample,
                hybrid=fields.hybrid,
                refinement=fields.refine,
            )
            return hits, (time.monotonic() - started) * 1000

        return await asyncio.get_running_loop().run_in_executor(threads, work)

    takes = {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": SearchRequest.model_json_schema()}},
        }
    }

    @app.post(
        "/search",
        description=(
            "Find passages in the index: for each query a list of hits, best first, each with "
            "the place it came from."
        ),
        openapi_extra=takes,
        response_class=JSONResponse,
        tags=["search"],
    )
    async def search(request: Request) -> JSONResponse:
        nonlocal running
        open_index = _required(index)

        def check_room() -> None:
            if running >= holder.settings.searches or holder.now.batcher.full:
                raise overloaded(1)

        check_room()
        fields = parse(SearchRequest, await site.bodies.json(request))
        queries = texts_of(fields.query, "query", holder.settings.searches)
        conditions_of(fields.filter)
        check_room()  # a body may take its time to arrive, and keeps nobody out meanwhile
        running += 1
        try:
            started = time.monotonic()
            hits, ranking_ms = await unless_gone(request.receive, find(open_index, fields, queries))
        finally:
            running -= 1
        total_ms = (time.monotonic() - started) * 1000
        results = [[asdict(hit) for hit in each] for each in hits]
        return JSONResponse(
            {
                "results": results,
                "milliseconds": {"total": round(total_ms, 2), "ranking": round(ranking_ms, 2)},
            }
        )

    @app.get("/v1/index", tags=["about"])
    async def describe() -> dict[str, Any]:
        """Describe the index: model, task, sizes, counts."""
        description = _required(index).describe()
        return {key: value for key, value in description.items() if key != "path"}


def conditions_of(value: object) -> tuple[Condition, ...]:
    """Read the filter of a request, before anything is computed for it.

    Raises ApiError 400 if it is no filter.
    """
    if not isinstance(value, dict | list | str | type(None)):
        raise ApiError(
            400,
            f"filter is a JSON {type(value).__name__}; give an object, a list of texts or a text",
            param="filter",
        )
    try:
        return parse_filter(value)
    except BadInput as error:
        raise ApiError(400, str(error), param="filter") from None


def _required(index: SearchIndex | None) -> SearchIndex:
    if index is None:
        raise ApiError(
            404, "this server has no index; start it with --index INDEX", code="no_index"
        )
    return index
