"""How an index was made, what it needs of an encoder, and the refusal of what does not match."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from taskdistill.errors import BadInput, did_you_mean
from taskdistill.quantization import normalize
from taskdistill.search.passages import PassageSettings
from taskdistill.search.prf import Floats, PrfSettings
from taskdistill.tasks import TASKS, Role, Task
from taskdistill.types import Precision

RESCORE_TYPES = {
    Precision.INT8.value: "i1",
    Precision.FLOAT16.value: "<f2",
    Precision.FLOAT32.value: "<f4",
}
"""Precision of the vectors kept for rescoring to their numpy type, smallest first."""

RESCORES = ("none", *RESCORE_TYPES)
"""What may be kept beside the binary codes, smallest first."""


class SearchEncoder(Protocol):
    """Anything that turns texts into vectors and says which space they are in."""

    @property
    def name(self) -> str:
        """What people call the model."""
        ...

    @property
    def embedding_dim(self) -> int:
        """Dimensions of an untruncated vector."""
        ...

    @property
    def space_id(self) -> str:
        """Vectors with the same id may be compared."""
        ...

    @property
    def model_hash(self) -> str:
        """Hash of the weights and of whatever else changes vectors."""
        ...

    def encode(
        self,
        texts: Sequence[str],
        *,
        task: str | None = None,
        prompt_name: str = "document",
        truncate_dim: int | None = None,
        precision: str = "float32",
    ) -> NDArray[np.floating]:
        """Return one vector a text, truncated and then normalized."""
        ...


def same_space(
    one: str, former_of_one: Collection[str], two: str, former_of_two: Collection[str]
) -> bool:
    """Say whether one side knows the other by the id in force.

    Ids of earlier versions on both sides prove nothing: they did not count prompts.
    """
    return one == two or one in former_of_two or two in former_of_one


def former_ids(encoder: SearchEncoder) -> tuple[str, ...]:
    """Return the ids that earlier versions gave to an encoder's space; few have such ids."""
    return tuple(getattr(encoder, "former_space_ids", ()))


def unit_vectors(vectors: NDArray[np.floating], dim: int, role: str) -> Floats:
    """Check vectors and scale them to length one.

    `role`: what they are, to name them in an error: `query` or `document`. Returns `(n, dim)` unit
    rows. Raises BadInput if the shape is another, or a row is zero or holds NaN or infinity.
    """
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        shape = "x".join(map(str, vectors.shape))
        raise BadInput(
            f"{role} vectors have the shape {shape}, but the index has dimension {dim}; give "
            f"(n, {dim})"
        )
    if vectors.dtype.kind != "f":
        raise BadInput(
            f"{role} vectors are {vectors.dtype}; give floating-point vectors, the index quantises "
            "them itself"
        )
    unit = normalize(vectors)
    zero = np.flatnonzero(~unit.any(axis=1))
    if len(zero):
        raise BadInput(
            f"{len(zero)} of {len(unit)} {role} vectors are zero, the first at row {zero[0]}; "
            "leave out texts without a vector"
        )
    return unit


