"""The application: every route around one model and, if given, one index."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput
from taskdistill.serve.bodies import BodyReader
from taskdistill.serve.errors import ApiError, answer, as_api_error
from taskdistill.serve.middleware import RequestGuard
from taskdistill.serve.model_holder import ModelHolder
from taskdistill.serve.routes import embeddings, pages, search
from taskdistill.serve.settings import ServerSettings


def make_app(
    encoder: Encoder,
    index: search.SearchIndex | None = None,
    settings: ServerSettings | None = None,
    load: Callable[[], Encoder] | None = None,
) -> FastAPI:
    """Make the application that serves one model.

    Args:
        encoder: The model.
        index: An open index of the model's space, or of its teacher's, for POST /search.
        settings: Limits; None for the defaults.
        load: Reads the model again when a reload is asked for; None if it cannot be.

    Returns:
        An ASGI application; `app.state.served` holds the model behind it.
    """
    settings = settings or ServerSettings()
    served = ModelHolder(
        encoder,
        settings,
        space_ids=()
        if index is None
        else (index.settings.space_id, *index.settings.former_space_ids),
        load=load,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await served.start()
        yield
        served.stop()

    app = FastAPI(
        title=f"taskdistill: {encoder.name}",
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.served = served
    bodies = BodyReader(settings)
    embeddings.add_routes(app, served, bodies)
    search.add_routes(app, served, bodies, index)
    pages.add_routes(app, served, index is not None)
    _add_state_routes(app, served)
    app.add_middleware(RequestGuard, settings=settings, metrics=served.metrics)
    app.add_exception_handler(ApiError, _shown)
    app.add_exception_handler(BadInput, _shown)
    app.add_exception_handler(HTTPException, _no_route)
    return app


def _add_state_routes(app: FastAPI, served: ModelHolder) -> None:
    @app.get("/health", tags=["about"])
    async def health() -> JSONResponse:
        """Say whether the model works; it is run with a short text unless it has just worked."""
        well = await served.healthy()
        said = {
            "status": "ok" if well else "stopping" if served.draining else "unhealthy",
            "last_reload": served.reloaded,
        }
        return JSONResponse(said, 200 if well else 503)

    @app.get("/ready", tags=["about"])
    async def ready() -> JSONResponse:
        """Say whether a request would be accepted now."""
        queue = served.now.queue
        fit = not served.draining and not queue.sick and not queue.full
        return JSONResponse({"status": "ready" if fit else "busy"}, 200 if fit else 503)

    @app.get("/metrics", tags=["about"])
    async def metrics() -> Response:
        """Give the counters in Prometheus' text format."""
        return Response(
            served.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )


async def _shown(request: Request, error: Exception) -> Response:
    return answer(as_api_error(error), request.url.path)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = {404: "there is nothing at this path", 405: "this path takes another method"}.get(
        error.status_code, str(error.detail)
    )
    response = answer(
        ApiError(error.status_code, f"{said}; GET /docs lists the routes"), request.url.path
    )
    response.headers.update(error.headers or {})
    return response
