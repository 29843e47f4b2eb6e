"""Every loss of the menu against its formula, computed by hand or by loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from taskdistill.losses.terms.contrastive import (
    HardNegativeWeighting,
    info_nce,
    mixed_negatives,
    sharpened_info_nce,
)
from taskdistill.losses.terms.embedding import hidden_distance, l2_distance, squared_error
from taskdistill.losses.terms.listwise import list_kl
from taskdistill.losses.terms.similarity import (
    relative_similarity,
    rkd_angle,
    rkd_distance,
    score_distill,
    score_kl,
    similarity_matrix,
)
from taskdistill.losses.vectors import normalize


def drawn(rows: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


MENU = {
    "l2": l2_distance,
    "mse": squared_error,
    "score_softmax": score_distill,
    "score_kl": score_kl,
    "similarity": similarity_matrix,
    "relative": relative_similarity,
    "rkd_distance": rkd_distance,
    "rkd_angle": rkd_angle,
}
IN_TEACHER_SPACE = ("l2", "mse")
S, T = drawn(5, 4, 1), drawn(5, 6, 2)
UNIT_S, UNIT_T = normalize(S), normalize(T)


def huber(a: float, b: float) -> float:
    gap = abs(a - b)
    return 0.5 * gap * gap if gap < 1 else gap - 0.5


def test_l2_and_squared_error_by_hand():
    student, teacher = (
        torch.tensor([[3.0, 4.0], [2.0, 0.0]]),
        torch.tensor([[0.6, 0.8], [0.0, 5.0]]),
    )
    assert float(l2_distance(student, teacher)) == pytest.approx((0 + math.sqrt(2)) / 2)
    assert float(squared_error(student, teacher)) == pytest.approx(
        (2.4**2 + 3.2**2 + 2**2 + 5**2) / 4
    )


def test_similarity_matrix_is_the_mean_squared_difference_of_cosines():
    total = sum(
        (float(UNIT_S[i] @ UNIT_S[j]) - float(UNIT_T[i] @ UNIT_T[j])) ** 2
        for i in range(5)
        for j in range(5)
    )
    assert float(similarity_matrix(S, T)) == pytest.approx(total / 25, rel=1e-5)


def test_relative_similarity_nears_the_mean_over_all_couples():
    pairs = list(itertools.combinations(range(5), 2))
    total = 0.0
    for (a, b), (c, d) in itertools.product(pairs, pairs):
        teacher = float(UNIT_T[a] @ UNIT_T[b] - UNIT_T[c] @ UNIT_T[d])
        student = float(UNIT_S[a] @ UNIT_S[b] - UNIT_S[c] @ UNIT_S[d])
        if (a, b) != (c, d):
            total += max(0.0, 0.1 - math.copysign(1, teacher) * student)
    found = relative_similarity(
        S, T, margin=0.1, couples=200_000, generator=torch.Generator().manual_seed(0)
    )
    assert float(found) == pytest.approx(total / len(pairs) ** 2, rel=0.02)
    again = relative_similarity(
        S, T, margin=0.1, couples=64, generator=torch.Generator().manual_seed(3)
    )
    assert float(again) == float(
        relative_similarity(
            S, T, margin=0.1, couples=64, generator=torch.Generator().manual_seed(3)
        )
    )
    assert float(relative_similarity(T, T, margin=0.0)) == 0


def test_rkd_distance_by_loops():
    pairs = list(itertools.combinations(range(5), 2))
    s = [float((UNIT_S[i] - UNIT_S[j]).norm()) for i, j in pairs]
    t = [float((UNIT_T[i] - UNIT_T[j]).norm()) for i, j in pairs]
    wanted = (
        sum(huber(a / (sum(s) / 10), b / (sum(t) / 10)) for a, b in zip(s, t, strict=True)) / 10
    )
    assert float(rkd_distance(S, T)) == pytest.approx(wanted, rel=1e-5)


def test_rkd_angle_by_loops():
    def angle(x: torch.Tensor, corner: int, i: int, j: int) -> float:
        return float(normalize(x[i] - x[corner]) @ normalize(x[j] - x[corner]))

    found = []
    for corner in range(5):
        for i, j in itertools.combinations([k for k in range(5) if k != corner], 2):
            found.append(huber(angle(UNIT_S, corner, i, j), angle(UNIT_T, corner, i, j)))
    assert float(rkd_angle(S, T, corners=5)) == pytest.approx(sum(found) / len(found), rel=1e-5)
    assert 0 < float(rkd_angle(S, T, corners=2, generator=torch.Generator().manual_seed(1))) < 2


def test_list_kl_by_loops_and_zero_for_the_same_lists():
    qs, ds, qt, dt = UNIT_S[:2], UNIT_S[2:], UNIT_T[:2], UNIT_T[2:]
    excluded = torch.tensor([[False, False, True], [False, False, False]])
    total = 0.0
    for b in range(2):
        kept = [m for m in range(3) if not excluded[b, m]]
        p = torch.softmax(torch.tensor([float(qt[b] @ dt[m]) / 0.1 for m in kept]), 0)
        q = torch.softmax(torch.tensor([float(qs[b] @ ds[m]) / 0.1 for m in kept]), 0)
        total += float((p * (p.log() - q.log())).sum())
    assert float(list_kl(qs, ds, qt, dt, temperature=0.1, excluded=excluded)) == pytest.approx(
        total / 2, rel=1e-4
    )
    assert float(list_kl(qt, dt, qt, dt)) == pytest.approx(0, abs=1e-6)


def test_hidden_distance_maps_layers_and_scales_states():
    teacher = drawn(6, 3 * 4, 5).reshape(6, 3, 4)
    assert float(hidden_distance(7 * teacher[[1, 3, 5]], teacher)) == pytest.approx(0, abs=1e-6)
    assert float(hidden_distance(teacher[[0]], teacher, [0])) == pytest.approx(0, abs=1e-6)
    assert float(hidden_distance(-teacher[[5]], teacher)) == pytest.approx(4, rel=1e-5)


@pytest.mark.parametrize("name", MENU)
def test_every_loss_of_the_menu_has_one_signature_and_trains_the_student_alone(name):
    student, teacher = (
        S.clone().requires_grad_(),
        (S + 0.1).requires_grad_() if name in IN_TEACHER_SPACE else T.clone().requires_grad_(),
    )
    value = MENU[name](student, teacher)
    assert value.ndim == 0 and torch.isfinite(value)
    value.backward()
    assert (
        student.grad is not None
        and torch.isfinite(student.grad).all()
        and student.grad.abs().sum() > 0
    )
    assert teacher.grad is None


POSITIVES = torch.tensor([0, 1])
EXCLUDED = torch.tensor([[False, True, False, False], [False, False, False, False]])


def test_without_settings_it_is_info_nce():
    documents = normalize(drawn(4, 4, 8))
    plain = info_nce(UNIT_S[:2], documents, POSITIVES, 0.1, excluded=EXCLUDED)
    assert float(
        sharpened_info_nce(UNIT_S[:2], documents, POSITIVES, 0.1, excluded=EXCLUDED)
    ) == pytest.approx(float(plain), rel=1e-6)


def test_focal_hardness_and_mixed_negatives_by_loops():
    documents, mixed = normalize(drawn(4, 4, 8)), normalize(drawn(4, 4, 9)).reshape(2, 2, 4).clone()
    mixed[1, 1] = 0
    hard = torch.tensor([[False, False, True, False], [False, False, False, True]])
    total = 0.0
    for b in range(2):
        terms = {}
        for m in range(4):
            if not EXCLUDED[b, m]:
                cosine = float(UNIT_S[b] @ documents[m])
                terms[m] = math.exp(cosine / 0.2) * (math.exp(5 * cosine) if hard[b, m] else 1)
        extra = 0.0
        for s in range(2):
            if mixed[b, s].abs().sum() > 0:
                cosine = float(UNIT_S[b] @ mixed[b, s])
                extra += math.exp(cosine / 0.2) * math.exp(5 * cosine)
        p = terms[b] / (sum(terms.values()) + extra)
        total += -((1 - p) ** 0.5) * math.log(p)
    found = sharpened_info_nce(
        UNIT_S[:2],
        documents,
        POSITIVES,
        0.2,
        excluded=EXCLUDED,
        weighting=HardNegativeWeighting(focal=0.5, hardness=5.0),
        hard=hard,
        mixed=mixed,
    )
    assert float(found) == pytest.approx(total / 2, rel=1e-5)


def test_mixed_negatives_lie_between_two_of_the_query():
    documents = normalize(drawn(5, 4, 4)).requires_grad_()
    owners = torch.tensor([0, 0, 0, 1, 2])
    found = mixed_negatives(
        documents, owners, 3, mixes=40, generator=torch.Generator().manual_seed(0)
    )
    assert found.shape == (3, 40, 4) and float(found[1:].detach().abs().sum()) == 0
    assert torch.allclose(found[0].norm(dim=1), torch.ones(40))
    own = documents[:3].detach()
    for row in found[0].detach():
        parts = torch.linalg.lstsq(own.T, row[:, None]).solution[:, 0]
        assert int((parts > 1e-4).sum()) == 2 and float(parts.min()) > -1e-4
        assert torch.allclose(own.T @ parts, row, atol=1e-5)
    found.sum().backward()
    assert (
        documents.grad is not None
        and documents.grad[:3].abs().sum() > 0
        and documents.grad[3:].abs().sum() == 0
    )


def test_score_kl_by_loops_leaves_out_the_text_itself_and_its_equals():
    student, teacher = drawn(5, 4, 11), drawn(5, 3, 12)
    same = torch.eye(5, dtype=torch.bool)
    same[1, 3] = same[3, 1] = True
    for excluded, given in ((torch.eye(5, dtype=torch.bool), None), (same, same)):
        total = 0.0
        for row in range(5):
            places = [i for i in range(5) if not excluded[row, i]]
            p, q = (
                torch.softmax(
                    torch.stack([torch.dot(normalize(x)[row], normalize(x)[i]) for i in places])
                    / 0.1,
                    0,
                )
                for x in (teacher, student)
            )
            total += float((p * (p.log() - q.log())).sum())
        assert float(score_kl(student, teacher, temperature=0.1, same=given)) == pytest.approx(
            total / 5, rel=1e-5
        )
    assert float(score_kl(student, student, temperature=0.1)) == pytest.approx(0, abs=1e-6)


def test_score_kl_of_texts_without_candidates_is_nothing():
    student = drawn(2, 4, 13).requires_grad_()
    value = score_kl(student, drawn(2, 3, 14), same=torch.ones(2, 2, dtype=torch.bool))
    value.backward()
    assert value.item() == 0 and student.grad.abs().max().item() == 0


def test_a_turn_of_the_student_s_space_changes_no_loss_of_similarities():
    student, teacher = drawn(6, 4, 15), drawn(6, 3, 16)
    turn = torch.linalg.qr(drawn(4, 4, 17))[0]
    for name, loss in MENU.items():
        if name in IN_TEACHER_SPACE:
            continue
        drawings = (
            {"generator": torch.Generator().manual_seed(1)}
            if name in ("relative", "rkd_angle")
            else {}
        )
        first = float(loss(student, teacher, **drawings))
        drawings = {"generator": torch.Generator().manual_seed(1)} if drawings else {}
        assert float(loss(student @ turn, teacher, **drawings)) == pytest.approx(
            first, rel=1e-4, abs=1e-6
        ), name
