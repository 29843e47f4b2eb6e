"""The model card: a model folder's README.md, from the recipe, the manifest and the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from taskdistill.tasks import TASKS, Task

UNKNOWN = "not stated"


def make_card(
    *,
    name: str,
    settings: Mapping[str, Any],
    tasks: Sequence[str],
    embedding_dim: int,
    recipe: Mapping[str, Any] | None = None,
    scores: Sequence[Mapping[str, Any]] = (),
    base_model: str | None = None,
    base_licence: str | None = None,
    teacher_licence: str | None = None,
    licence: str | None = None,
    parameters: int | None = None,
    command: str | None = None,
    rows: Mapping[str, int] | None = None,
    languages: Mapping[str, Sequence[str]] | None = None,
    hashes: Mapping[str, str] | None = None,
    versions: Mapping[str, str] | None = None,
    warnings: Sequence[str] = (),
) -> str:
    """Write a model card.

    `recipe`: the recipe as plain data, with every default; None for a model not trained here.
    `scores`: rows with `set`, `task` (None for the base), `metric`, `score` (0 to 1), `interval`
    (or none), `teacher` (its score, or None), `language` (or None) and `command`. `licence`:
    licence of this model; None says that it is not stated and which licences bind it. `languages`:
    source to its languages; None takes those that the recipe states. `warnings`: what a user of the
    model must know of its training.
    """
    spoken = _languages(recipe, languages)
    parts = [
        _header(name, recipe, base_model, licence, spoken),
        f"# {name}",
        _summary(settings, tasks, embedding_dim, parameters, spoken),
        _usage(name, tasks, settings),
        _scores(scores),
        _training(recipe, command, hashes),
        _data(recipe, rows, languages),
        _licences(recipe, settings, licence, base_model, base_licence, teacher_licence),
        _limits(settings, recipe, spoken, warnings),
        _versions(versions),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(
    name: str,
    recipe: Mapping[str, Any] | None,
    base_model: str | None,
    licence: str | None,
    languages: Sequence[str],
) -> str:
    fields: dict[str, Any] = {
        "model_name": name,
        "library_name": "sentence-transformers",
        "pipeline_tag": "feature-extraction",
        "tags": ["sentence-transformers", "embeddings", "distillation", "lora", "matryoshka"],
        "license": licence or "other",
    }
    if base_model and "/" in base_model:
        fields["base_model"] = base_model
    if languages:
        fields["language"] = list(languages)
    if hub := sorted(
        {path.removeprefix("hub:") for path in _paths(recipe) if path.startswith("hub:")}
    ):
        fields["datasets"] = hub
    return "---\n" + yaml.safe_dump(fields, sort_keys=False, allow_unicode=True) + "---"


def _summary(
    settings: Mapping[str, Any],
    tasks: Sequence[str],
    dim: int,
    parameters: int | None,
    languages: Sequence[str],
) -> str:
    teacher = (settings.get("teacher") or {}).get("model")
    source = f" distilled from {teacher}" if teacher else ""
    adapters = f", with a LoRA adapter for {_and(tasks)}" if tasks else ""
    lines = [
        f"A text-embedding model{source}{adapters}.",
        "",
        "| | |",
        "|---|---|",
        (
            f"| vector | {dim} numbers; prefixes trained for:"
            f" {_numbers(settings.get('matryoshka_dims'))} |"
        ),
        (
            f"| longest text | {settings.get('max_length', UNKNOWN)} tokens; what is longer is cut,"
            " counted and reported |"
        ),
        f"| prompts | {_prompts(settings)} |",
    ]
    if parameters:
        lines.append(f"| parameters | {parameters:,} without adapters |")
    if settings.get("rope_theta"):
        lines.append(f"| RoPE theta at inference | {settings['rope_theta']:,.0f} |")
    lines.append(f"| languages in the training data | {', '.join(languages) or UNKNOWN} |")
    return "\n".join(lines)


def _usage(name: str, tasks: Sequence[str], settings: Mapping[str, Any]) -> str:
    task = f', task="{tasks[0]}"' if tasks else ""
    prompt = ', prompt_name="query"' if "query" in (settings.get("prompts") or {}) else ""
    lines = [
        "## Use",
        "```python",
        "from taskdistill import Encoder",
        f'encoder = Encoder.load("{name}")',
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


def _scores(scores: Sequence[Mapping[str, Any]]) -> str:
    if not scores:
        return "## Scores\nNone were measured."
    lines = [
        "## Scores",
        "All x 100. Retention is this model's score as a share of its teacher's.",
        "",
    ]
    lines += [
        "| set | language | adapter | metric | score | teacher | retention | command |",
        "|---|---|---|---|---|---|---|---|",
    ]
    commands = list(dict.fromkeys(str(row["command"]) for row in scores if row.get("command")))
    for row in scores:
        teacher = row.get("teacher")
        share = f"{row['score'] / teacher:.1%}" if teacher else "-"
        teacher_cell = f"{100 * teacher:.2f}" if teacher is not None else "-"
        number = commands.index(str(row["command"])) + 1 if row.get("command") else "-"
        cell = f"{100 * row['score']:.2f}" + (
            " ({:.2f} to {:.2f})".format(*(100 * x for x in row["interval"]))
            if row.get("interval")
            else ""
        )
        cells = [
            row["set"],
            row.get("language") or "-",
            row.get("task") or "base",
            row["metric"],
            cell,
            teacher_cell,
            share,
            number,
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    if any(row.get("interval") for row in scores):
        lines += ["", "In brackets: 95 % bootstrap intervals."]
    return (
        "\n".join(
            [*lines, "", "Commands:", *(f"{i}. `{each}`" for i, each in enumerate(commands, 1))]
        )
        if commands
        else "\n".join(lines)
    )


def _training(
    recipe: Mapping[str, Any] | None, command: str | None, hashes: Mapping[str, str] | None
) -> str:
    if recipe is None:
        return ""
    static = ("static", None if recipe.get("stage1") else recipe.get("static"))
    phases = [
        static,
        ("stage1", recipe.get("stage1")),
        ("long", recipe.get("long")),
        *sorted((recipe.get("adapters") or {}).items()),
    ]
    lines = ["## Recipe", f"Recipe `{recipe['name']}`, seed {recipe.get('seed')}.", ""]
    lines += [
        "| phase | steps | rows a step | tokens | learning rate | RoPE theta | losses |",
        "|---|---|---|---|---|---|---|",
    ]
    for phase, config in phases:
        if not config:
            continue
        losses = (
            ", ".join(
                f"{term} {weight:g}" for term, weight in (config.get("weights") or {}).items()
            )
            or "as in the paper"
        )
        theta = f"{config['rope_theta']:,.0f}" if config.get("rope_theta") else "-"
        lines.append(
            f"| {phase} | {config['steps']:,} | {config['batch_size']} |"
            f" {config.get('max_length') or '-'} | {config['lr']:g} | {theta} | {losses} |"
        )
    instructions = (recipe.get("teacher") or {}).get("instructions") or {}
    if config := [
        f"{name} `{instructions[name]}`"
        for name in ("query", "document", "topic")
        if instructions.get(name)
    ]:
        lines += [
            "",
            (
                f"The teacher reads texts under instructions: {', '.join(config)}; other texts as"
                " they are."
            ),
        ]
    if command:
        lines += ["", "Made with:", "```", command, "```"]
    if hashes:
        lines += [
            "",
            f"Hashes: {', '.join(f'{what} `{value}`' for what, value in hashes.items())}.",
        ]
    return "\n".join(lines)


def _data(
    recipe: Mapping[str, Any] | None,
    rows: Mapping[str, int] | None,
    languages: Mapping[str, Sequence[str]] | None,
) -> str:
    sources = ((recipe or {}).get("data") or {}).get("sources") or {}
    if not sources:
        return ""
    lines = [
        "## Data",
        "| source | kind | rows | languages | licence | what it is |",
        "|---|---|---|---|---|---|",
    ]
    for name, config in sources.items():
        spoken = (
            ", ".join(
                ((languages or {}).get(name) or [])
                if languages is not None
                else (config.get("languages") or [])
            )
            or UNKNOWN
        )
        count = f"{rows[name]:,}" if rows and name in rows else "-"
        cells = [
            f"{name}: {config['path']}",
            config["kind"],
            count,
            spoken,
            config.get("licence") or UNKNOWN,
            config.get("note") or "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _licences(
    recipe: Mapping[str, Any] | None,
    settings: Mapping[str, Any],
    licence: str | None,
    base_model: str | None,
    base_licence: str | None,
    teacher_licence: str | None,
) -> str:
    teacher = (settings.get("teacher") or {}).get("model")
    lines = ["## Licences", f"- this model: {licence or 'not stated; those below bind it'}"]
    if base_model:
        lines.append(f"- started from {base_model}: {base_licence or UNKNOWN}")
    if teacher:
        lines.append(f"- teacher {teacher}: {teacher_licence or UNKNOWN}")
    for name, config in (((recipe or {}).get("data") or {}).get("sources") or {}).items():
        lines.append(f"- data {name}: {config.get('licence') or UNKNOWN}")
    return "\n".join(lines)


def _limits(
    settings: Mapping[str, Any],
    recipe: Mapping[str, Any] | None,
    languages: Sequence[str],
    warnings: Sequence[str],
) -> str:
    trained = [config["max_length"] for config in _phases(recipe)]
    lines = [
        "## Limits",
        "- Vectors of different models, tasks or prompts are not comparable with one another.",
        (
            "- The model learned its teacher's judgement, faults included, and what the teacher may"
            " have seen of public test sets; nothing was "
            "done about bias in either."
        ),
        "- Scores hold for the sets named above only.",
        *(f"- {warning[0].upper()}{warning[1:]}." for warning in warnings),
    ]
    if trained and settings.get("max_length", 0) > max(trained):
        lines.append(
            f"- It was trained on texts of at most {max(trained)} tokens; what it does with"
            f" {settings['max_length']} was not trained."
        )
    if languages:
        lines.append(
            f"- Languages other than {', '.join(languages)} were not in its training data by name."
        )
    return "\n".join(lines)


def _versions(versions: Mapping[str, str] | None) -> str:
    return (
        f"Made with {', '.join(f'{name} {number}' for name, number in versions.items())}."
        if versions
        else ""
    )


def _phases(recipe: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    fields = recipe or {}
    return [
        phase
        for phase in (
            fields.get("stage1"),
            fields.get("long"),
            *(fields.get("adapters") or {}).values(),
        )
        if phase
    ]


def _paths(recipe: Mapping[str, Any] | None) -> list[str]:
    return [
        config["path"]
        for config in (((recipe or {}).get("data") or {}).get("sources") or {}).values()
    ]


def _languages(
    recipe: Mapping[str, Any] | None, languages: Mapping[str, Sequence[str]] | None
) -> list[str]:
    if languages is not None:
        return sorted({language for each in languages.values() for language in each})
    sources = (((recipe or {}).get("data") or {}).get("sources") or {}).values()
    return sorted({language for config in sources for language in config.get("languages") or []})


def _prompts(settings: Mapping[str, Any]) -> str:
    return (
        ", ".join(f"{name} `{text}`" for name, text in (settings.get("prompts") or {}).items())
        or "none"
    )


def _numbers(values: Any) -> str:
    return ", ".join(map(str, values or [])) or UNKNOWN


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
