"""Which documented objects train and which are held out: whole modules apart, and no text that
crosses the line.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from taskdistill.data.dedup import exact_key, repeats_within, share_of_runs, word_runs, words_of
from taskdistill.demo.docstrings import Doc
from taskdistill.seeding import hash_unit

TEST_SHARE = 1 / 6
DEV_SHARE = 1 / 20
SAME_NAME = 6
"""A name that more objects than these carry says nothing; their docstrings are not paired."""

_EVERYWHERE_LIST = (
    "args with that this from returns return parameters parameter optional default given when"
    " whether none true false type object"
)
EVERYWHERE = frozenset(_EVERYWHERE_LIST.split())
"""Words that two docstrings share without speaking of the same thing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DocSplit:
    """Documented objects by split, pairs of objects that are one thing documented twice, and how
    many were dropped and why.
    """

    train: list[Doc]
    dev: list[Doc]
    test: list[Doc]
    same: dict[str, list[tuple[Doc, Doc]]]
    counts: dict[str, int]


def split_docs(docs: Sequence[Doc]) -> DocSplit:
    """Split documented objects by module.

    A module's split follows from a hash of its dotted name (test 1/6, dev 1/20 of the modules). A
    pair of one object in two places is held out when one of its sides lies in a held-out module;
    its other side is then taken out of training too. An object is dropped from training (or dev) if
    its summary, its body or both together have the same words as a text of a held-out object, or
    share a run of 13 words with one.
    """
    distinct = _distinct(docs)
    modules = {doc.module: _split_of(doc.module) for doc in distinct}
    members: dict[str, list[Doc]] = defaultdict(list)
    same: dict[str, list[tuple[Doc, Doc]]] = {"train": [], "dev": [], "test": []}
    moved: dict[Doc, str] = {}
    for first, second in same_object(distinct):
        name = _held_out(modules[first.module], modules[second.module])
        for doc in (first, second):
            if name != modules[doc.module]:
                moved[doc] = _held_out(moved.get(doc, "train"), name)
        same[name].append((first, second))
    for doc in distinct:
        members[_held_out(modules[doc.module], moved.get(doc, "train"))].append(doc)
    counts = {
        "documents": len(docs),
        "distinct": len(distinct),
        "with_summary_and_body": sum(bool(doc.summary and doc.body) for doc in distinct),
        "packages": len({doc.package for doc in distinct}),
        "modules": len(modules),
        "modules_test": sum(name == "test" for name in modules.values()),
        "modules_dev": sum(name == "dev" for name in modules.values()),
        "test": len(members["test"]),
    }
    splits: dict[str, list[Doc]] = {"test": members["test"]}
    held = list(members["test"])
    for name in ("dev", "train"):
        splits[name], exact, near = _apart(members[name], held)
        held += splits[name]
        counts |= {
            f"{name}_dropped_exact": exact,
            f"{name}_dropped_near": near,
            name: len(splits[name]),
        }
    for name in ("dev", "train"):
        left = set(splits[name])
        same[name] = [pair for pair in same[name] if pair[0] in left and pair[1] in left]
    return DocSplit(
        train=splits["train"], dev=splits["dev"], test=splits["test"], same=same, counts=counts
    )


def _distinct(docs: Sequence[Doc]) -> list[Doc]:
    seen: set[str] = set()
    distinct: list[Doc] = []
    for doc in docs:
        key = exact_key(doc.text)
        if key not in seen:
            seen.add(key)
            distinct.append(doc)
    return distinct


def _split_of(module: str) -> str:
    share = hash_unit(module)
    return "test" if share < TEST_SHARE else "dev" if share < TEST_SHARE + DEV_SHARE else "train"


def _held_out(*names: str) -> str:
    return "test" if "test" in names else "dev" if "dev" in names else "train"


def _apart(docs: Sequence[Doc], held: Sequence[Doc]) -> tuple[list[Doc], int, int]:
    """Keep the objects no text of which equals, or nearly equals, a text of a held-out one."""
    held_keys = {key for doc in held for key in _keys(doc)}
    exact = [not held_keys.isdisjoint(_keys(doc)) for doc in docs]
    runs = np.unique(word_runs([doc.text for doc in held])[0])
    near = share_of_runs([doc.text for doc in docs], runs) > 0
    apart = [
        doc
        for doc, is_exact, is_near in zip(docs, exact, near, strict=True)
        if not is_exact and not is_near
    ]
    return (
        apart,
        sum(exact),
        int(near.sum()) - sum(bool(a and b) for a, b in zip(exact, near, strict=True)),
    )


def _keys(doc: Doc) -> list[str]:
    return [exact_key(text) for text in (doc.summary, doc.body, doc.text) if text]


def same_object(docs: Sequence[Doc]) -> list[tuple[Doc, Doc]]:
    """Pair the docstrings of one object documented in two places.

    Two functions, classes or methods count as the same object if they carry the same public name of
    six letters or more (case and underscores aside), at most `SAME_NAME` objects carry it, they lie
    in different modules, and their docstrings share two longer words but are not mostly copies of
    one another. Of the possible pairs, those across packages come first; each object is in one
    pair.
    """
    by_name: dict[str, list[Doc]] = defaultdict(list)
    for doc in docs:
        last = doc.name.rpartition(".")[2]
        key = last.replace("_", "").casefold()
        if len(key) >= 6 and not last.startswith("_") and doc.kind != "module" and doc.summary:
            by_name[key].append(doc)
    pairs: list[tuple[Doc, Doc]] = []
    for _, group in sorted(by_name.items()):
        if 2 <= len(group) <= SAME_NAME:
            pairs += _pair_up(group)
    return pairs


def _pair_up(group: list[Doc]) -> list[tuple[Doc, Doc]]:
    repeats = repeats_within([doc.text for doc in group])
    left = [doc for doc, repeat in zip(group, repeats, strict=True) if not repeat]
    summaries = Counter(exact_key(doc.summary) for doc in left)
    left = [doc for doc in left if summaries[exact_key(doc.summary)] == 1]
    content = {
        doc: {word for word in words_of(doc.text)[:60] if len(word) > 3 and word not in EVERYWHERE}
        for doc in left
    }
    pairs: list[tuple[Doc, Doc]] = []
    for different in ("package", "module"):
        for first in list(left):
            if first not in left:
                continue
            others = (doc for doc in left if getattr(doc, different) != getattr(first, different))
            second = next((doc for doc in others if len(content[doc] & content[first]) >= 2), None)
            if second is not None:
                pairs.append((first, second))
                left = [doc for doc in left if doc not in (first, second)]
    return pairs
