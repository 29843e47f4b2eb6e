"""How stage 1 begins by what student and teacher are to each other, and that every such pair gains
on a task that can be measured.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from helpers import tiny, tiny_run, topic_models
from safetensors.torch import load_file

from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput
from taskdistill.io.folders import read_manifest
from taskdistill.pipeline.pairing import STARTS, Origin, choose_start, student_origin
from taskdistill.pipeline.plan import plan_run
from taskdistill.recipe.recipe import Recipe, load_recipe, parse_recipe
from taskdistill.types import Pooling

STEPS = 60


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Texts about topics; a good teacher, a wider and a narrower one; students that half know the
    topics, each in a space of its own.
    """
    home = tmp_path_factory.mktemp("pairs")
    rng, topics = np.random.default_rng(4), list(tiny.TOPICS)
    texts = [tiny.sentence(topics[n % len(topics)], rng, 6 + n % 5) for n in range(600)]
    tiny.write_jsonl(home / "data/texts/lone.jsonl.gz", [{"text": text} for text in texts[:400]])
    pairs = [{"query": " ".join(text.split()[:3]), "positive": text} for text in texts[400:]]
    tiny.write_jsonl(home / "data/pairs/qa.train.jsonl.gz", pairs)
    tiny.write_data(home / "judged")
    for name, width in (("teacher", 32), ("wide", 64), ("narrow", 16)):
        topic_models.write(home / name, width=width, noise=0.1, seed=width)
    topic_models.write(home / "student", width=32, noise=1.5, seed=3)
    topic_models.write(home / "letters", width=32, noise=1.5, seed=4, letters=True)
    topic_models.write(home / "cls", width=32, noise=1.5, seed=5, pooling=Pooling.CLS)
    queries = [pair["query"] for pair in pairs]
    topic_models.write_vectors(
        home / "disk", home / "wide", list(dict.fromkeys([*texts, *queries]))
    )
    return home


def raw_recipe(home, student="student", teacher="teacher", **changes):
    phase = {
        "steps": STEPS,
        "max_length": 32,
        "lr": 2e-2,
        "batch_size": 32,
        "checkpoint_every": STEPS,
    }
    sources = {
        "qa": {"path": "pairs/qa.train.jsonl.gz", "kind": "pairs"},
        "lone": {"path": "texts/lone.jsonl.gz", "kind": "texts"},
    }
    return {
        "name": "tiny",
        "seed": 3,
        "threads": 1,
        "data": {"root": str(home / "data"), "sources": sources},
        "teacher": {"model": str(home / teacher), "max_length": 32, "instructions": None},
        "student": {
            "init": str(home / student),
            "max_length": 64,
            "matryoshka_dims": [16],
            "prompts": {"query": "", "document": ""},
        },
        "stage1": {**phase, "sources": {"qa": 1, "lone": 2}},
        "evaluation": {"sets": []},
    } | changes


def trained(raw, out):
    return tiny_run.train(raw, out), topic_models.separation(out / "model")


@pytest.fixture(scope="module")
def by_wide(home):
    """A run that a wider teacher has taught, and what it said."""
    return home / "by-wide" / "run", tiny_run.train(
        raw_recipe(home, teacher="wide"), home / "by-wide" / "run"
    )


@pytest.mark.parametrize(
    ("student", "teacher", "steps"),
    [
        ("student", "teacher", STEPS),
        ("student", "wide", STEPS),
        ("student", "narrow", STEPS),
        ("letters", "teacher", STEPS),
        ("cls", "teacher", 4 * STEPS),
    ],
    ids=[
        "another space",
        "wider teacher",
        "narrower teacher",
        "another tokenizer",
        "another pooling",
    ],
)
def test_a_student_with_a_space_of_its_own_gains(home, tmp_path, request, student, teacher, steps):
    before, aim = topic_models.separation(home / student), topic_models.separation(home / teacher)
    if teacher == "wide":
        out, progress = request.getfixturevalue("by_wide")
        after = topic_models.separation(out / "model")
    else:
        raw = raw_recipe(home, student, teacher)
        raw["stage1"] |= {"steps": steps, "checkpoint_every": steps}
        progress, after = trained(raw, tmp_path / "run")
    assert (
        "stage 1: the student starts from a trained embedding model of another space"
        in progress.notes[0]
    )
    assert after > before + 0.4 * (aim - before) > before


