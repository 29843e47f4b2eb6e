"""Every loss against a value worked out by hand, against sentence-transformers, and against its own
other ways of computing.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from taskdistill.losses.streaming import streaming_info_nce
from taskdistill.losses.terms import contrastive
from taskdistill.losses.terms.contrastive import (
    info_nce,
    int8_straight_through,
    sign_straight_through,
)
from taskdistill.losses.terms.cosent import cosent
from taskdistill.losses.terms.embedding import embedding_distance
from taskdistill.losses.terms.regularizers import gor, gor_hinged, mean_vector_penalty
from taskdistill.losses.terms.relational import relational_distance
from taskdistill.losses.terms.similarity import score_distill
from taskdistill.losses.vectors import normalize, over_prefixes

LN2_TEMPERATURE = 1 / math.log(2)
"""With this temperature the exponential of a similarity is 2 to its power."""


def rows(*values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def test_embedding_distance_by_hand():
    projected, targets = rows((3, 4), (0, 2)), rows((1, 0), (0, 5))
    assert embedding_distance(projected, targets).item() == pytest.approx(0.2)
    assert embedding_distance(projected, targets, "sum").item() == pytest.approx(0.4)


def test_info_nce_by_hand():
    queries, documents, own = rows((1, 0), (0, 1)), rows((1, 0), (0, 1), (-1, 0)), torch.arange(2)
    value = info_nce(queries, documents[:2], own, LN2_TEMPERATURE).item()
    assert value == pytest.approx(math.log(3 / 2))  # 2 of 2 + 1
    value = info_nce(queries, documents, own, LN2_TEMPERATURE).item()
    assert value == pytest.approx((math.log(3.5 / 2) + math.log(4 / 2)) / 2)
    excluded = torch.tensor([[True, False, True], [False, True, False]])
    value = info_nce(queries, documents, own, LN2_TEMPERATURE, excluded=excluded).item()
    assert value == pytest.approx(
        (math.log(3 / 2) + math.log(4 / 2)) / 2
    )  # the own positive stays, though it is named


def test_four_equal_documents_cannot_go_below_ln_4_unless_they_are_masked():
    queries, own = unit(4, 6), torch.arange(4)
    documents = unit(1, 6, seed=1).expand(4, 6)
    assert info_nce(queries, documents, own, 0.02).item() == pytest.approx(math.log(4))
    assert info_nce(
        queries, documents, own, 0.02, excluded=torch.ones(4, 4, dtype=torch.bool)
    ).item() == pytest.approx(0.0, abs=1e-12)


def test_cosent_by_hand():
    value = cosent(row(0.1, 0.3), row(1, 0), 0.1)
    assert value.item() == pytest.approx(math.log(1 + math.exp(2)))
    value = cosent(row(0.1, 0.3, 0.9), row(1, 0, 1), 0.1)  # equal scores make no pair
    assert value.item() == pytest.approx(math.log(1 + math.exp(2) + math.exp(-6)))
    assert cosent(row(0.1, 0.3), row(1, 1)).item() == 0


def test_spread_out_by_hand():
    assert gor(rows((1, 0), (1, 0), (0, 1))).item() == pytest.approx(2 / 6)
    assert gor(rows((1, 0), (0.6, 0.8))).item() == pytest.approx(0.36)


def test_relational_distance_by_hand():
    third = 2 * math.pi / 3
    corners = rows(*((math.cos(third * n), math.sin(third * n)) for n in range(3)))
    value = relational_distance(rows((1, 0), (0, 1), (-1, 0)), corners).item()
    assert value == pytest.approx(
        0.1875
    )  # distances 1, 2, 1 over their mean 8/9, against 1.5 over 1
    scaled = relational_distance(rows((1, 0), (0, 1)), rows((1, 0), (0.6, 0.8)))
    assert scaled.item() == pytest.approx(0.0, abs=1e-15)  # only relations count, not their size


def test_score_distill_by_hand():
    value = score_distill(rows((1, 0), (0, 1)), rows((1, 0), (1, 0)), LN2_TEMPERATURE)
    assert value.item() == pytest.approx(2 * (2 / 3 - 1 / 2) ** 2)


def test_over_prefixes_is_the_mean_of_the_prefixes():
    vectors = rows((3, 4, 12), (1, 0, 0))
    value = over_prefixes(lambda dim: normalize(vectors[:, :dim])[0, 0], [1, 2, 3])
    assert value.item() == pytest.approx((1 + 3 / 5 + 3 / 13) / 3)


def test_a_zero_row_stays_zero():
    assert normalize(torch.zeros(2, 3)).tolist() == [[0, 0, 0], [0, 0, 0]]


class TestAgainstSentenceTransformers:
    """The same numbers from the library that has the same losses."""

    theirs = pytest.importorskip(
        "sentence_transformers.sentence_transformer.losses",
        reason="sentence-transformers is not installed",
    )

    def test_info_nce(self):
        queries, positives, negatives = unit(6, 8), unit(6, 8, seed=1), unit(6, 8, seed=2)
        loss = self.theirs.MultipleNegativesRankingLoss(None, scale=1 / 0.05)
        want = loss.compute_loss_from_embeddings([queries, positives, negatives], None)
        got = info_nce(queries, torch.cat([positives, negatives]), torch.arange(6), 0.05)
        assert abs(got - want) <= 1e-6

    def test_embedding_distance(self):
        student, teacher = torch.randn(5, 8), torch.randn(5, 8)
        want = self.theirs.EmbedDistillLoss(None, "cosine").compute_loss_from_embeddings(
            [student], [teacher]
        )
        assert abs(embedding_distance(student, teacher) - want) <= 1e-6

    def test_cosent(self):
        first, second = unit(7, 8), unit(7, 8, seed=1)
        scores = row(0, 0.5, 0.5, 1, 0.2, 1, 0)
        want = self.theirs.CoSENTLoss(None, scale=1 / 0.05).compute_loss_from_embeddings(
            [first, second], scores
        )
        assert abs(cosent((first * second).sum(1), scores, 0.05) - want) <= 1e-6

    def test_spread_out_but_for_their_hinge_at_one_over_d(self):
        first, second = unit(5, 8), unit(5, 8, seed=1)
        loss = self.theirs.GlobalOrthogonalRegularizationLoss(
            None, mean_weight=0, aggregation="sum"
        )
        ours = [gor(first), gor(second)]
        want = loss.compute_loss_from_embeddings([first.clone(), second.clone()])[
            "gor_second_moment"
        ]
        assert abs(sum(max(0, value.item() - 1 / 8) for value in ours) - want) <= 1e-6


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_streaming_info_nce_equals_the_plain_one_with_all_gradients(masked, chunk):
    generator = torch.Generator().manual_seed(4)
    positives = torch.tensor([0, 3, 3, 7, 1, 8, 2])  # two queries share a document
    excluded = torch.rand(7, 9, generator=generator) < 0.4 if masked else None
    if excluded is not None:
        excluded[0] = True  # even a whole row of exclusions keeps the positive
    found = []
    for compute in (streaming_info_nce, info_nce):
        queries, documents = (
            unit(7, 5, seed=1).requires_grad_(),
            unit(9, 5, seed=2).requires_grad_(),
        )
        tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        options = {"chunk": chunk} if compute is streaming_info_nce else {}
        value = compute(queries, documents, positives, tau, excluded=excluded, **options)
        (3 * value).backward()
        found.append([value.detach(), queries.grad, documents.grad, tau.grad])
    for streamed, plain in zip(*found, strict=True):
        assert (streamed - plain).abs().max() <= 1e-10


def test_streaming_starts_by_itself_above_its_limit_and_takes_a_fixed_temperature(monkeypatch):
    queries, documents = unit(4, 5).requires_grad_(), unit(6, 5, seed=1)
    plain = info_nce(queries, documents, torch.arange(4), 0.1)
    monkeypatch.setattr(contrastive, "STREAM_ABOVE", 23)
    streamed = info_nce(queries, documents, torch.arange(4), 0.1)
    assert type(streamed.grad_fn).__name__ == "_StreamingInfoNCEBackward"
    assert abs(streamed - plain) <= 1e-12


def test_a_second_pass_backward_through_a_streamed_loss_is_refused_instead_of_scaled_twice():
    queries, documents = unit(4, 5).requires_grad_(), unit(6, 5, seed=1)
    value = 3 * streaming_info_nce(queries, documents, torch.arange(4), 0.1, chunk=2)
    torch.autograd.grad(value, queries, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(value, queries)


def test_the_mean_distance_takes_part_in_the_gradient_or_not():
    reference, gradients = unit(5, 4, seed=1), []
    for mean_gradient in (True, False):
        student = unit(5, 4).requires_grad_()
        value = relational_distance(student, reference, mean_gradient)
        value.backward()
        gradients.append((value.item(), student.grad))
    assert gradients[0][0] == gradients[1][0]
    assert (gradients[0][1] - gradients[1][1]).abs().max() > 1e-3
    student = unit(5, 4).requires_grad_()
    distances = 1 - student @ student.T
    fixed = (
        distances / distances.detach().mean().item()
        - (1 - reference @ reference.T) / (1 - reference @ reference.T).mean()
    )
    fixed.square().mean().backward()
    assert torch.allclose(student.grad, gradients[1][1], atol=1e-14)


def test_no_gradient_flows_into_the_reference_of_the_relations():
    student, reference = unit(4, 3).requires_grad_(), unit(4, 3, seed=1).requires_grad_()
    relational_distance(student, reference).backward()
    assert reference.grad is None and student.grad is not None


def test_signs_go_forward_and_the_gradient_straight_back():
    vectors = torch.tensor([[0.3, -0.2, 0.0, 2.0]], requires_grad=True)
    codes = sign_straight_through(vectors)
    assert codes.tolist() == [[0.5, -0.5, -0.5, 0.5]]  # a zero is no set bit, as in packed codes
    (codes * torch.tensor([[1.0, 2.0, 3.0, 4.0]])).sum().backward()
    assert vectors.grad.tolist() == [[1.0, 2.0, 3.0, 4.0]]


def test_the_two_forms_of_the_spread_out_regulariser_and_the_centre():
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    first, second, third = 0.0, 0.6, 0.8  # cosines of the three pairs
    squares = (first**2 + second**2 + third**2) / 3
    assert gor(rows).item() == pytest.approx(squares)
    mean = (first + second + third) / 3
    assert gor_hinged(rows).item() == pytest.approx(mean**2 + max(0.0, squares - 1 / 2))
    crowded = torch.nn.functional.normalize(
        torch.tensor([[1.0, 0.1], [1.0, 0.0], [1.0, -0.1]]), dim=1
    )
    assert gor_hinged(crowded) > gor(crowded) > gor(rows)
    assert mean_vector_penalty(rows).item() == pytest.approx((1.6 / 3) ** 2 + (1.8 / 3) ** 2)


def test_int8_codes_forward_and_the_identity_backward():
    vectors = torch.randn(40, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    out = int8_straight_through(vectors)
    unit = normalize(vectors)
    steps = (unit.amax(0) - unit.amin(0)) / 255
    assert torch.allclose(out.norm(dim=1), torch.ones(40)) and not torch.equal(out, unit)
    assert ((out - unit).abs() <= steps).all()  # half a step, and what scaling to length one moves
    upstream = torch.randn(40, 8, generator=torch.Generator().manual_seed(2))
    (got,) = torch.autograd.grad(out, vectors, upstream, retain_graph=True)
    (wanted,) = torch.autograd.grad(unit, vectors, upstream)
    assert torch.allclose(got, wanted, atol=1e-7)
