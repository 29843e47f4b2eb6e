"""`train` refuses what `plan` refuses, in the same words, before it has written or computed
anything.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny, tiny_run

from taskdistill.errors import BadInput
from taskdistill.pipeline import plan, teacher_store, train
from taskdistill.pipeline.plan import plan_run
from taskdistill.recipe.recipe import parse_recipe

Raw = dict[str, Any]


def put(path: str, value: Any) -> Callable[[Raw], None]:
    """Set one key of a recipe, given with dots."""

    def change(raw: Raw) -> None:
        *parents, name = path.split(".")
        here = raw
        for parent in parents:
            here = here.setdefault(parent, {})
        here[name] = value

    return change


def small_student(raw: Raw) -> None:
    """A student of another width than the teacher's, without a projection."""
    raw["student"] = {
        "init": "config",
        "config": tiny.config("bert") | {"hidden_size": 16},
        "pooling": "mean",
        "matryoshka_dims": [8],
        "max_length": 64,
    }
    raw["student"]["tokenizer"] = raw["teacher"]["model"]
    raw["stage1"]["projection"] = "none"
    raw["long"] = None


def second_teacher(raw: Raw) -> None:
    del raw["static"]
    raw["teachers"] = {"other": {**raw["teacher"], "max_length": 4096}}


def gate(task: str, dev: list[str]) -> Callable[[Raw], None]:
    def change(raw: Raw) -> None:
        raw["adapters"][task]["average"] = {"gate": True}
        raw["evaluation"]["dev"] = dev

    return change


def long_phase(raw: Raw) -> None:
    raw["long"] = {**raw["stage1"], "projection": "student"}
    raw["stage1"]["projection"] = "none"


MODELS: dict[str, tuple[Callable[[Raw], None], str]] = {
    "gate without dev": (gate("retrieval", []), "average.gate needs evaluation.dev sets"),
    "projection of long": (
        long_phase,
        "long.projection wants a projection that stage1 did not train",
    ),
    "device": (put("device", "cuda"), "device"),
    "teacher folder": (put("teacher.model", "no/such/folder"), "no/such/folder"),
    "teacher kind and address": (
        put("teacher.url", "http://localhost:1"),
        "an address goes with kind http",
    ),
    "teacher without weights": (
        put(
            "teacher",
            {"kind": "http", "url": "http://localhost:1", "model": "m", "instructions": {}},
        ),
        "has no weights here",
    ),
    "teacher length": (put("teacher.max_length", 4096), "teacher.max_length is 4096"),
    "teacher size": (put("teacher.embedding_dim", 7), "teacher.embedding_dim is 7"),
    "second teacher's length": (second_teacher, "teacher.max_length is 4096"),
    "student layers": (put("student.layers", [5]), "layers"),
    "student length": (put("student.max_length", 999), "student.max_length is 999"),
    "student theta": (put("student.rope_theta", 100.0), "no rotary positions"),
    "student sizes": (
        put("student.matryoshka_dims", [8, 64]),
        r"student.matryoshka_dims names \[64\]",
    ),
    "student end token": (put("student.end_token", "[SEP]"), "already ends every text"),
    "projection none": (
        small_student,
        "stage1.projection is none, but the teacher has 32 dimensions and the student 16",
    ),
    "phase length": (put("stage1.max_length", 999), "stage1.max_length is 999"),
    "length of a source": (
        put("stage1.long_sources", {"qa": [2, 999]}),
        "stage1.long_sources.qa is 999",
    ),
    "phase theta": (
        put("adapters.clustering.rope_theta", 10.0),
        "adapters.clustering.rope_theta has no effect",
    ),
    "adapter targets": (
        put("adapters.retrieval.target_modules", ["nothing"]),
        "adapters.retrieval: ",
    ),
    "evaluated sizes": (put("evaluation.dims", [64]), r"evaluation.dims names \[64\]"),
}
"""Found from the recipe and the models, before the data folder is looked at."""

