"""The model card: a model folder's README.md, from the recipe, the manifest and the scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from taskdistill.model.model import Model
from taskdistill.recipe.data import SourceConfig
from taskdistill.recipe.recipe import Recipe
from taskdistill.tasks import TASKS, Task

UNKNOWN = "not stated"


@dataclass(frozen=True, kw_only=True)
class CardScore:
    """One model on one set, with the command that gives the score."""

    set: str
    task: str | None
    """The adapter; None for the base."""
    metric: str
    score: float
    interval: tuple[float, float]
    teacher: float | None
    """The teacher's score, where it was measured."""
    language: str | None
    command: str


@dataclass(frozen=True, kw_only=True)
class CardRun:
    """The run that a model comes from."""

    recipe: Recipe
    command: str
    base_model: str | None
    """What the student started from; None for a new or static model."""
    base_licence: str | None
    teacher_licence: str | None
    rows: Mapping[str, int]
    """Source to its rows, of the sources that were read."""
    languages: Mapping[str, Sequence[str]]
    """Source to its languages."""
    hashes: Mapping[str, str]
    versions: Mapping[str, str]
    warnings: Sequence[str] = ()
    """What a user of the model must know of its training."""
    scores: Sequence[CardScore] = ()

    def sources(self) -> dict[str, SourceConfig]:
        """Return the sources that were read."""
        return {
            name: config for name, config in self.recipe.data.sources.items() if name in self.rows
        }

    def spoken(self) -> list[str]:
        """Return the languages of all sources."""
        return sorted({language for each in self.languages.values() for language in each})


