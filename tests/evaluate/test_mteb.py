"""Our models under `mteb.evaluate`: section 8.1's adapters and prompts, the scores of our own
protocols, and never a stale score.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny import WORDS, add_adapter, model, sentence, student, write_tokenizer

from taskdistill.encode.encoder import Encoder
from taskdistill.errors import BadInput
from taskdistill.evaluate.datasets import TASK_TYPES
from taskdistill.evaluate.models.encoder import EncoderEmbedder
from taskdistill.evaluate.mteb import OTHER, MtebEncoder, adapters_by_type
from taskdistill.evaluate.score import evaluate_set
from taskdistill.evaluate.set_data import RankingData
from taskdistill.model.folder import write_model
from taskdistill.quantization import fit_ranges, ranges_to_json, truncate
from taskdistill.tasks import Task

mteb = pytest.importorskip("mteb", reason="mteb is not installed: pip install 'taskdistill[mteb]'")
from datasets import Dataset  # noqa: E402
from mteb.abstasks import AbsTaskRetrieval  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402
from mteb.mocks import mock_tasks  # noqa: E402

TASKS = [task.value for task in Task]


class Recording:
    """Random vectors of texts; remembers with which task and prompt each was asked for."""

    name = "a model / with a name"

    def __init__(self, version: str = "1") -> None:
        self.version, self.asked = version, set()

    def encode(self, texts, *, task, prompt_name):
        self.asked.add((task, prompt_name))
        return np.stack(
            [
                np.random.default_rng(len(text) + sum(map(ord, text))).standard_normal(16)
                for text in texts
            ]
        )

    def fingerprint(self) -> str:
        return self.version


def run(encoder: MtebEncoder, task: object, cache: Path) -> object:
    stored = mteb.ResultCache(cache)
    return mteb.evaluate(
        encoder, [task], cache=stored, co2_tracker=False, show_progress_bar=False
    ).task_results[0]


@pytest.mark.parametrize(
    ("task", "adapter"),
    [
        ("MockRetrievalTask", "retrieval"),
        ("MockRerankingTask", "retrieval"),
        ("MockInstructionReranking", "retrieval"),
        ("MockClusteringTask", "clustering"),
        ("MockClassificationTask", "classification"),
        ("MockMultilabelClassification", "classification"),
        ("MockSTSTask", "text-matching"),
        ("MockPairClassificationTask", "text-matching"),
        ("MockBitextMiningTask", "text-matching"),
        ("MockSummarizationTask", "text-matching"),
        ("MockRegressionTask", "retrieval"),
    ],
)
def test_mtebs_own_mock_tasks_run_with_the_adapter_and_prompts_of_section_8_1(
    task, adapter, tmp_path
):
    mock = getattr(mock_tasks, task, None) or getattr(mock_tasks.clustering, task)
    model = Recording()
    result = run(MtebEncoder(model), mock(), tmp_path)
    searches = adapter == "retrieval" and task != "MockRegressionTask"
    assert model.asked == {(adapter, "document")} | ({(adapter, "query")} if searches else set())
    score = result.get_score()
    assert np.isfinite(score) and -1 <= score <= 1


def test_every_text_type_of_mteb_has_a_route_or_takes_retrieval():
    from typing import get_args

    from mteb.abstasks.task_metadata import TaskType

    assert adapters_by_type().keys() <= {
        name for group in get_args(TaskType) for name in get_args(group) or (group,)
    }
    assert OTHER is Task.RETRIEVAL and set(adapters_by_type().values()) == set(Task)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny model with all four adapters and stored int8 ranges."""
    root = tmp_path_factory.mktemp("tiny")
    source = write_tokenizer(root / "tokenizer")
    module = student("bert")
    built = model(module, source)
    for seed, task in enumerate(TASKS):
        built.adapter_configs[task] = add_adapter(module, task, seed=seed)
    vectors = Encoder(built, threads=1).encode(WORDS)
    built.settings.int8_ranges.update(
        {task: ranges_to_json(fit_ranges(vectors, (8, 16, 32))) for task in TASKS}
    )
    write_model(root / "model", built)
    return root / "model"


