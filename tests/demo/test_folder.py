"""The embedded default on a small tree of made-up packages: whole modules held out, nothing
crosses, counts are true.
"""

from __future__ import annotations

import gzip
import json
import random

import pytest

from taskdistill.data.dedup import exact_key
from taskdistill.data.layout import find_set, list_sets
from taskdistill.data.rows import row_texts
from taskdistill.data.sources import load_source
from taskdistill.demo.docstrings import Doc, scan
from taskdistill.demo.folder import build_docs_folder
from taskdistill.demo.rows import name_query, queries
from taskdistill.demo.split import same_object, split_docs
from taskdistill.errors import BadInput
from taskdistill.io.folders import check_folder, read_manifest
from taskdistill.recipe.data import SourceConfig

PACKAGES = ("alpha", "bravo", "carol", "delta")
COPIED = (
    "The copied sentence of this tree stands in many modules and says the same everywhere in the"
    " same words always."
)


def sentence(rng: random.Random, words: int) -> str:
    """Half of the words are common ones, so that it reads as English to the filter."""
    return " ".join(
        (
            rng.choice(["the", "of", "to", "and", "is"])
            if i % 2
            else "".join(rng.choices("abcdefghijkl", k=7))
        )
        for i in range(words)
    )


def docstring(rng: random.Random, number: int) -> str:
    text = f"Return {sentence(rng, 7)}."
    if number % 4 != 3:
        text += f"\n\n    {sentence(rng, 25)}"
    if number % 7 == 0:
        text += f"\n    {COPIED}"
    return text


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    rng = random.Random(5)
    shared = [
        f"Open the door of house number {word} with the key and the code."
        for word in ("one", "two", "three")
    ]
    for package in PACKAGES:
        (root / package).mkdir()
        (root / package / "__init__.py").write_text("")
        for module in range(40):
            parts = []
            for number in range(6):
                text = (
                    docstring(rng, module * 6 + number)
                    if number or module % 9
                    else f"{shared[module % 3]}\n\n    {sentence(rng, 25)}"
                )
                parts.append(f'def function_{package}_{module}_{number}():\n    """{text}"""\n')
            same = f"Compute the weighted average number {module} over all the rows"
            parts.append(f'def average_rows_{module}():\n    """{same} as {sentence(rng, 6)}."""\n')
            (root / package / f"part{module}.py").write_text("\n".join(parts))
    return root


def read(path) -> list[dict]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


