"""Rows of every kind from documented objects: search pairs, matching pairs, graded pairs, labels
and lone texts.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from taskdistill.data.dedup import exact_key, repeats_within
from taskdistill.data.rows import LabeledText, Pair, ScoredPair, Text
from taskdistill.demo.docstrings import Doc
from taskdistill.demo.prose import cut
from taskdistill.seeding import hash_unit

SHORT = 300
"""Characters of the short form of a docstring, for matching, labels and grades."""
NAME_SHARE = 0.5
"""Share of the documents with a telling name that are also asked for by it."""
NAME_SHARE_EVALUATION = 0.25
COMMON_NAME = 20
"""A last name that more documents than these carry (forward, fit) does not tell which one is meant.
"""
MIN_QUERY_WORDS = 4
MAX_QUERY = 200
LANG = "en"

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`'\"])")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class DocQuery(NamedTuple):
    """A query, the document that answers it, and whether it is a name rather than a summary."""

    text: str
    doc: Doc
    by_name: bool


def short(doc: Doc) -> str:
    """Return the beginning of a docstring in one line.

    Returns summary and body, joined and cut at `SHORT` characters.
    """
    return cut(" ".join(doc.text.split()), SHORT)


def name_query(doc: Doc) -> str:
    """Return what a person might type to find an object by its name.

    Returns either the dotted name without private parts, or the words of package and name in lower
    case; a hash of the name decides.
    """
    modules = [part for part in doc.module.split(".") if not part.startswith("_")]
    dotted = ".".join([*modules, doc.name] if doc.name else modules)
    if hash_unit(f"{doc.module}.{doc.name}:form") < 0.5:
        return dotted
    return " ".join([doc.package, *_words(doc.name)]).lower()


def _words(name: str) -> list[str]:
    return _CAMEL.sub(" ", name.replace("_", " ").replace(".", " ")).split()


def queries(docs: Sequence[Doc], name_share: float) -> list[DocQuery]:
    """Ask for every document with a body by its summary, and for some by name.

    A summary asks with its first sentence. One that stands over several bodies asks for none of
    them; a name asks only if it is public, its last part is rare, and one of its words stands in
    the body. `name_share`: share of the objects with a telling name that are asked for by it.
    Returns queries in the order of the documents.
    """
    with_body = [doc for doc in docs if doc.body]
    summaries = Counter(exact_key(_question(doc.summary)) for doc in with_body if doc.summary)
    names = Counter(_last(doc) for doc in docs)
    result: list[DocQuery] = []
    for doc in with_body:
        if doc.summary and summaries[exact_key(_question(doc.summary))] == 1:
            result.append(DocQuery(_question(doc.summary), doc, False))
        if _is_telling(doc, names) and hash_unit(f"{doc.module}.{doc.name}:by name") < name_share:
            result.append(DocQuery(name_query(doc), doc, True))
    return result


def _question(summary: str) -> str:
    """Keep what a person would type: the first sentence, without its full stop."""
    sentences = _SENTENCE_END.split(summary)
    text = sentences[0] if len(sentences[0].split()) >= MIN_QUERY_WORDS else summary
    return cut(text, MAX_QUERY).rstrip(" .:")


def _last(doc: Doc) -> str:
    return (doc.name or doc.module).rpartition(".")[2]


def _is_telling(doc: Doc, names: Mapping[str, int]) -> bool:
    if doc.kind == "module" or any(
        part.startswith("_") for part in (doc.package, *doc.name.split("."))
    ):
        return False
    if len(_last(doc)) <= 3 or names[_last(doc)] > COMMON_NAME:
        return False
    body = doc.body.casefold()
    return any(len(word) > 3 and word.casefold() in body for word in _words(doc.name))


def search_pairs(docs: Sequence[Doc]) -> list[Pair]:
    """Make (query, body) rows. Returns one row a query; no two have the same query."""
    rows = {
        exact_key(query.text): Pair(query.text, query.doc.body, (), LANG)
        for query in queries(docs, NAME_SHARE)
    }
    return list(rows.values())


def matching_pairs(pairs: Sequence[tuple[Doc, Doc]], limit: int) -> list[Pair]:
    """Make rows of one object documented in two places.

    `limit`: most rows; a hash of the names decides which.
    """
    return [
        Pair(short(first), short(second), (), LANG) for first, second in _sample_pairs(pairs, limit)
    ]


def graded_pairs(
    docs: Sequence[Doc], pairs: Sequence[tuple[Doc, Doc]], limit: int
) -> list[ScoredPair]:
    """Make an STS-like set whose grades follow from where docstrings stand; the grades are ours, no
    person gave them.

    1: one object documented in two places. 0.5: two objects of one class or module. 0: objects of
    two packages. `pairs`: pairs of grade 1. `limit`: most rows; a third has each grade.
    """
    chosen = _sample_pairs(pairs, limit // 3)
    rows = [ScoredPair(short(first), short(second), 1.0, LANG) for first, second in chosen]
    places: dict[str, list[Doc]] = defaultdict(list)
    candidates = sorted((doc for doc in docs if doc.summary and doc.kind != "module"), key=_hash)
    for doc in candidates:
        places[f"{doc.module}.{doc.name.rpartition('.')[0]}"].append(doc)
    near = [
        tuple(members[:2])
        for members in places.values()
        if len(members) > 1 and not repeats_within([short(m) for m in members[:2]])[1]
    ]
    rows += [
        ScoredPair(short(first), short(second), 0.5, LANG) for first, second in near[: len(chosen)]
    ]
    half = len(candidates) // 2
    far = [
        (first, second)
        for first, second in zip(candidates[:half], candidates[half:], strict=False)
        if first.package != second.package
    ]
    rows += [
        ScoredPair(short(first), short(second), 0.0, LANG) for first, second in far[: len(chosen)]
    ]
    return rows


def labelled_rows(docs: Sequence[Doc], packages: Sequence[str], limit: int) -> list[LabeledText]:
    """Label docstrings by their package.

    `limit`: most rows of one label; a hash of the names decides which.
    """
    taken: Counter[str] = Counter()
    rows: list[LabeledText] = []
    texts_seen: set[str] = set()
    requested = set(packages)
    for doc in sorted(docs, key=_hash):
        key = exact_key(short(doc))
        if (
            doc.package in requested
            and doc.summary
            and taken[doc.package] < limit
            and key not in texts_seen
        ):
            taken[doc.package] += 1
            texts_seen.add(key)
            rows.append(LabeledText(short(doc), doc.package, LANG))
    return rows


def lone_texts(docs: Sequence[Doc]) -> list[Text]:
    """Return the docstrings that are not split into a query and a body.

    Returns one text for every object that has only a summary or only a body.
    """
    rows = {
        exact_key(doc.text): Text(doc.text, LANG) for doc in docs if not (doc.summary and doc.body)
    }
    return list(rows.values())


def _hash(doc: Doc) -> float:
    return hash_unit(f"{doc.module}.{doc.name}")


def _sample_pairs(pairs: Sequence[tuple[Doc, Doc]], limit: int) -> list[tuple[Doc, Doc]]:
    return sorted(pairs, key=lambda pair: _hash(pair[0]))[:limit]