def test_a_model_folder_is_scored_as_by_our_own_protocol(folder, tmp_path):
    rng = np.random.default_rng(3)
    documents = {f"d{i}": sentence(["sea", "sky", "farm", "court"][i % 4], rng) for i in range(80)}
    queries = {f"q{i}": " ".join(documents[f"d{i}"].split()[:3]) for i in range(20)}
    qrels = {f"q{i}": {f"d{i}": 1} for i in range(20)}

    class Local(AbsTaskRetrieval):
        metadata = TaskMetadata(
            **dict.fromkeys(
                (
                    "reference",
                    "date",
                    "domains",
                    "task_subtypes",
                    "license",
                    "annotations_creators",
                    "dialect",
                )
            ),
            sample_creation=None,
            name="LocalSet",
            description="local",
            type="Retrieval",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
            dataset={"path": "local/local", "revision": "1"},
            bibtex_citation="",
        )

        def load_data(self, **_):
            corpus = Dataset.from_list(
                [{"id": key, "title": "", "text": text} for key, text in documents.items()]
            )
            requested = Dataset.from_list(
                [{"id": key, "text": text} for key, text in queries.items()]
            )
            self.dataset = {
                "default": {
                    "test": {
                        "corpus": corpus,
                        "queries": requested,
                        "relevant_docs": qrels,
                        "top_ranked": None,
                    }
                }
            }
            self.data_loaded = True

    embedder = EncoderEmbedder(Encoder.load(folder, threads=1))
    ours = evaluate_set(
        embedder,
        "local",
        TASK_TYPES["retrieval"],
        RankingData(documents=documents, queries=queries, qrels=qrels),
    ).score.score
    others = run(MtebEncoder(embedder), Local(), tmp_path).get_score()
    assert others == pytest.approx(ours, abs=1e-4) and 0.1 < ours < 1

    class Cut:
        name = "cut"

        def encode(self, texts, *, task, prompt_name):
            return truncate(embedder.encode(texts, task=task, prompt_name=prompt_name), 8)

        def fingerprint(self) -> str:
            return "cut"

    ours = evaluate_set(
        Cut(),
        "local",
        TASK_TYPES["retrieval"],
        RankingData(documents=documents, queries=queries, qrels=qrels),
    ).score.score
    assert run(MtebEncoder(embedder, dim=8), Local(), tmp_path).get_score() == pytest.approx(
        ours, abs=1e-4
    )
    int8 = run(MtebEncoder(embedder, dim=16, precision="int8"), Local(), tmp_path).get_score()
    binary = run(MtebEncoder(embedder, precision="binary"), Local(), tmp_path).get_score()
    assert 0 < binary != int8 > 0


def test_other_weights_routing_dimension_or_precision_give_another_revision_and_no_stale_score(
    folder, tmp_path
):
    task = mock_tasks.MockSTSTask()
    scores, places = {}, set()
    variants = {
        "first": MtebEncoder(Recording("1")),
        "weights": MtebEncoder(Recording("2")),
        "dim": MtebEncoder(Recording("1"), dim=8),
        "precision": MtebEncoder(Recording("1"), precision="binary"),
    }
    for name, encoder in variants.items():
        run(encoder, task, tmp_path)
        assert encoder.embedder.asked, f"{name}: a kept score of another model came back"
        places.add(encoder.mteb_model_meta.revision)
        scores[name] = encoder
    assert len(places) == 4
    again = MtebEncoder(Recording("1"))
    run(again, task, tmp_path)
    assert (
        again.embedder.asked == set()
        and again.mteb_model_meta.name == "taskdistill/a-model-with-a-name"
    )
    assert len(list(tmp_path.glob("results/*/*/MockSTSTask.json"))) == 4

    encoder = Encoder.load(folder, threads=1)
    complete, base = (
        MtebEncoder(EncoderEmbedder(encoder)),
        MtebEncoder(EncoderEmbedder(encoder, adapters=False)),
    )
    assert complete.revision() != base.revision() and len(complete.revision()) == 40
    assert (
        complete.revision()
        == MtebEncoder(EncoderEmbedder(Encoder.load(folder, threads=1))).revision()
    )


def test_changed_prompts_ranges_and_weights_change_the_revision(folder):
    def revision(**changes) -> str:
        encoder = Encoder.load(folder, threads=1)
        for name, value in changes.items():
            object.__setattr__(encoder.model.settings, name, value)
        return MtebEncoder(EncoderEmbedder(encoder)).revision()

    plain = revision()
    assert (
        len(
            {
                plain,
                revision(prompts={"query": "Q: ", "document": ""}),
                revision(max_length=32),
                revision(int8_ranges={}),
            }
        )
        == 4
    )
    assert revision() == plain


def test_int8_needs_ranges_and_a_dimension_that_is_there(folder):
    with pytest.raises(BadInput, match="stores no int8 ranges"):
        MtebEncoder(Recording(), precision="int8")
    with pytest.raises(BadInput, match="unknown precision 'int4'"):
        MtebEncoder(Recording(), precision="int4")
    inputs, meta = [{"text": ["ship", "tide"]}], mock_tasks.MockSTSTask().metadata
    embedder = EncoderEmbedder(Encoder.load(folder, threads=1))
    with pytest.raises(BadInput, match="more than the 32"):
        MtebEncoder(embedder, dim=64).encode(inputs, task_metadata=meta)
    with pytest.raises(
        BadInput, match=r"no int8 ranges for text-matching at 12 dimensions \(stored: 8, 16, 32\)"
    ):
        MtebEncoder(embedder, dim=12, precision="int8").encode(inputs, task_metadata=meta)
    with pytest.raises(BadInput, match="inputs other than text"):
        MtebEncoder(embedder).encode([{"image": [1]}], task_metadata=meta)


def test_result_files_name_the_revision(tmp_path):
    encoder = MtebEncoder(Recording(), dim=8)
    run(encoder, mock_tasks.MockSTSTask(), tmp_path)
    meta = json.loads(next(tmp_path.glob("results/*/*/model_meta.json")).read_text("utf-8"))
    assert meta["revision"] == encoder.revision() and meta["embed_dim"] == 8
