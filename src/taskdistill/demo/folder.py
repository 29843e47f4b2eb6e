"""The embedded default as a data folder: training files and held-out sets from the docstrings of
installed packages.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from taskdistill.data.dedup import exact_key, repeats_within
from taskdistill.data.order import generator
from taskdistill.demo.docstrings import Doc, scan, search_folders
from taskdistill.demo.prose import MAX_BODY
from taskdistill.demo.rows import (
    NAME_SHARE_EVALUATION,
    graded_pairs,
    labelled_rows,
    lone_texts,
    matching_pairs,
    queries,
    search_pairs,
)
from taskdistill.demo.split import DocSplit, split_docs
from taskdistill.errors import BadInput
from taskdistill.io.atomic import check_free
from taskdistill.io.folders import write_folder
from taskdistill.seeding import hash_unit

QUERIES = 1200
DEV_QUERIES = 300
CORPUS = 4000
DEV_CORPUS = 1200
SAME_TEST = 600
SAME_DEV = 150
LABEL_TRAIN = 300
LABEL_TEST = 50
LABEL_DEV = 15
LABELS = 40
LABEL_DOCUMENTS = 60
FULL_LIMIT = 12_000
"""Below this limit on training documents the evaluation sets shrink in proportion."""
LEAST_SHARE = 0.08
READ_AHEAD = 2.5
READ_LEAST = 20_000
"""With a limit, files are read until this many times as many documented objects were found, and at
least so many.
"""

Tables = dict[str, list[dict[str, Any]]]


def build_docs_folder(
    out: Path,
    *,
    seed: int,
    limit: int | None,
    search_paths: Sequence[Path] | None = None,
    replace: bool = False,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write the embedded default as a data folder of the shared layout.

    Training: `pairs/docs.train` (summary or name against body), `pairs/docs-same.train` (one object
    documented in two places), `scored/docs.train` (grades are ours: 1 the same object, 0.5 the same
    class or module, 0 other packages), `labelled/docs.train` (label: package), `texts/docs`. Held
    out, from other modules: `retrieval/docs`, `retrieval/docs-dev`, and the dev and test files of
    `pairs/docs-same`, `scored/docs` and `labelled/docs`. Bodies are cut at 1,000 characters. Which
    objects are held out depends on names alone, not on the seed. `out`: folder to make; nothing is
    left there if the work fails. `limit`: most training documents; None uses all. Below 12,000 the
    evaluation sets shrink with it, and reading stops early. `search_paths`: folders of packages;
    None: standard library and installed packages of this interpreter. `processes`: worker processes
    that read; None: one per core. `progress`: called with files read and files in all. Returns
    counts: files, docstrings, documents by split, duplicates dropped, packages, modules and rows of
    every file. The manifest of the folder holds the same. Raises BadInput if there are too few
    documented packages, or the folder exists and is not to be replaced.
    """
    if not replace:
        check_free(out)
    paths = list(search_paths) if search_paths is not None else search_folders()
    result = scan(
        paths,
        enough=None if limit is None else max(round(READ_AHEAD * limit), READ_LEAST),
        processes=processes,
        progress=progress,
    )
    split = split_docs(result.docs)
    counts: dict[str, Any] = {
        "files": result.files,
        "files_unreadable": result.unreadable,
        "files_too_large": result.too_large,
        "docstrings": result.docstrings,
        **split.counts,
    }
    train = split.train if limit is None else _draw(split, limit, seed)
    counts["train_used"] = len(train)
    share = 1.0 if limit is None else min(1.0, max(LEAST_SHARE, limit / FULL_LIMIT))
    tables = _tables(split, train, share)
    empty = [name for name in ("pairs/docs.train", "retrieval/docs/queries") if not tables[name]]
    if empty:
        raise BadInput(
            f"only {counts['distinct']} documented objects in {counts['modules']} modules below"
            f" {', '.join(map(str, paths))}: no rows for {', '.join(empty)}; install more packages"
            " or give data.root a folder of your own texts"
        )
    counts["rows"] = {name: len(rows) for name, rows in tables.items() if rows}
    counts["queries_by_name"] = sum(
        row["_id"].endswith("n") for row in tables["retrieval/docs/queries"]
    )
    counts["labels"] = len({row["label"] for row in tables["labelled/docs.train"]})
    meta = {
        "name": "docs",
        "seed": seed,
        "limit": limit,
        "body_characters": MAX_BODY,
        "counts": counts,
    }
    with write_folder(
        out, "data", meta=meta, inputs=_packages(result.docs), replace=replace
    ) as folder:
        for name, rows in tables.items():
            if rows:
                _write(folder / _file_name(name), rows)
    return counts


