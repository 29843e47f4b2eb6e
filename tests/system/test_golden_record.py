"""The golden record: nothing registered is missing from it, what must differ is found, and what may
differ is not.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import compare, entry, masks, record
from golden.summaries import summarize

RECORDED = {
    path.stem: json.loads(path.read_text("utf-8")) for path in record.RECORDED.glob("*.json")
}
WITHOUT_RUN = {"serve": "exchanges", "data docs": "helps", "train": "losses"}
"""Commands that are recorded elsewhere than under their own words: a server by its exchanges; the
documentation of the packages that are installed is another one on every machine; training by its
losses and files.
"""


def test_every_part_is_recorded_and_all_of_it_is_small():
    assert set(RECORDED) == {*record.PARTS, "machine"}
    assert sum(path.stat().st_size for path in record.RECORDED.iterdir()) < 3_000_000
    assert all(
        len(path.read_text("utf-8").splitlines()) < 300 for path in Path(record.HERE).rglob("*.py")
    )


def test_every_command_is_recorded_with_its_help_a_run_and_a_refusal():
    commands = set(entry.commands())
    assert {"", *commands} <= {"", *RECORDED["helps"]} and set(RECORDED["helps"]) == {
        "taskdistill",
        "data",
        *commands,
    }
    runs = {
        key
        for part in ("scores", "searches", "ablations", "exports", "commands")
        for key in RECORDED[part]
    }
    missing = {
        name
        for name in commands
        if not any(key == name or key.startswith(f"{name} ") for key in runs)
    }
    assert missing == set(WITHOUT_RUN), "record a run of it in one of the parts"
    assert all(RECORDED[part] for part in WITHOUT_RUN.values())
    assert len(RECORDED["refusals"]) >= 80 and {
        answer["code"] for answer in RECORDED["refusals"].values()
    } <= {1, 2}


def test_every_loss_term_is_recorded_at_fixed_tensors_and_in_a_phase():
    known = {name.partition(",")[0] for name in RECORDED["terms"]}
    assert set(entry.LOSS_TERMS) <= known, "add it to golden/entry.py and golden/parts/terms.py"
    trained = {
        name.removeprefix("term ")
        for phase in RECORDED["losses"].values()
        for name in phase
        if name.startswith("term ")
    }
    assert set(entry.LOSS_TERMS) <= trained, "give it a weight in golden/parts/losses.py"


def test_every_phase_has_twenty_losses_and_its_weights():
    for phase in entry.PHASES:
        for recipe in ("plain", "every term"):
            losses = RECORDED["losses"][f"{recipe}: {phase}"]["loss"]
            assert len(losses) == 20 and all(compare.HEXADECIMAL.match(loss) for loss in losses)
    for how in ("one thread", "two threads", "two processes", "resumed"):
        files = [
            key.partition(": ")[2] for key in RECORDED["tensors"] if key.startswith(f"{how}: ")
        ]
        assert {path.split("/")[1] for path in files if path.startswith("phases/")} == set(
            entry.PHASES
        )
        assert any(path.startswith("model/") for path in files)
    finished = [
        key.removeprefix("one thread: ")
        for key in RECORDED["tensors"]
        if key.startswith(("one thread: phases", "one thread: model"))
    ]
    for path in finished:
        assert (
            RECORDED["tensors"][f"resumed: {path}"] == RECORDED["tensors"][f"one thread: {path}"]
        ), path


def test_every_task_precision_and_family_has_vectors():
    for family in entry.FAMILIES:
        for task in (None, *entry.TASKS):
            for precision in entry.PRECISIONS:
                assert f"{family} {task} query {precision} 16" in RECORDED["vectors"]


def test_every_task_type_is_scored_and_every_format_exported():
    types = {
        key.rpartition(" on ")[2].split("/")[0]
        for key in RECORDED["scores"]
        if key.startswith("score of ")
    }
    assert types == set(entry.TASK_TYPES)
    formats = {
        match[1] for key in RECORDED["exports"] if (match := re.search(r"--format (\S+)", key))
    }
    assert formats == {*entry.MODEL_FORMATS, *entry.INDEX_FORMATS}


def test_every_route_of_the_server_is_asked():
    paths = RECORDED["exchanges"]["GET /openapi.json"]["body"]["paths"]
    asked = " ".join(RECORDED["exchanges"])
    for path, methods in paths.items():
        for method in methods:
            assert f"{method.upper()} {path.partition('{')[0]}" in asked
    assert len(RECORDED["exchanges"]) >= 40


def test_no_record_holds_a_path_or_a_second_of_the_machine():
    text = "".join(path.read_text("utf-8") for path in record.RECORDED.iterdir())
    assert (
        str(Path(record.HERE).parents[1]) not in text
        and "/tmp" not in text
        and "golden-" not in text
    )


def found(old: Any, new: Any, *, exact: bool = False, tolerance: float = compare.REST) -> list[str]:
    return [path for path, *_ in compare.differences(old, new, exact=exact, tolerance=tolerance)]


@pytest.mark.parametrize(
    ("old", "new", "differs"),
    [
        (1.0, 1.0 + 5e-7, False),
        (1.0, 1.0 + 5e-6, True),
        ("cosine 0.93421, of 12 texts", "cosine 0.93422, of 12 texts", False),
        ("cosine 0.93421, of 12 texts", "cosine 0.93431, of 12 texts", True),
        ("cosine 0.93421, of 12 texts", "cosine 0.93421, of 13 texts", True),
        ("hash 0123456789abcdef", "hash fedcba9876543210", False),
        ({"sha256": "0"}, {"sha256": "1"}, False),
        (["a", "b"], ["b", "a"], True),
        (["a", "b"], ["a"], True),
        ({"a": 1}, {"a": 1, "b": 2}, True),
        (True, 1, True),
        (None, 0, True),
        (float("nan"), float("nan"), False),
        ((1.5).hex(), (1.5 + 1e-6).hex(), False),
        ((1.5).hex(), (1.5 + 1e-5).hex(), True),
    ],
)
def test_elsewhere_numbers_may_differ_a_little_and_words_not_at_all(old, new, differs):
    assert bool(found(old, new)) == differs
    assert bool(found(old, new, exact=True)) == (repr(old) != repr(new))


def test_another_rounding_of_codes_is_seen_elsewhere_and_one_code_is_not():
    codes = np.random.default_rng(0).integers(-100, 100, size=(20, 32)).astype(np.int8)
    other = codes.copy()
    other[3, 4] += 1
    assert found({"x": summarize(codes)}, {"x": summarize(other)}) == []
    assert found({"x": summarize(codes)}, {"x": summarize(other)}, exact=True)
    assert found({"x": summarize(codes)}, {"x": summarize(codes - np.int8(1))})
    floats = codes.astype(np.float32) / 100
    moved = floats.copy()
    moved[3, 4] += np.float32(1e-3)
    assert found({"x": summarize(floats)}, {"x": summarize(floats + np.float32(1e-8))}) == []
    assert found({"x": summarize(floats)}, {"x": summarize(moved)})


def test_masks_take_what_differs_and_leave_the_rest():
    mask = masks.Mask({"TMP": Path("/some/where")})
    assert mask.value(
        {"seconds": 1.5, "at": "/some/where/x", "format_version": 3, "score": 0.5}
    ) == {
        "seconds": masks.MASK,
        "at": "TMP/x",
        "format_version": 3,
        "score": 0.5,
    }
    assert mask.lines(
        "┏━━┳━━┓\n┃ a  ┃ minutes ┃\n┡━━╇━━┩\n│ x  │ 0.3 │\n└──┴──┘\n12 rows, 3.5 s"
    ) == [
        "table: a | minutes",
        f"row: x | {masks.MASK}",
        "12 rows, <number> s",
    ]
