"""A transformer student with a vocabulary of its own: word alignment, the mixed token table, and a
whole run.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers import tiny, tiny_run
from helpers.two_languages import GERMAN, RUSSIAN
from safetensors.torch import load_file
from scipy.sparse import csr_matrix
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models

from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput, WorkFailed
from taskdistill.model.tokenizer import TextTokenizer
from taskdistill.pipeline.plan import plan_run
from taskdistill.pipeline.student_vocab import FOLDER, TABLE
from taskdistill.progress import SilentProgress
from taskdistill.recipe.recipe import parse_recipe
from taskdistill.train.context import Interrupted
from taskdistill.train.vocab import learn_vocabulary, whole_words, with_special_tokens, with_words
from taskdistill.train.vocab_transfer import (
    OCCURRENCES,
    _balanced,
    align,
    mixed_rows,
    transfer_embeddings,
)


def ids(*rows):
    return [np.array(row, dtype=np.int32) for row in rows]


def expectation_maximisation(new, old, rounds):
    """IBM model 1 by loops over sets of pieces, as in its definition."""
    chance = {}
    for _ in range(rounds):
        expected = {}
        for ours, theirs in zip(new, old, strict=True):
            for f in set(ours.tolist()):
                total = sum(chance.get((f, e), 1.0) for e in set(theirs.tolist()))
                for e in set(theirs.tolist()):
                    expected[f, e] = expected.get((f, e), 0.0) + chance.get((f, e), 1.0) / total
        sums = {}
        for (_, e), value in expected.items():
            sums[e] = sums.get(e, 0.0) + value
        chance = {(f, e): value / sums[e] for (f, e), value in expected.items()}
    return expected


def test_the_alignment_is_ibm_model_1():
    new, old = ids([0, 1], [0, 2], [1, 2, 2], [3]), ids([5, 6], [5, 7], [6, 7], [5, 7, 7])
    expected = expectation_maximisation(new, old, 6)
    found = align(new, old, (5, 8), seed=0)
    sums = {f: sum(value for (g, _), value in expected.items() if g == f) for f in range(4)}
    for (f, e), value in expected.items():
        assert found[f, e] == pytest.approx(value / sums[f])
    assert [int(found[f].toarray().argmax()) for f in range(3)] == [5, 6, 7] and found[4].nnz == 0


def test_a_text_without_old_pieces_and_a_frequent_piece_change_no_sum():
    count = 4 * OCCURRENCES
    new, old = (
        ids(*([[0, 1 + i % 2] for i in range(count)]), [2]),
        ids(*([[0, 1 + i % 2] for i in range(count)]), []),
    )
    found = align(new, old, (3, 3), seed=3)
    expected = np.zeros((3, 3))
    for (f, e), value in expectation_maximisation(new, old, 6).items():
        expected[f, e] = value
    assert np.allclose(found.toarray(), expected / expected.sum(axis=1, keepdims=True), atol=0.05)
    assert (align(new, old, (3, 3), seed=3) != found).nnz == 0


def test_a_piece_of_the_same_spelling_is_favoured_where_counts_cannot_tell():
    new, old = ids([0, 1]), ids([5, 6])
    assert align(new, old, (2, 7), seed=0)[0, 5] == pytest.approx(0.5)
    found = align(new, old, (2, 7), seed=0, same={0: 5})
    assert found[0, 5] > 0.8 and found[1, 6] > 0.8  # what the favoured one explains is left to it


def test_texts_read_as_they_are_are_a_tenth_of_the_translations():
    pairs = [(f"a{i}", f"b{i}") for i in range(40)] + [(f"c{i}", f"c{i}") for i in range(30)]
    kept = _balanced(pairs, seed=1)
    assert kept[:40] == pairs[:40] and len(kept) == 44 and set(kept[40:]) < set(pairs[40:])
    assert _balanced(pairs[40:], seed=1) == pairs[40:]


def test_rows_are_mixed_by_sharpened_chances_and_spelled_where_nothing_is_known():
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0], [4.0, 4.0]])
    chances = csr_matrix(np.array([[0.8, 0.19, 0.01], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    rows = mixed_rows(chances, table, ids([], [0, 1], []))
    a, b = 0.8**2, 0.19**2
    assert rows[0].tolist() == pytest.approx([a / (a + b), b / (a + b)])
    assert rows[1].tolist() == pytest.approx([0.5, 0.5]) and rows[2].tolist() == pytest.approx(
        [5 / 3, 5 / 3]
    )


def test_frequent_words_are_one_piece_and_a_text_is_cut_where_frequencies_make_it_most_probable():
    rng, letters = np.random.default_rng(4), list("abdeginorstuw")
    rare = ["".join(rng.choice(letters, 9)) for _ in range(400)]
    frequent = ["wird", "wer", "einem", "wurden", "katze"]
    texts = [f"{rare[i]} {frequent[i % 5]} {rare[i + 1]}" for i in range(399)]
    made = learn_vocabulary(texts, 200)
    assert made.get_vocab_size() == 200 and [made.encode(word).tokens for word in frequent] == [
        ["\u2581" + word] for word in frequent
    ]
    scores = dict(json.loads(made.to_str())["model"]["vocab"])
    for word in rare[:20]:
        marked = "\u2581" + word
        best = [0.0]
        for end in range(1, len(marked) + 1):
            best.append(
                max(best[start] + scores.get(marked[start:end], -np.inf) for start in range(end))
            )
        assert sum(scores[token] for token in made.encode(word).tokens) == pytest.approx(best[-1])


def test_a_piece_of_an_unspaced_script_holds_no_letters_of_another():
    made = learn_vocabulary(["男性がギターを弾いている", "女性がコーヒーを飲んでいる"] * 9, 200)
    assert made.encode("女性がギターを弾いている").tokens == [
        "\u2581",
        "女性",
        "が",
        "ギター",
        "を",
        "弾",
        "いている",
    ]


def test_texts_without_letters_give_no_vocabulary():
    with pytest.raises(WorkFailed, match="they have no letters"):
        learn_vocabulary(["", ""], 100)


def test_special_tokens_and_their_rows_are_taken_over():
    old = TextTokenizer(tiny.tokenizer())
    made = TextTokenizer(
        with_special_tokens(learn_vocabulary(["the cat sleeps", "die katze schläft"] * 9, 40), old)
    )
    tokens = made.backend.encode("die katze").tokens
    assert tokens[0] == "[CLS]" and tokens[-1] == "[SEP]" and made.own_tokens == 2
    table = torch.randn(len(old), 4, generator=torch.Generator().manual_seed(0))
    rows, kept = transfer_embeddings(
        made, old, [("die katze", "the cat"), ("the cat", "the cat")], table, seed=1
    )
    assert rows.shape == (len(made), 4) and kept.shape == (len(made),)
    for name in tiny.SPECIAL:
        number = made.backend.token_to_id(name)
        assert torch.equal(rows[number], table[old.backend.token_to_id(name)]) and kept[number]


def test_a_tokenizer_without_special_tokens_gives_none():
    plain = TextTokenizer(Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]")))
    made = with_special_tokens(learn_vocabulary(["the cat sleeps"] * 9, 30), plain)
    assert made.num_special_tokens_to_add(False) == 0


def test_whole_words_of_the_initial_vocabulary_stay_whole_and_keep_their_rows():
    old = TextTokenizer(tiny.tokenizer())
    words = whole_words(old)
    assert (
        "harbour" in words and "of" not in words and not any(word.startswith("#") for word in words)
    )
    learned = with_words(
        learn_vocabulary(["die katze schläft im hafen", "the cat sleeps"] * 9, 40), [*words, "cat"]
    )
    made = TextTokenizer(with_special_tokens(learned, old))
    assert made.backend.encode("Harbour").tokens == ["[CLS]", "\u2581harbour", "[SEP]"]
    table = torch.randn(len(old), 4, generator=torch.Generator().manual_seed(0))
    rows, kept = transfer_embeddings(
        made, old, [("the ship harbour", "the cow town")] * 3, table, seed=1
    )
    for word, stays in (
        ("whale", True),
        ("ship", False),
    ):  # the first is in no pair, the second stands for something else
        number = made.backend.token_to_id("\u2581" + word)
        assert (
            kept[number] == stays
            and torch.equal(rows[number], table[old.backend.token_to_id(word)]) == stays
        )


def test_words_are_found_in_vocabularies_that_mark_their_beginning():
    marked = TextTokenizer(
        Tokenizer(
            models.Unigram(
                [("<unk>", 0.0), ("\u2581The", -1.0), ("the", -2.0), ("\u2581a1", -3.0)], unk_id=0
            )
        )
    )
    assert whole_words(marked) == ["the"]


def translated(count: int = 160) -> list[dict[str, str]]:
    """Pairs in words that the tiny teacher's tokenizer knows, translated word by word."""
    rng, rows = np.random.default_rng(0), []
    words = list(
        zip(
            [*["the", "cat", "dog", "sleeps", "runs", "fast"]],
            ["the", "ship", "cow", "bread", "song", "judge"],
            strict=True,
        )
    )
    for number in range(count):
        chosen = [words[0], *(words[i] for i in rng.choice(np.arange(1, 6), 3))]
        table, lang = ((GERMAN, "de"), (RUSSIAN, "ru"))[number % 2]
        rows.append(
            {
                "query": " ".join(table[word] for word, _ in chosen),
                "positive": " ".join(mine for _, mine in chosen),
                "lang": lang,
            }
        )
    return rows


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    home = tmp_path_factory.mktemp("vocabulary")
    data = tiny.write_data(home / "data")
    tiny.write_jsonl(data / "pairs" / "parallel.train.jsonl.gz", translated())
    raw = tiny.recipe(data, tiny.write_teacher(home / "teacher"), steps=30)
    raw["teacher"]["instructions"] = None
    raw["data"]["sources"] |= {
        "parallel": {
            "path": "pairs/parallel.train.jsonl.gz",
            "kind": "pairs",
            "teacher_reads": "positive",
        }
    }
    del raw["static"], raw["adapters"]
    raw["student"] |= {
        "init": "teacher",
        "vocabulary": {"size": 120},
        "layers": None,
        "prompts": {"query": "", "document": ""},
    }
    raw["stage1"] |= {
        "sources": {"parallel": 1},
        "weights": {"distill": 1.0, "teacher_nce": 0.2},
        "freeze_layers": True,
        "lr": 0.01,
        "projection": "none",
    }
    raw["evaluation"] = {"sets": []}
    tiny_run.train(raw, home / "run")
    return raw, home


