"""Work on a request, a filter or a line of data grows no faster than its size: instructions are
counted, not seconds.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskdistill.errors import BadInput
from taskdistill.io.json import MAX_DEPTH, JsonError, read_object, read_value
from taskdistill.search import filters
from taskdistill.search.filters import Condition, parse_expression, parse_filter

SOURCE = Path(__file__).parents[2] / "src" / "taskdistill"
SIZES = (250, 500, 1_000, 2_000)
"""Repeats of a shape, of about four characters each."""
MOST = 2.3
"""Largest growth of the work when the input doubles: linear is 2, and a little is left for
logarithms.
"""

JSON_SHAPES = {
    "lists": lambda n: "[" + "[]," * n + "[]]",
    "objects": lambda n: "[" + "{}," * n + "{}]",
    "deep lists": lambda n: "[" * n,
    "deep objects": lambda n: '{"a":' * n,
    "closing": lambda n: "]" * n,
    "both": lambda n: "[" * n + "]" * n,
    "one key often": lambda n: "{" + ",".join(['"k":1'] * n) + "}",
    "last key twice": lambda n: "{" + ",".join(f'"k{i}":1' for i in range(n)) + f',"k{n - 1}":2}}',
    "first key twice": lambda n: "{" + ",".join(f'"k{i}":1' for i in range(n)) + ',"k0":2}',
    "keys twice at each level": lambda n: '{"a":1,"a":' * n + "1" + "}" * n,
    "quotes": lambda n: '"' * n,
    "escaped quotes": lambda n: '{"a":"' + '\\"' * n + '"}',
    "backslashes": lambda n: '{"a":"' + "\\" * n + '"}',
    "escapes": lambda n: '{"a":"' + "\\u0041" * n + '"}',
    "half surrogates": lambda n: '{"a":"' + "\\ud800" * n + '"}',
    "commas in a string": lambda n: '{"a":["' + ",[{" * n + '"]}',
    "digits": lambda n: '{"a":' + "9" * n + "}",
    "digits behind the point": lambda n: '{"a":0.' + "9" * n + "}",
    "exponent": lambda n: '{"a":1e' + "9" * n + "}",
    "numbers": lambda n: "[" + ",".join(["9" * 299] * (n // 100)) + "]",
    "spaces": lambda n: '{"a":' + " " * n + "1}",
    "lines": lambda n: "\n" * n + "!",
    "broken at the end": lambda n: '{"a":[' + "1," * n + "}",
    "other letters": lambda n: '{"a":"' + "ж" * n + '"}',
    "other letters outside": lambda n: "[ж," * n,
}

FILTER_SHAPES = {
    "spaces": lambda n: " " * n + "x",
    "spaces and an operator": lambda n: " " * n + "=",
    "spaces within": lambda n: "x" + " " * n + "= y" + " " * n,
    "tabs": lambda n: "\t" * n + "x" + "\n" * n,
    "key": lambda n: "k" * n,
    "equals": lambda n: "a" + "=" * n,
    "operators": lambda n: "a=" + "b<=" * n,
    "in": lambda n: "a in" * n,
    "in in": lambda n: "a" + " in" * n + " b",
    "list": lambda n: "a in " + "b," * n + "b",
    "quoted list": lambda n: "a in " + "'b'," * n + "'b'",
    "list in brackets": lambda n: "a in [" + "b, " * n + "b]",
    "quoted list in brackets": lambda n: "a in [" + "'b', " * n + "'b']",
    "open bracket": lambda n: "a in [" + "b, " * n + "b",
    "brackets": lambda n: "a in " + "[" * n,
    "quotes": lambda n: "a=" + "'" * n,
    "mixed quotes": lambda n: "a in " + "'\"'," * n,
    "ands": lambda n: "a=b" + " and" * n,
    "conditions": lambda n: " and ".join(["a=b"] * (n // 7)),
    "ranges": lambda n: " and ".join(["a>=1"] * (n // 8)),
    "memberships": lambda n: " and ".join(["a in b, c"] * (n // 13)),
    "memberships in brackets": lambda n: " and ".join(["a in ['b', c]"] * (n // 17)),
    "quoted conditions": lambda n: " and ".join(["'a'='b'"] * (n // 11)),
    "ands in a value": lambda n: "a=" + "b and c " * n + "and d=1",
    "operators before an and": lambda n: "a=" + "b=" * n + " and c=1",
    "ors": lambda n: "a=" + "b or " * n,
    "commas": lambda n: "a=" + "," * n + "b=1",
}


def parse_json(text):
    try:
        read_value(text)
    except JsonError:
        return


def parse_any_filter(text):
    """Parse whatever its length, so that the growth of the parser shows and not only that of the
    refusal.
    """
    try:
        parse_expression(text)
    except BadInput:
        return


WORK = {("json", name): (parse_json, shape) for name, shape in JSON_SHAPES.items()} | {
    ("filter", name): (parse_any_filter, shape) for name, shape in FILTER_SHAPES.items()
}


def opcodes(work, argument) -> int:
    """Count the operations of the interpreter that a call takes."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    sys.settrace(trace)
    try:
        work(argument)
    finally:
        sys.settrace(None)
    return count


