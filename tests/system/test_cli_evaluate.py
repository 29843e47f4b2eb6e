"""`taskdistill evaluate` from argv to report: every option reaches the results, one without effect
is refused, a kill loses nothing.
"""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.forked import Forked
from helpers.tiny import (
    TOPICS,
    add_adapter,
    model,
    sentence,
    student,
    write_data,
    write_jsonl,
    write_teacher,
    write_tokenizer,
)

from taskdistill.cli.main import run
from taskdistill.encode.encoder import Encoder
from taskdistill.evaluate.datasets import find_eval_sets
from taskdistill.evaluate.runner import evaluate_models
from taskdistill.model.folder import write_model
from taskdistill.quantization import fit_ranges, ranges_to_json


def write_family(root: Path) -> None:
    """Retrieval sets of one family in two made-up languages, with equal ids."""
    rng = np.random.default_rng(1)
    documents = [sentence(topic, rng) for topic in [*TOPICS] * 3]
    for language, mark in (("en", ""), ("xx", "zz ")):
        folder = root / "retrieval" / f"town-{language}"
        write_jsonl(
            folder / "corpus.jsonl.gz",
            [{"_id": f"d{i}", "text": mark + text} for i, text in enumerate(documents)],
        )
        write_jsonl(
            folder / "queries.jsonl.gz",
            [
                {"_id": f"q{i}", "text": mark + " ".join(text.split()[:4])}
                for i, text in enumerate(documents[:12])
            ],
        )
        (folder / "qrels.tsv").write_text(
            "query-id\tcorpus-id\tscore\n" + "".join(f"q{i}\td{i}\t1\n" for i in range(12))
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Data of every kind, a plain model and an adapted one with int8 ranges."""
    root = tmp_path_factory.mktemp("place")
    write_data(root / "data")
    write_family(root / "data")
    rows = [
        {"query": f"ship {i}", "positive": f"whale {i}", "lang": "fr" if i % 2 else "de"}
        for i in range(12)
    ]
    write_jsonl(root / "data" / "pairs" / "twin.test.jsonl.gz", rows)
    write_teacher(root / "plain")
    built = model(student(), write_tokenizer(root / "tokenizer"))
    built.adapter_configs["retrieval"] = add_adapter(built.module, "retrieval")
    vectors = Encoder(built, threads=1).encode([*TOPICS])
    built.settings.int8_ranges["retrieval"] = ranges_to_json(fit_ranges(vectors, (8, 32)))
    write_model(root / "adapted", built)
    (root / "prompts.txt").write_text("\nQuery: \ntopic of \n")
    return root


def fails(capsys, *argv) -> str:
    assert run(["evaluate", *map(str, argv)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "Traceback" not in message
    return message


def test_every_option_reaches_the_results(place, tmp_path, capsys):
    out = tmp_path / "out"
    argv = [
        "evaluate",
        place / "adapted",
        f"{place / 'adapted'}#adapters=off&name=base",
        place / "plain",
        "--data",
        place / "data",
        "--out",
        out,
        "--dims",
        "8,16",
        "--precisions",
        "float32,int8,binary",
        "--prompts",
        place / "prompts.txt",
        "--train-data",
        place / "data",
        "--reference",
        "plain",
        "--max-queries",
        "10",
        "--json",
        tmp_path / "copy.json",
    ]
    assert run([str(each) for each in argv]) == 0
    result = json.loads((out / "results.json").read_text("utf-8"))
    assert result == json.loads((tmp_path / "copy.json").read_text("utf-8"))
    assert [each["name"] for each in result["models"]] == ["adapted", "base", "plain"] and result[
        "reference"
    ] == "plain"
    cells = result["scores"]["adapted"]["retrieval/qa"]["compression"]
    assert {(cell["dim"], cell["precision"], cell["rescored"]) for cell in cells} == {
        (dim, precision, rescored)
        for dim in (32, 16, 8)
        for precision, rescored in (
            ("float32", False),
            ("int8", False),
            ("int8", True),
            ("binary", False),
            ("binary", True),
        )
    }
    assert result["scores"]["adapted"]["retrieval/qa"]["calibration"] == {
        "model": [8, 32],
        "set": [16],
    }
    assert result["scores"]["plain"]["retrieval/qa"]["calibration"] == {
        "model": [],
        "set": [8, 16, 32],
    }
    assert set(result["scores"]["base"]["sts/sts"]["prompts"]) == {"", "Query: ", "topic of "}
    assert set(result["pools"]["plain"]["retrieval/town"]["cross"]["en"]) == {"en", "xx"}
    assert set(result["scores"]["plain"]["bitext/twin"]["by_language"]) == {"de", "fr"}
    assert sum(bucket["n"] for bucket in result["scores"]["plain"]["retrieval/qa"]["lengths"]) == 10
    seen = result["seen"][0]["sets"]
    assert seen["sts/sts"]["texts"] > 0 and set(seen["retrieval/qa"]) == {
        "texts",
        "exact",
        "near",
        "queries",
        "teacher",
    }
    page = (out / "report.html").read_text("utf-8")
    for words in (
        "retrieval/town, plain: across languages",
        "bitext/twin",
        "Seen in training",
        "Median, and minimum to maximum",
        "“topic of ”",
    ):
        assert words in page, words
    assert "--train-data" in page and str(tmp_path) not in page
    text = capsys.readouterr().out
    assert "retrieval/qa" in text and "adapted: To keep 99 %" in text


def test_options_without_effect_or_sense_are_refused(place, tmp_path, capsys):
    out, data, plain = tmp_path / "out", place / "data", place / "plain"
    assert "nothing to evaluate on" in fails(capsys, plain, "--out", out)
    assert "give at least one MODEL and --out DIR" in fails(capsys, "--data", data)
    assert "--no-languages has no effect without --data" in fails(
        capsys, plain, "--suite", "beir", "--no-languages", "--out", out
    )
    assert "--no-rescore has no effect without --dims" in fails(
        capsys, plain, "--data", data, "--no-rescore", "--out", out
    )
    assert "unknown precision 'int4'" in fails(
        capsys, plain, "--data", data, "--precisions", "int4", "--out", out
    )
    assert "needs numbers above 0" in fails(
        capsys, plain, "--data", data, "--dims", "0,8", "--out", out
    )
    assert "it must be test or dev" in fails(
        capsys, plain, "--data", data, "--split", "train", "--out", out
    )
    assert "the reference 'x' is not among" in fails(
        capsys, plain, "--data", data, "--reference", "x", "--out", out
    )
    (tmp_path / "none.txt").write_text("")
    assert "no prompts" in fails(
        capsys, plain, "--data", data, "--prompts", tmp_path / "none.txt", "--out", out
    )
    assert "tells no training data" in fails(
        capsys, plain, "--data", data, "--train-data", tmp_path / "none.txt", "--out", out
    )
    assert not (out / "results.json").exists()


def test_no_rescoring_leaves_it_out(place, tmp_path):
    argv = [
        "evaluate",
        place / "plain",
        "--data",
        place / "data",
        "--eval-set",
        "retrieval/qa",
        "--dims",
        "8",
        "--no-rescore",
        "--out",
        tmp_path / "o",
    ]
    assert run([str(each) for each in argv]) == 0
    cells = json.loads((tmp_path / "o" / "results.json").read_text())["scores"]["plain"][
        "retrieval/qa"
    ]["compression"]
    assert len(cells) == 2 * 4 and not any(cell["rescored"] for cell in cells)


def test_written_texts_are_those_that_vectors_on_disk_need(place, tmp_path, capsys):
    texts = tmp_path / "texts.jsonl"
    assert run(["evaluate", "--data", str(place / "data"), "--write-texts", str(texts)]) == 0
    lines = [json.loads(line)["text"] for line in texts.read_text("utf-8").splitlines()]
    assert len(lines) == len(set(lines)) > 100
    folder = tmp_path / "vectors"
    folder.mkdir()
    texts.rename(folder / "texts.jsonl")
    np.save(folder / "vectors.npy", Encoder.load(place / "plain", threads=1).encode(lines))
    assert (
        run(
            [
                "evaluate",
                str(folder),
                str(place / "plain"),
                "--data",
                str(place / "data"),
                "--out",
                str(tmp_path / "out"),
            ]
        )
        == 0
    )
    scores = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))["scores"]
    for name, record in scores["plain"].items():
        assert record["score"] == pytest.approx(scores["vectors"][name]["score"], abs=1e-4), name
    capsys.readouterr()
    assert "evaluates nothing" in fails(
        capsys, place / "plain", "--data", place / "data", "--write-texts", texts
    )


def test_a_suite_without_its_data_is_bad_input(place, tmp_path, capsys):
    pytest.importorskip("mteb", reason="mteb is not installed: pip install 'taskdistill[mteb]'")
    assert "no suite 'longembd'; did you mean 'longembed'" in fails(
        capsys, place / "plain", "--suite", "longembd", "--out", tmp_path / "a"
    )
    message = fails(capsys, place / "plain", "--suite", "longembed", "--out", tmp_path / "b")
    assert (
        "the data of no task of LongEmbed can be had" in message and "Hugging Face Hub" in message
    )
    assert not (tmp_path / "b" / "results.json").exists()


class Slow:
    name = "slow"

    def encode(self, texts, *, task, prompt_name):
        if task != "retrieval":
            print("second set", flush=True)
            time.sleep(600)
        return np.array([[len(text), text.count("a") + 1] for text in texts], dtype=np.float32)

    def fingerprint(self):
        return "slow"


def evaluate_slowly(data: Path, out: Path) -> None:
    evaluate_models([Slow()], find_eval_sets(data, ["retrieval/qa", "sts/sts"]), out)


def test_a_killed_evaluation_has_lost_no_finished_score(place, tmp_path):
    out = tmp_path / "out"
    with Forked(evaluate_slowly, place / "data", out) as child:
        assert child.stdout.readline() == "second set\n"
        child.kill()
        assert child.wait(30) == -signal.SIGKILL and not (out / "results.json").exists()
    stored = list((out / "cache").glob("*.json"))
    assert len(stored) == 1 and json.loads(stored[0].read_text())["set"] == "retrieval/qa"
    (out / "cache" / ".half-written.json.1234").write_text("{")

    class Quick:
        name = "slow"

        def __init__(self) -> None:
            self.tasks: list[str] = []

        def encode(self, texts, *, task, prompt_name):
            self.tasks.append(task)
            return np.array([[len(text), text.count("a") + 1] for text in texts], dtype=np.float32)

        def fingerprint(self) -> str:
            return "slow"

    sets = find_eval_sets(place / "data", ["retrieval/qa", "sts/sts"])
    model = Quick()
    result = evaluate_models([model], sets, out)
    assert set(model.tasks) == {"text-matching"}, "the finished set was not encoded again"
    assert {name: record["score"] for name, record in result["scores"]["slow"].items()} == {
        name: record["score"]
        for name, record in evaluate_models([Quick()], sets)["scores"]["slow"].items()
    }
    stored[0].write_text('{"value": {"sco')
    model = Quick()
    again = evaluate_models([model], sets, out)
    assert (
        set(model.tasks) == {"retrieval"}
        and again["scores"]["slow"]["retrieval/qa"]["score"]
        == result["scores"]["slow"]["retrieval/qa"]["score"]
    )
