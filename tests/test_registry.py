"""The modules of a folder as plug-ins."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from taskdistill.errors import BadInput
from taskdistill.registry import Registry


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    folder = tmp_path / "shapes_of_a_test"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "square.py").write_text("SIDES = 4\n")
    (folder / "long_thing.py").write_text("SIDES = 5\n")
    (folder / "wrong.py").write_text("SIDES = 'many'\n")
    (folder / "_shared.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield Registry(folder.name, "SIDES", plugin_type=int, noun="shape")
    for name in [name for name in sys.modules if name.startswith(folder.name)]:
        del sys.modules[name]


def test_names_are_those_of_files_and_listing_them_imports_none(shapes):
    assert list(shapes) == ["long-thing", "square", "wrong"]
    assert "shapes_of_a_test.square" not in sys.modules
    assert shapes["square"] == 4 and shapes["long-thing"] == 5
    assert isinstance(shapes.module("square"), ModuleType)


def test_an_unknown_name_is_answered_with_the_nearest(shapes):
    with pytest.raises(BadInput, match="unknown shape 'sqare'; did you mean 'square'"):
        shapes["sqare"]


def test_a_plug_in_of_another_type_is_an_error_of_the_program(shapes):
    with pytest.raises(AssertionError, match=r"shapes_of_a_test\.wrong"):
        list(shapes.values())