def check_growth(counts: list[int], noise: int) -> None:
    """Each doubling of the input at most `MOST` times the work, and so does what each doubling
    adds, for all above the noise.
    """
    added = [after - before for before, after in pairwise(counts)]
    for work in (counts, added):
        for before, after in pairwise(work):
            assert after <= MOST * max(before, noise), counts


@pytest.mark.parametrize(("kind", "name"), WORK, ids=lambda part: part.replace(" ", "-"))
def test_operations_of_the_interpreter_grow_with_the_input(kind, name, monkeypatch):
    monkeypatch.setattr(filters, "MAX_CHARACTERS", 1 << 30)
    work, shape = WORK[kind, name]
    check_growth([opcodes(work, shape(size)) for size in SIZES], 500)


LINEAR = {
    "strip",
    "lstrip",
    "rstrip",
    "partition",
    "startswith",
    "endswith",
    "removeprefix",
    "removesuffix",
    "isdecimal",
    "isascii",
    "find",
    "rfind",
    "index",
    "count",
    "replace",
    "split",
    "translate",
    "join",
    "lower",
    "decode",
    "encode",
}
"""Methods of texts whose work is linear for a pattern of a few characters."""


@pytest.mark.parametrize(
    "file",
    ["io/json.py", "search/filters.py", "serve/bodies.py"],
)
def test_request_input_meets_no_regular_expression_and_no_call_that_may_be_quadratic(file):
    tree = ast.parse((SOURCE / file).read_text("utf-8"))
    modules = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    modules |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not modules & {"re", "regex", "fnmatch", "difflib", "glob"}
    texts = {name for name in dir(str) + dir(bytes) if not name.startswith("_")}
    used = {node.func.attr for node in ast.walk(tree) if is_method(node)}
    assert used & texts <= LINEAR
    loops = (ast.For, ast.While, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    within = {
        node.func.attr
        for loop in ast.walk(tree)
        if isinstance(loop, loops)
        for node in ast.walk(loop)
        if is_method(node)
    }
    assert not within & {"count", "index"}, "each turn of a loop would read all of it"


def is_method(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)


CHILD = """
import gc, os, sys
sys.path[:0] = {path!r}
from test_linear_input import SIZES, WORK, filters
filters.MAX_CHARACTERS = 1 << 30
gc.disable()
for key, (work, shape) in WORK.items():
    work(shape(10))
    for size in SIZES:
        text = shape(2 * size)
        os.getppid()
        work(text)
        os.getppid()
"""


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("valgrind") is None, reason="valgrind, which counts instructions, is not installed"
)
def test_instructions_of_the_machine_grow_with_the_input(tmp_path):
    """Callgrind counts what C does as well; a profile is written at each call of getppid, before
    and behind each input.
    """
    code = CHILD.format(
        path=[str(Path(__file__).parent), str(Path(__file__).parents[1]), str(SOURCE.parent)]
    )
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    tool = ["--tool=callgrind", "--dump-before=getppid", f"--callgrind-out-file={tmp_path}/out"]
    done = subprocess.run(
        ["valgrind", *tool, os.path.realpath(sys.executable), "-c", code],
        capture_output=True,
        text=True,
        timeout=1500,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    parts = sorted(tmp_path.glob("out.*"), key=lambda path: int(path.suffix[1:]))
    totals = [
        int(
            next(
                line for line in path.read_text().splitlines() if line.startswith("totals:")
            ).split()[1]
        )
        for path in parts
    ]
    spent = totals[1 : 2 * len(SIZES) * len(WORK) : 2]
    assert len(spent) == len(SIZES) * len(WORK)
    for number in range(len(WORK)):
        counts = spent[number * len(SIZES) : (number + 1) * len(SIZES)]
        for before, after in pairwise(counts):
            assert after <= MOST * before, (list(WORK)[number], counts)


def test_what_is_beyond_a_bound_is_refused_with_the_bound():
    for text, said in (
        ("[" * 65 + "]" * 65, f"more than {MAX_DEPTH} levels"),
        ('{"a":' * 65 + "1" + "}" * 65, f"more than {MAX_DEPTH} levels"),
        ("[" + "[]," * 10 + "[]]", "more than 10"),
        ('{"a":1' + ',"b":1' * 11 + "}", "more than 10"),
        ("[" + "1" * 301 + "]", "the most are 300"),
        ("[0." + "1" * 300 + "]", "the most are 300"),
        ("[-1e" + "1" * 300 + "]", "the most are 300"),
    ):
        with pytest.raises(JsonError, match=said):
            read_value(text, max_elements=10 if "10" in said else 1_000_000)
    assert read_value("[" * MAX_DEPTH + "]" * MAX_DEPTH, max_elements=MAX_DEPTH) is not None
    assert read_value("[" + "1" * 300 + "]") == [int("1" * 300)]
    with pytest.raises(BadInput, match=r"has 1,001 characters, the most are 1,000"):
        parse_filter("a=" + "b" * 999)
    with pytest.raises(BadInput, match=r"1,001 characters"):
        parse_filter({"a": "b" * 1001})
    with pytest.raises(BadInput, match=r"33 conditions, the most are 32"):
        parse_filter(["a=b"] * 33)
    with pytest.raises(BadInput, match=r"33 conditions, the most are 32"):
        parse_filter({f"k{i}": 1 for i in range(33)})
    with pytest.raises(BadInput, match=r"34 conditions, the most are 32"):
        parse_filter(["a=b and c=d"] * 17)
    with pytest.raises(BadInput, match=r"10,001 values, the most are 10,000"):
        parse_filter({"a": list(range(10_001))})
    with pytest.raises(BadInput, match="bits"):
        parse_filter({"a": 10**400})


names = st.text(st.characters(codec="utf-8"), max_size=8)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | names
)
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(names, trees, max_size=4), st.integers(0, 60))
def test_any_object_is_read_as_the_standard_parser_reads_it_or_refused_for_its_size(value, most):
    import json

    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        assert read_object(text) == json.loads(text)
        try:
            assert read_object(text, max_elements=most) == value
        except JsonError as fault:
            assert "too many elements" in str(fault) and elements(value) > most


