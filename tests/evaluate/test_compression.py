"""The matrix scores what is stored, rescoring helps, calibration is shared, and the verdict names
the cheapest.
"""

from __future__ import annotations

import numpy as np
import pytest

from taskdistill.errors import BadInput
from taskdistill.evaluate.compression import (
    CompressionResult,
    compression_matrix,
    decoded,
    mean_cells,
    verdict,
)
from taskdistill.evaluate.datasets import TASK_TYPES
from taskdistill.evaluate.encode import EncodedSet
from taskdistill.evaluate.exact_search import rank
from taskdistill.evaluate.rankings import score_ranking
from taskdistill.evaluate.set_data import PairData, RankingData
from taskdistill.quantization import Int8Ranges, hamming, normalize, pack_bits, truncate

RNG = np.random.default_rng(0)
N, Q, DIM = 400, 60, 64
DOCUMENTS = normalize(RNG.standard_normal((N, DIM)) * np.linspace(2, 0.2, DIM))
QUERIES = normalize(
    DOCUMENTS[: 2 * Q : 2] + 0.16 * RNG.standard_normal((Q, DIM)).astype(np.float32)
)
DATA = RankingData(
    documents={f"d{i}": f"text {i}" for i in range(N)},
    queries={f"q{i}": f"query {i}" for i in range(Q)},
    qrels={f"q{i}": {f"d{2 * i}": 1} for i in range(Q)},
)
ENCODED = EncodedSet({"queries": QUERIES, "documents": DOCUMENTS}, N + Q, 1.0)


@pytest.fixture(scope="module")
def cells():
    matrix = compression_matrix(TASK_TYPES["retrieval"], DATA, ENCODED, [16, 64])
    return {(cell.dim, cell.precision, cell.rescored): cell for cell in matrix.cells}


def test_every_setting_is_there_with_its_size(cells):
    assert {setting: cell.bytes for setting, cell in cells.items()} == {
        (64, "float32", False): 256,
        (64, "float16", False): 128,
        (64, "int8", False): 64,
        (64, "int8", True): 64,
        (64, "binary", False): 8,
        (64, "binary", True): 72,
        (16, "float32", False): 64,
        (16, "float16", False): 32,
        (16, "int8", False): 16,
        (16, "int8", True): 16,
        (16, "binary", False): 2,
        (16, "binary", True): 18,
    }
    assert all(cell.query_ms > 0 for cell in cells.values())


def test_scores_are_those_of_what_is_stored(cells):
    complete = TASK_TYPES["retrieval"].score(DATA, ENCODED.sides).score
    assert (
        cells[64, "float32", False].score == complete and cells[64, "float32", False].retention == 1
    )
    queries, documents = truncate(QUERIES, 16), truncate(DOCUMENTS, 16)
    assert (
        cells[16, "float32", False].score
        == score_ranking(DATA, rank(DATA, queries, documents)).score
    )
    near = -hamming(pack_bits(queries), pack_bits(documents))
    ranking = {
        q: {f"d{i}": float(s) for i, s in enumerate(row)}
        for q, row in zip(DATA.queries, near, strict=True)
    }
    assert cells[16, "binary", False].score == pytest.approx(score_ranking(DATA, ranking).score)
    ranges = Int8Ranges.fit(DOCUMENTS)
    result = rank(
        DATA, ranges.decode(ranges.encode(QUERIES)), ranges.decode(ranges.encode(DOCUMENTS))
    )
    assert cells[64, "int8", False].score == score_ranking(DATA, result).score


def test_quality_falls_with_size_and_rescoring_brings_it_back(cells):
    assert (
        cells[64, "int8", False].retention > 0.97 and cells[64, "float16", False].retention > 0.999
    )
    assert (
        cells[64, "binary", False].score
        < cells[64, "binary", True].score
        <= cells[64, "float32", False].score + 0.01
    )
    assert (
        cells[16, "binary", False].score
        < cells[16, "float32", False].score
        < cells[64, "float32", False].score
    )


def test_rescored_int8_ranks_its_candidates_by_float32_queries(cells):
    ranges = Int8Ranges.fit(DOCUMENTS)
    coded = normalize(ranges.decode(ranges.encode(DOCUMENTS)))
    exact = QUERIES @ coded.T
    ranking = {
        q: {f"d{i}": float(s) for i, s in enumerate(row)}
        for q, row in zip(DATA.queries, exact, strict=True)
    }
    assert cells[64, "int8", True].score == pytest.approx(score_ranking(DATA, ranking).score)


