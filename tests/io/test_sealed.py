"""A sealed JSON file or a line of a log is believed only as it was written: every single flipped
bit is refused.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskdistill.errors import BadInput
from taskdistill.io.sealed import parse_sealed, read_sealed, seal_json, write_sealed
from taskdistill.train.log import Log, read_lines

BODIES = [
    {"a": 1},
    {"step": 20, "files": {}, "text": "é\u2028{}"},
    {"x": [1.5, {"y": None}], "sha": "0" * 64},
    {"deep": {"sha256": "1"}},
]
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_every_flipped_bit_of_a_sealed_file_is_refused_naming_the_file(tmp_path, body):
    path = tmp_path / "a.json"
    write_sealed(path, body)
    assert read_sealed(path, "make it again") == body
    raw = path.read_bytes()
    for bit in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadInput, match=r"a.json (is damaged|cannot be read).*; make it again"):
            parse_sealed(path, bytes(flipped), "make it again")
    for end in range(len(raw)):
        with pytest.raises(BadInput, match="make it again"):
            parse_sealed(path, raw[:end], "make it again")


@settings(max_examples=50)
@given(
    st.dictionaries(
        st.text(max_size=4).filter(lambda key: key not in ("sha256", "format_version")),
        PLAIN,
        min_size=1,
        max_size=4,
    )
)
def test_what_is_sealed_comes_back(body):
    text = seal_json(body).encode()
    assert parse_sealed(Path("x"), text, "") == (body, True)


@pytest.mark.parametrize(
    "value",
    [
        {"a": 1},
        {"format_version": 1, "files": {}},
        {"sha256": {"a.npy": "0"}, "counts": {}},
        ["a"],
        [],
    ],
)
def test_files_of_the_time_before_seals_are_read(tmp_path, value):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value))
    assert read_sealed(path, "") == value


@pytest.mark.parametrize(
    "value",
    [
        {"a": 1, "format_version": 2},
        {"a": 1, "sha256": "0" * 64},
        {"format_version": 1, "sha256": "0" * 64},
    ],
)
def test_a_file_that_lost_its_seal_is_not_taken_for_an_old_one(tmp_path, value):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value))
    with pytest.raises(
        BadInput, match=r"a.json is damaged: it does not end with its SHA-256; ask again"
    ):
        read_sealed(path, "ask again")


def written(path: Path) -> list[dict[str, object]]:
    records = [{"step": 0, "loss": 1.5}, {"evaluated": 1, "scores": {"é\u2028": 0.25}}]
    log = Log(path)
    for record in records:
        log.write(record)
    log.close()
    return records


def test_every_flipped_bit_of_a_log_is_refused_naming_the_line(tmp_path):
    path = tmp_path / "log.jsonl"
    records, raw = written(path), path.read_bytes()
    assert [record for _, record in read_lines(path)] == records and b"".join(
        line.encode() for line, _ in read_lines(path)
    ) == raw
    for bit in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(BadInput, match=r"log.jsonl: line \d is damaged"):
            read_lines(path)


def test_a_log_cut_off_anywhere_goes_on_without_the_line_that_was_cut(tmp_path):
    path = tmp_path / "log.jsonl"
    records, raw = written(path), path.read_bytes()
    for end in range(len(raw) + 1):
        path.write_bytes(raw[:end])
        whole = (
            raw[: end + 1].count(b"\n") if end < len(raw) else len(records)
        )  # only the last newline may be missing
        assert [record for _, record in read_lines(path)] == records[:whole]
        log = Log(path)
        log.write({"after": end})
        log.close()
        assert [record for _, record in read_lines(path)] == [*records[:whole], {"after": end}]


def test_a_log_of_an_older_version_is_read_with_the_lines_that_kills_left_in_it(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 0}\n{"step": 1, "lo{"part": "x"}\n{"step": 2}\n{"st')
    assert [record for _, record in read_lines(path)] == [{"step": 0}, {"step": 2}]
    Log(path).close()
    assert path.read_text().endswith('{"step": 2}\n')
