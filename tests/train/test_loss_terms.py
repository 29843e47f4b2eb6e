"""The loss menu in a phase: which rows give which terms, what is refused, and weights that move."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from helpers import tiny

from taskdistill.data.batches import Batch
from taskdistill.data.rows import Pair, ScoredPair, Text, make_dataset
from taskdistill.errors import BadInput
from taskdistill.losses.terms.contrastive import (
    HardNegativeWeighting,
    mixed_negatives,
    sharpened_info_nce,
)
from taskdistill.losses.terms.embedding import l2_distance, squared_error
from taskdistill.losses.terms.listwise import list_kl
from taskdistill.losses.terms.relational import relational_distance
from taskdistill.losses.terms.similarity import (
    relative_similarity,
    rkd_angle,
    rkd_distance,
    score_distill,
    score_kl,
    similarity_matrix,
)
from taskdistill.losses.vectors import normalize, step_rng
from taskdistill.model.projection import Projection
from taskdistill.recipe.phases import AdapterConfig, Stage1Config
from taskdistill.tasks import Task
from taskdistill.train.collate import collate
from taskdistill.train.loss_terms import (
    stage1_weights,
    weight_at,
    weights_for,
)
from taskdistill.train.objective import Heads, Objective, Targets
from taskdistill.train.phases import build_stage1, distils, plan_phase
from taskdistill.types import RowKind

TEACHER_TERMS = (
    *("l2", "mse", "score_softmax", "score_kl", "similarity", "relative", "rkd_distance"),
    *("rkd_angle", "list_kl", "teacher_nce"),
)
FORMULAS = {
    "l2": l2_distance,
    "mse": squared_error,
    "score_softmax": score_distill,
    "score_kl": partial(score_kl, temperature=0.05),
    "similarity": similarity_matrix,
    "rkd_distance": rkd_distance,
}
ROWS = [Pair("a", "b", ("x", "y")), Pair("c", "d", ("z", "x")), Pair("e", "f")]
BASE = {"sources": {"made": 1}, "steps": 10, "batch_size": 3, "lr": 1e-3}


def adapter(**fields: object) -> AdapterConfig:
    return AdapterConfig(**{**BASE, **fields})


def adapter_objective(task: Task, settings: AdapterConfig, dims: list[int]) -> Objective:
    return Objective(settings, weights_for(task, settings.weights), dims)


def stage1(**fields: object) -> Stage1Config:
    return Stage1Config(**{**BASE, **fields})


def batch(kind: RowKind, *rows: object, step: int = 0) -> Batch:
    return Batch(
        step=step, index=0, dataset="made", kind=kind, rows=rows, row_ids=np.arange(len(rows))
    )


def plan(settings, name: str, kind: RowKind, *rows: object):
    return plan_phase(1, name, settings, {"made": make_dataset("made", kind, rows)})


def test_every_teacher_term_of_an_adapter_is_the_loss_over_both_prefixes():
    prepared = collate(batch(RowKind.PAIRS, *ROWS), task=Task.RETRIEVAL, distil=True)
    torch.manual_seed(0)
    vectors, teacher, heads = (
        torch.randn(6, 8),
        torch.randn(6, 5),
        Heads(projection=Projection(8, 5)),
    )
    off = {"info_nce": 0, "distill": 0, "gor": 0}
    settings = adapter(
        weights=off | dict.fromkeys(TEACHER_TERMS, 1.0),
        menu={"corners": 4, "couples": 50, "list_temperature": 0.3},
    )
    terms, _ = adapter_objective(Task.RETRIEVAL, settings, [4, 8])(
        vectors, prepared, Targets(teacher), heads
    )
    assert terms.keys() == set(TEACHER_TERMS)
    order = [0, 1, 2, 3, 4, 5]
    for name, value in terms.items():
        found = []
        for dim in (4, 8):
            mine, theirs = normalize(vectors[order, :dim]), normalize(teacher)
            if name in ("l2", "mse"):
                mine = heads.projection(mine)
            if name == "teacher_nce":
                cosines = normalize(heads.projection(mine)) @ theirs.T
                found.append(torch.nn.functional.cross_entropy(cosines / 0.05, torch.arange(6)))
            elif name == "list_kl":
                found.append(list_kl(mine[:3], mine[3:], theirs[:3], theirs[3:], temperature=0.3))
            elif name == "relative":
                found.append(relative_similarity(mine, theirs, couples=50, generator=step_rng(0)))
            elif name == "rkd_angle":
                found.append(rkd_angle(mine, theirs, corners=4, generator=step_rng(0)))
            else:
                found.append(FORMULAS[name](mine, theirs))
        assert value.item() == pytest.approx(sum(each.item() for each in found) / 2, rel=1e-5), name


@pytest.mark.parametrize("name", TEACHER_TERMS)
def test_a_term_with_several_teachers_is_its_mean_over_those_that_know_the_texts(name):
    prepared = collate(batch(RowKind.PAIRS, *ROWS), task=Task.RETRIEVAL, distil=True)
    torch.manual_seed(0)
    vectors, teacher, projection = torch.randn(6, 8), torch.randn(6, 5), Projection(8, 5)
    settings = adapter(menu={"corners": 4, "couples": 50})

    def term(target, widths=(), head=projection, chosen=prepared, rows=vectors):
        heads = Heads(projection=head, widths=widths)
        terms, _ = Objective(settings, {name: 1.0}, [4, 8])(rows, chosen, Targets(target), heads)
        return terms[name].item()

    def part(columns):
        head = Projection(8, columns.stop - columns.start)
        head.load_state_dict(
            {"weight": projection.weight[columns], "bias": projection.bias[columns]}
        )
        return head

    one, two = slice(0, 2), slice(2, 5)
    alone = [term(teacher[:, columns], head=part(columns)) for columns in (one, two)]
    assert term(teacher, (2, 3)) == pytest.approx(sum(alone) / 2, rel=1e-5)
    lacking = teacher.clone()
    lacking[:, one] = torch.nan
    assert term(lacking, (2, 3)) == pytest.approx(alone[1], rel=1e-5)
    lacking = teacher.clone()
    lacking[[0, 3], 2:] = torch.nan  # the second teacher knows neither text of the first pair
    rest = collate(batch(RowKind.PAIRS, *ROWS[1:]), task=Task.RETRIEVAL, distil=True)
    kept = [1, 2, 4, 5]
    fewer = term(teacher[kept][:, two], head=part(two), chosen=rest, rows=vectors[kept])
    assert term(lacking, (2, 3)) == pytest.approx((alone[0] + fewer) / 2, rel=1e-5)


def test_lists_hold_the_hard_negatives_that_are_distilled():
    rows = [Pair("q", "p", ("n",)), Pair("r", "s", ("m", "o"))]
    prepared = collate(
        batch(RowKind.PAIRS, *rows), task=None, distil=True, negatives=2, distil_negatives=True
    )
    torch.manual_seed(0)
    vectors, teacher = torch.randn(7, 8), torch.randn(7, 5)
    job = build_stage1(
        "stage1", stage1(weights={"list_kl": 1.0}), tiny.student(), None, {}, None, [8]
    )
    terms, _ = job.objective(vectors, prepared, Targets(teacher), Heads())
    expected = list_kl(
        normalize(vectors[:2]),
        normalize(vectors[2:]),
        normalize(teacher[:2]),
        normalize(teacher[2:]),
    )
    assert terms["list_kl"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_relational_holds_pairs_and_graded_rows_to_the_base():
    torch.manual_seed(0)
    vectors, base = torch.randn(6, 8), torch.randn(6, 8)
    wanted = relational_distance(normalize(vectors), normalize(base)).item()
    pairs = collate(batch(RowKind.PAIRS, *ROWS), task=Task.RETRIEVAL, distil=False)
    settings = adapter(weights={"info_nce": 0, "distill": 0, "gor": 0, "relational": 1})
    terms, _ = adapter_objective(Task.RETRIEVAL, settings, [8])(
        vectors, pairs, Targets(base=base), Heads()
    )
    assert {name: value.item() for name, value in terms.items()} == {
        "relational": pytest.approx(wanted)
    }
    rows = [ScoredPair("a", "b", 1.0), ScoredPair("c", "d", 0.5), ScoredPair("e", "f", 0.0)]
    graded = collate(batch(RowKind.SCORED, *rows), task=Task.TEXT_MATCHING, distil=False)
    settings = adapter(weights={"relational": 1})
    terms, _ = adapter_objective(Task.TEXT_MATCHING, settings, [8])(
        vectors, graded, Targets(base=base), Heads()
    )
    assert list(terms) == ["cosent", "relational"] and terms["relational"].item() == pytest.approx(
        wanted
    )


def test_sharpened_contrast_sees_the_hard_negatives_of_each_row():
    prepared = collate(
        batch(RowKind.PAIRS, *ROWS, step=7), task=Task.RETRIEVAL, distil=False, negatives=2
    )
    assert prepared.negative_owner.tolist() == [0, 0, 1, 1]
    torch.manual_seed(0)
    unit = normalize(torch.randn(len(prepared.texts), 8))
    sharpen = {"focal": 0.5, "hardness": 5.0, "mixed_negatives": 2}
    settings = adapter(
        weights={"distill": 0, "gor": 0}, sharpen=sharpen, temperature=0.3, learn_temperature=False
    )
    terms, _ = adapter_objective(Task.RETRIEVAL, settings, [8])(unit, prepared, Targets(), Heads())
    hard = torch.tensor([[0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1, 1], [0] * 7]).bool()
    documents = unit[np.concatenate([prepared.positive_idx, prepared.negative_idx])]
    mixed = mixed_negatives(
        documents[3:], torch.tensor([0, 0, 1, 1]), 3, mixes=2, generator=step_rng(7)
    )
    wanted = sharpened_info_nce(
        unit[prepared.query_idx],
        documents,
        torch.arange(3),
        0.3,
        weighting=HardNegativeWeighting(focal=0.5, hardness=5.0),
        hard=hard,
        mixed=mixed,
    )
    assert terms["info_nce"].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_stage_1_takes_weighted_terms_and_the_paper_s_alone_by_default():
    module = tiny.student()
    settings = stage1(
        weights={"distill": 0.5, "similarity": 200.0, "list_kl": 1.0}, projection_init="identity"
    )
    made = plan(settings, "stage1", RowKind.PAIRS, *ROWS)
    job = build_stage1("stage1", settings, module, made, {}, Projection(32, 32), [32])
    assert job.weights == {"distill": 0.5, "similarity": 200.0, "list_kl": 1.0}
    prepared = job.prepare(batch(RowKind.PAIRS, *ROWS))
    targets = Targets(torch.randn(6, 32))
    terms, _ = job.objective(torch.randn(6, 32), prepared, targets, job.heads)
    assert terms.keys() == job.weights.keys() and job.partial_loss(prepared, targets) is None
    plain = build_stage1("stage1", stage1(), module, made, {}, Projection(32, 32), [32])
    assert plain.weights == {"distill": 1.0} and plain.partial_loss(prepared, targets) is not None


def test_a_ramp_moves_a_weight_in_a_straight_line_and_holds():
    settings = adapter(
        weight_schedule={"gor": {"start": 0.0, "until": 0.5}, "distill": {"start": 1.0, "end": 0.5}}
    )
    weights = weights_for(Task.RETRIEVAL, {"gor": 4.0})
    assert [weight_at(weights, settings, step)["gor"] for step in (0, 1, 5, 9)] == [
        0.0,
        pytest.approx(0.8),
        4.0,
        4.0,
    ]
    assert [weight_at(weights, settings, step)["distill"] for step in (0, 5)] == [2.0, 1.5]
    assert weight_at(weights, settings, 5)["info_nce"] == 1.0
    with pytest.raises(ValueError, match=r"a ramp from 1.0 to 1.0 has no effect"):
        adapter(weight_schedule={"gor": {"start": 1.0}})


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        (
            "adapters.retrieval",
            {"menu": {"corners": 3}},
            r"menu\.corners has no effect without a weight of rkd_angle",
        ),
        (
            "adapters.retrieval",
            {"weight_schedule": {"l2": {"start": 0}}},
            r"weight_schedule\.l2 has no effect",
        ),
        (
            "adapters.retrieval",
            {"weights": {"hidden": 1}},
            "the teacher store holds final vectors only",
        ),
        (
            "adapters.retrieval",
            {"weights": {"info_nce": 0}, "sharpen": {"focal": 1}},
            "sharpen has no effect without a contrast",
        ),
        (
            "adapters.retrieval",
            {"negatives": 1, "sharpen": {"mixed_negatives": 1}},
            "at most 1 hard negatives",
        ),
        (
            "stage1",
            {"weights": {"rkd": 1}},
            "weights names 'rkd', which this phase does not have; did you mean 'rkd_angle'",
        ),
        ("stage1", {"weights": {"distill": 0}}, "no term with a weight above 0"),
        (
            "stage1",
            {"menu": {"couples": 3}},
            r"menu\.couples has no effect without a weight of relative",
        ),
    ],
)
def test_what_has_no_effect_is_refused(name, fields, message):
    with pytest.raises(BadInput, match=message):
        plan((stage1 if name == "stage1" else adapter)(**fields), name, RowKind.PAIRS, *ROWS)


def test_lists_need_pairs():
    texts = [Text(letter) for letter in "abcd"]
    with pytest.raises(BadInput, match="list_kl has no effect: no source of the phase holds pairs"):
        plan(stage1(weights={"distill": 1, "list_kl": 1}), "stage1", RowKind.TEXTS, *texts)
    with pytest.raises(BadInput, match="list_kl is a term of pairs"):
        plan(stage1(weights={"list_kl": 1}), "stage1", RowKind.TEXTS, *texts)


def test_a_teacher_term_asks_the_teacher_and_relational_does_not():
    off = {"distill": 0.0}
    assert distils("adapters.retrieval", adapter(weights=off | {"rkd_distance": 1.0}))
    assert not distils("adapters.retrieval", adapter(weights=off | {"relational": 1.0}))
    assert stage1_weights("stage1", {"mse": 2.0, "distill": 0.0}) == {"mse": 2.0}


def test_sharpen_is_refused_where_a_task_has_no_such_contrast(tmp_path):
    raw = tiny.recipe(tiny.write_data(tmp_path / "data"), tmp_path / "teacher")
    raw["adapters"]["classification"]["sharpen"] = {"focal": 1.0}
    with pytest.raises(BadInput, match=r"adapters\.classification\.sharpen has no effect"):
        tiny.parsed(raw)
