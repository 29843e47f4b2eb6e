"""Models as a plan needs them: the architecture without its weights, and the tokenizer where one is
at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from taskdistill.errors import BadInput
from taskdistill.model import jina
from taskdistill.model.backbone import EMBEDDED, build_backbone, check_backbone, read_json, resolve
from taskdistill.model.configuration import RawConfig, refuse_code
from taskdistill.model.safety import check_weights
from taskdistill.model.tokenizer import TextTokenizer

_QWEN3 = {
    "model_type": "qwen3",
    "head_dim": 128,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
KNOWN: Mapping[str, RawConfig] = {
    "Qwen/Qwen3-0.6B-Base": {
        **_QWEN3,
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "max_position_embeddings": 32_768,
        "rope_theta": 1_000_000,
    },
    "Qwen/Qwen3-Embedding-4B": {
        **_QWEN3,
        "vocab_size": 151_665,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "max_position_embeddings": 40_960,
        "rope_theta": 1_000_000,
    },
    "EuroBERT/EuroBERT-210m": {
        "model_type": "eurobert",
        "vocab_size": 128_256,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "max_position_embeddings": 8_192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 250_000,
    },
}
"""Architectures of the paper's models, for a plan that can reach neither their files nor the Hub.
"""


@dataclass(frozen=True)
class ModelSketch:
    """A model without weights."""

    backbone: PreTrainedModel
    """On the meta device."""
    folder: Path | None
    """Where its files are; None if nothing of it is here."""

    def tokenizer(self) -> TextTokenizer | None:
        """Read the model's tokenizer.

        Returns the tokenizer, or None where its file is not at hand.
        """
        return (
            TextTokenizer.load(self.folder)
            if self.folder is not None and (self.folder / "tokenizer.json").is_file()
            else None
        )


def sketch(
    model: str, revision: str | None = None, *, trust_remote_code: bool = False
) -> ModelSketch:
    """Build the architecture of a model from its configuration alone; no weight is allocated or
    fetched.

    `model`: a folder, `all-MiniLM-L6-v2`, or a Hub id, of which configuration and tokenizer are
    fetched if the Hub can be reached. `trust_remote_code`: whether code named by the configuration
    may run. Returns the sketch. Where weights are at hand, their headers were compared with the
    architecture. Raises BadInput if nothing tells the architecture, or the folder is refused.
    """
    folder = _folder(model, revision)
    if folder is None:
        return ModelSketch(build_backbone(KNOWN[model.partition("@")[0]], device="meta"), None)
    raw: RawConfig = read_json(folder / "config.json")
    weights = any(folder.glob("model*.safetensors*"))
    if jina.recognises(folder):
        raw = jina.family_config(raw, check_weights(folder), folder / "config.json")
    refuse_code(raw, folder / "config.json", trust_remote_code)
    if weights:
        check_backbone(folder, raw, trust_remote_code=trust_remote_code)
    return ModelSketch(build_backbone(raw, device="meta"), folder)


def _folder(model: str, revision: str | None) -> Path | None:
    if (
        Path(model).is_dir()
        or model == EMBEDDED
        or model.count("/") != 1
        or model.startswith((".", "/"))
    ):
        return resolve(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    name, _, pinned = model.partition("@")
    try:
        folder = Path(
            snapshot_download(name, revision=revision or pinned or None, allow_patterns=["*.json"])
        )
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        if name in KNOWN:
            return None
        raise BadInput(
            f"the size of {model} is not known: no folder of that name is here, and the Hub did not"
            f" give its config.json ({type(error).__name__}); copy config.json and tokenizer.json"
            " into a folder and name that"
        ) from None
    if not (folder / "config.json").is_file():
        if name in KNOWN:
            return None
        raise BadInput(
            f"{model} has no config.json, so its size is not known; name a model that has one"
        )
    return folder
