"""What a model folder says of its model before any weight is read: enough to open what was made
with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from taskdistill.errors import BadInput
from taskdistill.model import jina
from taskdistill.model.backbone import build_backbone, check_backbone, longest_text, read_json
from taskdistill.model.configuration import RawConfig
from taskdistill.model.fingerprint import fingerprint, fingerprint_files, space_id
from taskdistill.model.folder import manifest_settings, open_model
from taskdistill.model.layout import STATIC_LENGTH, longest_input, module_kinds, named_prompts
from taskdistill.model.rope import rope_theta
from taskdistill.model.safety import check_safetensors, check_weights
from taskdistill.model.settings import ModelSettings


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A model without its weights."""

    embedding_dim: int
    max_length: int
    """Tokens of one text that it reads."""
    files_hash: str
    """Over every file that decides vectors."""
    space_id: str
    former_space_ids: tuple[str, ...]
    static: bool


def read_facts(folder: Path) -> ModelFacts:
    """Describe a model by its files; shapes are compared with the configuration, and no weight is
    read.

    `folder`: a folder that `read_model` reads without running code of it. Returns the same facts as
    of the model in memory. Raises BadInput if the folder is incomplete or of a kind that is not
    read.
    """
    manifest = open_model(folder)
    files = fingerprint_files(folder, manifest.get("files"))
    static = not jina.recognises(folder) and module_kinds(folder)[0] == "StaticEmbedding"
    width, settings = _read_static(folder) if static else _read_transformer(folder)
    if manifest.get("kind") == "model":
        settings = manifest_settings(manifest, width, files, folder)
        former = tuple(settings.former_space_ids)
    else:
        former = (fingerprint(files)[:32],)
    return ModelFacts(
        embedding_dim=width,
        max_length=settings.max_length,
        files_hash=fingerprint(files),
        space_id=space_id(files, settings),
        former_space_ids=former,
        static=static,
    )


def _read_static(folder: Path) -> tuple[int, ModelSettings]:
    entries = check_safetensors(folder / "model.safetensors")
    table = next(
        (entry for name, entry in entries.items() if name in ("embedding.weight", "embeddings")),
        None,
    )
    if table is None or len(table.shape) != 2:
        raise BadInput(
            f"{folder}/model.safetensors holds no token table `embedding.weight`, but"
            f" {sorted(entries)[:3]}"
        )
    return table.shape[1], ModelSettings(max_length=STATIC_LENGTH, prompts=named_prompts(folder))


def _read_transformer(folder: Path) -> tuple[int, ModelSettings]:
    raw: RawConfig = read_json(folder / "config.json")
    published = jina.recognises(folder)
    if published:
        raw = jina.family_config(raw, check_weights(folder), folder / "config.json")
    check_backbone(folder, raw)
    backbone = build_backbone(raw, device="meta")
    width = int(backbone.config.hidden_size)
    if published:
        positions = int(backbone.config.max_position_embeddings)
        return width, ModelSettings(
            max_length=positions, prompts=jina.read_prompts(folder), rope_theta=rope_theta(backbone)
        )
    return width, ModelSettings(
        max_length=longest_input(folder, longest_text(backbone, 512)), prompts=named_prompts(folder)
    )