def make_card(model: Model, tasks: Sequence[str], run: CardRun | None = None) -> str:
    """Write a model card. `tasks`: its adapters. `run`: None for a model not trained here."""
    spoken = [] if run is None else run.spoken()
    parts = [
        _header(model.name, run),
        f"# {model.name}",
        _summary(model, tasks, spoken),
        _usage(model, tasks),
        _scores([] if run is None else run.scores),
        *([] if run is None else [_training(run), _data(run)]),
        _licences(model, run),
        _limits(model, run),
        *([] if run is None else [f"Made with {_listed(run.versions.items(), '{} {}')}."]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(name: str, run: CardRun | None) -> str:
    fields: dict[str, str | list[str]] = {
        "model_name": name,
        "library_name": "sentence-transformers",
        "pipeline_tag": "feature-extraction",
        "tags": ["sentence-transformers", "embeddings", "distillation", "lora", "matryoshka"],
        "license": (run.recipe.licence if run else None) or "other",
    }
    if run is not None:
        if run.base_model and "/" in run.base_model:
            fields["base_model"] = run.base_model
        if spoken := run.spoken():
            fields["language"] = spoken
        paths = [config.path for config in run.sources().values()]
        if hub := sorted({path.removeprefix("hub:") for path in paths if path.startswith("hub:")}):
            fields["datasets"] = hub
    return "---\n" + yaml.safe_dump(fields, sort_keys=False, allow_unicode=True) + "---"


def _summary(model: Model, tasks: Sequence[str], spoken: Sequence[str]) -> str:
    settings = model.settings
    teacher = settings.teacher.get("model")
    source = f" distilled from {teacher}" if teacher else ""
    adapters = f", with a LoRA adapter for {_and(tasks)}" if tasks else ""
    dims = ", ".join(map(str, settings.matryoshka_dims)) or UNKNOWN
    parameters = sum(
        p.numel() for name, p in model.module.named_parameters() if "lora_" not in name
    )
    lines = [
        f"A text-embedding model{source}{adapters}.",
        "",
        "| | |",
        "|---|---|",
        f"| vector | {model.module.embedding_dim} numbers; prefixes trained for: {dims} |",
        (
            f"| longest text | {settings.max_length} tokens; what is longer is cut,"
            " counted and reported |"
        ),
        f"| prompts | {_listed(settings.prompts.items(), '{} `{}`') or 'none'} |",
    ]
    if parameters:
        lines.append(f"| parameters | {parameters:,} without adapters |")
    if settings.rope_theta:
        lines.append(f"| RoPE theta at inference | {settings.rope_theta:,.0f} |")
    lines.append(f"| languages in the training data | {', '.join(spoken) or UNKNOWN} |")
    return "\n".join(lines)


def _usage(model: Model, tasks: Sequence[str]) -> str:
    task = f', task="{tasks[0]}"' if tasks else ""
    prompt = ', prompt_name="query"' if "query" in model.settings.prompts else ""
    lines = [
        "## Use",
        "```python",
        "from taskdistill import Encoder",
        f'encoder = Encoder.load("{model.name}")',
        f'vectors = encoder.encode(["a text"]{task}{prompt})',
        "```",
        "`SentenceTransformer(folder)` loads the same folder without this package and gives the"
        " base vectors"
        + ("; `load_adapter(folder + '/adapters/<task>')` adds a task." if tasks else "."),
    ]
    if known := [Task(task) for task in tasks if task in TASKS]:
        lines += ["", "| adapter | first side | other side | for |", "|---|---|---|---|"]
        lines += [
            f"| {task} | {TASKS[task].query_role} | {TASKS[task].other_side} | {TASKS[task].use} |"
            for task in known
        ]
    return "\n".join(lines)


def _scores(scores: Sequence[CardScore]) -> str:
    if not scores:
        return "## Scores\nNone were measured."
    commands = list(dict.fromkeys(row.command for row in scores))
    lines = [
        "## Scores",
        "All x 100. Retention is this model's score as a share of its teacher's.",
        "",
        "| set | language | adapter | metric | score | teacher | retention | command |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in scores:
        low, high = row.interval
        cells = [
            row.set,
            row.language or "-",
            row.task or "base",
            row.metric,
            f"{100 * row.score:.2f} ({100 * low:.2f} to {100 * high:.2f})",
            f"{100 * row.teacher:.2f}" if row.teacher is not None else "-",
            f"{row.score / row.teacher:.1%}" if row.teacher else "-",
            str(commands.index(row.command) + 1),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "In brackets: 95 % bootstrap intervals.", "", "Commands:"]
    return "\n".join([*lines, *(f"{i}. `{each}`" for i, each in enumerate(commands, 1))])


def _training(run: CardRun) -> str:
    recipe = run.recipe
    lines = [
        "## Recipe",
        f"Recipe `{recipe.name}`, seed {recipe.seed}.",
        "",
        "| phase | steps | rows a step | tokens | learning rate | RoPE theta | losses |",
        "|---|---|---|---|---|---|---|",
    ]
    if recipe.static and not recipe.stage1:
        static = recipe.static
        lines.append(
            f"| static | {static.steps:,} | {static.batch_size} | - | {static.lr:g} | - |"
            f" {_listed(static.weights.items(), '{} {:g}')} |"
        )
    for phase, config in (
        ("stage1", recipe.stage1),
        ("long", recipe.long),
        *sorted(recipe.adapters.items()),
    ):
        if config is not None:
            theta = f"{config.rope_theta:,.0f}" if config.rope_theta else "-"
            losses = _listed(config.weights.items(), "{} {:g}") or "as in the paper"
            lines.append(
                f"| {phase} | {config.steps:,} | {config.batch_size} | {config.max_length} |"
                f" {config.lr:g} | {theta} | {losses} |"
            )
    if instructions := recipe.teacher.instructions:
        texts = {name: getattr(instructions, name) for name in ("query", "document", "topic")}
        if named := {name: text for name, text in texts.items() if text}:
            lines += [
                "",
                (
                    "The teacher reads texts under instructions: "
                    f"{_listed(named.items(), '{} `{}`')}; other texts as they are."
                ),
            ]
    lines += ["", "Made with:", "```", run.command, "```"]
    return "\n".join([*lines, "", f"Hashes: {_listed(run.hashes.items(), '{} `{}`')}."])


def _data(run: CardRun) -> str:
    lines = [
        "## Data",
        "| source | kind | rows | languages | licence | what it is |",
        "|---|---|---|---|---|---|",
    ]
    for name, config in run.sources().items():
        path = Path(config.path)
        cells = [
            f"{name}: {path.name if path.is_absolute() else config.path}",  # no local path
            config.kind,
            f"{run.rows[name]:,}",
            ", ".join(run.languages.get(name, ())) or UNKNOWN,
            config.licence or UNKNOWN,
            config.note or "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) if run.sources() else ""


def _licences(model: Model, run: CardRun | None) -> str:
    licence = run.recipe.licence if run else None
    lines = ["## Licences", f"- this model: {licence or 'not stated; those below bind it'}"]
    if run and run.base_model:
        lines.append(f"- started from {run.base_model}: {run.base_licence or UNKNOWN}")
    if teacher := model.settings.teacher.get("model"):
        lines.append(f"- teacher {teacher}: {(run and run.teacher_licence) or UNKNOWN}")
    for name, config in run.sources().items() if run else ():
        lines.append(f"- data {name}: {config.licence or UNKNOWN}")
    return "\n".join(lines)


def _limits(model: Model, run: CardRun | None) -> str:
    lines = [
        "## Limits",
        "- Vectors of different models, tasks or prompts are not comparable with one another.",
        (
            "- The model learned its teacher's judgement, faults included, and what the teacher may"
            " have seen of public test sets; nothing was "
            "done about bias in either."
        ),
        "- Scores hold for the sets named above only.",
    ]
    if run is None:
        return "\n".join(lines)
    lines += [f"- {warning[0].upper()}{warning[1:]}." for warning in run.warnings]
    recipe, longest = run.recipe, model.settings.max_length
    phases = [each for each in (recipe.stage1, recipe.long, *recipe.adapters.values()) if each]
    if phases and longest > (trained := max(each.max_length for each in phases)):
        lines.append(
            f"- It was trained on texts of at most {trained} tokens; what it does with"
            f" {longest} was not trained."
        )
    if spoken := run.spoken():
        lines.append(
            f"- Languages other than {', '.join(spoken)} were not in its training data by name."
        )
    return "\n".join(lines)


def _listed(fields: Iterable[tuple[str, object]], form: str) -> str:
    return ", ".join(form.format(*each) for each in fields)


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
