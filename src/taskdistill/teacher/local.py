"""A teacher on this machine: any model that the Encoder reads, told nothing but the text it is
given.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from taskdistill.device import (
    AUTO,
    CPU,
    DTYPES,
    computes_in,
    dtype_name,
    empty_caches,
    placement,
    resolve_device,
    resolve_dtype,
)
from taskdistill.errors import BadInput, WorkFailed
from taskdistill.model.facts import ModelFacts, read_facts
from taskdistill.teacher.protocol import TeacherIdentity, unit_rows


class TextEncoder(Protocol):
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

    @property
    def former_space_ids(self) -> tuple[str, ...]:
        """Ids that earlier versions gave to the same space."""

    @property
    def dtype(self) -> torch.dtype:
        """Arithmetic of its passes."""

    @property
    def placement(self) -> str:
        """Device and arithmetic in a few words."""

    def encode(
        self, texts: Sequence[str], *, task: None, prompt: str, max_length: int
    ) -> npt.NDArray[np.float32]:
        """Embed texts with the given prompt before each."""


class LazyEncoder:
    """A model that is read when the first text comes, and can be dropped again: a store that has
    every vector needs no teacher at all.
    """

    def __init__(
        self,
        facts: ModelFacts | TextEncoder,
        device: torch.device,
        dtype: torch.dtype,
        load: Callable[[], TextEncoder],
        encoder: TextEncoder | None = None,
    ) -> None:
        """Remember how the model is read.

        `device`: where it will run. `encoder`: the model, if it has been read.
        """
        self._load, self._encoder = load, encoder
        self._device, self.dtype = device, dtype
        self.embedding_dim, self.max_length = facts.embedding_dim, facts.max_length
        self.files_hash, self.space_id, self.former_space_ids = (
            facts.files_hash,
            facts.space_id,
            facts.former_space_ids,
        )

    @property
    def placement(self) -> str:
        """Device and arithmetic in a few words."""
        return placement(self._device, self.dtype)

    @property
    def loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._encoder is not None

    def encode(
        self, texts: Sequence[str], *, task: None, prompt: str, max_length: int
    ) -> npt.NDArray[np.float32]:
        """Embed texts, reading the model if it is not in memory.

        `max_length`: tokens of one text that are read. Returns float32 `(n, D)`, unit rows. Raises
        BadInput if the model cannot be read, or the hardware has not its arithmetic.
        """
        if self._encoder is None:
            if not computes_in(self.dtype, self._device):
                raise BadInput(
                    f"the teacher's vectors at hand were made in {dtype_name(self.dtype)}, which"
                    f" {self._device} has no units for, and some texts have none yet; go on where"
                    " it has, or set teacher.dtype to float32 to make all of them anew"
                )
            self._encoder = self._load()
        return self._encoder.encode(texts, task=task, prompt=prompt, max_length=max_length)

    def release(self) -> None:
        """Drop the model."""
        self._encoder = None
        gc.collect()
        empty_caches()


class LocalTeacher:
    """A local model as a teacher."""

    def __init__(
        self, encoder: TextEncoder, model: str, *, revision: str | None = None, max_length: int
    ) -> None:
        """Wrap an encoder.

        `model`: what to call it in the store; its weights' hash tells models of one name apart.
        `revision`: Hub revision, if any. `max_length`: tokens of one text that the teacher reads.
        Raises BadInput if the model reads fewer tokens.
        """
        if max_length > encoder.max_length:
            raise BadInput(
                f"teacher.max_length is {max_length}, but {model!r} reads at most"
                f" {encoder.max_length} tokens; set it to that or less"
            )
        self._encoder = encoder
        self.identity = local_identity(
            encoder.files_hash, model, revision, max_length, encoder.dtype
        )
        self.embedding_dim = encoder.embedding_dim
        self.space_id = encoder.space_id
        self.former_space_ids = encoder.former_space_ids
        self._max_length = max_length

    @property
    def placement(self) -> str:
        """Device and arithmetic in a few words."""
        return self._encoder.placement

    @property
    def loaded(self) -> bool:
        """Whether the model is in memory."""
        return not isinstance(self._encoder, LazyEncoder) or self._encoder.loaded

    def release(self) -> None:
        """Drop the model from memory; the next text reads it again."""
        if isinstance(self._encoder, LazyEncoder):
            self._encoder.release()

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embed texts as they are, without the model's own prompts.

        Returns Float32 (n, dim) unit rows; NaN for a text of which the model makes no finite
        vector.
        """
        try:
            return unit_rows(
                self._encoder.encode(texts, task=None, prompt="", max_length=self._max_length)
            )
        except WorkFailed:
            if len(texts) == 1:
                return np.full((1, self.embedding_dim), np.nan, np.float32)
        half = len(texts) // 2
        return np.concatenate([self.embed(texts[:half]), self.embed(texts[half:])])


