"""A recipe from YAML.

Unknown keys, bad values and settings without effect are named in one line; the rest survives a
round trip.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import tiny

from taskdistill.errors import BadInput
from taskdistill.recipe.recipe import Recipe, dump_recipe, load_recipe, parse_recipe
from taskdistill.tasks import Task

RECIPES = sorted(
    path
    for path in (Path(__file__).parents[2] / "recipes").glob("*.yaml")
    if not path.name.startswith("ablation-")
)


def raw() -> dict[str, Any]:
    made = tiny.recipe(Path("data"), Path("teacher"))
    made["long"] = {**made["stage1"], "rope_theta": 500}
    made["adapters"]["retrieval"]["average"] = {}
    return made


def put(made: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    here: Any = made
    *parts, last = key.split(".")
    for part in parts:
        here = here[part]
    here[last] = value
    return made


def message(made: dict[str, Any]) -> str:
    with pytest.raises(BadInput) as caught:
        parse_recipe(made)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_of_the_repository_is_read_and_survives_a_round_trip(path, tmp_path):
    recipe = load_recipe(path)
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    again = load_recipe(tmp_path / "again.yaml")
    assert (
        again == recipe
        and again.digest() == recipe.digest()
        and dump_recipe(again) == dump_recipe(recipe)
    )


def test_every_default_is_spelled_out(tmp_path):
    text = yaml.safe_load(dump_recipe(parse_recipe(raw())))
    assert (
        text["stage1"]["weight_decay"] == 0.01
        and text["stage1"]["warmup"] == 0.05
        and text["stage1"]["clip"] == 1.0
    )
    assert (
        text["adapters"]["retrieval"]["rank"] == 4
        and text["adapters"]["retrieval"]["average"]["mode"] == "factors"
    )
    assert text["student"]["prompts"] == {"query": "Query: ", "document": "Document: "}
    fields = set(Recipe.model_fields)
    assert set(text) == fields


def test_phases_run_in_their_order():
    assert list(parse_recipe(raw()).phases()) == [
        "static",
        "stage1",
        "long",
        *(f"adapters.{task}" for task in Task),
    ]
    made = raw()
    del made["static"], made["long"], made["adapters"]["retrieval"]
    assert list(parse_recipe(made).phases()) == [
        "stage1",
        "adapters.text-matching",
        "adapters.clustering",
        "adapters.classification",
    ]


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("stagee1", "'stagee1'; did you mean 'stage1'?"),
        ("stage1.step", "'stage1.step'; did you mean 'steps'?"),
        ("stage1.max_lenght", "did you mean 'max_length'?"),
        ("long.ropetheta", "did you mean 'rope_theta'?"),
        ("static.batchsize", "did you mean 'batch_size'?"),
        ("data.sources.qa.colums", "did you mean 'columns'?"),
        ("data.max_badd", "did you mean 'max_bad'?"),
        ("teacher.instructions.querry", "did you mean 'query'?"),
        ("teacher.apikey_env", "did you mean 'api_key_env'?"),
        ("student.matryoshka", "did you mean 'matryoshka_dims'?"),
        ("adapters.retrieval.temprature", "did you mean 'temperature'?"),
        ("adapters.retrieval.average.wieght", "did you mean 'weight'?"),
        ("evaluation.precision", "did you mean 'precisions'?"),
        ("qqq", "'qqq'; known: name, "),
    ],
)
def test_an_unknown_key_names_the_nearest(key, nearest):
    told = message(put(raw(), key, 1))
    assert told.startswith(f"recipe: unknown key '{key}'") and nearest in told


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("seed", -1, "seed: Input should be greater than or equal to 0 (got -1)"),
        ("seed", 2**64, "seed: Input should be less than 18446744073709551616"),
        ("threads", 0, "threads: Input should be greater than 0 (got 0)"),
        ("stage1.steps", 0, "stage1.steps: Input should be greater than 0 (got 0)"),
        ("stage1.steps", 1.5, "stage1.steps: "),
        ("stage1.lr", "fast", "stage1.lr: Input should be a valid number"),
        ("stage1.lr", float("nan"), "stage1.lr: "),
        ("stage1.lr", float("inf"), "stage1.lr: Input should be a finite number"),
        ("stage1.lr", 0, "stage1.lr: Input should be greater than 0"),
        ("stage1.warmup", 1.5, "stage1.warmup: "),
        ("stage1.betas", [0.9, 1.0], "stage1.betas.1: Input should be less than 1 (got 1.0)"),
        (
            "stage1.schedule",
            "step",
            "stage1.schedule: Input should be 'linear', 'cosine' or 'constant' (got 'step')",
        ),
        ("stage1.rope_theta", 0, "stage1.rope_theta: Input should be greater than 0"),
        ("stage1.reduction", "max", "stage1.reduction: "),
        ("stage1.sources", {}, "stage1: no source with a weight above 0"),
        ("stage1.sources", {"qa": 0}, "stage1: no source with a weight above 0"),
        (
            "stage1.sources",
            {"qa": -1},
            "stage1.sources.qa: Input should be greater than or equal to 0",
        ),
        ("stage1.sources", {"qaa": 1}, "stage1.sources names 'qaa'; did you mean 'qa'?"),
        (
            "stage1.sources",
            {"qa": float("inf")},
            "stage1.sources.qa: Input should be a finite number",
        ),
        (
            "stage1.long_sources",
            {"sts": [1, 2]},
            "stage1: long_sources names ['sts'], not among the phase's sources ['lone', 'qa']",
        ),
        (
            "data.sources.qa.kind",
            "pair",
            (
                "data.sources.qa.kind: Input should be 'pairs', 'scored', 'labelled' or 'texts'"
                " (got 'pair')"
            ),
        ),
        (
            "data.sources.sts.score_range",
            [1, 0],
            "data.sources.sts: score_range (1.0, 0.0) is empty",
        ),
        (
            "teacher.kind",
            "remote",
            "teacher.kind: Input should be 'local', 'http' or 'precomputed' (got 'remote')",
        ),
        (
            "teacher.instructions",
            {"template": "no place"},
            "teacher.instructions.template: the template has no {text}",
        ),
        ("teacher.max_length", 0, "teacher.max_length: "),
        ("student.init", "config", "student: `init: config` and `config: {...}` go together"),
        (
            "student.matryoshka_dims",
            [0],
            "student.matryoshka_dims.0: Input should be greater than 0",
        ),
        (
            "student.pooling",
            "max",
            "student.pooling: Input should be 'last', 'mean' or 'cls' (got 'max')",
        ),
        ("student.rope_theta", -1, "student.rope_theta: "),
        (
            "adapters.retreival",
            {},
            (
                "adapters.retreival.[key]: Input should be 'retrieval', 'text-matching',"
                " 'clustering' or 'classification'"
            ),
        ),
        ("adapters.retrieval.rank", 0, "adapters.retrieval.rank: "),
        (
            "adapters.retrieval.dropout",
            1.0,
            "adapters.retrieval.dropout: Input should be less than 1",
        ),
        ("adapters.retrieval.temperature", 0, "adapters.retrieval.temperature: "),
        (
            "adapters.retrieval.average",
            {"earlier": 1},
            "adapters.retrieval.average.earlier: Input should be less than 1",
        ),
        (
            "evaluation.precisions",
            ["int4"],
            (
                "evaluation.precisions.0: Input should be 'float32', 'float16', 'int8' or 'binary' "
                "(got 'int4')"
            ),
        ),
        ("evaluation.max_queries", 0, "evaluation.max_queries: "),
        ("data", None, "data: Input should be"),
        ("stage1", "fast", "stage1: Input should be"),
    ],
)
def test_a_bad_value_is_one_readable_line(key, value, told):
    said = message(put(raw(), key, value))
    assert told in said, said


@pytest.mark.parametrize(
    "key",
    [
        "name",
        "data",
        "teacher",
        "student",
        "stage1",
        "stage1.steps",
        "stage1.lr",
        "teacher.instructions",
    ],
)
def test_a_missing_key_is_named(key):
    made = raw()
    here: Any = made
    *parts, last = key.split(".")
    for part in parts:
        here = here[part]
    del here[last]
    assert f"key '{key}' is missing" in message(made)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("adapters.clustering.temperature", 0.1),
        ("adapters.clustering.negatives", 3),
        ("adapters.clustering.learn_temperature", True),
        ("adapters.retrieval.cosent_temperature", 0.1),
        ("adapters.retrieval.mask_same_label", False),
        ("adapters.retrieval.relational_mean_gradient", False),
        ("adapters.classification.false_negative_margin", 0.1),
        ("adapters.classification.negatives_of_others", False),
        ("adapters.classification.train_projection", True),
        ("long.projection_init", "identity"),
        ("teacher.api_key_env", "KEY"),
    ],
)
def test_a_setting_without_effect_is_refused(key, value):
    assert f"{key} has no effect: " in message(put(raw(), key, value))


def test_settings_spelled_out_at_their_defaults_are_no_fault():
    recipe = parse_recipe(raw())
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe


def test_several_faults_are_told_together_and_cut_at_five():
    made = raw()
    for number in range(7):
        made["stage1"][f"stepz{number}"] = 1
    assert message(made).count("unknown key") == 5


def test_overrides_replace_and_add_keys(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(raw()))
    made = load_recipe(
        path,
        [
            "stage1.steps=7",
            "student.layers=[0, 1]",
            "stage1.sources.lone=0",
            "evaluation.dims=null",
            "name=a=b",
        ],
    )
    assert (
        made.stage1.steps == 7
        and made.student.layers == [0, 1]
        and made.stage1.sources == {"qa": 2, "lone": 0}
    )
    assert made.name == "a=b" and made.evaluation.dims is None
    without = copy.deepcopy(raw())
    del without["long"], without["evaluation"]
    path.write_text(yaml.safe_dump(without))
    assert load_recipe(path, ["evaluation.max_queries=5"]).evaluation.max_queries == 5
    assert load_recipe(path, ["teacher.instructions=null"]).teacher.instructions is None


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("stage1.step=3", "unknown key 'stage1.step'; did you mean 'steps'?"),
        ("stage1", "--set 'stage1': needs the form key=value, such as stage1.steps=100"),
        ("=3", "needs the form key=value"),
        ("stage1.steps=[", "the value is not valid YAML"),
        ("name.x=1", "'name' is a value, not a group of keys"),
        ("stage1.steps=many", "stage1.steps: Input should be a valid integer"),
    ],
)
def test_bad_overrides_are_told(tmp_path, override, told):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(raw()))
    with pytest.raises(BadInput) as caught:
        load_recipe(tmp_path / "recipe.yaml", [override])
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"name: [", "is not valid YAML"),
        (b"\xff\xfe\x00", "is not valid YAML"),
        (b"- 1\n- 2\n", "holds no mapping; a recipe starts with `name:`, `data:`, `teacher:`"),
        (b"", "holds no mapping"),
        (b"1: 2\n", "unknown key '1'"),
        (b"name: !!python/object/apply:os.system ['true']", "is not valid YAML"),
        (b"name: a\nname: b\n", "twice"),
    ],
)
def test_files_that_are_no_recipe(tmp_path, content, told):
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(BadInput) as caught:
        load_recipe(tmp_path / "recipe.yaml")
    assert told in str(caught.value), str(caught.value)


def test_a_recipe_that_is_not_there(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(
            BadInput, match=r"no recipe at .*; give the path of a YAML file such as"
        ):
            load_recipe(path)


def test_the_digest_follows_every_value():
    first = parse_recipe(raw()).digest()
    assert parse_recipe(raw()).digest() == first
    assert parse_recipe(put(raw(), "stage1.lr", 2e-3)).digest() != first


def test_a_recipe_does_not_change_after_reading():
    with pytest.raises(ValueError, match="frozen"):
        parse_recipe(raw()).seed = 3