def test_given_ranges_are_used_for_both_sides_and_returned():
    ranges = {64: Int8Ranges.fit(DOCUMENTS * 0.01)}
    matrix = compression_matrix(
        TASK_TYPES["retrieval"], DATA, ENCODED, [64], ["int8"], ranges=ranges, rescore=False
    )
    assert [cell.rescored for cell in matrix.cells] == [False]
    assert matrix.ranges[64] is ranges[64]
    fitted = compression_matrix(TASK_TYPES["retrieval"], DATA, ENCODED, [64], ["int8"])
    assert matrix.cells[0].score < fitted.cells[0].score
    assert np.array_equal(fitted.ranges[64].maximum, DOCUMENTS.max(axis=0))


def test_pairs_have_no_search_and_no_rescoring():
    first, second = (
        DOCUMENTS[:100],
        normalize(
            DOCUMENTS[:100] + np.linspace(0, 1, 100)[:, None] * RNG.standard_normal((100, DIM))
        ),
    )
    data = PairData(
        first=[""] * 100, second=[""] * 100, scores=np.linspace(1, 0, 100), languages=[""] * 100
    )
    result = compression_matrix(
        TASK_TYPES["sts"],
        data,
        EncodedSet({"first": first, "second": second}, 200, 1.0),
        [64, 32],
    )
    assert [cell.query_ms for cell in result.cells] == [None] * 8 and not any(
        cell.rescored for cell in result.cells
    )
    assert result.cells[0].retention == 1 > result.cells[3].retention > 0.8


def test_binary_cosine_is_hamming():
    signs = decoded(DOCUMENTS[:9], "binary", Int8Ranges.fit(DOCUMENTS))
    assert np.array_equal(
        signs @ signs.T, DIM - 2 * hamming(pack_bits(DOCUMENTS[:9]), pack_bits(DOCUMENTS[:9]))
    )


def test_bad_settings_are_refused():
    with pytest.raises(BadInput, match=r"dimensions \[128\] exceed the 64"):
        compression_matrix(TASK_TYPES["retrieval"], DATA, ENCODED, [128])
    with pytest.raises(BadInput, match="unknown precision 'int4'"):
        compression_matrix(TASK_TYPES["retrieval"], DATA, ENCODED, [64], ["int4"])


def cell(dim: int, precision: str, retention: float, size: int) -> CompressionResult:
    return CompressionResult(
        dim=dim,
        precision=precision,
        rescored=False,
        score=retention / 2,
        retention=retention,
        bytes=size,
        query_ms=1.0,
    )


def test_verdict_names_the_cheapest_setting_for_each_share():
    cells = [
        cell(256, "float32", 1, 1024),
        cell(256, "int8", 0.992, 256),
        cell(128, "int8", 0.96, 128),
        cell(256, "binary", 0.9, 32),
    ]
    assert (
        verdict(cells)
        == "To keep 99 % or 97 % of the score: 256 dimensions, int8 (256 bytes a vector, 4 times"
        " smaller; keeps 99.2 %). To keep 95 % of the score: 128 dimensions, int8 (128 bytes a"
        " vector, 8 times smaller; keeps 96.0 %)."
    )
    assert (
        verdict([cell(8, "binary", 0.5, 1)])
        == "No setting keeps 99 % or 97 % or 95 % of the score."
    )


def test_means_over_sets_keep_only_common_settings():
    a, b = [cell(8, "int8", 0.9, 8), cell(4, "int8", 0.5, 4)], [cell(8, "int8", 0.7, 8)]
    result = mean_cells([a, b])
    assert [(each.dim, each.retention, each.score) for each in result] == [
        (8, pytest.approx(0.8), pytest.approx(0.4))
    ]
    assert mean_cells([]) == ()


def test_offsets_shift_the_signs_of_each_side_and_nothing_else():
    lean = np.linspace(0.4, 0.0, DIM, dtype=np.float32)
    leaning = EncodedSet(
        {"queries": normalize(QUERIES + 2 * lean), "documents": normalize(DOCUMENTS - lean)},
        N + Q,
        1.0,
    )
    offsets = {
        role: {dim: truncate(leaning.sides[side], dim).mean(0) for dim in (16, 64)}
        for role, side in (("query", "queries"), ("document", "documents"))
    }
    plain, with_offsets = (
        {
            (cell.dim, cell.precision, cell.rescored): cell
            for cell in compression_matrix(
                TASK_TYPES["retrieval"], DATA, leaning, [16, 64], offsets=each
            ).cells
        }
        for each in (None, offsets)
    )
    for setting, cell in plain.items():
        assert (with_offsets[setting].score == cell.score) is (setting[1] != "binary")
    near = -hamming(
        *(
            pack_bits(leaning.sides[side] - offsets[role][64])
            for role, side in (("query", "queries"), ("document", "documents"))
        )
    )
    ranking = {
        q: {f"d{i}": float(s) for i, s in enumerate(row)}
        for q, row in zip(DATA.queries, near, strict=True)
    }
    assert with_offsets[64, "binary", False].score == pytest.approx(
        score_ranking(DATA, ranking).score
    )
    assert with_offsets[64, "binary", False].score > plain[64, "binary", False].score + 0.1
