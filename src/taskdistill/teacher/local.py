"""A teacher on this machine: any model that the Encoder reads, told nothing but the text it is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from taskdistill.errors import BadInput, WorkFailed
from taskdistill.teacher.protocol import Identity, unit_rows


class RawEncoder(Protocol):
    """What a local teacher needs of the Encoder."""

    @property
    def embedding_dim(self) -> int:
        """Size of the vectors."""

    @property
    def max_length(self) -> int:
        """Tokens of one text that the model reads at most."""

    @property
    def files_hash(self) -> str:
        """Hash of the files that decide the vectors; prompts of the folder are not used."""

    @property
    def space_id(self) -> str:
        """Vectors with the same id may be compared."""

    def encode(self, texts: Sequence[str], *, task: None, prompt: str, max_length: int) -> npt.NDArray[np.float32]:
        """Embed texts with the given prompt before each."""


class LocalTeacher:
    """A local model as a teacher."""

    def __init__(self, encoder: RawEncoder, model: str, *, revision: str | None = None, max_length: int) -> None:
        """Wrap an encoder.

        Args:
            encoder: The model.
            model: What to call it in the store; its weights' hash tells models of one name apart.
            revision: Hub revision, if any.
            max_length: Tokens of one text that the teacher reads.

        Raises:
            BadInput: If the model reads fewer tokens.
        """
        if max_length > encoder.max_length:
            raise BadInput(
                f"teacher.max_length is {max_length}, but {model!r} reads at most {encoder.max_length} tokens; set it to that or less"
            )
        self._encoder = encoder
        self.identity = Identity("local", model, revision, encoder.files_hash, max_length)
        self.embedding_dim = encoder.embedding_dim
        self.space_id = encoder.space_id
        self.former_space_ids: tuple[str, ...] = tuple(getattr(encoder, "former_space_ids", ()))
        self._max_length = max_length

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embed texts as they are, without the model's own prompts.

        Args:
            texts: Texts that already carry their instruction.

        Returns:
            Float32 (n, dim) unit rows; NaN for a text of which the model makes no finite vector.
        """
        try:
            return unit_rows(self._encoder.encode(texts, task=None, prompt="", max_length=self._max_length))
        except WorkFailed:
            if len(texts) == 1:
                return np.full((1, self.embedding_dim), np.nan, np.float32)
        half = len(texts) // 2
        return np.concatenate([self.embed(texts[:half]), self.embed(texts[half:])])


def load_local(
    model: str, *, revision: str | None = None, max_length: int, threads: int | None = None, trust_remote_code: bool = False
) -> LocalTeacher:
    """Load a local teacher.

    Args:
        model: `all-MiniLM-L6-v2` (embedded), a model folder, or a Hub id.
        revision: Hub revision.
        max_length: Tokens of one text that the teacher reads.
        threads: Worker threads; None leaves it to the Encoder.
        trust_remote_code: Whether the folder's own code may run.

    Returns:
        The teacher.

    Raises:
        BadInput: If the model cannot be found or read, or reads fewer tokens.
    """
    from taskdistill.encode.encoder import Encoder
    from taskdistill.model.backbone import resolve

    folder = resolve(model, revision)
    encoder: RawEncoder = Encoder.load(folder, threads=threads, trust_remote_code=trust_remote_code)
    name = folder.resolve().name if Path(model).is_dir() else model
    return LocalTeacher(encoder, name, revision=revision, max_length=max_length)
