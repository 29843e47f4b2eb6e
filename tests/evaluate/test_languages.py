"""Languages apart and pooled, texts by length, and prompts, with numbers worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from taskdistill.errors import BadInput
from taskdistill.evaluate.breakdowns import by_length, prompt_spread
from taskdistill.evaluate.datasets import TASK_TYPES, find_eval_sets
from taskdistill.evaluate.languages import families, pooled_retrieval
from taskdistill.evaluate.runner import evaluate_models
from taskdistill.evaluate.score import evaluate_set
from taskdistill.evaluate.set_data import LabeledData, PairData, RankingData
from taskdistill.evaluate.set_runner import EvalOptions
from taskdistill.evaluate.task_type import EvalSet
from taskdistill.report.languages import language_section, language_tables
from taskdistill.report.pages import write_evaluation


class Table:
    """Vectors by text: content decides the first three numbers, language the rest, with a
    weight.
    """

    name = "table"

    def __init__(self, weight: float) -> None:
        self.weight, self.encoded = weight, 0

    def encode(self, texts, *, task, prompt_name):
        self.encoded += len(texts)
        rows = [
            [
                *(text[-1] == c for c in "xyz"),
                *(self.weight * text.startswith(lang) for lang in ("en", "de")),
            ]
            for text in texts
        ]
        return np.array(rows, dtype=np.float32)

    def fingerprint(self) -> str:
        return "table"


def parallel(language: str) -> RankingData:
    documents = {f"d{c}": f"{language} {c}" for c in "xyz"}
    return RankingData(
        documents=documents,
        queries={f"q{c}": f"{language}? {c}" for c in "xyz"},
        qrels={f"q{c}": {f"d{c}": 1} for c in "xyz"},
    )


SETS = {"en": parallel("en"), "de": parallel("de")}


def test_a_model_blind_to_language_finds_content_but_not_the_language():
    result = pooled_retrieval(Table(0), SETS)
    for scores in result.by_language.values():
        assert (
            scores.same_language == scores.any_language == 1 and scores.same_language_share == 0.5
        )
    # the two translations tie: one language comes first for its own queries and second for the
    # other's
    assert {round(scores.pooled, 4) for scores in result.by_language.values()} == {
        1.0,
        round(1 / math.log2(3), 4),
    }
    assert {scores.same_language_first for scores in result.by_language.values()} == {0.0, 1.0}
    assert result.cross == {"en": {"en": 1, "de": 1}, "de": {"en": 1, "de": 1}}


def test_a_model_that_heeds_language_comes_back_in_it():
    result = pooled_retrieval(Table(0.5), SETS)
    assert all(
        scores.pooled == 1 and scores.same_language_first == 1
        for scores in result.by_language.values()
    )
    by_language, across = language_tables(result)
    assert [cell.main for cell in by_language.cells()[0]] == [
        "en",
        "3",
        "100.0",
        "100.0",
        "100.0",
        "50.0",
        "100.0",
    ]
    assert across.columns == ["queries", "en", "de"]


def test_corpora_that_are_no_translations_have_no_cross_scores():
    other = RankingData(documents={"e1": "de x"}, queries={"q": "de? x"}, qrels={"q": {"e1": 1}})
    result = pooled_retrieval(Table(0.5), {"en": SETS["en"], "de": other})
    assert (
        result.cross == {}
        and result.by_language["de"].any_language is None
        and len(language_tables(result)) == 1
    )


def test_one_language_is_no_pool():
    with pytest.raises(BadInput, match="at least two; got en"):
        pooled_retrieval(Table(0), {"en": SETS["en"]})


def test_families_are_sets_that_differ_in_their_language():
    names = [
        "retrieval/xquad-de",
        "retrieval/xquad-en",
        "retrieval/peps-long",
        "retrieval/scifact",
        "sts/stsb-de",
        "sts/stsb-en",
    ]
    sets = [EvalSet(name, TASK_TYPES[name.split("/")[0]], "test", (Path(),)) for name in names]
    assert {family: list(members) for family, members in families(sets).items()} == {
        "retrieval/xquad": ["de", "en"]
    }


def test_scores_split_by_length_of_the_relevant_document():
    documents = {"short": "x", "long": "a" * 500 + "y", "other": "z"}
    data = RankingData(
        documents=documents,
        queries={"1": "x", "2": "z"},
        qrels={"1": {"short": 1, "other": 0}, "2": {"long": 1}},
    )
    score = evaluate_set(Table(0), "r", TASK_TYPES["retrieval"], data).score
    result = by_length(TASK_TYPES["retrieval"], data, score)
    assert [(bucket.label, bucket.n) for bucket in result] == [
        ("up to 100", 1),
        ("400 to 1,600", 1),
    ]
    assert result[0].score == 1 and result[1].score < 1


def test_lengths_follow_the_order_of_languages():
    data = PairData(
        first=["x", "y" * 200, "z", "z"],
        second=["x", "y", "y", "x"],
        scores=None,
        languages=["en", "de", "en", "de"],
    )
    score = evaluate_set(Table(0), "b", TASK_TYPES["bitext"], data).score
    short, long = by_length(TASK_TYPES["bitext"], data, score)
    # in each language both rows find the first counterpart: F1 2/3 for it and 0 for the other; the
    # long pair is German's first
    assert (
        (short.n, long.n) == (3, 1)
        and long.score == pytest.approx(2 / 3)
        and short.score == pytest.approx(2 / 9)
    )


def test_lengths_need_a_unit_for_each_text():
    data = LabeledData(texts=["x", "y"], labels=["a", "b"], languages=["", ""])
    score = evaluate_set(Table(0), "c", TASK_TYPES["clustering"], data).score
    assert by_length(TASK_TYPES["clustering"], data, score) == []


def test_prompts_move_scores_and_documents_are_encoded_once():
    class Confused(Table):
        def encode(self, texts, *, task, prompt_name):
            vectors = super().encode(texts, task=task, prompt_name=prompt_name)
            return vectors[::-1] if texts[0].startswith("odd") else vectors

    model = Confused(0)
    spread = prompt_spread(model, "r", TASK_TYPES["retrieval"], SETS["en"], ["", "ask: ", "odd: "])
    assert spread.scores[""] == spread.scores["ask: "] == 1 > spread.scores["odd: "]
    assert spread.summary() == (spread.scores["odd: "], 1, 1) and model.encoded == 6 + 3 + 3
    pairs = PairData(
        first=["x", "y", "z"],
        second=["x", "y", "y"],
        scores=np.array([1, 0.9, 0.0]),
        languages=[""] * 3,
    )
    assert set(prompt_spread(model, "s", TASK_TYPES["sts"], pairs, ["", "p: "]).scores) == {
        "",
        "p: ",
    }
    with pytest.raises(BadInput, match="at least one prompt"):
        prompt_spread(model, "s", TASK_TYPES["sts"], pairs, [])


def write_pool(root: Path) -> Path:
    """Two parallel retrieval sets, STS sets of two languages, and one bitext set of two
    languages.
    """
    for language in ("en", "de"):
        data = parallel(language)
        folder = root / f"retrieval/pets-{language}"
        folder.mkdir(parents=True)
        rows = {"corpus": data.documents, "queries": data.queries}
        for name, texts in rows.items():
            lines = [json.dumps({"_id": key, "text": text}) + "\n" for key, text in texts.items()]
            (folder / f"{name}.jsonl").write_text("".join(lines))
        (folder / "qrels.tsv").write_text(
            "query-id\tcorpus-id\tscore\n" + "".join(f"q{c}\td{c}\t1\n" for c in "xyz")
        )
        (root / "scored").mkdir(exist_ok=True)
        scored = [
            {"text1": f"{language} {a}", "text2": f"{language} {b}", "score": 0.9 * (a == b) + 0.05}
            for a in "xyz"
            for b in "xyz"
        ]
        scored[1]["score"] = 0.5
        (root / f"scored/near-{language}.test.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in scored)
        )
    (root / "pairs").mkdir()
    pairs = [
        {"query": f"en {c}", "positive": f"de {c}", "lang": pair}
        for pair in ("en-de", "fr-de")
        for c in "xyz"
    ]
    (root / "pairs/same.test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return root


def test_pools_are_scored_once_and_shown_in_the_report(tmp_path):
    root, out, model = write_pool(tmp_path / "data"), tmp_path / "out", Table(0.5)
    results = evaluate_models([model], find_eval_sets(root), out, EvalOptions(languages=True))
    encoded = model.encoded
    assert (
        evaluate_models([model], find_eval_sets(root), out, EvalOptions(languages=True)) == results
        and model.encoded == encoded
    )
    assert json.loads((out / "results.json").read_text()) == results
    scores = results["pools"]["table"]["retrieval/pets"]
    assert scores["cross"] == {"de": {"de": 1, "en": 1}, "en": {"de": 1, "en": 1}}
    assert (
        scores["by_language"]["en"]["own_share"] == 0.5
        and scores["by_language"]["en"]["first_own"] == 1
    )
    by_title = {table.title: table for table in language_section(results).tables}
    assert list(by_title) == [
        "retrieval/pets by language",
        "sts/near by language",
        "bitext/same by language",
        "retrieval/pets, table: by query language",
        "retrieval/pets, table: across languages",
    ]
    assert by_title["bitext/same by language"].rows == [
        ["en-de", 1.0],
        ["fr-de", 1.0],
        ["mean", 1.0],
    ]
    assert by_title["sts/near by language"].note == "Spearman × 100."
    write_evaluation(out, results, ["again"])
    assert "Languages</h2>" in (out / "report.html").read_text()


def test_without_languages_there_is_no_such_part(tmp_path):
    root = write_pool(tmp_path / "data")
    results = evaluate_models(
        [Table(0)], find_eval_sets(root, ["retrieval/pets-en"]), options=EvalOptions(languages=True)
    )
    assert not results["pools"] and language_section(results) is None


def test_texts_that_were_cut_are_counted_and_noted(tmp_path):
    class Short(Table):
        cut = 0

        def encode(self, texts, *, task, prompt_name):
            self.cut += sum(len(text) > 4 for text in texts)
            return super().encode(texts, task=task, prompt_name=prompt_name)

    lines: list[str] = []
    sets = find_eval_sets(write_pool(tmp_path / "data"), ["retrieval/pets-en", "retrieval/pets-de"])
    results = evaluate_models(
        [Short(0)], sets, options=EvalOptions(languages=True), note=lines.append
    )
    record = results["scores"]["table"]["retrieval/pets-en"]
    assert record["cut"] == 3 and record["texts"] == 6
    assert record["notes"] == ["3 of 6 texts are longer than this model reads; their ends were cut"]
    assert (
        lines[0].endswith(", 3 of 6 texts cut")
        and "2 languages in one pool, 50.0 % of results" in lines[-1]
    )
