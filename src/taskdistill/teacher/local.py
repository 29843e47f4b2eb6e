"""From the recipe's words to a teacher; and the one on this machine: any model that the Encoder
reads, told nothing but the text.
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
from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput, WorkFailed
from taskdistill.model.backbone import resolve
from taskdistill.model.facts import ModelFacts, read_facts
from taskdistill.recipe.teacher import TeacherConfig
from taskdistill.teacher.http import HttpTeacher
from taskdistill.teacher.precomputed import PrecomputedTeacher
from taskdistill.teacher.protocol import Teacher, TeacherIdentity, unit_rows
from taskdistill.teacher.store import stores_of


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
        load: Callable[[], TextEncoder],
        *,
        device: torch.device,
        dtype: torch.dtype,
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
        check_length(max_length, model, encoder.max_length)
        self._encoder = encoder
        self.identity = local_identity(
            model,
            encoder.files_hash,
            revision=revision,
            max_length=max_length,
            dtype=encoder.dtype,
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


def check_length(max_length: int, model: str, longest: int) -> None:
    """Refuse a teacher that is to read more tokens of a text than its model can."""
    if max_length > longest:
        raise BadInput(
            f"teacher.max_length is {max_length}, but {model!r} reads at most {longest} tokens; set"
            " it to that or less"
        )


def check_dim(settings: TeacherConfig, embedding_dim: int | None) -> None:
    """Refuse another size of vectors than the recipe states; None for a size that is not known."""
    if settings.embedding_dim is not None and embedding_dim not in (None, settings.embedding_dim):
        raise BadInput(
            f"teacher.embedding_dim is {settings.embedding_dim}, but {settings.model!r} has"
            f" {embedding_dim}; correct the recipe"
        )


def check_teacher(settings: TeacherConfig) -> None:
    """Check settings of a teacher that contradict each other.

    Raises BadInput if an address and the kind do not go together, or a local teacher's device is
    not here.
    """
    if (settings.url is not None) != (settings.kind == "http"):
        raise BadInput(
            f"teacher.kind is {settings.kind!r} and teacher.url is {settings.url!r}; an address"
            " goes with kind http, and only with it"
        )
    if settings.kind == "local":
        try:
            resolve_device(settings.device)
        except BadInput as error:
            raise BadInput(f"teacher.device: {error}") from None


def make_teacher(
    settings: TeacherConfig,
    *,
    api_key: str | None = None,
    threads: int | None = None,
    root: Path | None = None,
) -> Teacher:
    """Make the teacher that a recipe names.

    `api_key`: the key of an HTTP endpoint; the caller reads it from the environment. `threads`:
    worker threads on a CPU; None leaves it to the Encoder. `root`: where its vectors are kept; with
    `dtype: auto` a local teacher goes on in the arithmetic of those that are there. Returns a
    teacher that is ready to embed; a local one reads its weights when it has to. Raises BadInput if
    the settings do not fit together or name nothing that can be read.
    """
    check_teacher(settings)
    teacher: Teacher
    if settings.kind == "local":
        teacher = _load_local(settings, threads, root)
    elif settings.kind == "precomputed":
        teacher = PrecomputedTeacher.load(Path(settings.model), revision=settings.revision)
    else:
        if settings.api_key_env is not None and not api_key:
            raise BadInput(
                f"the environment variable {settings.api_key_env}, named by teacher.api_key_env, is"
                " not set; put the key there"
            )
        teacher = HttpTeacher(
            url=str(settings.url),
            model=settings.model,
            revision=settings.revision,
            embedding_dim=settings.embedding_dim,
            api_key=api_key,
        )
    check_dim(settings, teacher.embedding_dim)
    return teacher


def _load_local(settings: TeacherConfig, threads: int | None, root: Path | None) -> LocalTeacher:
    """Describe a local teacher by its files; its weights are read when the first text is embedded.

    `dtype: auto` takes the arithmetic of the vectors under `root`, and for new ones bfloat16 on an
    accelerator that computes in it (the store rounds to float16 in any case), float32 elsewhere.
    """
    folder = resolve(settings.model, settings.revision)
    device = resolve_device(settings.device)
    name = folder.resolve().name if Path(settings.model).is_dir() else settings.model

    def load(where: torch.device, dtype: torch.dtype) -> Encoder:
        return Encoder.load(
            folder,
            trust_remote_code=settings.trust_remote_code,
            threads=threads,
            token_budget=settings.batch_tokens,
            device=str(where),
            dtype=dtype_name(dtype),
        )

    def wrap(encoder: LazyEncoder) -> LocalTeacher:
        return LocalTeacher(
            encoder, name, revision=settings.revision, max_length=settings.max_length
        )

    if settings.trust_remote_code:
        # Only the code itself can tell what such a model is; once it has, the weights may go.
        dtype = resolve_dtype(settings.dtype, device, auto=torch.bfloat16)
        encoder = load(device, dtype)
        return wrap(
            LazyEncoder(
                encoder,
                lambda: load(device, dtype),
                device=encoder.device,
                dtype=dtype,
                encoder=encoder,
            )
        )
    facts = read_facts(folder)
    if facts.static and settings.device == AUTO:
        device = CPU  # a look-up gains nothing on an accelerator
    dtype = _dtype_of_vectors(settings, name, facts.files_hash, device, root) or resolve_dtype(
        settings.dtype, device, auto=torch.bfloat16
    )
    return wrap(LazyEncoder(facts, lambda: load(device, dtype), device=device, dtype=dtype))


def _dtype_of_vectors(
    settings: TeacherConfig, name: str, weights: str, device: torch.device, root: Path | None
) -> torch.dtype | None:
    """Find in which arithmetic the vectors at hand were made; None where there are none.

    They are read on any hardware; its arithmetic is asked for when a text lacks one.
    """
    if root is None:
        return None
    if settings.dtype in DTYPES:
        choices = [DTYPES[settings.dtype]]
    else:
        first = resolve_dtype(AUTO, device, auto=torch.bfloat16)
        choices = list(dict.fromkeys((first, torch.float32, torch.bfloat16)))
    for dtype in choices:
        identity = local_identity(
            name,
            weights,
            revision=settings.revision,
            max_length=settings.max_length,
            dtype=dtype,
        )
        if stores_of(root, identity, settings.instructions):
            return dtype
    return None


def local_identity(
    model: str, weights: str, *, revision: str | None, max_length: int, dtype: torch.dtype
) -> TeacherIdentity:
    """Say what decides the vectors of a local teacher; the device does not.

    `weights`: hash of its files. `revision`: Hub revision, if any. `max_length`: tokens of one text
    that it reads.
    """
    return TeacherIdentity(
        kind="local",
        model=model,
        revision=revision,
        weights=weights,
        max_length=max_length,
        # None is how identities said float32 before there was a choice: stores keep their names.
        arithmetic=None if dtype is torch.float32 else dtype_name(dtype),
    )