def elements(value) -> int:
    """Openings of lists and objects and commas, as the bound counts them."""
    inner = (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    )
    return 0 if inner is None else 1 + max(0, len(inner) - 1) + sum(map(elements, inner))


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.sampled_from([*"ab=<>!'\"[](), \t", " and ", " in ", "and", "in", "or", "not "]),
        max_size=30,
    ).map("".join)
)
def test_any_text_is_a_filter_or_refused(text):
    try:
        found = parse_filter(text)
    except BadInput:
        return
    assert found and all(condition.key.strip() and condition.values for condition in found)


words = st.text(
    st.characters(codec="utf-8", exclude_characters="'"), min_size=1, max_size=12
).filter(str.strip)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            words,
            st.sampled_from(["=", "==", "<", "<=", ">", ">=", "in"]),
            st.lists(words, min_size=1, max_size=3),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_quoted_keys_and_values_are_read_as_they_were_written(given_conditions):
    parts, expected = [], []
    for key, operator, values in given_conditions:
        shown = [f"'{value}'" for value in values]
        parts.append(
            f"'{key}' in [{', '.join(shown)}]"
            if operator == "in"
            else f"'{key}' {operator} {shown[0]}"
        )
        chosen = tuple(values) if operator == "in" else (values[0],)
        expected.append(Condition(key, "in" if operator in ("=", "==") else operator, chosen))
    assert parse_filter(" and ".join(parts)) == tuple(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lang==en", [("lang", "in", "en")]),
        ('lang="en"', [("lang", "in", "en")]),
        ("lang in [en, de]", [("lang", "in", "en", "de")]),
        ("lang in (en, de)", [("lang", "in", "en", "de")]),
        ('lang in ["en"]', [("lang", "in", "en")]),
        ('name in "Alpha, Beta"', [("name", "in", "Alpha, Beta")]),
        ("lang=en and year>=2020", [("lang", "in", "en"), ("year", ">=", "2020")]),
        ("year>=2019 AND year<=2021", [("year", ">=", "2019"), ("year", "<=", "2021")]),
        (
            "title=Sense and Sensibility and year>1",
            [("title", "in", "Sense and Sensibility"), ("year", ">", "1")],
        ),
        ("tag in 'x and y=2', z and q=1", [("tag", "in", "x and y=2", "z"), ("q", "in", "1")]),
        ("url=http://x?a=b and y=1", [("url", "in", "http://x?a=b"), ("y", "in", "1")]),
        ("name=O'Brien", [("name", "in", "O'Brien")]),
    ],
)
def test_the_grammar(text, expected):
    assert parse_filter(text) == tuple(
        Condition(key, operator, tuple(values)) for key, operator, *values in expected
    )


@pytest.mark.parametrize(
    "text",
    [
        "lang!=en",
        "not lang=en",
        "lang=en,year>=2020",
        "a=1 or b=2",
        "year=>2020",
        "a <> b",
        "a=[b]",
        "a='b",
        "a in [b",
        "a in b]",
        "a in b,",
        "a in",
        "x",
        "",
    ],
)
def test_what_would_match_nothing_for_its_form_is_refused(text):
    with pytest.raises(BadInput, match="the filter"):
        parse_filter(text)
