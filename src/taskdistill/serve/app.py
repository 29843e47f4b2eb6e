"""The application: every route around one model and, if given, one index."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput
from taskdistill.registry import Registry
from taskdistill.serve.bodies import BodyReader
from taskdistill.serve.errors import ApiError, answer, as_api_error
from taskdistill.serve.middleware import RequestGuard
from taskdistill.serve.model_holder import ModelHolder
from taskdistill.serve.settings import ServerSettings
from taskdistill.serve.site import AddRoutes, SearchIndex, Site

ROUTES: Registry[AddRoutes] = Registry("taskdistill.serve.routes", "add_routes", noun="routes")
"""Each module of routes/ adds its own."""


def make_app(
    encoder: Encoder,
    index: SearchIndex | None = None,
    settings: ServerSettings | None = None,
    load: Callable[[], Encoder] | None = None,
) -> FastAPI:
    """Make the application that serves one model.

    `index`: an open index of the model's space, or of its teacher's, for POST /search. `settings`:
    limits; None for the defaults. `load`: reads the model again when a reload is asked for; None if
    it cannot be. Returns an ASGI application; `app.state.holder` holds the model behind it.
    """
    settings = settings or ServerSettings()
    holder = ModelHolder(
        encoder,
        settings,
        space_ids=(
            () if index is None else (index.settings.space_id, *index.settings.former_space_ids)
        ),
        load=load,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await holder.start()
        yield
        holder.stop()

    app = FastAPI(
        title=f"taskdistill: {encoder.name}",
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.holder = holder
    site = Site(holder, BodyReader(settings), index)
    for add_routes in ROUTES.values():
        add_routes(app, site)
    paths = [route.path for route in app.routes if isinstance(route, Route)]
    app.add_middleware(RequestGuard, settings=settings, metrics=holder.metrics, routes=paths)
    app.add_exception_handler(ApiError, _shown)
    app.add_exception_handler(BadInput, _shown)
    app.add_exception_handler(HTTPException, _no_route)
    return app


async def _shown(request: Request, error: Exception) -> Response:
    return answer(as_api_error(error), request.url.path)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = {404: "there is nothing at this path", 405: "this path takes another method"}.get(
        error.status_code, str(error.detail)
    )
    response = answer(
        ApiError(error.status_code, f"{status}; GET /docs lists the routes"), request.url.path
    )
    response.headers.update(error.headers or {})
    return response
