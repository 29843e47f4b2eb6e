"""What every group of routes is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray

from taskdistill.search.filters import Filter
from taskdistill.search.settings import IndexSettings, SearchEncoder
from taskdistill.search.storage.snapshot import Hit
from taskdistill.serve.bodies import BodyReader
from taskdistill.serve.model_holder import ModelHolder


class SearchIndex(Protocol):
    """An open index of `taskdistill.search`."""

    @property
    def settings(self) -> IndexSettings:
        """The space, task and prompts of the index."""
        ...

    @property
    def documents(self) -> int:
        """Documents that are not deleted."""
        ...

    def refresh(self) -> None:
        """Go on to what is on the disk now."""
        ...

    def describe(self) -> dict[str, object]:
        """Say what the index is."""
        ...

    def search(
        self,
        queries: Sequence[str],
        top_k: int,
        *,
        encoder: SearchEncoder | None,
        vectors: NDArray[np.floating] | None,
        oversample: int | None,
        filter: Filter | None,
        refinement: bool | None,
        hybrid: bool | None,
    ) -> list[list[Hit]]:
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
