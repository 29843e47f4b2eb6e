"""The teacher reads one side of a translation, the student learns both; a static student with a
vocabulary of its own.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from helpers import tiny, tiny_run
from helpers.two_languages import GERMAN, RUSSIAN
from tokenizers import Tokenizer, models

from taskdistill.data.batches import Batch
from taskdistill.data.rows import Pair, ScoredPair
from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput
from taskdistill.evaluate.datasets import find_eval_sets
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.pipeline import train as job
from taskdistill.pipeline.plan import plan_run
from taskdistill.recipe.recipe import parse_recipe
from taskdistill.tasks import Role
from taskdistill.train.collate import collate
from taskdistill.train.static_init import FREQUENCY_FLOOR, SELDOM, start_from_texts
from taskdistill.train.vocab import learn_vocabulary
from taskdistill.types import RowKind, TeacherSide

D = Role.DOCUMENT


def translations(count: int = 120) -> list[dict[str, str]]:
    rng, rows = np.random.default_rng(0), []
    for number in range(count):
        words = ["the", *rng.choice(["cat", "dog", "sleeps", "runs", "fast"], 3)]
        table, lang = ((GERMAN, "de"), (RUSSIAN, "ru"))[number % 2]
        rows.append(
            {
                "query": " ".join(table[word] for word in words) + f" {number}",
                "positive": " ".join(words) + f" {number}",
                "lang": lang,
            }
        )
    return rows


@pytest.mark.parametrize(("reads", "place"), [(TeacherSide.POSITIVE, 2), (TeacherSide.QUERY, 0)])
def test_both_sides_are_compared_with_the_teacher_s_vector_of_one(reads, place):
    rows = (Pair("eine katze", "a cat"), Pair("ein hund", "a dog"))
    made = collate(
        Batch(
            step=0,
            index=0,
            dataset="made",
            kind=RowKind.PAIRS,
            rows=rows,
            row_ids=np.arange(2),
            teacher_reads=reads,
        ),
        task=None,
        distil=True,
    )
    assert made.texts == [
        (D, "eine katze"),
        (D, "ein hund"),
        (D, "a cat"),
        (D, "a dog"),
    ]  # a translation is no answer: no query prompt
    assert [text for text, _ in made.distilled] == [0, 1, 2, 3] and {
        view for _, view in made.distilled
    } == {"document"}
    assert made.teacher_text_idx == [place, place + 1, place, place + 1]
    assert made.teacher_texts() == [("document", made.texts[i][1]) for i in made.teacher_text_idx]


def test_rows_that_the_teacher_cannot_read_are_not_compared():
    rows = (ScoredPair("eine katze", "ein kater", 0.9), ScoredPair("eine katze", "ein hund", 0.3))
    made = collate(
        Batch(
            step=0,
            index=0,
            dataset="made",
            kind=RowKind.SCORED,
            rows=rows,
            row_ids=np.arange(2),
            teacher_reads=TeacherSide.NEITHER,
        ),
        task=None,
        distil=True,
    )
    assert (
        made.distilled == []
        and made.teacher_texts() == []
        and made.scores.tolist() == pytest.approx([0.9, 0.3])
    )


def test_the_side_that_is_read_must_be_there(tmp_path):
    raw = tiny.recipe(tmp_path, tmp_path)
    raw["data"]["sources"]["lone"]["teacher_reads"] = "positive"
    with pytest.raises(BadInput, match="teacher_reads positive is for pairs, not for texts"):
        parse_recipe(raw)


def test_a_learned_vocabulary_covers_every_script():
    made = TextTokenizer(
        learn_vocabulary(
            [row[side] for row in translations() for side in ("query", "positive")], 120
        ),
        special=False,
    )
    ids = made.ids(["Кошка спит", "die Katze schläft"], prompt="", max_length=64).ids
    assert len(made) <= 120 and all(
        len(row) and 0 not in row for row in ids
    )  # 0 is the unknown token
    assert made.ids(["КОШКА СПИТ"], prompt="", max_length=64).ids[0].tolist() == ids[0].tolist()


def test_a_token_starts_at_the_mean_of_its_texts():
    class Store:
        def get(self, texts: list[str]) -> np.ndarray:
            return np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float16)[: len(texts)]

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "aa": 1, "bb": 2, "cc": 3}, unk_token="[UNK]"))
    tokenizer = TextTokenizer(words, special=False)
    made = start_from_texts(tokenizer, Store(), [("aa", "x"), ("bb", "y")], [], noise=0.0, seed=1)
    share = FREQUENCY_FLOOR / (FREQUENCY_FLOOR + 0.5)
    wanted = torch.tensor([0.5, -0.5]) * 2 / (1 + SELDOM) * share
    assert torch.allclose(made.table[1], wanted, atol=1e-4) and torch.allclose(
        made.table[2], -wanted, atol=1e-4
    )
    assert made.table[3].abs().max() == 0  # in no text


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that ends with a static student of German, Russian and English from a teacher of
    English.
    """
    home = tmp_path_factory.mktemp("cross")
    data = tiny.write_data(home / "data")
    tiny.write_jsonl(data / "pairs" / "parallel.train.jsonl.gz", translations())
    graded = [
        {
            "text1": f"die katze {i}",
            "text2": f"die katze {i % 3}",
            "score": (i % 5) / 4,
            "lang": "de",
        }
        for i in range(40)
    ]
    tiny.write_jsonl(data / "scored" / "german.train.jsonl.gz", graded)
    raw = tiny.recipe(data, tiny.write_teacher(home / "teacher"), steps=60)
    raw["teacher"]["instructions"] = None
    raw["data"]["sources"] |= {
        "parallel": {
            "path": "pairs/parallel.train.jsonl.gz",
            "kind": "pairs",
            "teacher_reads": "positive",
        },
        "german": {
            "path": "scored/german.train.jsonl.gz",
            "kind": "scored",
            "teacher_reads": "neither",
        },
    }
    del raw["stage1"], raw["adapters"]
    raw["evaluation"] = {"sets": []}
    raw["static"] = {
        "sources": {"parallel": 3, "german": 1},
        "steps": 60,
        "batch_size": 16,
        "start": "texts",
        "vocabulary": {"size": 150},
        "weights": {"distill": 1.0, "teacher_nce": 0.2, "cosent": 0.1},
    }
    progress = tiny_run.train(raw, home / "run")
    return raw, home, progress