SETS: dict[str, tuple[Callable[[Raw], None], str]] = {
    "data folder": (put("data.root", "no/such/data"), "data.root 'no/such/data' is no folder"),
    "limit without effect": (
        put("data.docstrings_limit", 5),
        "data.docstrings_limit has no effect",
    ),
    "evaluation folder": (put("evaluation.root", "no/such/sets"), "no/such/sets is not a folder"),
    "evaluation set": (
        put("evaluation.sets", ["sts/stss"]),
        "evaluation.sets: no evaluation set 'sts/stss'",
    ),
    "dev set": (
        put("evaluation.dev", ["sts/stss"]),
        "evaluation.dev: no evaluation set 'sts/stss'",
    ),
    "set while training": (
        put("evaluation.during", {"every": 3, "sets": ["sts/none"]}),
        "evaluation.during.sets: no evaluation set",
    ),
    "kept set": (
        put("evaluation.during", {"every": 3, "keep": "sts/stss"}),
        "evaluation.during.keep names 'sts/stss'; did you mean 'sts/sts'",
    ),
    "kept metric": (
        put("evaluation.during", {"every": 3, "keep": "sts/sts:Kendall"}),
        (
            "evaluation.during.keep is 'sts/sts:Kendall', but sts/sts has no metric 'Kendall';"
            " known: Spearman"
        ),
    ),
    "metric of the mean": (
        put("evaluation.during", {"every": 3, "keep": "mean:x"}),
        "mean has no metric 'x'; remove it",
    ),
    "gate of another task": (
        gate("retrieval", ["sts/sts"]),
        r"holds none for retrieval; name one or set gate: false",
    ),
    "gate of a later task": (
        gate("clustering", ["sts/sts", "retrieval/qa-dev"]),
        "holds none for clustering",
    ),
}
"""Found from names in the data folder, before a row is read."""

ROWS: dict[str, tuple[Callable[[Raw], None], str]] = {
    "source file": (put("data.sources.qa.path", "pairs/none.jsonl.gz"), "source 'qa': no file"),
    "kind of rows": (
        put("adapters.clustering.sources", {"sts": 1}),
        "source 'sts' has scored rows",
    ),
    "batch too large": (put("stage1.batch_size", 4096), "4096"),
    "no term": (
        put("adapters.retrieval.weights", {"info_nce": 0, "distill": 0, "gor": 0}),
        "no loss term with a weight above 0",
    ),
    "batch of one": (put("adapters.retrieval.batch_size", 1), "a batch of 1 row"),
    "no negatives": (
        put("adapters.classification.negatives", 0),
        "adapters.classification.negatives is 0",
    ),
}
"""Found from the rows, before a teacher is asked."""

CASES = [
    (name, kind)
    for kind, cases in (("models", MODELS), ("sets", SETS), ("rows", ROWS))
    for name in cases
]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("home")
    tiny.write_data(root / "data")
    tiny.write_teacher(root / "teacher")
    return root


@pytest.mark.parametrize(("name", "kind"), CASES, ids=[name for name, _ in CASES])
def test_plan_and_train_refuse_in_the_same_words_before_anything_is_done(
    home, tmp_path, monkeypatch, name, kind
):
    change, said = {"models": MODELS, "sets": SETS, "rows": ROWS}[kind][name]
    raw = tiny.recipe(home / "data", home / "teacher", steps=2)
    change(raw)

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("something was done before the setting was refused")

    for module in (plan, train):
        if kind == "models":
            monkeypatch.setattr(module, "data_root", forbidden)
        if kind != "rows":
            monkeypatch.setattr(module, "load_inputs", forbidden)
    for place, what in (
        (teacher_store, "make_teacher"),
        (train, "start_student"),
        (teacher_store, "fill_store"),
        (plan, "matrix_rate"),
    ):
        monkeypatch.setattr(place, what, forbidden)
    recipe = parse_recipe(raw)
    before = sorted(home.rglob("*"))
    with pytest.raises(BadInput, match=said) as planned:
        plan_run(recipe, home, tiny_run.Recorder())
    with pytest.raises(BadInput) as trained:
        tiny_run.train(raw, tmp_path / "run", recipe_folder=home)
    assert str(trained.value) == str(planned.value)
    assert list(tmp_path.iterdir()) == [] and sorted(home.rglob("*")) == before


def test_a_recipe_without_faults_passes_both(home, tmp_path):
    raw = tiny.recipe(home / "data", home / "teacher", steps=1)
    raw["adapters"] = {"retrieval": raw["adapters"]["retrieval"] | {"average": {"gate": True}}}
    del raw["static"]
    raw["evaluation"] |= {
        "during": {"every": 1, "keep": "retrieval/qa-dev:MRR@10"},
        "sets": ["sts/sts"],
        "dims": [8],
    }
    assert plan_run(parse_recipe(raw), home, tiny_run.Recorder())["total"]["steps"] == 2
    assert tiny_run.train(raw, tmp_path / "run", recipe_folder=home).records
