"""Bad input: one readable message each, exit code 2, nothing half-written."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from taskdistill.cli import main
from taskdistill.cli.main import run

RECIPE = {
    "name": "bad",
    "data": {"root": "data", "sources": {"rows": {"path": "pairs.jsonl", "kind": "pairs"}}},
    "teacher": {"kind": "precomputed", "model": "vectors", "instructions": None},
    "student": {"init": "all-MiniLM-L6-v2", "matryoshka_dims": [8]},
    "stage1": {"sources": {"rows": 1}, "steps": 2, "batch_size": 2, "lr": 0.001},
    "evaluation": {"sets": []},
}


def write_recipe(folder, rows, kind="pairs", **changes):
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "pairs.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), "utf-8"
    )
    recipe = json.loads(json.dumps(RECIPE)) | changes
    recipe["data"]["sources"]["rows"]["kind"] = kind
    (folder / "vectors").mkdir()
    (folder / "vectors" / "texts.jsonl").write_text('{"text": "one"}\n{"text": "first"}\n', "utf-8")
    np.save(folder / "vectors" / "vectors.npy", np.eye(2, 8, dtype=np.float32))
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), "utf-8")
    return path


def fails(capsys, *argv):
    assert run([str(each) for each in argv]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "Traceback" not in message and message.count("\n") == 1
    return message


GOOD = [{"query": "one", "positive": "first"}, {"query": "two", "positive": "second"}]


def test_an_unknown_key_names_the_nearest(tmp_path, capsys):
    recipe = write_recipe(tmp_path, GOOD, stage1=RECIPE["stage1"] | {"batch_sizes": 3})
    assert "unknown key 'stage1.batch_sizes'; did you mean 'batch_size'?" in fails(
        capsys, "plan", recipe
    )


@pytest.mark.parametrize(
    ("rows", "kind", "says"),
    [
        ([], "pairs", "no rows"),
        ([{"question": "one", "positive": "first"}], "pairs", "query"),
        ([*GOOD, {"query": " ", "positive": "third"}], "pairs", "visible"),
        (
            [
                {"text1": "a", "text2": "b", "score": float("nan")},
                {"text1": "c", "text2": "d", "score": 1},
            ],
            "scored",
            "NaN",
        ),
        ([{"text": "a", "label": "x"}, {"text": "b", "label": "x"}], "labelled", "one class only"),
    ],
    ids=["empty file", "missing column", "empty text", "NaN score", "one class"],
)
def test_bad_rows_are_refused_and_nothing_is_written(
    rows, kind, says, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe(tmp_path, rows, kind)
    assert says.lower() in fails(capsys, "train", recipe, "--out", tmp_path / "run").lower()
    assert not (tmp_path / "run").exists()


def test_vectors_of_another_size_than_the_recipe_says(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe(tmp_path, GOOD, teacher=RECIPE["teacher"] | {"embedding_dim": 16})
    message = fails(capsys, "train", recipe, "--out", tmp_path / "run")
    assert "8" in message and "16" in message and not (tmp_path / "run").exists()


def test_a_missing_package_names_the_extra(capsys, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "fastapi" else found(name, *rest),
    )
    assert "pip install 'taskdistill[serve]'" in fails(capsys, "serve", "all-MiniLM-L6-v2")


def test_a_model_that_is_not_there(tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("hello\n", "utf-8")
    message = fails(
        capsys, "encode", tmp_path / "model", tmp_path / "texts.txt", "--out", tmp_path / "out.npy"
    )
    assert "give a model folder" in message and not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize(
    "argv",
    [
        ["plan"],
        ["train", "x.yaml"],
        ["nonsense"],
        ["encode", "m", "t", "--out", "o", "--precision", "int4"],
    ],
)
def test_usage_errors_end_with_2(argv, capsys):
    assert run(argv) == 2
    assert capsys.readouterr().err


def test_a_missing_recipe(capsys):
    assert "recipes/quickstart.yaml" in fails(capsys, "plan", Path("no-such-recipe.yaml"))


def test_old_spellings_are_understood_with_a_warning(capsys):
    for old, now in (
        (["probe", "--help"], ["compare-teachers", "--help"]),
        (["evaluate", "m", "--seen=x", "--out"], ["evaluate", "m", "--train-data=x", "--out"]),
        (["--debug", "shrink", "--set", "x"], ["--debug", "shrink", "--eval-set", "x"]),
    ):
        assert main._present_spelling(old) == now
        changed = [(a, b) for a, b in zip(old, now, strict=True) if a != b]
        warned = capsys.readouterr().err.splitlines()
        assert len(warned) == len(changed) and "is called" in warned[0]
    for same in (["adapt", "--set", "steps=3"], ["merge", "--", "--set"], ["--version"], []):
        assert main._present_spelling(same) == same and capsys.readouterr().err == ""


def test_every_new_spelling_is_an_option_of_its_command_and_no_old_one_is():
    commands = main._commands().commands
    for name, options in main.RENAMED_OPTIONS.items():
        command = commands[name].commands["docs"] if name == "data" else commands[name]
        names = {option for parameter in command.params for option in parameter.opts}
        assert set(options.values()) <= names and not set(options) & names
    assert not set(main.RENAMED_COMMANDS) & set(commands)
    assert set(main.RENAMED_COMMANDS.values()) <= set(commands)


def test_the_order_of_the_help_names_no_command_module_that_is_gone():
    assert set(main.LISTED) <= set(main.COMMANDS)
