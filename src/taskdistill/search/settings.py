"""What an index remembers about how it was made, and the refusal of what does not match."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from taskdistill.errors import BadInput, did_you_mean
from taskdistill.search.passages import PassageSettings
from taskdistill.search.prf import PrfSettings
from taskdistill.search.protocol import SearchEncoder, former_ids, same_space
from taskdistill.tasks import QUERY_SIDE, Role, Task
from taskdistill.types import Precision

RESCORE_TYPES = {
    Precision.INT8.value: "i1",
    Precision.FLOAT16.value: "<f2",
    Precision.FLOAT32.value: "<f4",
}
"""Precision of the vectors kept for rescoring to their numpy type."""


@dataclass(frozen=True, kw_only=True)
class IndexSettings:
    """The space, task, prompts and storage of an index; fixed when it is made.

    Attributes:
        model: Name of the model that embeds the documents.
        model_hash: Its hash; documents are added with the same model only.
        space_id: The embedding space; queries may come from any model of this space.
        task: Task of the embeddings, or None for base embeddings.
        document_prompt: Name of the documents' prompt.
        query_prompt: Name of the queries' prompt.
        dim: Dimensions after truncation.
        rescore: Precision of the vectors kept beside the binary codes: int8, float16, float32 or none.
        passages: How documents are cut, or None for whole documents.
        former_space_ids: Ids that earlier versions gave to the same space.
    """

    model: str
    model_hash: str
    space_id: str
    task: str | None
    document_prompt: str
    query_prompt: str
    dim: int
    rescore: str
    passages: PassageSettings | None
    former_space_ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rescore not in (*RESCORE_TYPES, "none"):
            raise BadInput(
                f"unknown rescore precision {self.rescore!r}{did_you_mean(self.rescore, (*RESCORE_TYPES, 'none'))}"
            )
        if self.dim < 1:
            raise BadInput(f"an index of dimension {self.dim} cannot be; give at least 1")

    @property
    def code_bytes(self) -> int:
        """Bytes of a binary code."""
        return (self.dim + 7) // 8

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read what `to_json` returned.

        Args:
            value: Plain data.

        Returns:
            The settings.

        Raises:
            BadInput: If a field is missing or unknown.
        """
        names = {each.name for each in fields(cls)}
        if {*value, "former_space_ids"} != names:  # which indexes of the first format lack
            raise BadInput(
                f"the index settings have the fields {sorted(value)} instead of {sorted(names)}; build the index again"
            )
        passages, former = value["passages"], tuple(value.get("former_space_ids", ()))
        return cls(
            **{
                **value,
                "passages": None if passages is None else PassageSettings(**passages),
                "former_space_ids": former,
            }
        )

    def check_same(self, other: IndexSettings, earlier: Collection[str] = ()) -> None:
        """Refuse to continue an index with other settings.

        Args:
            other: What is asked for now.
            earlier: Hashes of earlier states of the model that gave the same vectors.

        Raises:
            BadInput: Naming the first field that differs and both values.
        """
        self.check_space(other.space_id, other.former_space_ids)
        passed = {
            "model",
            "space_id",
            "former_space_ids",
            *(["model_hash"] if self.model_hash in earlier else []),
        }
        for each in fields(self):
            if each.name not in passed:
                self._check(each.name, getattr(self, each.name), getattr(other, each.name))

    def check_same_vectors(self, now: IndexSettings) -> None:
        """Refuse to go on where queries embedded for this index would be compared with vectors of another kind.

        Args:
            now: The settings in the same folder now; other dimensions and precisions of the same space are followed.

        Raises:
            BadInput: Naming the first field that differs and both values.
        """
        for name in ("space_id", "task", "document_prompt", "query_prompt"):
            before, after = getattr(self, name), getattr(now, name)
            if before != after:
                raise BadInput(
                    f"the index was opened with {name} {before!r} and has {after!r} now: it was built anew; open it again"
                )

    def check_documents(self, encoder: SearchEncoder) -> None:
        """Refuse documents of another space or model.

        Args:
            encoder: What would embed them.

        Raises:
            BadInput: Naming the field and both values.
        """
        self.check_space(encoder.space_id, former_ids(encoder))
        if self.model_hash not in getattr(encoder, "extends", ()):
            self._check("model_hash", self.model_hash, encoder.model_hash)

    def check_space(self, space_id: str, former: Collection[str] = ()) -> None:
        """Refuse vectors of another space.

        Args:
            space_id: Where the vectors are from.
            former: Ids that earlier versions gave to that space.

        Raises:
            BadInput: Naming both space ids.
        """
        if not self.is_of(space_id, former):
            self._check("space_id", self.space_id, space_id)

    def is_of(self, space_id: str, former: Collection[str] = ()) -> bool:
        """Say whether the index is of a space.

        Args:
            space_id: The space.
            former: Ids that earlier versions gave to it.

        Returns:
            Whether one side knows the other by the id in force; earlier ids on both sides prove nothing, for they did not count prompts.
        """
        return same_space(space_id, former, self.space_id, self.former_space_ids)

    def _check(self, name: str, mine: Any, given: Any) -> None:
        if mine != given:
            raise BadInput(
                f"the index has {name} {mine!r}, but what is given has {given!r}; "
                f"use what the index was made with (model {self.model}) or build another index"
            )


@dataclass(frozen=True, kw_only=True)
class SearchDefaults:
    """How an index is searched where a search does not say: what tuning wrote, or nothing.

    Attributes:
        oversample: Candidates of the first pass for each passage; None for the usual number.
        hybrid: Whether texts are also looked up by BM25.
        refinement: How queries are moved, or None.
    """

    oversample: int | None = None
    hybrid: bool = False
    refinement: PrfSettings | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read what `to_json` returned.

        Args:
            value: Plain data; missing fields take their defaults.

        Returns:
            The defaults.
        """
        moved = value.get("refinement")
        return cls(**{**value, "refinement": None if moved is None else PrfSettings(**moved)})


def settings_for(
    encoder: SearchEncoder,
    *,
    task: str | None,
    truncate_dim: int | None = None,
    rescore: str = Precision.INT8,
    passages: PassageSettings | None = None,
) -> IndexSettings:
    """Return the settings of an index that an encoder fills.

    Args:
        encoder: What embeds the documents.
        task: Task of the embeddings, or None for base embeddings.
        truncate_dim: Dimensions to keep; None keeps all.
        rescore: Precision of the vectors kept for rescoring, or `none`.
        passages: How documents are cut.

    Returns:
        Settings with the prompts of the task: documents of every task take the document prompt, queries the task's own.

    Raises:
        BadInput: If the task or precision is unknown, or the dimension is larger than the encoder's.
    """
    kind = None if task is None else getattr(encoder, "adapter_tasks", {}).get(task, task)
    if kind is not None and kind not in set(Task):
        raise BadInput(f"unknown task {task!r}{did_you_mean(str(task), Task)}")
    dim = encoder.embedding_dim if truncate_dim is None else truncate_dim
    if not 1 <= dim <= encoder.embedding_dim:
        raise BadInput(
            f"truncate_dim {dim} is outside 1..{encoder.embedding_dim}, the dimensions of {encoder.name}; give one within"
        )
    return IndexSettings(
        model=encoder.name,
        model_hash=encoder.model_hash,
        space_id=encoder.space_id,
        task=None if task is None else str(task),
        document_prompt=Role.DOCUMENT.value,
        query_prompt=(Role.QUERY if kind is None else QUERY_SIDE[Task(kind)]).value,
        dim=dim,
        rescore=str(rescore),
        passages=passages,
        former_space_ids=former_ids(encoder),
    )