def test_a_new_language_enters_as_the_words_of_the_old_one(run):
    _, home = run
    encoder, teacher = Encoder.load(home / "run" / "model"), Encoder.load(home / "teacher")
    german, russian = encoder.encode(["die katze schläft", "эта кошка спит"])
    own, other = teacher.encode(["the ship bread", "the judge song"])
    assert min(german @ own, russian @ own) > max(german @ other, russian @ other)


def test_the_terms_are_logged_and_the_layers_stay(run):
    _, home = run
    finished, start = (
        load_file(home / "run" / "model" / "model.safetensors"),
        load_file(home / "teacher" / "model.safetensors"),
    )
    table = "embeddings.word_embeddings.weight"
    assert all(torch.equal(finished[name], start[name]) for name in start if name != table)
    begun = load_file(home / "run" / FOLDER / TABLE)
    assert torch.equal(finished[table][begun["kept"]], begun["rows"][begun["kept"]]) and 5 < begun[
        "kept"
    ].sum() < len(begun["kept"])
    assert not torch.equal(finished[table], begun["rows"])
    lines = [
        json.loads(line) for line in (home / "run" / "log.jsonl").read_text("utf-8").splitlines()
    ]
    steps = [line for line in lines if "terms" in line]
    assert (
        sorted(steps[0]["terms"]) == ["distill", "teacher_nce"]
        and steps[-1]["loss"] < steps[0]["loss"]
    )