def local_identity(
    weights: str, model: str, revision: str | None, max_length: int, dtype: torch.dtype
) -> TeacherIdentity:
    """Say what decides the vectors of a local teacher; the device does not.

    `revision`: Hub revision, if any. `max_length`: tokens of one text that it reads.
    """
    arithmetic = None if dtype is torch.float32 else dtype_name(dtype)
    return TeacherIdentity(
        kind="local",
        model=model,
        revision=revision,
        weights=weights,
        max_length=max_length,
        arithmetic=arithmetic,
    )


def load_local(
    model: str,
    *,
    revision: str | None = None,
    max_length: int,
    threads: int | None = None,
    trust_remote_code: bool = False,
    device: str = AUTO,
    dtype: str = AUTO,
    batch_tokens: int | None = None,
    at_hand: Callable[[TeacherIdentity], bool] = lambda _: False,
) -> LocalTeacher:
    """Describe a local teacher by its files; its weights are read when the first text is embedded.

    `model`: `all-MiniLM-L6-v2` (embedded), a model folder, or a Hub id. `max_length`: tokens of one
    text that the teacher reads. `threads`: worker threads on a CPU; None leaves it to the Encoder.
    `trust_remote_code`: whether the folder's own code may run. `dtype`: arithmetic; `auto` takes
    that of the vectors at hand, and for new ones bfloat16 on an accelerator that computes in it
    (the store rounds to float16 in any case), float32 elsewhere. `batch_tokens`: tokens of one
    batch; None leaves it to the memory that is free. Raises BadInput if the model cannot be found
    or described, reads fewer tokens, or the device or arithmetic is not here.
    """
    from taskdistill.encode.encoder import Encoder
    from taskdistill.model.backbone import resolve

    folder, place = resolve(model, revision), resolve_device(device)
    name = folder.resolve().name if Path(model).is_dir() else model

    def load(where: torch.device, kind: torch.dtype) -> Encoder:
        options = {
            "threads": threads,
            "token_budget": batch_tokens,
            "device": str(where),
            "dtype": dtype_name(kind),
        }
        return Encoder.load(folder, trust_remote_code=trust_remote_code, **options)  # type: ignore[arg-type]

    if (
        trust_remote_code
    ):  # only the code itself can tell what such a model is; once it has, the weights may go
        kind = resolve_dtype(dtype, place, auto=torch.bfloat16)
        encoder = load(place, kind)
        lazy = LazyEncoder(encoder, encoder.device, kind, lambda: load(place, kind), encoder)
        return LocalTeacher(lazy, name, revision=revision, max_length=max_length)
    facts = read_facts(folder)
    place = CPU if facts.static and device == AUTO else place
    first = resolve_dtype(AUTO, place, auto=torch.bfloat16)
    choices = (
        [DTYPES[dtype]]
        if dtype in DTYPES
        else dict.fromkeys((first, torch.float32, torch.bfloat16))
    )
    # Vectors at hand are read on any hardware; it is asked for when a text lacks one.
    loaded = [
        each
        for each in choices
        if at_hand(local_identity(facts.files_hash, name, revision, max_length, each))
    ]
    kind = loaded[0] if loaded else resolve_dtype(dtype, place, auto=torch.bfloat16)
    return LocalTeacher(
        LazyEncoder(facts, place, kind, lambda: load(place, kind)),
        name,
        revision=revision,
        max_length=max_length,
    )