@pytest.fixture(scope="module")
def built(tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "docs"
    return out, build_docs_folder(out, seed=1, limit=None, search_paths=[tree], processes=1)


def texts_of(folder, held_out: bool) -> set[str]:
    found: set[str] = set()
    for path in folder.rglob("*.jsonl.gz"):
        kind, name = path.relative_to(folder).parts[0], path.name
        is_held_out = kind == "retrieval" or ".test." in name or ".dev." in name
        if is_held_out == held_out:
            for row in read(path):
                found.update(
                    row[key]
                    for key in ("query", "positive", "text", "text1", "text2")
                    if key in row
                )
    return found


def runs(texts: set[str]) -> set[tuple[str, ...]]:
    found = set()
    for text in texts:
        words = "".join(sign if sign.isalnum() else " " for sign in text.casefold()).split()
        found |= {tuple(words[i : i + 13]) for i in range(len(words) - 12)}
    return found


def test_no_text_crosses_the_split(built):
    folder, counts = built
    train, held = texts_of(folder, False), texts_of(folder, True)
    assert len(train) > 500
    assert len(held) > 200
    assert not {exact_key(text) for text in train} & {exact_key(text) for text in held}
    assert not runs(train) & runs(held)
    assert counts["train_dropped_near"] > 20
    assert counts["train_dropped_exact"] + counts["dev_dropped_exact"] >= 1


def test_dev_and_test_are_apart_too(built):
    folder, _ = built
    dev = {row["text"] for row in read(folder / "retrieval/docs-dev/corpus.jsonl.gz")}
    test = {row["text"] for row in read(folder / "retrieval/docs/corpus.jsonl.gz")}
    assert not runs(dev) & runs(test)


def test_whole_modules_are_held_out_and_counts_add_up(tree):
    docs = scan([tree], processes=1).docs
    split = split_docs(docs)
    paired = {doc for pairs in split.same.values() for pair in pairs for doc in pair}
    modules = [
        {doc.module for doc in part if doc not in paired}
        for part in (split.train, split.dev, split.test)
    ]
    assert not modules[0] & modules[1]
    assert not modules[0] & modules[2]
    assert not modules[1] & modules[2]
    counts = split.counts
    assert counts["documents"] == len(docs)
    kept = len(split.train) + len(split.dev) + len(split.test)
    dropped = sum(
        counts[f"{name}_dropped_{how}"] for name in ("train", "dev") for how in ("exact", "near")
    )
    assert kept + dropped == counts["distinct"]
    assert 0.08 < counts["modules_test"] / counts["modules"] < 0.27
    for name in ("train", "dev", "test"):
        members = set(getattr(split, name))
        assert all(first in members and second in members for first, second in split.same[name])


def test_counts_name_the_rows_of_every_file_and_every_file_reads_clean(built):
    folder, counts = built
    assert check_folder(folder, read_manifest(folder, "data")) == []
    assert read_manifest(folder)["counts"] == counts
    for name, entry in list_sets(folder).items():
        if entry.kind == "retrieval":
            continue
        for split, path in entry.splits.items():
            found = load_source(
                folder, name, SourceConfig(path=path, kind=entry.kind), max_bad=0, seed=1
            )
            key = name if entry.kind == "texts" else f"{name}.{split}"
            assert counts["rows"][key] == found.counts.read == found.counts.used
            assert all(text.strip() for row in found.rows for text in row_texts(row))


def test_retrieval_answers_exist_and_queries_differ(built):
    folder, _ = built
    base = folder / "retrieval" / "docs"
    corpus = {row["_id"]: row["text"] for row in read(base / "corpus.jsonl.gz")}
    asked = {row["_id"]: row["text"] for row in read(base / "queries.jsonl.gz")}
    lines = gzip.decompress((base / "qrels.tsv.gz").read_bytes()).decode().splitlines()
    assert lines[0] == "query-id\tcorpus-id\tscore"
    assert {line.split("\t")[0] for line in lines[1:]} == set(asked)
    assert {line.split("\t")[1] for line in lines[1:]} <= set(corpus)
    assert len({exact_key(text) for text in asked.values()}) == len(asked)
    assert len({exact_key(text) for text in corpus.values()}) == len(corpus)


def test_the_same_environment_and_seed_give_the_same_bytes(tree, tmp_path, built):
    again = build_docs_folder(
        tmp_path / "again", seed=1, limit=None, search_paths=[tree], processes=2
    )
    assert again == built[1]
    assert read_manifest(tmp_path / "again")["files"] == read_manifest(built[0])["files"]


def test_a_limit_caps_training_by_seed_and_leaves_the_held_out_sets_alone(tree, tmp_path):
    files = {}
    for seed in (1, 2):
        counts = build_docs_folder(
            tmp_path / str(seed), seed=seed, limit=200, search_paths=[tree], processes=1
        )
        assert counts["train_used"] == 200
        files[seed] = {
            name: entry["sha256"]
            for name, entry in read_manifest(tmp_path / str(seed))["files"].items()
        }
    assert files[1]["pairs/docs.train.jsonl.gz"] != files[2]["pairs/docs.train.jsonl.gz"]
    for name in (
        "retrieval/docs/corpus.jsonl.gz",
        "retrieval/docs-dev/queries.jsonl.gz",
        "pairs/docs-same.test.jsonl.gz",
    ):
        assert files[1][name] == files[2][name]


def test_labels_are_packages_and_grades_are_three(built):
    folder, counts = built
    assert {row["label"] for row in read(folder / "labelled/docs.train.jsonl.gz")} == set(PACKAGES)
    assert {row["label"] for row in read(folder / "labelled/docs.test.jsonl.gz")} == set(PACKAGES)
    assert counts["labels"] == 4
    assert {row["score"] for row in read(folder / "scored/docs.train.jsonl.gz")} == {0.0, 0.5, 1.0}


def test_too_few_packages_leave_nothing_behind(tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "one.py").write_text('"""The only text of the whole tree."""')
    with pytest.raises(BadInput, match="only 1 documented objects in 1 modules"):
        build_docs_folder(
            tmp_path / "out", seed=1, limit=None, search_paths=[tmp_path / "tree"], processes=1
        )
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(BadInput, match="already exists"):
        build_docs_folder(
            tmp_path / "out", seed=1, limit=None, search_paths=[tmp_path / "tree"], processes=1
        )


def doc(
    package: str,
    name: str,
    summary: str,
    body: str = "",
    module: str = "part",
    kind: str = "function",
) -> Doc:
    return Doc(package, f"{package}.{module}", name, kind, summary, body)


def test_the_same_object_in_two_places():
    docs = [
        doc("one", "block_diag", "Create a block diagonal matrix from matrices."),
        doc("two", "BlockDiag", "Build the block diagonal matrix of its inputs."),
        doc("two", "Other.block_diag", "A thing that shares nothing with them."),
        doc("one", "fit", "Fit the model to the training data."),
        doc("two", "fit", "Fit a model to given training data."),
    ]
    assert [(first.package, second.package) for first, second in same_object(docs)] == [
        ("one", "two")
    ]


def test_queries_are_summaries_that_tell_and_public_names():
    docs = [
        doc(
            "one",
            "solve_banded",
            "Solve the banded system. It is fast.",
            "The Banded matrix",
            module="_basic",
        ),
        doc("one", "forward", "Run the module.", "One forward pass"),
        doc("two", "Net.forward", "Run the module.", "Carry it forward"),
        doc("two", "_hidden", "Do the hidden thing here.", "A hidden body"),
        doc("two", "unrelated", "Do nothing at all.", "No such word"),
        doc("two", "no_body", "It has a summary only."),
    ]
    found = queries(docs, 1.0)
    assert [(query.text, query.by_name) for query in found if not query.by_name] == [
        ("Solve the banded system", False),
        ("Do the hidden thing here", False),
        ("Do nothing at all", False),
    ]
    assert {query.doc.name for query in found if query.by_name} == {
        "solve_banded",
        "forward",
        "Net.forward",
    }
    assert {query.text for query in queries(docs, 0.0)} == {
        "Solve the banded system",
        "Do the hidden thing here",
        "Do nothing at all",
    }
    names = {
        name_query(doc("one", f"Solver{i}.solveBanded_now", "x", module="_basic"))
        for i in range(12)
    }
    assert "one.Solver0.solveBanded_now" in names or "one solver0 solve banded now" in names
    assert {name.startswith("one.Solver") for name in names} == {True, False}


def test_sets_of_a_folder(tmp_path):
    for name in (
        "pairs/a.train.jsonl",
        "pairs/a.test.jsonl.gz",
        "texts/a.csv",
        "labelled/b.c.dev.parquet",
        "scored/notes.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for name in ("corpus.jsonl.gz", "queries.jsonl.gz", "qrels.tsv.gz"):
        (tmp_path / "retrieval" / "full").mkdir(parents=True, exist_ok=True)
        (tmp_path / "retrieval" / "half").mkdir(parents=True, exist_ok=True)
        (tmp_path / "retrieval" / "full" / name).write_bytes(b"")
    found = list_sets(tmp_path)
    assert {key: sorted(entry.splits) for key, entry in found.items()} == {
        "labelled/b.c": ["dev"],
        "pairs/a": ["test", "train"],
        "retrieval/full": ["test"],
        "texts/a": ["train"],
    }
    assert find_set(found, "full").splits == {"test": "retrieval/full"}
    with pytest.raises(BadInput, match="say which: pairs/a, texts/a"):
        find_set(found, "a")
    with pytest.raises(BadInput, match="did you mean 'full'"):
        find_set(found, "ful")
    with pytest.raises(BadInput, match="no data folder at"):
        list_sets(tmp_path / "none")
    with pytest.raises(BadInput, match="holds no data set"):
        list_sets(tmp_path / "scored")
