"""The report's part on languages: each by itself, and pools searched crosswise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from taskdistill.evaluate.languages import (
    PooledScores,
    name_and_language,
)
from taskdistill.evaluate.records import ModelScore, Results
from taskdistill.report.tables import Section, Table, Value


def language_section(results: Results) -> Section | None:
    """Make the part; None where no set has or is one of several languages."""
    tables = [*single_tables(results), *pool_tables(results)]
    if not tables:
        return None
    intro = (
        "A pool holds the corpora of all languages together: results in the query's own"
        " language, against results that are right "
        "in whatever language, tell whether a model prefers a language to a meaning."
        if results.get("pools")
        else ""
    )
    return Section("Languages", intro, tables)


def single_tables(results: Results) -> list[Table]:
    """Return the scores of each language by itself, a row a language and a column a model.

    There is a table for each set of several languages, and for each group of sets that differ in
    their language only.
    """
    scores = results["scores"]
    names = [each["name"] for each in results.get("sets", ())]
    result = []
    for title, cells in _groups(scores, names).items():
        languages = list(dict.fromkeys(language for each in cells.values() for language in each))
        if len(languages) < 2:
            continue
        rows: list[list[Value]] = [
            [language, *(cells[model].get(language) for model in scores)] for language in languages
        ]
        means: list[Value] = [
            "mean",
            *(sum(each.values()) / len(each) if each else None for each in cells.values()),
        ]
        metric = next(
            record["metric"]
            for each in scores.values()
            for name, record in each.items()
            if name.startswith(title)
        )
        result.append(
            Table(
                title=f"{title} by language",
                columns=["language", *scores],
                rows=[*rows, means],
                note=f"{metric} × 100.",
                totals=1,
            )
        )
    return result


def pool_tables(results: Results) -> list[Table]:
    """Return the tables of each pool and model: what searching several languages together gives."""
    result = []
    for model, by_family in results.get("pools", {}).items():
        for family, members in by_family.items():
            for table in language_tables(PooledScores.from_json(members)):
                result.append(
                    Table(
                        title=f"{family}, {model}: {table.title[0].lower()}{table.title[1:]}",
                        columns=table.columns,
                        rows=table.rows,
                        note=table.note,
                    )
                )
    return result


def _groups(
    scores: Mapping[str, Mapping[str, ModelScore]], names: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """Group scores by all but their language: group to model to language to score."""
    groups: dict[str, dict[str, dict[str, float]]] = {}

    def add(group: str, model: str, language: str, score: float) -> None:
        groups.setdefault(group, {each: {} for each in scores})[model][language] = score

    for name in names:
        family, language = name_and_language(name)
        for model, records in scores.items():
            if name not in records:
                continue
            for each, score in records[name]["by_language"].items():
                add(name, model, each, score)
            if language:
                add(family, model, language, records[name]["score"])
    return groups


def language_tables(pooled: PooledScores) -> list[Table]:
    """Return what the report shows of a pool: scores by query language, then crosswise.

    The second is there only where texts are parallel.
    """
    columns = [
        "query language",
        "queries",
        "own corpus",
        "all corpora",
        "any language counts",
        "results in own language",
        "first hit in own language",
    ]
    rows: list[list[Value]] = [
        [
            language,
            s.queries,
            s.same_language,
            s.pooled,
            s.any_language,
            s.same_language_share,
            s.same_language_first,
        ]
        for language, s in pooled.by_language.items()
    ]
    tables = [
        Table(
            title="By query language",
            columns=columns,
            rows=rows,
            note="nDCG@10 × 100, and shares in %.",
        )
    ]
    if pooled.cross:
        crossed: list[list[Value]] = [
            [language, *scores.values()] for language, scores in pooled.cross.items()
        ]
        note = "nDCG@10 × 100: queries of the row's language on the corpus of the column's."
        tables.append(
            Table(
                title="Across languages",
                columns=["queries", *pooled.cross],
                rows=crossed,
                note=note,
            )
        )
    return tables
