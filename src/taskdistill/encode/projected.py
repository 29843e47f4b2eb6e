"""A student in its teacher's space: a cheap model that queries what an expensive one has
indexed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput
from taskdistill.quantization import truncate
from taskdistill.tasks import Role
from taskdistill.types import Precision


class ProjectedEncoder:
    """A student's base vectors carried through its projection; a student of the teacher's size may
    have been trained without one.
    """

    def __init__(self, encoder: Encoder) -> None:
        """Wrap a student.

        Raises BadInput if its folder names no teacher's space, or holds no map into it.
        """
        teacher = encoder.model.settings.teacher
        if not teacher.get("space_id"):
            raise BadInput(
                f"model {encoder.name} does not say in which space its teacher's vectors are; use"
                " the teacher itself"
            )
        if encoder.model.projection is None and teacher["embedding_dim"] != encoder.embedding_dim:
            raise BadInput(
                f"model {encoder.name} has no projection.safetensors, so its vectors cannot be"
                " compared with its teacher's"
            )
        self._encoder = encoder
        self.name = f"{encoder.name} in the space of {teacher['model']}"
        self.teacher: str = teacher["model"]
        self.space_id: str = teacher["space_id"]
        self.former_space_ids: tuple[str, ...] = tuple(teacher.get("former_space_ids", ()))
        self.model_hash = encoder.model_hash
        self.embedding_dim = int(teacher["embedding_dim"] or 0)

    def carry(self, vectors: np.ndarray) -> np.ndarray:
        """Carry base vectors into the teacher's space.

        `vectors`: float32 `(n, D)`, unit rows. Returns float32 `(n, T)`, unit rows.
        """
        return vectors if self._encoder.model.projection is None else self._encoder.project(vectors)

    def encode(
        self,
        texts: Sequence[str],
        *,
        task: str | None = None,
        prompt_name: str = Role.DOCUMENT.value,
        truncate_dim: int | None = None,
        precision: str = Precision.FLOAT32.value,
    ) -> np.ndarray:
        """Turn texts into vectors of the teacher's space.

        `task`: None; the projection belongs to the base. `truncate_dim`: keep only the first
        coordinates, then scale to unit length. Returns float32 `(n, dim)`, unit rows. Raises
        BadInput if an adapter or another precision is asked for.
        """
        if task is not None or precision != Precision.FLOAT32:
            raise BadInput(
                f"{self.name} gives base vectors in float32 only, not task {task!r} in {precision}:"
                " its projection was trained on the base; index the teacher's base vectors"
                " (taskdistill index --base)"
            )
        vectors = self.carry(self._encoder.encode(texts, prompt_name=prompt_name))
        return truncate(vectors, truncate_dim or self.embedding_dim)


def in_space(encoder: Encoder, *space_ids: str) -> Encoder | ProjectedEncoder:
    """Choose how a model can ask an index: by itself, or through its projection.

    `*space_ids`: the space of the index, first by its own id, then by those that earlier versions
    gave to it. Raises BadInput if the model is of another space and its teacher is too.
    """
    if encoder.space_id in space_ids or space_ids[0] in encoder.former_space_ids:
        return encoder
    teacher = encoder.model.settings.teacher
    if teacher.get("space_id") not in space_ids and space_ids[0] not in teacher.get(
        "former_space_ids", ()
    ):
        taught = (
            f", nor does its teacher {teacher['model']} ({teacher['space_id']!r})"
            if teacher.get("space_id")
            else ""
        )
        raise BadInput(
            f"model {encoder.name} has space_id {encoder.space_id!r}, which is not the index's"
            f" {space_ids[0]!r}{taught}; use the model that the index was made with or a student of"
            " it, or build another index"
        )
    return ProjectedEncoder(encoder)
