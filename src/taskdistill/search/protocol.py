"""What search needs of an encoder, and the unit vectors it asks one for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput
from taskdistill.quantization import normalize


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
    ) -> NDArray[Any]:
        """Return one vector a text, truncated and then normalised."""
        ...


def same_space(
    one: str, former_of_one: Collection[str], two: str, former_of_two: Collection[str]
) -> bool:
    """Say whether two ids stand for one space.

    Args:
        one: An id in force.
        former_of_one: Ids that earlier versions gave to that space.
        two: Another one.
        former_of_two: Ids that earlier versions gave to this one.

    Returns:
        Whether one side knows the other by the id in force; earlier ids on both sides prove nothing, for they counted less.
    """
    return one == two or one in former_of_two or two in former_of_one


def former_ids(encoder: SearchEncoder) -> tuple[str, ...]:
    """Return the ids that earlier versions gave to an encoder's space.

    Args:
        encoder: Any encoder; few have such ids.

    Returns:
        Space ids.
    """
    return tuple(getattr(encoder, "former_space_ids", ()))


def unit_vectors(vectors: NDArray[Any], dim: int, what: str) -> NDArray[np.float32]:
    """Check vectors and scale them to length one.

    Args:
        vectors: (n, dim) numbers.
        dim: The dimension they must have.
        what: What they are, to name them in an error, such as `query`.

    Returns:
        (n, dim) float32 rows of length one.

    Raises:
        BadInput: If the shape is another, or a row is zero or holds NaN or infinity.
    """
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        shape = "x".join(map(str, vectors.shape))
        raise BadInput(
            f"{what} vectors have the shape {shape}, but the index has dimension {dim}; give (n, {dim})"
        )
    if vectors.dtype.kind != "f":
        raise BadInput(
            f"{what} vectors are {vectors.dtype}; give floating-point vectors, the index quantises them itself"
        )
    unit = normalize(vectors)
    zero = np.flatnonzero(~unit.any(axis=1))
    if len(zero):
        raise BadInput(
            f"{len(zero)} of {len(unit)} {what} vectors are zero, the first at row {zero[0]}; leave out texts without a vector"
        )
    return unit