def test_vectors_from_disk_teach_it(home, tmp_path):
    raw = raw_recipe(home, teacher="disk")
    raw["teacher"]["kind"] = "precomputed"
    before = topic_models.separation(home / "student")
    assert trained(raw, tmp_path / "run")[1] > before + 1


def test_vectors_over_http_teach_it(home, tmp_path):
    encoder = Encoder.load(home / "wide", threads=1)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            data = [
                {"index": i, "embedding": row.tolist()}
                for i, row in enumerate(encoder.encode(body["input"]))
            ]
            reply = json.dumps({"data": data}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        raw = raw_recipe(home)
        raw["teacher"] = {
            "kind": "http",
            "model": "wide",
            "url": f"http://127.0.0.1:{server.server_port}/v1",
            "instructions": None,
        }
        before = topic_models.separation(home / "student")
        assert trained(raw, tmp_path / "run")[1] > before + 1
    finally:
        server.shutdown()


@pytest.mark.parametrize(
    "weights",
    [{}, {"similarity": 1.0, "score_kl": 0.05, "distill": 0.3}],
    ids=["chosen", "with a regression"],
)
def test_several_teachers_teach_it(home, tmp_path, weights):
    raw = raw_recipe(
        home,
        teachers={"wide": {"model": str(home / "wide"), "max_length": 32, "instructions": None}},
    )
    raw["stage1"]["weights"] = weights
    before = topic_models.separation(home / "student")
    progress, after = trained(raw, tmp_path / "run")
    assert after > before + 1
    projection = Encoder.load(tmp_path / "run" / "model", threads=1).model.projection
    assert projection.weight.shape == (32 + 64, 32)
    assert any("projection fitted on" in note for note in progress.notes)


def test_a_regression_from_a_fitted_start_begins_where_the_fit_ends(home, tmp_path):
    raw = raw_recipe(home, teacher="wide")
    raw["stage1"] |= {"weights": {"distill": 1.0}, "steps": 20, "checkpoint_every": 20}
    first = {}
    for init in ("default", "least_squares", "rotation"):
        raw["stage1"]["projection_init"] = init
        tiny_run.train(raw, tmp_path / init / "run")
        losses = [loss for _, loss in tiny_run.steps(tmp_path / init / "run")["stage1"]]
        first[init] = losses[0]
        if init != "default":
            manifest = read_manifest(tmp_path / init / "run" / "projections" / "stage1")
            expected = np.mean([1 - cosine for cosine in manifest["cosines"].values()])
            assert losses[0] == pytest.approx(
                expected, abs=0.1
            )  # the held-out texts of the fit against one batch
    assert first["least_squares"] < first["rotation"] < first["default"]


def test_a_fit_is_made_once_and_a_damaged_one_is_refused(home, tmp_path):
    raw = raw_recipe(home)
    raw["stage1"] |= {
        "weights": {"distill": 1.0},
        "projection_init": "least_squares",
        "steps": 4,
        "checkpoint_every": 2,
    }
    stopped = tmp_path / "stopped" / "run"
    with pytest.raises(Exception, match="everything is saved"):
        tiny_run.train(
            raw, stopped, should_stop=lambda: (stopped / "checkpoints/stage1/step-0000002").is_dir()
        )
    progress = tiny_run.train(raw, stopped)
    assert not any("projection fitted" in note for note in progress.notes)
    tiny_run.train(raw, tmp_path / "whole" / "run")
    assert tiny_run.weights(stopped) == tiny_run.weights(tmp_path / "whole" / "run")
    file = next((stopped / "projections").glob("*/weights.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    with pytest.raises(BadInput, match="projection"):
        tiny_run.train(raw, stopped)


def test_a_stage_without_regression_ends_with_a_fitted_projection(home, by_wide):
    """Adapters distil through it and other models' indexes are asked through it, so it must lead
    into the teacher's space.
    """
    out, _ = by_wide
    encoder = Encoder.load(out / "model", threads=1)
    texts = [
        json.loads(line)["text"]
        for line in (home / "disk" / "texts.jsonl").read_text().splitlines()[:100]
    ]
    with torch.no_grad():
        carried = encoder.model.projection(torch.from_numpy(encoder.encode(texts)))
    teacher = torch.from_numpy(np.load(home / "disk" / "vectors.npy")[:100])
    assert torch.nn.functional.cosine_similarity(carried, teacher).mean() > 0.8
    kept = load_file(out / "projections" / "stage1" / "weights.safetensors")
    torch.testing.assert_close(kept["weight"], encoder.model.projection.weight.detach())


def test_the_origin_of_a_student(home, tmp_path):
    def origin(**changes):
        return student_origin(parse_recipe(raw_recipe(home) | changes))

    student = raw_recipe(home)["student"]
    assert origin() is Origin.EMBEDDING_MODEL
    assert origin(student=student | {"init": "teacher"}) is Origin.TEACHER
    assert origin(student=student | {"init": str(home / "teacher")}) is Origin.TEACHER
    assert (
        origin(
            student=student
            | {
                "init": "config",
                "config": tiny.config("bert"),
                "tokenizer": str(home / "teacher"),
            }
        )
        is Origin.RANDOM
    )
    copy, bare = tmp_path / "copy", tmp_path / "bare"
    for folder, left_out in ((copy, set()), (bare, {"taskdistill.json", "modules.json"})):
        folder.mkdir()
        for path in (home / "teacher").iterdir():
            if path.is_file() and path.name not in left_out:
                (folder / path.name).write_bytes(path.read_bytes())
    assert (
        origin(student=student | {"init": str(copy)}) is Origin.TEACHER
    )  # the same weights under another name
    assert origin(student=student | {"init": str(bare)}) is Origin.TEACHER
    other = tmp_path / "other"
    other.mkdir()
    for path in (home / "student").iterdir():
        if path.is_file() and path.name not in ("taskdistill.json", "modules.json"):
            (other / path.name).write_bytes(path.read_bytes())
    assert origin(student=student | {"init": str(other)}) is Origin.LANGUAGE_MODEL
    assert origin(student=student | {"init": "Nobody/Has-This"}) is Origin.LANGUAGE_MODEL


@pytest.mark.parametrize("origin", Origin)
def test_what_a_recipe_says_is_not_chosen(home, origin, monkeypatch):
    monkeypatch.setattr("taskdistill.pipeline.pairing.student_origin", lambda recipe: origin)
    open_recipe, pairing = choose_start(parse_recipe(raw_recipe(home)))
    assert open_recipe.stage1.weights == dict(STARTS[origin].weights)
    assert open_recipe.stage1.projection_init == STARTS[origin].projection_init
    assert STARTS[origin].why in pairing.lines()[0]
    raw = raw_recipe(home)
    raw["stage1"] |= {"weights": {"l2": 2.0}, "projection_init": "rotation"}
    raw["long"] = raw["stage1"] | {"weights": {}, "projection_init": "auto"}
    said, pairing = choose_start(parse_recipe(raw))
    assert said.stage1 == parse_recipe(raw).stage1 and pairing.lines() == []
    assert said.long.weights == {"l2": 2.0}
    again, pairing = choose_start(open_recipe)
    assert again == open_recipe and pairing.chosen == {}


def test_plan_says_what_it_took_and_why(home):
    progress = tiny_run.Recorder()
    plan_run(parse_recipe(raw_recipe(home)), home, progress)
    assert progress.notes[0].startswith(
        "stage 1: the student starts from a trained embedding model of another space: it has a"
        " space of its own"
    )
    assert "weights similarity 1" in progress.notes[1]


def test_a_run_that_was_begun_is_continued_by_the_recipe_that_it_wrote(home, tmp_path):
    raw = raw_recipe(home)
    raw["stage1"] |= {"steps": 4}
    tiny_run.train(raw, tmp_path / "run")
    written = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert isinstance(written, Recipe) and written.stage1.weights == dict(
        STARTS[Origin.EMBEDDING_MODEL].weights
    )
    progress = tiny_run.train(written.model_dump(mode="json"), tmp_path / "run")
    assert any("stage1: finished before" in note for note in progress.notes)


def test_settings_of_a_projection_that_no_term_goes_through_are_refused(home, tmp_path):
    raw = raw_recipe(home)
    raw["stage1"] |= {"weights": {"similarity": 1.0}, "projection_lr": 0.01}
    with pytest.raises(BadInput, match=r"stage1\.projection_lr has no effect"):
        tiny_run.train(raw, tmp_path / "run")
