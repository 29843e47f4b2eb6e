"""The page to try the model, and the description of the routes: files of this package, no outside
requests.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from starlette.responses import Response

from taskdistill.serve.errors import ApiError
from taskdistill.serve.site import Site
from taskdistill.serve.vectors import int8_ranges

TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of the page: nothing but this server."""


def add_routes(app: FastAPI, site: Site) -> None:
    """Add the page and its files."""
    holder = site.holder
    folder = files("taskdistill.serve") / "page"
    content = {
        entry.name: entry.read_bytes()
        for entry in folder.iterdir()
        if entry.name.rpartition(".")[2] in TYPES
    }

    def send(name: str) -> Response:
        if name not in content:
            raise ApiError(404, "the page has no such file")
        headers = {
            "Content-Security-Policy": POLICY,
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-cache",
        }
        return Response(content[name], media_type=TYPES[name.rpartition(".")[2]], headers=headers)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return send("index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return send("docs.html")

    @app.get("/page/about.json", include_in_schema=False)
    async def about() -> dict[str, Any]:
        return {"index": site.index is not None, "key": holder.settings.api_key is not None}

    @app.get("/page/ranges.json", include_in_schema=False)
    async def ranges(task: str = "base", dim: str = "") -> dict[str, Any]:
        if not (dim.isascii() and dim.isdecimal() and len(dim) < 10):
            raise ApiError(
                400,
                "the parameter dim is no number of dimensions; send one such as dim=64",
                param="dim",
            )
        return int8_ranges(holder.now.encoder, None if task == "base" else task, int(dim)).to_json()

    @app.get("/page/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        return send(name)
