"""GET /health, /ready and /metrics."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.responses import Response

from taskdistill.serve.site import Site


def add_routes(app: FastAPI, site: Site) -> None:
    """Add the routes by which others watch the server."""
    holder = site.holder

    @app.get("/health", tags=["about"])
    async def health() -> JSONResponse:
        """Say whether the model works; it is run with a short text unless it has just worked."""
        well = await holder.healthy()
        state = {
            "status": "ok" if well else "stopping" if holder.draining else "unhealthy",
            "last_reload": holder.reloaded,
        }
        return JSONResponse(state, 200 if well else 503)

    @app.get("/ready", tags=["about"])
    async def ready() -> JSONResponse:
        """Say whether a request would be accepted now."""
        batcher = holder.now.batcher
        fit = not holder.draining and not batcher.unhealthy and not batcher.full
        return JSONResponse({"status": "ready" if fit else "busy"}, 200 if fit else 503)

    @app.get("/metrics", tags=["about"])
    async def metrics() -> Response:
        """Give the counters in Prometheus' text format."""
        return Response(
            holder.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )
