"""A map from a new model's vectors into the space of an old index, and an encoder that goes through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput
from taskdistill.quantization import normalize
from taskdistill.search.protocol import SearchEncoder
from taskdistill.types import Precision

FILE = "map.npz"
ARRAYS = ("matrix", "bias", "inner", "inner_bias", "outer", "outer_bias")

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class AlignmentMap:
    """`x matrix + bias`, and where there is a residual part `+ relu(x inner + inner_bias) outer + outer_bias`, scaled to unit length."""

    kind: str
    arrays: Mapping[str, Floats]

    @property
    def source_dim(self) -> int:
        """Size of the vectors that go in."""
        return int(self.arrays["matrix"].shape[0])

    @property
    def target_dim(self) -> int:
        """Size of the vectors that come out."""
        return int(self.arrays["matrix"].shape[1])

    def __call__(self, vectors: Floats) -> Floats:
        """Map vectors.

        Args:
            vectors: Unit rows, `(n, source_dim)`.

        Returns:
            Unit rows, `(n, target_dim)` float32.
        """
        a = self.arrays
        out = vectors @ a["matrix"] + a["bias"]
        if "inner" in a:
            out = (
                out
                + np.maximum(vectors @ a["inner"] + a["inner_bias"], 0) @ a["outer"]
                + a["outer_bias"]
            )
        return np.asarray(normalize(out), dtype=np.float32)

    def save(self, folder: Path) -> None:
        """Write the map into a folder that is being made.

        Args:
            folder: The folder.
        """
        with (folder / FILE).open("wb") as stream:
            np.savez(stream, **dict(self.arrays))  # type: ignore[arg-type]


def load_map(folder: Path, kind: str) -> AlignmentMap:
    """Read a map.

    Args:
        folder: Folder with `map.npz`.
        kind: What the folder says it is.

    Returns:
        The map.

    Raises:
        BadInput: If the file holds something else.
    """
    try:
        with np.load(folder / FILE, allow_pickle=False) as stored:
            arrays = {name: np.asarray(stored[name], dtype=np.float32) for name in stored.files}
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{folder / FILE} cannot be read ({error}); run `taskdistill migrate` again"
        ) from None
    linear, residual = set(ARRAYS[:2]), set(ARRAYS)
    if set(arrays) not in (linear, residual) or not all(
        np.isfinite(each).all() for each in arrays.values()
    ):
        raise BadInput(
            f"{folder / FILE} holds {sorted(arrays)} instead of finite numbers of a map; run `taskdistill migrate` again"
        )
    return AlignmentMap(kind, arrays)


class AlignedEncoder:
    """A new model that asks an index of an old one."""

    def __init__(
        self,
        encoder: SearchEncoder,
        mapping: AlignmentMap,
        *,
        space_id: str,
        model_hash: str,
        task: str | None,
    ) -> None:
        """Wrap a model.

        Args:
            encoder: The new model.
            mapping: From its vectors to the index's.
            space_id: Space of the index.
            model_hash: Hash of the model that the map was fitted to.
            task: The new model's adapter; None for its base.

        Raises:
            BadInput: If the map is of another model.
        """
        if encoder.model_hash != model_hash and model_hash not in getattr(encoder, "extends", ()):
            raise BadInput(
                f"the map was fitted to a model of hash {model_hash[:12]}, {encoder.name} has {encoder.model_hash[:12]}; fit it anew"
            )
        self._encoder, self._map, self._task = encoder, mapping, task
        self.name, self.space_id, self.model_hash = (
            f"{encoder.name} through a {mapping.kind} map",
            space_id,
            encoder.model_hash,
        )
        self.embedding_dim = mapping.target_dim

    def encode(
        self,
        texts: Sequence[str],
        *,
        task: str | None = None,
        prompt_name: str = "document",
        truncate_dim: int | None = None,
        precision: str = Precision.FLOAT32.value,
    ) -> NDArray[Any]:
        """Embed texts into the old space.

        Args:
            texts: Strings.
            task: The index's; the new model uses its own.
            prompt_name: Which of the new model's prompts goes before every text.
            truncate_dim: The size of the map's vectors, or None.
            precision: float32.

        Returns:
            float32 `(n, target_dim)`, unit rows.

        Raises:
            BadInput: If another size or precision is asked for.
        """
        if truncate_dim not in (None, self.embedding_dim) or precision != Precision.FLOAT32:
            raise BadInput(
                f"a map gives {self.embedding_dim} dimensions in float32, not {truncate_dim} in {precision}"
            )
        return self._map(self._encoder.encode(texts, task=self._task, prompt_name=prompt_name))
