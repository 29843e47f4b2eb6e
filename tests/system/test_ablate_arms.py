"""Arms differ in what they should and in nothing else: the same batches, base and projection; no
teacher in contrast alone.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import tiny, tiny_ablation

from taskdistill.ablate.arms import ARMS, arm_of
from taskdistill.ablate.checks import check_base, check_negatives, check_same
from taskdistill.ablate.context import ExperimentContext, fill_teacher_store, open_context
from taskdistill.ablate.phases import (
    SHUFFLED,
    ArmPhase,
    Hyperparameters,
    batches_hash,
    build_phase,
    initial_projection,
    phase_lengths,
    require_no_teacher,
    shuffle,
    untuned,
)
from taskdistill.ablate.run_spec import TrainingRun
from taskdistill.ablate.settings import Ablation, load_experiment, make_experiment
from taskdistill.ablate.training_run import result_of, run_training
from taskdistill.ablate.tuning import trial_points, trial_specs
from taskdistill.errors import BadInput, WorkFailed
from taskdistill.io.folders import seal
from taskdistill.progress import SilentProgress
from taskdistill.recipe.recipe import load_recipe, parse_recipe
from taskdistill.train.objective import Targets

POINT = Hyperparameters(1e-3, 0.05, 2.0)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("home")
    tiny.write_data(root / "data")
    tiny.write_teacher(root / "teacher")
    return root


@pytest.fixture(scope="module")
def context(home) -> ExperimentContext:
    experiment = tiny_ablation.experiment(home / "data", home / "teacher", arms=list(ARMS))
    (home / "out").mkdir()
    made = open_context(experiment, home / "out", home)
    return fill_teacher_store(
        made, {3: 8, 4: 8}, SilentProgress(), lambda: open_context(experiment, home / "out", home)
    )


def job(context: ExperimentContext, name: str, number: int = 0, seed: int = 3):
    arm = arm_of(name)
    module = context.fresh().module
    projection = initial_projection(context.experiment, module, 32, seed)
    described = ArmPhase(
        name=f"phase-{number + 1}",
        arm=arm,
        terms=arm.phases[number],
        point=POINT,
        steps=8,
        starts_at=0,
        every=4,
        dims=(8, 32),
    )
    plan = context.plan(seed, arm)
    return build_phase(described, context.experiment, module, plan, projection, context.stores)


def run(context: ExperimentContext, spec: TrainingRun) -> dict:
    shared = spec.needs()
    for each in (shared, spec):
        if each is not None:
            run_training(
                context,
                each,
                should_stop=lambda: False,
                on_steps=lambda *_: None,
                note=lambda _: None,
            )
    found = result_of(context, spec)
    assert found is not None
    return found


def test_every_arm_of_a_seed_sees_the_same_batches_and_projection(context):
    hashes = {
        name: batches_hash(context.plan(3, arm), 0, 8)
        for name, arm in ARMS.items()
        if arm.phases and not arm.large
    }
    assert len(set(hashes.values())) == 1
    assert batches_hash(context.plan(4), 0, 8) not in hashes.values()
    module = context.fresh().module
    first, again, other = (
        initial_projection(context.experiment, module, 32, seed) for seed in (3, 3, 4)
    )
    assert torch.equal(first.weight, again.weight) and not torch.equal(first.weight, other.weight)


def test_the_rows_that_reach_the_losses_are_the_same_in_every_arm(context):
    seen = {
        name: [job(context, name).prepare(context.plan(3).at(step)).texts for step in range(8)]
        for name in ("D", "C", "DC", "D-shuffled")
    }
    assert seen["D"] == seen["C"] == seen["DC"] == seen["D-shuffled"]


def test_a_second_phase_goes_on_with_the_batches_of_the_first(context):
    assert phase_lengths(arm_of("D->DC"), 8, context.experiment) == [6, 2]
    assert phase_lengths(arm_of("DC"), 8, context.experiment) == [8]
    assert phase_lengths(arm_of("A0"), 8, context.experiment) == []


@pytest.mark.parametrize(
    ("name", "number", "weights"),
    [
        ("D", 0, {"distill": 1.0}),
        ("C", 0, {"info_nce": 1.0}),
        ("DC", 0, {"info_nce": 1.0, "distill": 2.0}),
        ("D->DC", 0, {"distill": 1.0}),
        ("D->DC", 1, {"info_nce": 1.0, "distill": 2.0}),
        ("D->C", 1, {"info_nce": 1.0}),
        ("D+gor", 0, {"distill": 1.0, "gor": 1.0}),
        ("C+gor", 0, {"info_nce": 1.0, "gor": 1.0}),
        ("DC+gor", 0, {"info_nce": 1.0, "distill": 2.0, "gor": 1.0}),
        ("D-shuffled", 0, {SHUFFLED: 1.0}),
    ],
)
def test_terms_and_weights_of_each_arm(context, name, number, weights):
    found = job(context, name, number)
    assert dict(found.weights) == weights
    assert set(found.trained) == set(dict(found.trained)) and len(found.trained) == len(
        list(context.base.module.parameters())
    )


def test_contrast_alone_has_nothing_of_the_teacher(context):
    for name, number in (("C", 0), ("C+gor", 0), ("C-large", 0), ("C-flops", 0), ("D->C", 1)):
        found = job(context, name, number)
        require_no_teacher(found)
        assert not found.stores and found.heads.projection is None and not found.needs_similarities
        assert found.prepare(found.plan.at(0)).distilled == []
    leaky = job(context, "C")
    leaky.stores = context.stores
    with pytest.raises(WorkFailed, match="given teacher stores"):
        require_no_teacher(leaky)
    leaky = job(context, "C")
    leaky.needs_similarities = True
    with pytest.raises(WorkFailed, match="teacher similarities"):
        require_no_teacher(leaky)


def test_contrast_alone_trains_to_the_same_bits_whatever_the_teacher(context, home, tmp_path):
    tiny.write_teacher(tmp_path / "other", seed=9)
    raw = tiny_ablation.raw(home / "data", home / "teacher")
    raw["teacher"]["model"] = str(tmp_path / "other")
    experiment = make_experiment(parse_recipe(raw), context.experiment.ablation)
    (tmp_path / "out").mkdir()
    other = open_context(experiment, tmp_path / "out", tmp_path)
    other = fill_teacher_store(other, {3: 8}, SilentProgress(), lambda: other)
    specs = [TrainingRun(kind="run", arm=name, seed=3, steps=8, point=POINT) for name in ("C", "D")]
    ours, theirs = (
        [run(each, spec)["hashes"]["weights"] for spec in specs] for each in (context, other)
    )
    assert ours[0] == theirs[0] and ours[1] != theirs[1]


def test_the_negative_control_permutes_and_says_so(context):
    first, second = shuffle(3, 0, 12), shuffle(3, 1, 12)
    assert sorted(first.tolist()) == list(range(12)) and not torch.equal(first, second)
    assert torch.equal(first, shuffle(3, 0, 12))
    found = job(context, "D-shuffled")
    assert found.partial_loss(found.prepare(found.plan.at(0)), None) is None, (
        "a part of a batch cannot be permuted by itself"
    )
    prepared = found.prepare(found.plan.at(0))
    vectors, targets = (
        torch.randn(len(prepared.texts), 32),
        torch.randn(len(prepared.distilled), 32),
    )
    order = shuffle(3, 0, len(targets))
    plain = job(context, "D")
    wanted = plain.objective(vectors, prepared, Targets(targets[order]), found.heads)[0]["distill"]
    terms, _ = found.objective(vectors, prepared, Targets(targets), found.heads)
    assert list(terms) == [SHUFFLED] and terms[SHUFFLED] == wanted
    assert (
        terms[SHUFFLED]
        != plain.objective(vectors, prepared, Targets(targets), found.heads)[0]["distill"]
    )


def test_without_matryoshka_only_whole_vectors_are_trained(context):
    a, b = (
        run(context, TrainingRun(kind="run", arm=name, seed=3, steps=8, point=POINT))
        for name in ("DC", "DC-mrl")
    )
    assert (
        a["hashes"]["batches"] == b["hashes"]["batches"]
        and a["hashes"]["weights"] != b["hashes"]["weights"]
    )
    assert (
        a["hashes"]["base"] == b["hashes"]["base"]
        and a["hashes"]["projection"] == b["hashes"]["projection"]
    )


def test_second_phases_start_from_one_shared_first_phase(context):
    specs = [
        TrainingRun(kind="run", arm=name, seed=3, steps=8, point=POINT, first=POINT)
        for name in ("D->DC", "D->C", "D->D")
    ]
    found = [run(context, spec) for spec in specs]
    assert len({spec.needs() for spec in specs}) == 1
    assert len({each["hashes"]["weights"] for each in found}) == 3
    for each in found:
        assert each["budget"]["steps"] == 8, "the shared steps count for every arm"
        assert [point["step"] for point in each["curve"]] == [4, 8]
    check_same(
        [
            run(context, TrainingRun(kind="run", arm=name, seed=3, steps=8, point=POINT))
            for name in ("D", "C")
        ]
        + found
    )


def test_arms_that_differ_where_they_must_not_are_found(context):
    found = [
        run(context, TrainingRun(kind="run", arm=name, seed=3, steps=8, point=POINT))
        for name in ("D", "C", "DC")
    ]
    assert check_same(found)["seeds"]["3"]["projection"] == found[0]["hashes"]["projection"]
    assert found[1]["hashes"]["projection"] is None
    for name in ("checkpoint", "batches", "projection"):
        changed = {**found[2], "hashes": {**found[2]["hashes"], name: "0" * 16}}
        with pytest.raises(WorkFailed, match=f"other {name}"):
            check_same([found[0], changed])


def test_every_tuned_arm_tries_the_same_settings_on_batches_of_no_seed(context):
    experiment = tiny_ablation.experiment(
        context.root, Path(context.experiment.recipe.teacher.model), trials=5
    )
    points = trial_points(experiment)
    assert points[0] == untuned(experiment) and len(set(points)) == 5
    ranges = experiment.ablation.ranges
    for point in points[1:]:
        assert (
            ranges.lr[0] <= point.lr <= ranges.lr[1]
            and ranges.weight[0] <= point.weight <= ranges.weight[1]
        )
    specs = {name: trial_specs(experiment, arm_of(name), None) for name in ("D", "C", "DC")}
    assert all([spec.point for spec in own] == points for own in specs.values())
    assert {spec.seed for own in specs.values() for spec in own}.isdisjoint(
        experiment.seeds_of(arm_of("DC"))
    )


def test_matched_and_large_arms_take_the_settings_of_contrast_alone():
    assert {arm.like for arm in ARMS.values() if arm.matched or arm.large} == {"C"}
    assert all(ARMS[arm.like].phases == arm.phases for arm in ARMS.values() if arm.like is not None)


def refused(home: Path, words: str, *, ablation: dict | None = None, **changed) -> None:
    raw = tiny_ablation.raw(home / "data", home / "teacher")
    for key, value in changed.items():
        part, _, name = key.partition("__")
        raw[part] = {**raw.get(part, {}), name: value} if name else value
    with pytest.raises(BadInput, match=words):
        make_experiment(parse_recipe(raw), tiny_ablation.settings(**(ablation or {})))


def test_a_teachers_signal_in_contrast_alone_is_refused(home):
    adapter = {
        "sources": {"qa": 1},
        "steps": 2,
        "batch_size": 4,
        "lr": 1e-3,
        "false_negative_margin": 0.05,
    }
    refused(home, "false_negative_margin", adapters={"retrieval": adapter})
    refused(
        home,
        "negatives_from is the teacher",
        ablation={"negatives": 2, "negatives_from": "teacher"},
    )
    student = {"init": "teacher", "layers": [0], "max_length": 64, "matryoshka_dims": [8]}
    refused(home, "base_from_teacher", student=student)


def test_a_distilled_base_is_refused(home, tmp_path):
    from taskdistill.model.folder import write_model

    made = tiny.model(tiny.student(), home / "teacher-tokenizer")
    made.settings.teacher["model"] = "some-teacher"
    write_model(tmp_path / "distilled", made)
    raw = tiny_ablation.raw(home / "data", home / "teacher")
    raw["student"] = {"init": str(tmp_path / "distilled"), "max_length": 64, "matryoshka_dims": [8]}
    with pytest.raises(BadInput, match="distilled from 'some-teacher'"):
        check_base(make_experiment(parse_recipe(raw), tiny_ablation.settings()))


def test_negatives_that_the_teacher_mined_are_refused_whatever_the_recipe_says(home, tmp_path):
    for made_by, name in (
        ({"teacher": {"model": "some-teacher"}}, "teacher"),
        ({"model": "student", "hash": "0"}, "model"),
    ):
        folder = tmp_path / name
        tiny.write_jsonl(
            folder / "pairs/qa.train.jsonl.gz",
            [{"query": "q", "positive": "p", "negatives": ["n"]}],
        )
        seal(folder, "mined", meta={"fingerprint": {"vectors": made_by}})
    raw = tiny_ablation.raw(home / "data", home / "teacher")
    raw["data"]["sources"]["qa"]["path"] = str(tmp_path / "teacher/pairs/qa.train.jsonl.gz")
    mined = tiny_ablation.settings(negatives=1, negatives_from="student")
    with pytest.raises(BadInput, match="mined by the teacher 'some-teacher'"):
        check_negatives(make_experiment(parse_recipe(raw), mined), home / "data")
    check_negatives(make_experiment(parse_recipe(raw), tiny_ablation.settings()), home / "data")
    raw["data"]["sources"]["qa"]["path"] = str(tmp_path / "model/pairs/qa.train.jsonl.gz")
    check_negatives(make_experiment(parse_recipe(raw), mined), home / "data")


def test_settings_that_do_not_fit_are_refused(home):
    refused(home, "evaluation.dev names no set", evaluation__dev=[])
    refused(home, "too few", stage1__steps=1)
    with pytest.raises(ValueError, match="negatives needs negatives_from"):
        Ablation(negatives=2)
    with pytest.raises(ValueError, match="negatives_from has no effect"):
        Ablation(negatives_from="bm25")
    with pytest.raises(ValueError, match="did you mean 'DC'"):
        Ablation(arms=["DCC"])
    with pytest.raises(ValueError, match="more than seeds"):
        Ablation(seeds=2, other_seeds=3)


def test_a_dev_set_that_is_a_test_set_is_refused(home, tmp_path):
    raw = tiny_ablation.raw(home / "data", home / "teacher")
    raw["evaluation"] = {"dev": ["retrieval/qa"], "sets": ["retrieval/qa"]}
    with pytest.raises(BadInput, match="tuning on a test set"):
        open_context(make_experiment(parse_recipe(raw), tiny_ablation.settings()), tmp_path, home)


@pytest.mark.parametrize("preset", ["smoke", "demo", "full"])
@pytest.mark.parametrize(
    "path",
    sorted((Path(__file__).parents[2] / "recipes").glob("ablation-*.yaml")),
    ids=lambda path: path.stem,
)
def test_every_ablation_of_the_repository_is_read_with_every_preset(path, preset):
    found = load_experiment(path, preset=preset)
    assert {"A0", "D", "C", "DC"} <= {arm.name for arm in found.arms()} and len(
        found.digest()
    ) == 64
    with pytest.raises(BadInput, match="run it with: taskdistill ablate"):
        load_recipe(path)


def test_presets_fill_what_the_section_leaves_open(tmp_path, home):
    import yaml

    path = tmp_path / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(
            tiny_ablation.raw(home / "data", home / "teacher", steps=24)
            | {"ablation": {"trials": 3}}
        )
    )
    found = load_experiment(path, preset="smoke")
    assert (
        found.ablation.trials == 3
        and found.ablation.seeds == 2
        and [arm.name for arm in found.arms()] == ["A0", "D", "C", "DC"]
    )
    found = load_experiment(path, ["ablation.points=3"], preset="demo", arms=["D+gor"], seeds=2)
    assert found.ablation.points == 3 and [arm.name for arm in found.arms()] == [
        "A0",
        "D",
        "C",
        "DC",
        "D+gor",
    ]
    assert found.seeds_of(arm_of("D+gor")) == [3, 4] and found.seeds_of(arm_of("A0")) == [3]
    for wrong, words in (
        ({"preset": "big"}, "unknown preset"),
        ({"arms": ["E"]}, "arms names 'E'"),
    ):
        with pytest.raises(BadInput, match=words):
            load_experiment(path, **wrong)
    assert (
        load_experiment(path, ["data.root=/elsewhere"]).digest() == load_experiment(path).digest()
    )
    assert load_experiment(path, ["stage1.lr=0.5"]).digest() != load_experiment(path).digest()
