"""Docstrings become prose, and a scan finds every documented object without importing anything."""

from __future__ import annotations

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskdistill.demo.docstrings import Doc, read_module, scan, search_folders
from taskdistill.demo.prose import MAX_BODY, MAX_SUMMARY, cut, is_prose, prose

NUMPY_STYLE = """
    Return the *evenly* spaced ``values`` of a :class:`~numpy.ndarray`.

    The values are drawn from the half-open interval that `start`_ and the
    stop value span.

    .. versionadded:: 1.2
        Long ago.

    .. note:: Rounding decides the length, see `the guide <https://example.org/x>`_.

    .. math::

        x = \\\\frac{1}{2}

    Parameters
    ----------
    start : float
        First value of the interval.

    Examples
    --------
    >>> f(3)
    array([0, 1, 2])

    Some words between examples.

    Notes
    -----
    A note that stays [1]_.

    References
    ----------
    .. [1] Somebody, a book.
"""


def test_mark_up_code_and_references_go_and_text_stays():
    found = prose(inspect.cleandoc(NUMPY_STYLE))
    assert found.summary == "Return the evenly spaced values of a ndarray."
    assert found.body.split("\n") == [
        "The values are drawn from the half-open interval that start and the",
        "stop value span.",
        "Rounding decides the length, see the guide.",
        "Parameters",
        "start : float",
        "First value of the interval.",
        "Notes",
        "A note that stays .",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "Initialize self.  See help(type(self)) for accurate signature.",
        "Return repr(self).",
        "TODO",
        "x",
        "a = b + c; d[0] -> {1: 2, 3: 4} (5, 6) == [7, 8]",
        (
            "# Copyright 2024 The Authors. All rights reserved.\n\nLicensed under the licence of"
            " the authors of this file."
        ),
        "See base class.",
    ],
)
def test_boilerplate_and_code_are_no_prose(text):
    assert prose(text) == ("", "")


def test_a_signature_or_a_module_name_is_no_summary():
    text = "read(path, mode='r') -> bytes\n\nRead all the bytes of a file."
    assert prose(text).summary == "Read all the bytes of a file."
    assert (
        prose("pkg.lexers.matlab\n~~~~~~~~~~~~~~~~\n\nLexers for the Matlab language.").summary
        == "Lexers for the Matlab language."
    )


def test_a_table_of_parameters_is_no_summary():
    text = (
        "Args:\n    size (`int`, *optional*): The size of each of the images that are given to the"
        " model.\n    other: The other one."
    )
    found = prose(text)
    assert found.summary == ""
    assert found.body.startswith("Args:\nsize (int, optional): The size")


def test_fields_and_fences():
    text = (
        "Send a request to the server.\n\n:param str url: The address of the server to talk to, in"
        " full.\n:type url: str\n"
    )
    text += ":returns: The answer of the server.\n\n```python\nx = 1\n```\nAnd a last line."
    assert (
        prose(text).body
        == "url: The address of the server to talk to, in full.\nReturns: The answer of the"
        " server.\nAnd a last line."
    )


def test_lengths_are_bounded_between_words():
    long = "This is a sentence of the summary. " * 20
    found = prose(long + "\n\n" + "This is a sentence of the body. " * 80)
    assert len(found.summary) <= MAX_SUMMARY
    assert found.summary.endswith("summary.")
    assert MAX_BODY - 20 < len(found.body) <= MAX_BODY
    assert cut("abc def", 5) == "abc"
    assert cut("abcdef", 5) == "abcde"
    assert not is_prose("x1 = [3, 4]", 1)


@given(st.text(max_size=300))
def test_any_text_gives_bounded_parts(text):
    found = prose(text)
    assert len(found.summary) <= MAX_SUMMARY
    assert len(found.body) <= MAX_BODY
    assert "\n" not in found.summary


SOURCE = b'''"""This module talks about the cat in the house."""
if True:
    def meow(loud):
        """Make the cat say something to the dog."""
class Cat:
    """A small animal that lives in the house with people."""
    def __init__(self):
        """Return repr(self)."""
    async def sleep(self):
        """Let the cat sleep for as long as it wants to."""
        def inner():
            """This is inside of a function and not documentation."""
    class Kitten:
        """A young cat that plays with all the others."""
'''


def test_a_module_gives_its_documented_objects_in_order():
    docs, seen = read_module(SOURCE, "pets.cats")
    assert seen == 6
    assert [(doc.name, doc.kind) for doc in docs] == [
        ("", "module"),
        ("meow", "function"),
        ("Cat", "class"),
        ("Cat.sleep", "method"),
        ("Cat.Kitten", "class"),
    ]
    assert docs[1] == Doc(
        "pets", "pets.cats", "meow", "function", "Make the cat say something to the dog.", ""
    )


def test_a_scan_skips_tests_and_broken_files_and_imports_nothing(tmp_path):
    for name in (
        "pets/__init__.py",
        "pets/cats.py",
        "pets/tests/more.py",
        "pets/_vendor/copy.py",
        "taskdistill/own.py",
        "single.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(SOURCE + b"raise SystemExit('imported')\n")
    (tmp_path / "pets" / "broken.py").write_text('"""Unclosed')
    (tmp_path / "pets" / "python2.py").write_text('"""Old text."""\nprint "x"\n')
    (tmp_path / "pets" / "large.py").write_bytes(b"#" * (2 << 20))
    found = scan([tmp_path], processes=1)
    assert {doc.module for doc in found.docs} == {"pets", "pets.cats", "single"}
    assert (found.files, found.unreadable, found.too_large, found.docstrings) == (5, 2, 1, 18)
    assert scan([tmp_path], processes=2) == found
    assert len(scan([tmp_path], enough=1, processes=1).docs) == 15
    assert scan([tmp_path, tmp_path], processes=1).docs == found.docs


def test_the_interpreters_folders_exist():
    folders = search_folders()
    assert len(folders) >= 2
    assert all(folder.is_dir() for folder in folders)
