"""Truncation, int8 codes, packed bits: round trips for any dimension, bounds of the error, and what
is refused.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskdistill.errors import BadInput
from taskdistill.quantization import (
    Int8Ranges,
    bytes_per_vector,
    fit_ranges,
    hamming,
    normalize,
    pack_bits,
    ranges_from_json,
    ranges_to_json,
    truncate,
    unpack_bits,
)

sizes = st.tuples(st.integers(1, 12), st.integers(1, 70), st.integers(0, 2**31 - 1))


def vectors(n: int, dim: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(sizes, st.floats(-30, 30))
def test_normalise_gives_length_one_at_any_scale(size, exponent):
    x = vectors(*size) * np.float32(10.0**exponent)
    assert np.allclose(np.linalg.norm(normalize(x).astype(np.float64), axis=1), 1, atol=1e-6)


def test_zero_rows_stay_zero():
    x = np.array([[0.0, 0.0], [3.0, 4.0]], dtype=np.float32)
    assert np.array_equal(normalize(x), np.array([[0, 0], [0.6, 0.8]], dtype=np.float32))


@settings(max_examples=60, deadline=None)
@given(sizes, st.data())
def test_truncate_cuts_then_normalises(size, data):
    x = vectors(*size)
    dim = data.draw(st.integers(1, x.shape[1]))
    assert np.allclose(
        truncate(x, dim), x[:, :dim] / np.linalg.norm(x[:, :dim], axis=1, keepdims=True), atol=1e-6
    )


@pytest.mark.parametrize("dim", [0, -1, 5])
def test_truncate_refuses_dimensions_outside(dim):
    with pytest.raises(BadInput, match=r"outside 1\.\.4"):
        truncate(np.ones((2, 4)), dim)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_vectors_are_refused_with_their_row(bad):
    x = np.ones((3, 4))
    x[1, 2] = bad
    for function in (normalize, pack_bits, Int8Ranges.fit):
        with pytest.raises(
            BadInput, match="1 of 3 vectors hold NaN or infinity, the first at row 1"
        ):
            function(x)


@settings(max_examples=60, deadline=None)
@given(sizes)
def test_int8_round_trip_is_within_half_a_step(size):
    x = vectors(*size)
    ranges = Int8Ranges.fit(x)
    step = (ranges.maximum - ranges.minimum) / 255
    assert (np.abs(ranges.decode(ranges.encode(x)) - x) <= step / 2 + 1e-5).all()
    assert np.array_equal(ranges.encode(ranges.decode(ranges.encode(x))), ranges.encode(x))


def test_int8_saturates_and_keeps_constants():
    ranges = Int8Ranges.fit(np.array([[0.0, 5.0], [1.0, 5.0]]))
    codes = ranges.encode(np.array([[-9.0, 5.0], [9.0, 5.0]]))
    assert codes[:, 0].tolist() == [-128, 127]
    assert ranges.decode(codes)[:, 1].tolist() == [5.0, 5.0]


def test_int8_quantile_cuts_the_ends():
    x = np.linspace(0, 1, 1001)[:, None]
    ranges = Int8Ranges.fit(x, quantile=0.1)
    assert ranges.minimum[0] == pytest.approx(0.1) and ranges.maximum[0] == pytest.approx(0.9)


@settings(max_examples=30, deadline=None)
@given(sizes)
def test_ranges_survive_json_exactly(size):
    x = vectors(*size)
    dims = sorted({1, x.shape[1]})
    again = ranges_from_json(json.loads(json.dumps(ranges_to_json(fit_ranges(x, dims)))))
    assert sorted(again) == dims
    for dim in dims:
        assert np.array_equal(again[dim].minimum, truncate(x, dim).min(axis=0))
        assert np.array_equal(again[dim].maximum, truncate(x, dim).max(axis=0))


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"minimum": [1], "maximum": [0]},
        {"minimum": [1, 2], "maximum": [3]},
        {"minimum": ["a"], "maximum": [1]},
    ],
)
def test_damaged_ranges_are_refused(value):
    with pytest.raises(BadInput, match="int8 ranges"):
        Int8Ranges.from_json(value)


def test_ranges_of_another_dimension_are_refused():
    ranges = Int8Ranges.fit(np.ones((2, 4)))
    with pytest.raises(BadInput, match="4 dimensions cannot be used for vectors of 3"):
        ranges.encode(np.ones((2, 3)))


@settings(max_examples=60, deadline=None)
@given(sizes)
def test_bits_round_trip(size):
    x = vectors(*size)
    codes = pack_bits(x)
    assert codes.shape == (x.shape[0], bytes_per_vector(x.shape[1], "binary"))
    assert np.array_equal(unpack_bits(codes, x.shape[1]), np.where(x > 0, 1, -1))
    assert np.array_equal(pack_bits(unpack_bits(codes, x.shape[1])), codes)


def test_bits_are_most_significant_first_and_zero_is_unset():
    assert pack_bits(np.array([[1.0, 0.0, -1.0, 2.0, 0, 0, 0, 0, 3.0]])).tolist() == [
        [0b10010000, 0b10000000]
    ]


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(1, 12))
def test_hamming_counts_differing_signs(size, n):
    queries, documents = vectors(*size), vectors(n, size[1], size[2] + 1)
    expected = ((queries > 0)[:, None] != (documents > 0)[None]).sum(axis=2)
    assert np.array_equal(hamming(pack_bits(queries), pack_bits(documents)), expected)


def test_hamming_over_several_blocks():
    queries, documents = vectors(300, 96, 1), vectors(20_000, 96, 2)
    distances = hamming(pack_bits(queries), pack_bits(documents))
    signs = np.where(queries[::97] > 0, 1, -1) @ np.where(documents > 0, 1, -1).T
    assert np.array_equal(distances[::97], (96 - signs) // 2)


def test_bytes_per_vector():
    assert [bytes_per_vector(100, p) for p in ("float32", "float16", "int8", "binary")] == [
        400,
        200,
        100,
        13,
    ]
    with pytest.raises(BadInput, match="did you mean 'int8'"):
        bytes_per_vector(8, "int4")