def test_the_run_s_model_is_the_static_student(run):
    _, home, progress = run
    encoder = Encoder.load(home / "run" / "model")
    assert encoder.tasks == () and not (home / "run" / "static-model").exists()
    english, german, russian = encoder.encode(
        ["the cat sleeps fast", "die katze schläft schnell", "эта кошка спит быстро"]
    )
    other = encoder.encode(["the dog runs the dog"])[0]
    assert min(english @ german, english @ russian) > max(german @ other, russian @ other)
    asked = next(note for note in progress.notes if note.startswith("teacher store"))
    assert asked.split(": ")[1].startswith("120 distinct texts")  # the English side alone


def test_both_terms_are_logged_and_both_sides_learn(run):
    _, home, _ = run
    lines = [
        json.loads(line) for line in (home / "run" / "log.jsonl").read_text("utf-8").splitlines()
    ]
    terms = {line["dataset"]: sorted(line["terms"]) for line in lines if "terms" in line}
    assert terms == {"parallel": ["distill", "teacher_nce"], "german": ["cosent"]}
    losses = [line["loss"] for line in lines if line.get("dataset") == "parallel"]
    assert losses[-1] < 0.5 * losses[0]


def test_a_continued_run_keeps_its_vocabulary_and_its_model(run):
    raw, home, _ = run
    before = (
        (home / "run" / "tokenizer" / "tokenizer.json").read_bytes(),
        tiny_run.weights(home / "run"),
    )
    assert tiny_run.train(raw, home / "run").stages == []
    assert before == (
        (home / "run" / "tokenizer" / "tokenizer.json").read_bytes(),
        tiny_run.weights(home / "run"),
    )


def test_the_teacher_s_vectors_are_needed_where_scores_do_not_count(run, tmp_path):
    raw, _, _ = run
    changed = raw | {"static": raw["static"] | {"weights": {"distill": 1.0}}}
    with pytest.raises(BadInput, match="the teacher reads neither text of source 'german'"):
        tiny_run.train(changed, tmp_path / "run")


def test_phases_that_build_on_stage_1_need_it(run):
    raw, _, _ = run
    adapter = {"retrieval": {"sources": {"qa": 1}, "steps": 2, "batch_size": 2, "lr": 1e-3}}
    with pytest.raises(
        BadInput, match=r"key 'stage1' is missing: adapters\.retrieval builds on it"
    ):
        parse_recipe(raw | {"adapters": adapter})
    for changed, said in (
        (
            {"weights": {"teacher_nce": 1.0}, "batch_size": 1},
            "teacher_nce tells the rows of a batch apart; set batch_size to 2 or more",
        ),
        (
            {"weights": {"distill": 1.0}, "nce_temperature": 0.1},
            "nce_temperature has no effect without a weight of teacher_nce",
        ),
    ):
        with pytest.raises(BadInput, match=said):
            parse_recipe(raw | {"static": raw["static"] | changed})
    with pytest.raises(BadInput, match="neither stage1 nor static is given"):
        parse_recipe({key: value for key, value in raw.items() if key != "static"})


def test_a_static_run_is_planned_scored_and_continued(run, tmp_path):
    raw, home, _ = run
    sets = [each.name for each in find_eval_sets(home / "data")][:2]
    recipe = parse_recipe(raw | {"evaluation": {"sets": sets, "precisions": ["float32"]}})
    planned = plan_run(recipe, home, tiny_run.Recorder())
    assert planned["phases"].keys() == {"static"} and planned["teacher"]["texts"] == 120
    shutil.copytree(home / "run", tmp_path / "run")
    for _ in range(2):  # the second time everything is there
        metrics = job.train(recipe, tmp_path / "run")
    assert [model["name"] for model in metrics["results"]["models"]] == [
        "teacher",
        "instant student",
    ]
    card, page = (
        (tmp_path / "run" / name).read_text("utf-8") for name in ("model/README.md", "report.html")
    )
    assert "| static | 60 | 16 | - |" in card and all(name in page for name in sets)
    assert f"{100 * metrics['results']['scores']['instant student'][sets[0]]['score']:.2f}" in card