def _draw(split: DocSplit, limit: int, seed: int) -> list[Doc]:
    """Draw the training documents: objects documented twice first, for up to a quarter of them,
    because they are rare.
    """
    twice = list(dict.fromkeys(doc for pair in split.same["train"][: limit // 8] for doc in pair))
    chosen = set(twice)
    for number in generator(seed, "docstrings_limit").permutation(len(split.train)).tolist():
        if len(chosen) >= limit:
            break
        chosen.add(split.train[number])
    return [doc for doc in split.train if doc in chosen]


def _tables(split: DocSplit, train: list[Doc], share: float) -> Tables:
    used = set(train)
    same = [pair for pair in split.same["train"] if pair[0] in used and pair[1] in used]
    packages = _labels(train, split.test)
    tables: Tables = {
        "pairs/docs.train": _plain(search_pairs(train)),
        "pairs/docs-same.train": _plain(matching_pairs(same, len(same))),
        "scored/docs.train": _plain(graded_pairs(train, same, 3 * len(same))),
        "labelled/docs.train": _plain(labelled_rows(train, packages, LABEL_TRAIN)),
        "texts/docs": _plain(lone_texts(train)),
    }
    sizes = {"test": (split.test, SAME_TEST, LABEL_TEST), "dev": (split.dev, SAME_DEV, LABEL_DEV)}
    for name, (docs, pairs, labels) in sizes.items():
        limit = round(pairs * share)
        tables[f"pairs/docs-same.{name}"] = _plain(matching_pairs(split.same[name], limit))
        tables[f"scored/docs.{name}"] = _plain(graded_pairs(docs, split.same[name], 3 * limit))
        tables[f"labelled/docs.{name}"] = _plain(
            labelled_rows(docs, packages, max(5, round(labels * share)))
        )
    tables |= _retrieval(
        "retrieval/docs", split.test, round(QUERIES * share), round(CORPUS * share)
    )
    tables |= _retrieval(
        "retrieval/docs-dev", split.dev, round(DEV_QUERIES * share), round(DEV_CORPUS * share)
    )
    return tables


def _labels(train: Sequence[Doc], test: Sequence[Doc]) -> list[str]:
    """Packages with enough documents to train on and some to test on, the largest first."""
    sizes = Counter(doc.package for doc in train if doc.summary)
    tested = Counter(doc.package for doc in test if doc.summary)
    least = (
        LABEL_DOCUMENTS
        if len(train) >= FULL_LIMIT
        else max(4, LABEL_DOCUMENTS * len(train) // FULL_LIMIT)
    )
    return [
        package for package, size in sizes.most_common() if size >= least and tested[package] >= 5
    ][:LABELS]


def _retrieval(name: str, docs: Sequence[Doc], most_queries: int, most_documents: int) -> Tables:
    """A corpus of held-out bodies that do not repeat one another, named as their objects, and one
    query each for some of them.
    """
    ordered = sorted(
        (doc for doc in docs if doc.body), key=lambda doc: hash_unit(f"{doc.module}.{doc.name}")
    )
    repeats = repeats_within([doc.body for doc in ordered])
    corpus = [doc for doc, repeat in zip(ordered, repeats, strict=True) if not repeat][
        :most_documents
    ]
    ids = {doc: str(number) for number, doc in enumerate(corpus)}
    called = {doc: f"{doc.module}.{doc.name}".rstrip(".") for doc in corpus}
    often = Counter(called.values())
    names = {
        ids[doc]: name if often[name] == 1 else f"{name} {ids[doc]}" for doc, name in called.items()
    }
    query_of = {query.doc: query for query in queries(corpus, NAME_SHARE_EVALUATION)}
    texts: dict[str, tuple[str, str]] = {}
    for doc in corpus:
        if doc in query_of and len(texts) < most_queries:
            texts.setdefault(
                exact_key(query_of[doc].text),
                (f"q{ids[doc]}{'n' if query_of[doc].by_name else 's'}", query_of[doc].text),
            )
    rows = list(texts.values())
    return {
        f"{name}/corpus": [{"_id": names[ids[doc]], "text": doc.body} for doc in corpus],
        f"{name}/queries": [{"_id": query, "text": text} for query, text in rows],
        f"{name}/qrels": [
            {"query-id": query, "corpus-id": names[query[1:-1]], "score": 1} for query, _ in rows
        ],
    }


def _plain(rows: Iterable[Any]) -> list[dict[str, Any]]:
    return [
        {
            field: value
            for field in type(row).__slots__
            if (value := getattr(row, field)) not in ("", ())
        }
        for row in rows
    ]


def _file_name(name: str) -> str:
    return f"{name}.tsv.gz" if name.endswith("/qrels") else f"{name}.jsonl.gz"


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows compressed, with the same bytes for the same rows."""
    if path.name.endswith(".tsv.gz"):
        lines = [
            "\t".join(rows[0]),
            *("\t".join(str(value) for value in row.values()) for row in rows),
        ]
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        gzip.compress(("\n".join(lines) + "\n").encode("utf-8", "replace"), 6, mtime=0)
    )


def _packages(docs: Sequence[Doc]) -> dict[str, str]:
    """Name the packages that were read, as inputs of the folder: documents of each."""
    return {
        package: f"{number} documents"
        for package, number in sorted(Counter(doc.package for doc in docs).items())
    }
