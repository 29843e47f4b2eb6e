"""What a teacher is: something with an identity that turns texts into unit vectors; and what it is
told about a text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from taskdistill.errors import BadInput, WorkFailed
from taskdistill.recipe.teacher import InstructionConfig

View = Literal["query", "document", "topic"]
"""As what a teacher reads a text: as a query, as a document, or for its topic (sections 4.1 and
5.3).
"""

VIEWS: tuple[View, ...] = ("query", "document", "topic")


FLOAT32: dict[str, None] = {"arithmetic": None}
"""What a store says, or says by leaving it out, of a teacher that computes in float32."""


@dataclass(frozen=True, kw_only=True)
class TeacherIdentity:
    """Everything about a teacher that changes its vectors; two equal identities share one store."""

    kind: str
    model: str
    revision: str | None = None
    weights: str | None = None
    max_length: int | None = None
    arithmetic: str | None = None
    """Number type of a local model's passes where it is not float32."""

    def fields(self) -> dict[str, str | int | None]:
        """Return the identity as plain data.

        Returns field name to value; without `arithmetic` for float32, as before that could be
        chosen, so that stores keep their names.
        """
        return {
            name: value
            for name, value in asdict(self).items()
            if name != "arithmetic" or value is not None
        }


class Teacher(Protocol):
    """A model, an endpoint or a folder of vectors, all asked in the same way."""

    @property
    def identity(self) -> TeacherIdentity:
        """Who answers."""

    @property
    def embedding_dim(self) -> int | None:
        """Size of its vectors; None while that is not known."""

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embed texts that already carry their instruction.

        `texts`: any number of texts, passed to the teacher as they are. Returns Float32 (n, dim),
        in the order of the texts; unit rows, but rows that came out as zero or not finite are left
        as they are for the store to quarantine.
        """


@runtime_checkable
class RunsHere(Protocol):
    """A teacher that takes memory of this machine while it embeds."""

    @property
    def placement(self) -> str:
        """Device and arithmetic in a few words."""

    def release(self) -> None:
        """Give the memory back; the next text takes it again."""


def release(teacher: Teacher) -> None:
    """Free what a teacher holds, before something else needs the memory."""
    if isinstance(teacher, RunsHere):
        teacher.release()


@dataclass(frozen=True)
class NamedTeacher:
    """A teacher that another process runs: enough to open its store."""

    identity: TeacherIdentity
    embedding_dim: int | None
    space_id: str = ""
    former_space_ids: tuple[str, ...] = ()

    @classmethod
    def of(cls, teacher: Teacher) -> NamedTeacher:
        """Describe a teacher, so that other processes can be told."""
        ids = getattr(teacher, "space_id", ""), tuple(getattr(teacher, "former_space_ids", ()))
        return cls(teacher.identity, teacher.embedding_dim, *ids)

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Refuse: only the first process embeds. Raises WorkFailed always."""
        raise WorkFailed(
            f"{len(texts)} texts lack a vector of {self.identity.model} on a process that embeds"
            " none; please report this"
        )


@runtime_checkable
class LookupTeacher(Protocol):
    """A teacher that can only look texts up, and so can say at once what it lacks."""

    def known(self, texts: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Say which texts have a vector. Returns (n,) of bool."""

    def require(self, texts: Sequence[str]) -> None:
        """Check that every text has a vector. Raises BadInput if some have none."""


def prompt_template(instructions: InstructionConfig | None, view: View) -> str | None:
    r"""Return the form that a text takes in a view, with `{text}` where the text goes.

    The form, not the bare instruction, is part of a store's key: whatever the teacher reads
    beside the text decides the vector. Views with equal forms share one store.

    Args:
        instructions: What the recipe tells the teacher; None for a teacher that knows no
            instruction.

    Returns:
        Such as `Instruct: Given a web search query, ...\nQuery:{text}` (section 4.1), or None for
        the raw text.

    Raises:
        BadInput: If the instruction itself holds `{text}`.
    """
    template: str | None = None if instructions is None else getattr(instructions, view)
    if instructions is None or template is None:
        return None
    if "{text}" in template:
        raise BadInput(
            f"teacher.instructions.{view} holds {{text}}; the place of the text belongs into"
            " teacher.instructions.template"
        )
    return instructions.template.replace("{instruction}", template)


def apply_template(form: str | None, text: str) -> str:
    """Put a text into its form."""
    return text if form is None else form.replace("{text}", text)


def view_text(instructions: InstructionConfig | None, view: View, text: str) -> str:
    """Return what the teacher reads for a text in a view.

    `instructions`: what the recipe tells the teacher; None for a teacher that knows no instruction.
    """
    return apply_template(prompt_template(instructions, view), text)


def unit_rows(vectors: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Scale every row to length one.

    Returns Float32 (n, dim); rows that are zero or not finite stay as they are.
    """
    rows = np.array(vectors, dtype=np.float32)
    sizes = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    good = np.isfinite(sizes) & (sizes > 0)
    return np.asarray(
        np.divide(rows, sizes, out=rows, where=good, casting="unsafe"), dtype=np.float32
    )


def slug(name: str) -> str:
    """Return a name that is safe as a part of a folder's name.

    Returns at most 60 letters, digits, dots, dashes and underscores, not starting with a dot.
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[-60:].lstrip(".-") or "teacher"
