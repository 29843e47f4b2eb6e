"""What every group of routes is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import FastAPI

from taskdistill.serve.bodies import BodyReader
from taskdistill.serve.model_holder import ModelHolder


class SearchIndex(Protocol):
    """An open index of `taskdistill.search`."""

    settings: Any
    documents: int

    def refresh(self) -> None:
        """Go on to what is on the disk now."""
        ...

    def describe(self) -> dict[str, Any]:
        """Say what the index is."""
        ...

    def search(
        self,
        queries: Any,
        top_k: int,
        *,
        encoder: Any = None,
        vectors: Any = None,
        **options: Any,
    ) -> list[list[Any]]:
        """Return hits for each query."""
        ...


@dataclass(frozen=True, slots=True)
class Site:
    """The model behind the routes, the reader of their bodies, and the index if there is one."""

    holder: ModelHolder
    bodies: BodyReader
    index: SearchIndex | None


AddRoutes = Callable[[FastAPI, Site], None]
"""What a module of `routes/` defines as `add_routes`."""
