"""What a data folder holds, how bad evaluation data are refused, and what is left out and
counted.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from taskdistill.errors import BadInput
from taskdistill.evaluate.datasets import TASK_TYPES, find_eval_sets
from taskdistill.evaluate.set_data import judged_texts
from taskdistill.evaluate.task_type import EvalSet


def write(path: Path, rows: list[dict], raw: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.write("".join(json.dumps(row) + "\n" for row in rows) + raw)
    return path


def write_retrieval(folder: Path, qrels: str = "q1\td1\t1\nq2\td2\t2\n") -> None:
    write(
        folder / "corpus.jsonl.gz",
        [{"_id": "d1", "title": "Cats", "text": "purr"}, {"_id": "d2", "text": "Dogs bark"}],
    )
    write(
        folder / "queries.jsonl.gz",
        [{"_id": "q1", "text": "purring"}, {"_id": "q2", "text": "barking"}],
    )
    write(folder / "qrels.tsv.gz", [], "query-id\tcorpus-id\tscore\n" + qrels)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_retrieval(tmp_path / "retrieval" / "pets")
    write_retrieval(tmp_path / "retrieval" / "pets-dev")
    write_retrieval(tmp_path / "reranking" / "pets", "q1\td1\t1\nq1\td2\t0\n")
    scored = [{"text1": "a", "text2": "b", "score": s} for s in (0, 0.5, 1)]
    write(tmp_path / "scored" / "near.test.jsonl.gz", scored)
    write(tmp_path / "scored" / "near.dev.jsonl.gz", scored)
    write(tmp_path / "scored" / "near.train.jsonl.gz", scored)
    write(tmp_path / "scored" / "same.test.jsonl.gz", [scored[0], scored[2]])
    write(
        tmp_path / "pairs" / "twin.test.jsonl.gz", [{"query": "a", "positive": "b", "lang": "fr"}]
    )
    write(
        tmp_path / "pairs" / "odd.test.jsonl.gz",
        [{"query": "a", "positive": "b", "negatives": ["c"]}],
    )
    labelled = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    write(tmp_path / "labelled" / "kind.test.jsonl.gz", labelled)
    write(tmp_path / "labelled" / "kind.train.jsonl.gz", labelled)
    write(tmp_path / "labelled" / "clu-news.test.jsonl.gz", labelled)
    (tmp_path / "labelled" / "bare.test.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in labelled)
    )
    several = [{"text": "a", "label": ["x", "y"]}, {"text": "b", "label": ["y"]}]
    write(tmp_path / "labelled" / "tags.test.jsonl.gz", several)
    write(tmp_path / "labelled" / "tags.train.jsonl.gz", several)
    write(
        tmp_path / "summaries" / "news.test.jsonl.gz",
        [{"human": ["a"], "machine": ["b", "c"], "scores": [1, 2]}],
    )
    return tmp_path


def test_every_kind_is_found_once(root):
    assert [each.name for each in find_eval_sets(root)] == [
        "retrieval/pets",
        "reranking/odd",
        "reranking/pets",
        "sts/near",
        "pair-classification/same",
        "bitext/twin",
        "summarisation/news",
        "clustering/bare",
        "clustering/clu-news",
        "classification/kind",
        "multilabel/tags",
    ]
    assert [each.name for each in find_eval_sets(root, split="dev")] == [
        "retrieval/pets-dev",
        "sts/near",
    ]


def test_names_select_in_order_and_a_labelled_set_also_clusters(root):
    names = ["sts/*", "clustering/kind", "retrieval/pets"]
    assert [each.name for each in find_eval_sets(root, names)] == [
        "sts/near",
        "clustering/kind",
        "retrieval/pets",
    ]


def test_unknown_name_suggests_the_nearest(root):
    with pytest.raises(BadInput, match="did you mean 'retrieval/pets'"):
        find_eval_sets(root, ["retrieval/pet"])


def test_folder_without_sets_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no evaluation sets"):
        find_eval_sets(tmp_path)
    with pytest.raises(BadInput, match="not a folder"):
        find_eval_sets(tmp_path / "none")


def test_every_set_loads_and_titles_join_the_text(root):
    result = {each.name: each.load() for each in find_eval_sets(root)}
    assert result["retrieval/pets"].documents == {"d1": "Cats purr", "d2": "Dogs bark"}
    assert result["retrieval/pets"].qrels == {"q1": {"d1": 1}, "q2": {"d2": 2}}
    assert result["reranking/pets"].candidates == {"q1": ["d1", "d2"]}
    assert result["reranking/odd"].documents == {"q0d0": "b", "q0d1": "c"}
    assert result["sts/near"].scores.tolist() == [0, 0.5, 1]
    assert result["bitext/twin"].languages == ["fr"]
    assert result["multilabel/tags"].labels == [["x", "y"], ["y"]]
    assert result["classification/kind"].train.labels == ["x", "y"]


def test_judged_texts_leave_out_training_rows(root):
    result = {each.name: judged_texts(each.load()) for each in find_eval_sets(root)}
    assert result["retrieval/pets"] == ["purring", "barking", "Cats purr", "Dogs bark"]
    assert (
        result["classification/kind"] == ["a", "b"]
        and result["summarisation/news"] == ["a", "b", "c"]
        and result["sts/near"] == ["a", "b"]
    )


def test_digest_follows_content_and_kind(root):
    sets = {each.name: each for each in find_eval_sets(root)}
    before = {name: each.digest() for name, each in sets.items()}
    assert len(set(before.values())) == len(before)
    write_retrieval(root / "retrieval" / "pets", "q1\td1\t1\n")
    assert [name for name, each in sets.items() if each.digest() != before[name]] == [
        "retrieval/pets"
    ]


def test_unknown_ids_and_queries_without_judgments_are_left_out_and_counted(tmp_path):
    write_retrieval(tmp_path / "retrieval" / "pets", "q1\td1\t1\nq1\td2\t0\nq1\td9\t1\nq9\td1\t1\n")
    data = find_eval_sets(tmp_path)[0].load()
    assert list(data.queries) == ["q1"] and data.qrels == {"q1": {"d1": 1, "d2": 0}}
    assert data.notes == (
        (
            "2 judgments name an unknown query or document and are left out: q1 d9 (line 4), q9 d1"
            " (line 5)"
        ),
        "1 of 2 queries have no judgment and are left out: q2",
    )


def test_judgments_that_mostly_name_unknown_ids_are_refused(tmp_path):
    write_retrieval(tmp_path / "retrieval" / "pets", "q1\td1\t1\nq1\td9\t1\nq9\td1\t1\n")
    with pytest.raises(
        BadInput,
        match=(
            r"2 of 3 judgments of .* name an unknown query or document \(q1 d9 \(line 3\), .*do not"
            r" belong together"
        ),
    ):
        find_eval_sets(tmp_path)[0].load()


def test_qrels_without_any_known_id_are_refused(tmp_path):
    write_retrieval(tmp_path / "retrieval" / "pets", "q7\td7\t1\n")
    with pytest.raises(BadInput, match="no query has a judged document"):
        find_eval_sets(tmp_path)[0].load()


def test_one_id_for_two_texts_is_refused_and_a_repeated_row_is_not(tmp_path):
    write_retrieval(tmp_path / "retrieval" / "pets")
    path = tmp_path / "retrieval" / "pets" / "queries.jsonl.gz"
    write(path, [{"_id": "q1", "text": "x"}] * 2)
    data = find_eval_sets(tmp_path)[0].load()
    assert (
        data.queries == {"q1": "x"}
        and "1 rows of queries.jsonl.gz repeat an id with the same text and count once"
        in data.notes
    )
    write(path, [{"_id": "q1", "text": "x"}, {"_id": "q1", "text": "y"}])
    with pytest.raises(BadInput, match=r"queries\.jsonl\.gz:2: the id 'q1' was used before"):
        find_eval_sets(tmp_path)[0].load()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            '{"text1": "a", "text2": "b", "score": NaN}\n',
            r":2: not a finite number \(NaN\)",
        ),
        (
            '{"text1": "a", "text2": "b", "score": 1e999}\n',
            r":2: not a finite number \(1e999\)",
        ),
        ('{"text1": "a", "text2": "b", "score": "NaN"}\n', r":2: score is 'NaN'"),
        ('{"text1": "a", "score": 1}\n', r":2: needs a text under 'text2'; has text1, score"),
        ("[1]\n", r":2: not a JSON object"),
        ("{oops\n", r":2: not valid JSON"),
        ("[" * 100_000 + "\n", r":2: JSON nested too deeply"),
        (
            '{"text1": "a", "text2": "b", "score": ' + "9" * 5000 + "}\n",
            r":2: a number of too many digits",
        ),
    ],
)
def test_bad_rows_are_refused_with_their_line(tmp_path, raw, message):
    path = write(tmp_path / "near.test.jsonl.gz", [{"text1": "a", "text2": "b", "score": 0.5}], raw)
    with pytest.raises(BadInput, match=message):
        EvalSet("sts/near", TASK_TYPES["sts"], "test", (path,)).load()


def test_constant_scores_and_one_class_are_refused_by_name(tmp_path):
    path = write(tmp_path / "a.jsonl.gz", [{"text1": "a", "text2": "b", "score": 0.5}] * 3)
    with pytest.raises(BadInput, match=r"sts/a: all scores are equal \(0\.5\)"):
        EvalSet("sts/a", TASK_TYPES["sts"], "test", (path,)).load()
    path = write(tmp_path / "b.jsonl.gz", [{"text": "a", "label": "x"}] * 3)
    with pytest.raises(BadInput, match="clustering/b: all labels are equal"):
        EvalSet("clustering/b", TASK_TYPES["clustering"], "test", (path,)).load()
    with pytest.raises(BadInput, match="classification/b: every training row has the label 'x'"):
        EvalSet("classification/b", TASK_TYPES["classification"], "test", (path, path)).load()


def test_a_language_with_one_class_is_left_out_and_noted(tmp_path):
    rows = [
        {"text": "a", "label": label, "lang": lang}
        for label, lang in (("x", "en"), ("y", "en"), ("x", "fr"))
    ]
    data = EvalSet(
        "clustering/c", TASK_TYPES["clustering"], "test", (write(tmp_path / "c.jsonl.gz", rows),)
    ).load()
    assert data.languages == ["en", "en"] and "left out: fr" in data.notes[0]


def test_empty_texts_are_left_out_and_noted(tmp_path):
    rows = [{"text": "a", "label": "x"}, {"text": " ", "label": "y"}, {"text": "b", "label": "y"}]
    data = EvalSet(
        "clustering/c", TASK_TYPES["clustering"], "test", (write(tmp_path / "c.jsonl.gz", rows),)
    ).load()
    assert data.texts == ["a", "b"] and data.notes == (
        "1 rows of c.jsonl.gz have an empty text and are left out: line 2",
    )


def test_empty_and_damaged_files_are_refused(tmp_path):
    empty = write(tmp_path / "e.jsonl.gz", [])
    with pytest.raises(BadInput, match="has no rows"):
        EvalSet("sts/e", TASK_TYPES["sts"], "test", (empty,)).load()
    half = tmp_path / "h.jsonl.gz"
    half.write_bytes(
        write(
            tmp_path / "w.jsonl.gz", [{"text1": "a", "text2": "b", "score": 1}] * 99
        ).read_bytes()[:40]
    )
    with pytest.raises(BadInput, match="damaged or truncated gzip"):
        EvalSet("sts/h", TASK_TYPES["sts"], "test", (half,)).load()


def test_a_line_separator_inside_a_text_does_not_cut_the_row(tmp_path):
    path = tmp_path / "u.jsonl"
    path.write_text(
        '{"text": "one\u2028two", "label": "x"}\n{"text": "b", "label": "y"}\n', encoding="utf-8"
    )
    assert EvalSet("clustering/u", TASK_TYPES["clustering"], "test", (path,)).load().texts == [
        "one\u2028two",
        "b",
    ]


def test_max_queries_cuts_the_same_rows_each_time(root):
    each = find_eval_sets(root, ["retrieval/pets"])[0]
    stored = each.load(max_queries=1)
    assert (
        len(stored.queries) == 1
        and stored.queries == each.load(max_queries=1).queries
        and len(stored.documents) == 2
    )


def test_scores_of_another_range_are_noted(tmp_path):
    path = write(
        tmp_path / "a.jsonl.gz",
        [{"text1": "a", "text2": "b", "score": score} for score in (0, 3.5, 5)],
    )
    data = EvalSet("sts/a", TASK_TYPES["sts"], "test", (path,)).load()
    assert data.scores.tolist() == [0, 3.5, 5] and data.notes == (
        "2 of 3 scores lie outside 0 to 1; only their order counts",
    )


def test_a_positive_among_its_negatives_is_left_out(tmp_path):
    rows = [
        {"query": "a", "positive": "b", "negatives": ["b", "c"]},
        {"query": "d", "positive": "e", "negatives": ["e"]},
    ]
    data = EvalSet(
        "reranking/a", TASK_TYPES["reranking"], "test", (write(tmp_path / "a.jsonl.gz", rows),)
    ).load()
    assert data.candidates == {"q0": ["q0d0", "q0d1"]} and data.notes == (
        "2 negatives equal their positive and are left out",
    )
    with pytest.raises(BadInput, match=r"no row of .* has negatives to rank against"):
        EvalSet(
            "reranking/b",
            TASK_TYPES["reranking"],
            "test",
            (write(tmp_path / "b.jsonl.gz", rows[1:]),),
        ).load()


def test_doubtful_training_rows_are_noted(tmp_path):
    test = write(
        tmp_path / "a.test.jsonl.gz",
        [{"text": f"T {i}", "label": label} for i, label in enumerate("xxyz")],
    )
    train = write(
        tmp_path / "a.train.jsonl.gz",
        [{"text": f"t  {i}", "label": label} for i, label in enumerate("xxy")],
    )
    assert EvalSet(
        "classification/a", TASK_TYPES["classification"], "test", (test, train)
    ).load().notes == (
        "1 labels of 1 test rows have no training row, so these cannot be right: z",
        "1 labels have one training row only: y",
        "3 of 4 test texts are training texts of this set too",
    )
