"""Where a run begins: its data, its teacher, and the student before the first step."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from taskdistill.data.batches import BatchPlan
from taskdistill.data.rows import Dataset, hash_rows, row_texts
from taskdistill.data.sources import load_source
from taskdistill.errors import BadInput
from taskdistill.io.folders import read_manifest
from taskdistill.model.backbone import (
    build_backbone,
    load_backbone,
    longest_text,
    resolve,
    without_dropout,
)
from taskdistill.model.folder import read_model
from taskdistill.model.layers import keep_layers
from taskdistill.model.model import Model
from taskdistill.model.rope import rope_theta, set_rope_theta
from taskdistill.model.settings import ModelSettings
from taskdistill.model.sketch import sketch
from taskdistill.model.student import TransformerModel
from taskdistill.model.tokenizer import TextTokenizer, end_token
from taskdistill.progress import Progress
from taskdistill.recipe.phases import PhaseConfig, Stage1Config, StaticConfig
from taskdistill.recipe.recipe import Recipe
from taskdistill.recipe.student import StudentConfig
from taskdistill.seeding import torch_seed
from taskdistill.train.phases import make_plan, static_phase
from taskdistill.types import MANIFEST, Pooling

DOCSTRINGS = "docstrings"


@dataclass(frozen=True)
class TrainData:
    """The texts of a run."""

    root: Path
    datasets: dict[str, Dataset]

    def digest(self, names: Collection[str] | None = None) -> str:
        """Hash the rows of some sources; None for all."""
        lines = [
            f"{name} {dataset.sha256}"
            for name, dataset in sorted(self.datasets.items())
            if names is None or name in names
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def without(self, texts: Collection[str]) -> TrainData:
        """Leave out every row that holds one of some texts."""
        datasets = {}
        for name, dataset in self.datasets.items():
            usable_rows = [
                row for row in dataset.rows if not any(text in texts for text in row_texts(row))
            ]
            if lost := len(dataset.rows) - len(usable_rows):
                dataset.counts.rejected["no teacher vector"] += lost
                dataset.counts.used -= lost
                dataset = replace(dataset, rows=usable_rows, sha256=hash_rows(usable_rows))
            datasets[name] = dataset
        return TrainData(self.root, datasets)

    def counts(self) -> dict[str, Any]:
        """Say what became of every source's rows."""
        return {name: dataset.counts.as_dict() for name, dataset in self.datasets.items()}


def data_root(recipe: Recipe, recipe_folder: Path, docs_folder: Path, progress: Progress) -> Path:
    """Find the data folder of a recipe, building the embedded default if it is asked for.

    `recipe_folder`: a relative `data.root` is looked for from here after the current folder.
    `docs_folder`: where the embedded default is built.
    """
    if recipe.data.root != DOCSTRINGS:
        if recipe.data.docstrings_limit is not None:
            raise BadInput(
                "data.docstrings_limit has no effect unless data.root is docstrings; remove it"
            )
        return existing_root(recipe, recipe_folder)
    from taskdistill.demo.folder import build_docs_folder

    if not (docs_folder / MANIFEST).is_file():
        progress.stage("reading the documentation of the installed packages")
        counts = build_docs_folder(
            docs_folder,
            seed=recipe.seed,
            limit=recipe.data.docstrings_limit,
            progress=progress.count,
        )
        for line in counts_lines(counts):
            progress.note(line)
    else:
        read_manifest(docs_folder, "data")
    return docs_folder


def existing_root(recipe: Recipe, recipe_folder: Path) -> Path:
    """Find the data folder that a recipe names, here or else beside the recipe."""
    for folder in (Path(recipe.data.root), recipe_folder / recipe.data.root):
        if folder.is_dir():
            return folder
    raise BadInput(
        f"data.root {recipe.data.root!r} is no folder here nor beside the recipe; give a folder, "
        "or `docstrings`"
    )


def counts_lines(counts: Mapping[str, Any]) -> list[str]:
    """Write the counts of the embedded default as lines."""
    plain = ", ".join(
        f"{name.replace('_', ' ')} {value:,}"
        for name, value in counts.items()
        if isinstance(value, int)
    )
    groups = [
        f"{name}: "
        + ", ".join(f"{key} {value:,}" for key, value in group.items() if isinstance(value, int))
        for name, group in counts.items()
        if isinstance(group, Mapping)
    ]
    return [plain, *groups]


def load_inputs(recipe: Recipe, root: Path, progress: Progress) -> TrainData:
    """Read every source that some phase uses."""
    used = {name for phase in recipe.phases().values() for name in phase.reads()}
    datasets = {}
    for name, source in recipe.data.sources.items():
        if name not in used:
            continue
        dataset = load_source(root, name, source, max_bad=recipe.data.max_bad, seed=recipe.seed)
        counts = dataset.counts
        repaired, rejected = sum(counts.repaired.values()), sum(counts.rejected.values())
        progress.note(
            f"{name}: {counts.read:,} rows read, {counts.used:,} used as they are, {repaired:,} "
            f"repaired, {rejected:,} rejected"
        )
        for example in counts.examples[:3]:
            progress.note(f"  {example}")
        datasets[name] = dataset
    return TrainData(root, datasets)


