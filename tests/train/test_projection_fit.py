"""The fitted start of the projection.

Against a solver, over prefixes, with several teachers and missing vectors.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes

from taskdistill.losses.vectors import normalize
from taskdistill.train.projection_fit import RIDGES, fit_projection

NAN = float("nan")


def draw(count: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(
        count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def test_a_linear_teacher_is_found_again_on_every_size_it_depends_on():
    student = normalize(draw(400, 8, 0))
    mapped = (
        student @ torch.linalg.qr(draw(12, 8, 1))[0].T
    )  # lengths stay, so that unit targets are linear in the student's
    found = fit_projection(student.float(), mapped.float(), [8], widths=[12])
    assert found.cosines[8] > 0.9999
    assert (
        torch.nn.functional.cosine_similarity(
            student @ found.weight.double().T + found.bias, mapped
        ).min()
        > 0.999
    )


def test_least_squares_solves_the_joint_problem_over_prefixes():
    student, teacher = (
        draw(300, 6, 2),
        normalize(draw(300, 6, 2) @ draw(6, 5, 3) + 0.3 * draw(300, 5, 4)),
    )
    found = fit_projection(student.float(), teacher.float(), [2, 4, 6], widths=[5])
    fitted = torch.arange(300) % 10 != 0
    blocks = []
    for dim in (2, 4, 6):
        prefix = torch.zeros(300, 6, dtype=torch.float64)
        prefix[:, :dim] = normalize(student[:, :dim])
        blocks.append(prefix[fitted])
    inputs, targets = torch.cat(blocks).numpy(), teacher[fitted].repeat(3, 1).numpy()
    centred, mean = inputs - inputs.mean(0), targets.mean(0)
    ridge = found.ridge * np.trace(centred.T @ centred) / 6
    weight = np.linalg.solve(
        centred.T @ centred + ridge * np.eye(6), centred.T @ (targets - mean)
    ).T
    assert found.ridge in RIDGES
    np.testing.assert_allclose(found.weight, weight, atol=1e-5)
    np.testing.assert_allclose(found.bias, mean - weight @ inputs.mean(0), atol=1e-5)


@pytest.mark.parametrize("width", [4, 6, 9])
def test_a_rotation_keeps_cosines_and_is_procrustes(width):
    student, teacher = normalize(draw(200, 6, 5)), normalize(draw(200, width, 6))
    found = fit_projection(student.float(), teacher.float(), [6], widths=[width], method="rotation")
    assert found.bias.abs().max() == 0 and found.ridge is None
    short = min(6, width)
    gram = found.weight.T @ found.weight if width >= 6 else found.weight @ found.weight.T
    torch.testing.assert_close(gram, torch.eye(short), atol=1e-5, rtol=0)
    if width == 6:
        kept = torch.arange(200) % 10 != 0
        np.testing.assert_allclose(
            found.weight,
            orthogonal_procrustes(student[kept].numpy(), teacher[kept].numpy())[0].T,
            atol=1e-5,
        )


def test_each_teacher_is_fitted_on_the_texts_that_it_knows():
    student, teacher = draw(120, 5, 7), draw(120, 7, 8)
    alone = fit_projection(student.float(), teacher[:, :4].float(), [3, 5], widths=[4])
    half = teacher.clone()
    half[::3, 4:] = NAN
    known = ~half[:, 4].isnan()
    both = fit_projection(student.float(), half.float(), [3, 5], widths=[4, 3])
    torch.testing.assert_close(both.weight[:4], alone.weight)
    other = fit_projection(
        student[known].float(), teacher[known][:, 4:].float(), [3, 5], widths=[3]
    )
    torch.testing.assert_close(both.weight[4:], other.weight)
    assert both.cosines[5] == pytest.approx((alone.cosines[5] + other.cosines[5]) / 2)


def test_a_teacher_that_knows_none_of_the_texts_gets_zero_rows():
    teacher = torch.cat([draw(30, 2, 9), torch.full((30, 3), NAN, dtype=torch.float64)], dim=1)
    found = fit_projection(draw(30, 4, 10).float(), teacher.float(), [4], widths=[2, 3])
    assert found.weight[2:].abs().max() == 0 and torch.isfinite(found.weight).all()


def test_a_fitted_start_is_nearer_than_any_draw():
    """What step 1 begins with.

    The held-out cosine of a fitted map against that of torch's linear initialisation.
    """
    student = draw(500, 16, 11)
    teacher = normalize(torch.tanh(student @ draw(16, 24, 12)) + 0.5 * draw(500, 24, 13))
    found = fit_projection(student.float(), teacher.float(), [4, 16], widths=[24])
    drawn = torch.nn.Linear(16, 24).double()
    cosine = torch.nn.functional.cosine_similarity(drawn(normalize(student)), teacher).mean()
    assert found.cosines[16] > 0.5 > abs(cosine.item())
    assert found.cosines[16] > found.cosines[4] > 0
