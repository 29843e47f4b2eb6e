"""A batch as roles, distinct texts, masks and labels.

And exactly which texts a phase asks the teacher for.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import tiny

from taskdistill.data.batches import Batch, ClassificationItem
from taskdistill.data.rows import Pair, ScoredPair, Text
from taskdistill.pipeline.setup import load_inputs
from taskdistill.progress import SilentProgress
from taskdistill.tasks import Role, Task
from taskdistill.train import phases
from taskdistill.train.collate import TrainBatch, collate, false_negatives
from taskdistill.train.distributed import SINGLE
from taskdistill.train.targets import TargetLookup
from taskdistill.types import RowKind

Q, D = Role.QUERY, Role.DOCUMENT


def batch(kind: RowKind, *rows: object) -> Batch:
    return Batch(
        step=0, index=0, dataset="made", kind=kind, rows=rows, row_ids=np.arange(len(rows))
    )


def pairs(*rows: tuple[str, ...]) -> Batch:
    return batch(
        RowKind.PAIRS,
        *(Pair(query, positive, tuple(negatives)) for query, positive, *negatives in rows),
    )


def test_stage_1_gives_each_side_its_prompt_and_each_view_its_instruction():
    made = collate(pairs(("a", "b"), ("b", "c"), ("a", "d")), task=None, distil=True)
    assert made.texts == [
        (Q, "a"),
        (Q, "b"),
        (D, "b"),
        (D, "c"),
        (D, "d"),
    ]  # a text in two roles is two texts, a text twice is one
    assert made.query_idx.tolist() == [0, 1, 0] and made.positive_idx.tolist() == [2, 3, 4]
    assert made.distilled == [
        (0, "query"),
        (1, "query"),
        (0, "query"),
        (2, "document"),
        (3, "document"),
        (4, "document"),
    ]
    assert made.negative_idx is None and made.scores is None and made.labels is None


@pytest.mark.parametrize(
    ("task", "role", "views"),
    [
        (Task.RETRIEVAL, Q, ["query", "document"]),
        (Task.TEXT_MATCHING, D, ["document", "document"]),
        (Task.CLUSTERING, D, ["topic", "topic"]),
    ],
)
def test_a_task_decides_prompts_and_the_teacher_s_view(task, role, views):
    made = collate(pairs(("a", "b")), task=task, distil=True)
    assert made.texts == [(role, "a"), (D, "b")]
    assert [view for _, view in made.distilled] == views


def test_lone_and_graded_texts_are_documents():
    lone = collate(batch(RowKind.TEXTS, Text("a"), Text("b"), Text("a")), task=None, distil=True)
    assert (
        lone.texts == [(D, "a"), (D, "b")]
        and lone.query_idx.tolist() == [0, 1, 0]
        and lone.positive_idx is None
    )
    assert lone.distilled == [(0, "document"), (1, "document"), (0, "document")]
    graded = batch(RowKind.SCORED, ScoredPair("a", "b", 0.5), ScoredPair("c", "a", 1.0))
    stage1 = collate(graded, task=None, distil=True)
    assert (
        stage1.scores.tolist() == [0.5, 1.0]
        and stage1.query_idx.tolist() == [0, 1]
        and stage1.positive_idx.tolist() == [2, 0]
    )
    assert len(stage1.distilled) == 4
    assert (
        collate(graded, task=Task.TEXT_MATCHING, distil=True).distilled == []
    )  # as printed: CoSENT alone


def test_hard_negatives_are_cut_to_the_number_asked_for_and_know_their_row():
    rows = pairs(("a", "b", "x", "y", "z"), ("c", "d"), ("e", "f", "x"))
    made = collate(rows, task=Task.RETRIEVAL, distil=False, negatives=2)
    assert [made.texts[place][1] for place in made.negative_idx] == ["x", "y", "x"]
    assert made.negative_owner.tolist() == [0, 0, 2] and made.distilled == []
    assert collate(rows, task=Task.RETRIEVAL, distil=False).negative_idx is None


def test_labels_of_items_and_negatives_share_their_numbers():
    items = [
        ClassificationItem(
            anchor="a", positive="b", negatives=("c", "d"), label="x", negative_labels=("y", "z")
        ),
        ClassificationItem(
            anchor="d", positive="e", negatives=("a", "b"), label="z", negative_labels=("x", "x")
        ),
    ]
    made = collate(batch(RowKind.LABELLED, *items), task=Task.CLASSIFICATION, distil=True)
    assert made.labels.tolist() == [0, 1] and made.negative_labels.tolist() == [2, 1, 0, 0]
    assert [made.texts[place][1] for place in made.negative_idx] == [
        "c",
        "d",
        "a",
        "b",
    ] and made.negative_owner.tolist() == [0, 0, 1, 1]
    assert (
        all(role is D for role, _ in made.texts) and len(made.texts) == 5 and made.distilled == []
    )


def masks(rows: Batch, **options: object) -> list[list[int]]:
    made = false_negatives(collate(rows, task=Task.RETRIEVAL, distil=False, negatives=9), **options)
    return [row.nonzero()[0].tolist() for row in made]


def test_duplicates_and_known_positives_are_no_negatives():
    assert masks(pairs(("a", "b"), ("c", "d"))) == [[], []]
    assert masks(pairs(("a", "b"), ("A ", "d"))) == [
        [1],
        [0],
    ]  # one query after normalisation, two known positives
    assert masks(pairs(("a", "b"), ("c", "B"))) == [[1], [0]]  # one positive of two queries
    assert masks(pairs(("a", "b"), ("c", "a"))) == [[1], []]  # a query is no negative of itself
    assert masks(pairs(("a", "b", "x"), ("a", "d", "b"), ("e", "f", "b", "E"))) == [
        [1, 4, 5],
        [0, 4, 5],
        [6],
    ]


def test_the_teacher_masks_what_it_finds_closer_than_the_positive():
    rows = pairs(("a", "b", "x"), ("c", "d", "y"))
    similarities = np.array([[0.5, 0.58], [0.95, 0.8]])
    assert masks(rows, similarities=similarities, margin=0.05) == [[1], [0]]
    assert masks(rows, similarities=similarities, margin=0.1) == [[], [0]]
    assert masks(rows, similarities=similarities) == [
        [],
        [],
    ]  # no margin, no masking by the teacher
    assert masks(rows, others=False) == [[3], [2]]


def test_the_own_positive_is_never_masked():
    random = np.random.default_rng(0)
    for _ in range(200):
        words = random.choice(["a", "A", "b", "c", "b "], size=(5, 4))
        rows = pairs(*(tuple(row) for row in words.tolist()))
        prepared = collate(rows, task=Task.RETRIEVAL, distil=False, negatives=2)
        excluded = false_negatives(
            prepared, random.random((5, 5)), 0.0, others=bool(random.integers(2))
        )
        assert excluded.shape == (5, 15) and not excluded[np.arange(5), np.arange(5)].any()


class Asked:
    """A teacher store that remembers what it was asked for."""

    def __init__(self) -> None:
        self.texts: dict[str, None] = {}

    def locate(self, texts: list[str]) -> np.ndarray:
        self.texts.update(dict.fromkeys(texts))
        return np.arange(len(texts))

    def take(self, places: np.ndarray) -> np.ndarray:
        return np.ones((len(places), 4), np.float16)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tiny.write_data(tmp_path_factory.mktemp("data"))
    recipe = tiny.parsed(tiny.recipe(root, root))
    return recipe, load_inputs(recipe, root, SilentProgress())


@pytest.mark.parametrize("name", ["stage1", *(f"adapters.{task}" for task in Task)])
def test_the_teacher_is_asked_for_exactly_the_texts_that_steps_compare(inputs, name):
    recipe, data = inputs
    settings = recipe.phases()[name]
    plan = phases.make_plan(recipe, name, settings, data.datasets)
    needs = phases.teacher_needs(name, settings, plan)
    stores = {view: Asked() for view in ("query", "document", "topic")}
    job = phases.Phase(
        name=name,
        settings=settings,
        plan=plan,
        prepare=phases.collator(name, settings),
        objective=None,
        weights={},
        trained={},
        stores=stores,
    )
    source = TargetLookup(job, None, SimpleNamespace(processes=SINGLE))
    for step in range(settings.steps):
        source.of(job.prepare(plan.at(step)), [])
    assert {view: list(store.texts) for view, store in stores.items() if store.texts} == {
        view: sorted(texts, key=list(stores[view].texts).index) for view, texts in needs.items()
    }
    assert bool(needs) is (name != "adapters.classification")


def test_teacher_similarities_are_those_of_queries_and_positives():
    vectors = {"a": [1, 0], "c": [0, 1], "b": [3, 0], "d": [1, 1]}

    class Store:
        def locate(self, texts: list[str]) -> np.ndarray:
            return np.array([list(vectors).index(text) for text in texts])

        def take(self, places: np.ndarray) -> np.ndarray:
            return np.array([list(vectors.values())[place] for place in places], np.float16)

    prepared = collate(pairs(("a", "b"), ("c", "d"), ("a", "d")), task=Task.RETRIEVAL, distil=True)
    stores = dict.fromkeys(("query", "document"), Store())
    job = phases.Phase(
        name="x",
        settings=None,
        plan=None,
        prepare=None,
        objective=None,
        weights={},
        trained={},
        stores=stores,
        needs_similarities=True,
    )
    targets = TargetLookup(job, None, SimpleNamespace(processes=SINGLE)).of(prepared, [])
    half = 0.5**0.5
    assert np.allclose(
        targets.teacher_similarities, [[1, half, half], [0, half, half], [1, half, half]], atol=1e-6
    )
    assert targets.teacher.tolist() == [[1, 0], [0, 1], [1, 0], [3, 0], [1, 1], [1, 1]]
    assert isinstance(prepared, TrainBatch) and targets.teacher.dtype == torch.float32


def test_stage_1_distils_hard_negatives_behind_the_pairs():
    rows = batch(RowKind.PAIRS, Pair("q", "p", ("n1", "n2", "n3")), Pair("r", "s", ("p",)))
    made = collate(rows, task=None, distil=True, negatives=2, distil_negatives=True)
    assert [(view, text) for view, text in made.teacher_texts()] == [
        ("query", "q"),
        ("query", "r"),
        ("document", "p"),
        ("document", "s"),
        ("document", "n1"),
        ("document", "n2"),
        ("document", "p"),
    ]
    assert [made.texts[place][1] for place, _ in made.distilled] == [
        "q",
        "r",
        "p",
        "s",
        "n1",
        "n2",
        "p",
    ]
    assert len(made.texts) == 6, "a text that is twice there is embedded once"
    assert len(collate(rows, task=None, distil=True, negatives=2).distilled) == 4