def test_sentence_transformers_reads_the_model(run):
    _, home = run
    texts = ["die katze schläft", "the ship", "эта собака"]
    ours = Encoder.load(home / "run" / "model").encode(texts)
    theirs = SentenceTransformer(str(home / "run" / "model"), device="cpu").encode(
        texts, normalize_embeddings=True
    )
    assert np.allclose(ours, theirs, atol=1e-5)


def test_interrupted_it_goes_on_to_the_same_weights_and_keeps_its_vocabulary(run, tmp_path):
    raw, _ = run
    with pytest.raises(Interrupted):
        tiny_run.train(raw, tmp_path / "run", should_stop=tiny_run.stop_before(12))
    files = [(tmp_path / "run" / FOLDER / name).read_bytes() for name in ("tokenizer.json", TABLE)]
    assert tiny_run.train(raw, tmp_path / "run").stages[0].startswith("stage1")
    assert files == [
        (tmp_path / "run" / FOLDER / name).read_bytes() for name in ("tokenizer.json", TABLE)
    ]


def test_a_plan_counts_its_rows(run):
    raw, home = run
    more = raw | {"student": raw["student"] | {"vocabulary": {"size": 5_120}}}
    small, large = (
        plan_run(parse_recipe(each), home, SilentProgress())["total"]["disk_megabytes"]
        for each in (raw, more)
    )
    assert large > small


def test_a_plan_counts_frozen_layers_less_and_the_tokens_of_the_run(run, monkeypatch):
    raw, home = run
    monkeypatch.setattr("taskdistill.pipeline.plan.matrix_rate", lambda **_: 1e6)
    trained = raw | {"stage1": raw["stage1"] | {"freeze_layers": False}}
    frozen, trained = (
        plan_run(parse_recipe(each), home, SilentProgress())["phases"]["stage1"]
        for each in (raw, trained)
    )
    steps = [
        json.loads(line)
        for line in (home / "run" / "log.jsonl").read_text().splitlines()
        if '"tokens"' in line
    ]
    assert frozen["tokens"] == trained["tokens"] == sum(step["tokens"] for step in steps)
    assert frozen["minutes"] == pytest.approx(2 / 3 * trained["minutes"], rel=0.02)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"student": {"tokenizer": "x"}}, "does not go with `tokenizer`"),
        ({"static": {"sources": {"lone": 1}}}, "give static.vocabulary as well"),
        ({"stage1": {"freeze_embeddings": True}}, "leave nothing to train"),
        (
            {"stage1": {"weights": {"distill": 1.0}, "menu": {"nce_temperature": 0.1}}},
            "menu.nce_temperature has no effect",
        ),
    ],
)
def test_settings_without_effect_are_refused(run, tmp_path, changes, said):
    raw, _ = run
    made = {
        key: (raw[key] | value if key in raw else value) if isinstance(value, dict) else value
        for key, value in changes.items()
    }
    with pytest.raises(BadInput, match=said):
        tiny_run.train(raw | made, tmp_path / "run")
