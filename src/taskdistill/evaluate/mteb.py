"""Any model under mteb: its encoder protocol, section 8.1's adapters and prompts, a revision."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput
from taskdistill.evaluate.compression import decoded
from taskdistill.evaluate.datasets import task_types
from taskdistill.evaluate.encode import check_vectors, encode_texts
from taskdistill.evaluate.protocol import Embedder, int8_ranges_of
from taskdistill.io.sealed import hash_json
from taskdistill.quantization import Int8Ranges, bytes_per_vector, normalize, truncate
from taskdistill.tasks import Role, Task
from taskdistill.types import Precision

OTHER = Task.RETRIEVAL
"""The adapter of a type that `adapters_by_type` does not name."""


@cache
def adapters_by_type() -> dict[str, Task]:
    """Return mteb's type of a task to the adapter that encodes it (paper, section 8.1)."""
    # The two types with instructions stand in every revision that mteb has cached.
    instructed = dict.fromkeys(("InstructionReranking", "InstructionRetrieval"), Task.RETRIEVAL)
    return {task.mteb_type: task.adapter for task in task_types()} | instructed


class MtebEncoder:
    """A model as mteb sees one, at one dimension and precision.

    It has mteb's encoder protocol without deriving from mteb's classes: pass it to
    `mteb.evaluate`. Queries carry the query prompt where mteb says that they are queries; every
    other text is a document.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        dim: int | None = None,
        precision: str = Precision.FLOAT32.value,
    ) -> None:
        """Wrap a model.

        `dim`: only the first coordinates are used, scaled to unit length; None uses all.
        `precision`: vectors are stored at this precision and read back before they are compared.
        int8 takes the ranges that the model stores, so that queries and documents share theirs.
        Raises BadInput if the precision is unknown, or int8 is wanted of a model that has no
        ranges.
        """
        bytes_per_vector(dim or 8, precision)
        self.embedder, self.dim, self.precision = embedder, dim, precision
        self._ranges = (
            {task: int8_ranges_of(embedder, task) for task in Task}
            if precision == Precision.INT8
            else {}
        )
        if precision == Precision.INT8 and not any(self._ranges.values()):
            raise BadInput(
                f"model {embedder.name!r} stores no int8 ranges, and mteb shows no calibration"
                " texts; "
                "use float32, float16 or binary, or measure int8 on local sets"
            )

    @property
    def mteb_model_meta(self) -> Any:
        """What mteb knows of the model; its cache goes by `name` and `revision`."""
        from mteb.models import ModelMeta
        from mteb.models.model_meta import ScoringFunction

        fields = {
            "name": f"taskdistill/{_slug(self.embedder.name)}",
            "revision": self.revision(),
            "embed_dim": self.dim,
        }
        return ModelMeta.create_empty(
            overwrites=fields
            | {
                "similarity_fn_name": ScoringFunction.COSINE,
                "use_instructions": True,
            }
        )

    def revision(self) -> str:
        """Hash all that decides the vectors, to 40 hexadecimal digits."""
        ranges = {
            task.value: {str(dim): each.to_json() for dim, each in result.items()}
            for task, result in self._ranges.items()
        }
        parts = [
            self.embedder.fingerprint(),
            adapters_by_type() | {"": OTHER},
            self.dim,
            self.precision,
            ranges,
        ]
        return hash_json(parts)[:40]

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> NDArray[np.float32]:
        """Encode what mteb's loader holds: batches, each with its texts under `text`.

        Returns float32 (n, dim), in the order of the texts. `task_metadata`: mteb's description of
        the task; its type chooses the adapter. `prompt_type`: mteb's word for the side: query,
        document, or None where a task has no sides. `**kwargs`: what mteb says beside, which
        changes no vector. Raises BadInput if an input holds no text, or the model returns what
        cannot be scored.
        """
        texts: list[str] = []
        for batch in inputs:
            if "text" not in batch:
                raise BadInput(
                    f"task {task_metadata.name} has inputs other than text ({', '.join(batch)});"
                    " only texts can be embedded"
                )
            texts += batch["text"]
        task = adapters_by_type().get(str(task_metadata.type), OTHER)
        role = (
            Role.QUERY
            if prompt_type is not None
            and str(getattr(prompt_type, "value", prompt_type)) == "query"
            else Role.DOCUMENT
        )
        return self._stored(encode_texts(self.embedder, texts, task, role), task)

    def similarity(self, first: Any, second: Any) -> Any:
        """Compare every vector with every other.

        `first`: (n, dim) vectors, or one of (dim,). `second`: (m, dim) vectors, or one of (dim,).
        Returns (n, m) cosines, a tensor as mteb wants it.
        """
        import torch

        return torch.from_numpy(_rows(first) @ _rows(second).T)

    def similarity_pairwise(self, first: Any, second: Any) -> Any:
        """Compare each vector with its counterpart.

        Returns (n,) cosines, a tensor as mteb wants it.
        """
        import torch

        return torch.from_numpy(np.einsum("ij,ij->i", _rows(first), _rows(second)))

    def _stored(self, vectors: NDArray[np.float32], task: Task) -> NDArray[np.float32]:
        width = check_vectors(self.embedder.name, [""] * len(vectors), vectors)
        dim = self.dim or width
        if dim > width:
            raise BadInput(
                f"dimension {dim} is more than the {width} of model {self.embedder.name!r}; give"
                " a smaller one"
            )
        cut = truncate(vectors, dim) if dim < width else vectors
        if self.precision == Precision.FLOAT32:
            return cut
        ranges: Int8Ranges | None = self._ranges.get(task, {}).get(dim)
        if self.precision == Precision.INT8 and ranges is None:
            known = ", ".join(map(str, sorted(self._ranges[task]))) or "none"
            raise BadInput(
                f"model {self.embedder.name!r} stores no int8 ranges for {task} at {dim}"
                f" dimensions (stored: {known})"
            )
        return decoded(cut, self.precision, ranges)


def _rows(vectors: Any) -> NDArray[np.float32]:
    return normalize(np.atleast_2d(np.asarray(vectors, dtype=np.float32)))


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"