def as_phase(settings: PhaseConfig | StaticConfig) -> PhaseConfig:
    """Return a part of the recipe as a phase."""
    return static_phase(settings) if isinstance(settings, StaticConfig) else settings


def make_plans(recipe: Recipe, inputs: TrainData) -> dict[str, BatchPlan]:
    """Decide which rows every step of every phase sees, in the order in which phases run."""
    return {
        name: make_plan(recipe, name, as_phase(settings), inputs.datasets)
        for name, settings in recipe.phases().items()
    }


def start_student(recipe: Recipe, *, weights: bool = True) -> Model:
    """Make the student as it is before the first step.

    `weights`: whether it gets its weights; without them it is the architecture alone, with
    everything checked that headers tell.
    """
    settings = recipe.student
    source = _initial(recipe)
    named = resolve(settings.tokenizer) if settings.tokenizer else source
    tokenizer = TextTokenizer.load(named)
    if settings.init == "config":
        assert settings.config is not None
        torch.manual_seed(torch_seed(recipe.seed))  # the weights are drawn here
        backbone = build_backbone(settings.config, device="cpu" if weights else "meta")
        pooling = settings.pooling
    else:
        trust = settings.trust_remote_code
        backbone = (
            load_backbone(source, trust_remote_code=trust)
            if weights
            else sketch(str(source), trust_remote_code=trust).backbone
        )
        pooling = settings.pooling or _pooling_of(source)
    if pooling is None:
        raise BadInput(
            "student.pooling is missing and the initial model names none; give last, mean or cls"
        )
    _end_texts(tokenizer, settings.end_token, pooling, named)
    without_dropout(backbone)
    shape_backbone(backbone, settings)
    if len(tokenizer) > backbone.config.vocab_size:
        raise BadInput(
            f"the tokenizer has {len(tokenizer)} ids, the backbone's token table "
            f"{backbone.config.vocab_size} rows; give its own tokenizer"
        )
    module = TransformerModel(backbone, pooling)
    if weights:
        stages = [phase for phase in recipe.phases().values() if isinstance(phase, Stage1Config)]
        module.check_training(table=not all(stage.freeze_embeddings for stage in stages))
    dims = matryoshka_dims(settings.matryoshka_dims, module.embedding_dim)
    facts = ModelSettings(
        prompts=dict(settings.prompts),
        max_length=settings.max_length,
        matryoshka_dims=dims,
        rope_theta=rope_theta(backbone),
    )
    return Model(
        module=module.eval(), tokenizer=tokenizer, settings=facts, name=recipe.name, source=named
    )


def shape_backbone(backbone: PreTrainedModel, settings: StudentConfig) -> None:
    """Keep the layers that a recipe names, at its RoPE theta; weights may be absent.

    Raises BadInput if the student would read more tokens than its backbone has positions for.
    """
    if settings.layers is not None:
        keep_layers(backbone, settings.layers)
    positions = longest_text(backbone, settings.max_length)
    if settings.max_length > positions:
        raise BadInput(
            f"student.max_length is {settings.max_length}, the backbone has positions for "
            f"{positions}; set it to that or less"
        )
    if settings.rope_theta is not None:
        set_rope_theta(backbone, settings.rope_theta)


def matryoshka_dims(dims: list[int], width: int) -> tuple[int, ...]:
    """Check the prefix sizes and add the full one."""
    if over := [dim for dim in dims if dim > width]:
        raise BadInput(
            f"student.matryoshka_dims names {over}, the student's vectors have {width} dimensions"
        )
    return tuple(sorted({*dims, width}))


def _initial(recipe: Recipe) -> Path:
    init = recipe.student.init
    if init == "teacher":
        if recipe.teacher.kind != "local":
            raise BadInput(
                f"student.init is `teacher`, but a {recipe.teacher.kind} teacher has no weights "
                "here; name a model folder or Hub id"
            )
        return resolve(recipe.teacher.model, recipe.teacher.revision)
    if init == "config":
        if recipe.student.tokenizer is None:
            raise BadInput(
                "student.init is `config`, so student.tokenizer must name a folder with a "
                "tokenizer.json"
            )
        return resolve(recipe.student.tokenizer)
    return resolve(init)


def _end_texts(tokenizer: TextTokenizer, token: str | None, pooling: Pooling, folder: Path) -> None:
    """Let last pooling find an end-of-sequence token.

    Bases such as Qwen3-0.6B-Base append none by themselves.
    """
    if token is None or (
        token == "auto" and (pooling is not Pooling.LAST or tokenizer.ends_texts())
    ):
        return
    if token != "auto" and tokenizer.ends_texts():
        raise BadInput(
            f"student.end_token is {token!r}, but the tokenizer of {folder} already ends every "
            "text with a special token; remove it"
        )
    text_end = end_token(folder) if token == "auto" else token
    if text_end is None:
        raise BadInput(
            f"student.pooling is last, but the tokenizer of {folder} ends no text with a special "
            "token and names no end-of-sequence token; "
            "name one as student.end_token, or set it to null to pool the last token of the "
            "text itself"
        )
    tokenizer.end_with(text_end)


def _pooling_of(source: Path) -> Pooling | None:
    """Read the pooling of a sentence-transformers folder; None of a bare backbone."""
    if not (source / "modules.json").is_file():
        return None
    module = read_model(source).module
    return module.pooling if isinstance(module, TransformerModel) else None