@dataclass(frozen=True, kw_only=True)
class IndexSettings:
    """The space, task, prompts and storage of an index; fixed when it is made."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    model: str
    """Name of the model that embeds the documents."""
    model_hash: str
    """Documents are added with the model of this hash only."""
    space_id: str
    """Queries may come from any model of this space."""
    task: str | None
    """None for base embeddings."""
    document_prompt: str
    query_prompt: str
    dim: int
    """Dimensions after truncation."""
    rescore: str
    """Precision of the vectors kept beside the binary codes: int8, float16, float32 or none."""
    passages: PassageSettings | None
    """None for whole documents."""
    former_space_ids: tuple[str, ...] = ()
    """Ids that earlier versions gave to the same space; indexes of the first format lack them."""

    def __post_init__(self) -> None:
        if self.rescore not in RESCORES:
            choices = (*RESCORE_TYPES, "none")
            raise BadInput(
                f"unknown rescore precision {self.rescore!r}{did_you_mean(self.rescore, choices)}"
            )
        if self.dim < 1:
            raise BadInput(f"an index of dimension {self.dim} cannot be; give at least 1")

    @property
    def code_bytes(self) -> int:
        """Bytes of a binary code."""
        return (self.dim + 7) // 8

    def to_json(self) -> dict[str, object]:
        """Return plain data, as the manifest holds it."""
        return asdict(self)

    def check_same(self, other: IndexSettings, extends: Collection[str] = ()) -> None:
        """Refuse to continue an index with other settings.

        `extends`: hashes of earlier states of the model that gave the same vectors.
        """
        self.check_space(other.space_id, other.former_space_ids)
        ignored = {"model", "space_id", "former_space_ids"}
        if self.model_hash in extends:
            ignored.add("model_hash")
        for each in fields(self):
            if each.name not in ignored:
                self._check(each.name, getattr(self, each.name), getattr(other, each.name))

    def check_same_vectors(self, now: IndexSettings) -> None:
        """Refuse to go on where queries would be compared with vectors of another kind.

        `now`: the settings in the same folder now; other dimensions and precisions are followed.
        """
        for name in ("space_id", "task", "document_prompt", "query_prompt"):
            before, after = getattr(self, name), getattr(now, name)
            if before != after:
                raise BadInput(
                    f"the index was opened with {name} {before!r} and has {after!r} now: it was "
                    "built anew; open it again"
                )

    def check_documents(self, encoder: SearchEncoder) -> None:
        """Refuse an encoder that would embed documents into another space, or is another model."""
        self.check_space(encoder.space_id, former_ids(encoder))
        if self.model_hash not in getattr(encoder, "extends", ()):
            self._check("model_hash", self.model_hash, encoder.model_hash)

    def check_space(self, space_id: str, former: Collection[str] = ()) -> None:
        """Refuse vectors of another space.

        `former`: ids that earlier versions gave to that space.
        """
        if not self.is_of(space_id, former):
            self._check("space_id", self.space_id, space_id)

    def is_of(self, space_id: str, former: Collection[str] = ()) -> bool:
        """Say whether the index is of a space; see `same_space`."""
        return same_space(space_id, former, self.space_id, self.former_space_ids)

    def _check(self, name: str, expected: object, actual: object) -> None:
        if expected != actual:
            raise BadInput(
                f"the index has {name} {expected!r}, but what is given has {actual!r}; use what "
                f"the index was made with (model {self.model}) or build another index"
            )


@dataclass(frozen=True, kw_only=True)
class SearchDefaults:
    """How an index is searched where a search does not say: what tuning wrote, or nothing."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    oversample: int | None = None
    """Candidates rescored for each passage; None for the usual number."""
    hybrid: bool = False
    """Whether texts are also looked up by BM25."""
    refinement: PrfSettings | None = None
    """How queries are moved, or None."""

    def to_json(self) -> dict[str, object]:
        """Return plain data, as the manifest holds it."""
        return asdict(self)

    def check(self, rescore: str) -> None:
        """Refuse defaults that an index with vectors of this precision cannot follow."""
        if rescore == "none" and (self.oversample is not None or self.refinement is not None):
            raise BadInput(
                "oversampling and refinement have no effect on an index of binary codes only "
                "(rescore none); leave them out"
            )
        if self.oversample is not None and self.oversample < 1:
            raise BadInput(f"oversample is {self.oversample}; give a whole number of at least 1")


@dataclass(frozen=True)
class StorageOptions:
    """How an index cuts documents and stores their vectors."""

    truncate_dim: int | None = None
    """Dimensions to keep; None keeps all."""
    rescore: str = Precision.INT8.value
    """Precision of the vectors kept beside the binary codes: int8, float16, float32, or none for
    the codes alone.
    """
    passages: PassageSettings | None = None
    """How long documents are cut; None embeds each as a whole, up to the model's token limit."""


def settings_for(
    encoder: SearchEncoder, task: str | None, storage: StorageOptions
) -> IndexSettings:
    """Return the settings of an index that an encoder fills.

    Documents of every task take the document prompt, queries the task's own. `task`: None for base
    embeddings.
    """
    # An adapter of another name says of which task it is.
    kind = None if task is None else getattr(encoder, "adapter_tasks", {}).get(task, task)
    if kind is not None and kind not in set(Task):
        raise BadInput(f"unknown task {task!r}{did_you_mean(str(task), Task)}")
    dim = encoder.embedding_dim if storage.truncate_dim is None else storage.truncate_dim
    if not 1 <= dim <= encoder.embedding_dim:
        raise BadInput(
            f"truncate_dim {dim} is outside 1..{encoder.embedding_dim}, the dimensions of "
            f"{encoder.name}; give one within"
        )
    return IndexSettings(
        model=encoder.name,
        model_hash=encoder.model_hash,
        space_id=encoder.space_id,
        task=None if task is None else str(task),
        document_prompt=Role.DOCUMENT.value,
        query_prompt=(Role.QUERY if kind is None else TASKS[Task(kind)].query_role).value,
        dim=dim,
        rescore=str(storage.rescore),
        passages=storage.passages,
        former_space_ids=former_ids(encoder),
    )
