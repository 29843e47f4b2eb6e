"""How many rows a recipe's sources have and how long their texts are.

Read where they are files, declared where they are on the Hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from taskdistill.data.sources import HUB, load_source
from taskdistill.errors import BadInput, did_you_mean
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.progress import Progress
from taskdistill.recipe.data import SourceConfig
from taskdistill.recipe.recipe import Recipe
from taskdistill.types import RowKind

FIELDS: Mapping[RowKind, tuple[str, ...]] = {
    RowKind.PAIRS: ("query", "positive"),
    RowKind.SCORED: ("text1", "text2"),
    RowKind.LABELLED: ("text",),
    RowKind.TEXTS: ("text",),
}
"""Kind of rows to the texts of one."""

SAMPLE = 2000
"""Rows of a source whose texts are tokenized."""

BYTES_PER_TOKEN = 4
"""Where no tokenizer is at hand; of English text in usual vocabularies."""

ANY_LENGTH = 1 << 30
"""Tokens of a text of which nothing is declared: it is counted as long as the phase reads."""


@dataclass(frozen=True)
class SourceSize:
    """What a plan knows of a source."""

    rows: int
    tokens: Mapping[str, float]
    """Field to its mean tokens."""
    origin: str
    """Where this is from."""


def used_sources(recipe: Recipe) -> list[str]:
    """List the sources that some phase draws from."""
    return list(
        dict.fromkeys(
            name
            for phase in recipe.phases().values()
            for name, weight in phase.sources.items()
            if weight > 0
        )
    )


def source_sizes(
    recipe: Recipe, root: Path, tokenizer: TextTokenizer | None, progress: Progress
) -> dict[str, SourceSize]:
    """Size every source that some phase uses."""
    sizes, missing = {}, []
    for name in used_sources(recipe):
        source = recipe.data.sources[name]
        if not source.path.startswith(HUB):
            sizes[name] = _measure(recipe, root, name, tokenizer)
        elif source.rows is None:
            missing.append(name)
        else:
            sizes[name] = _declared(name, source, source.rows)
    if missing:
        raise BadInput(
            "plan does not read data of the Hub, and the recipe does not state how many rows "
            "these "
            f"have: {', '.join(missing)}; add rows (and tokens) to data.sources.{missing[0]} and "
            "the others, or copy the data into files"
        )
    for name, size in sizes.items():
        progress.note(f"{name}: {size.rows:,} rows, {size.origin}")
    return sizes


def _declared(name: str, source: SourceConfig, rows: int) -> SourceSize:
    fields, tokens = FIELDS[source.kind], source.tokens or {}
    if unknown := [field for field in tokens if field not in (*fields, "negatives")]:
        raise BadInput(
            f"data.sources.{name}.tokens names {unknown}, no field of {source.kind} rows"
            f"{did_you_mean(unknown[0], fields)}"
        )
    declared = {field: float(tokens.get(field, ANY_LENGTH)) for field in fields}
    declared["negatives"] = float(tokens.get("negatives", declared[fields[-1]]))
    origin = "rows stated in the recipe; every text counted as longest"
    if source.tokens:
        origin = "stated in the recipe"
    return SourceSize(min(rows, source.limit or rows), declared, origin)


def _measure(recipe: Recipe, root: Path, name: str, tokenizer: TextTokenizer | None) -> SourceSize:
    source = recipe.data.sources[name]
    dataset = load_source(root, name, source, max_bad=recipe.data.max_bad, seed=recipe.seed)
    rows = dataset.rows[:: max(1, len(dataset.rows) // SAMPLE)]
    texts: dict[str, list[str]] = {
        field: [getattr(row, field) for row in rows] for field in FIELDS[source.kind]
    }
    negatives = [text for row in rows for text in getattr(row, "negatives", ())]
    texts["negatives"] = negatives or texts[FIELDS[source.kind][-1]]
    means = {field: _mean_tokens(each, tokenizer) for field, each in texts.items()}
    return SourceSize(len(dataset.rows), means, "read")


def _mean_tokens(texts: list[str], tokenizer: TextTokenizer | None) -> float:
    if tokenizer is None:
        return sum(len(text.encode()) for text in texts) / BYTES_PER_TOKEN / len(texts)
    ids = tokenizer.ids(texts, prompt="", max_length=1 << 20).ids
    return sum(map(len, ids)) / len(ids)
