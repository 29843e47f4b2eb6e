"""The same data and vectors give the same scores here and in mteb, for every kind of set, within
1e-4.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from taskdistill.evaluate.datasets import TASK_TYPES
from taskdistill.evaluate.score import evaluate_set
from taskdistill.evaluate.set_data import LabeledData, PairData, RankingData, SummaryData

mteb = pytest.importorskip("mteb", reason="mteb is not installed: pip install 'taskdistill[mteb]'")
from datasets import Dataset, DatasetDict  # noqa: E402
from mteb import abstasks  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402
from mteb.models import ModelMeta  # noqa: E402
from mteb.models.abs_encoder import AbsEncoder  # noqa: E402
from mteb.models.model_meta import ScoringFunction  # noqa: E402

WORDS = [f"word{i}" for i in range(60)]
TOPICS = ["sea", "star", "law", "food"]


def text_vector(text: str) -> np.ndarray:
    """A bag of word vectors, each word's drawn from its hash: texts that share words are near."""
    words = [
        np.random.default_rng(int(hashlib.sha256(w.encode()).hexdigest()[:8], 16)).standard_normal(
            24
        )
        for w in text.split()
    ]
    return np.sum(words, axis=0).astype(np.float32)


class Ours:
    name = "hashes"

    def encode(self, texts, *, task, prompt_name):
        return np.stack([text_vector(text) for text in texts])

    def fingerprint(self) -> str:
        return "0" * 64


class Theirs(AbsEncoder):
    def __init__(self) -> None:
        meta = {
            "name": "test/hashes",
            "revision": "1",
            "similarity_fn_name": ScoringFunction.COSINE,
        }
        self.mteb_model_meta = ModelMeta.create_empty(overwrites=meta)

    def encode(self, inputs, **_):
        return np.stack([text_vector(text) for batch in inputs for text in batch["text"]])


def draw(rng: np.random.Generator, n: int, topic: str | None = None) -> str:
    return " ".join([*rng.choice(WORDS, n), *([topic] * 2 if topic else [])])


def metadata(kind: str, score: str) -> TaskMetadata:
    fields = dict.fromkeys(
        (
            "reference",
            "date",
            "domains",
            "task_subtypes",
            "license",
            "annotations_creators",
            "dialect",
            "sample_creation",
        )
    )
    return TaskMetadata(
        **fields,
        name=f"Local{kind}",
        description="local",
        type=kind,
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score=score,
        dataset={"path": "local/local", "revision": "1"},
        bibtex_citation="",
    )


def their_score(
    base: type, kind: str, score: str, dataset: object, tmp_path: Path, **attributes: object
) -> float:
    def load_data(self, **_):
        self.dataset, self.data_loaded = dataset, True

    task = type(
        f"Local{kind}",
        (base,),
        {"metadata": metadata(kind, score), "load_data": load_data, **attributes},
    )()
    results = mteb.evaluate(
        Theirs(),
        [task],
        cache=mteb.ResultCache(tmp_path),
        co2_tracker=False,
        show_progress_bar=False,
    )
    return results.task_results[0].scores["test"][0]["main_score"]


def test_retrieval_and_reranking(tmp_path):
    rng = np.random.default_rng(1)
    documents = {f"d{i}": draw(rng, 12, TOPICS[i % 4]) for i in range(300)}
    queries = {f"q{i}": " ".join(rng.choice(documents[f"d{i * 7}"].split(), 4)) for i in range(40)}
    qrels = {f"q{i}": {f"d{i * 7}": 2, f"d{i * 7 + 1}": 1, f"d{i * 3}": 0} for i in range(40)}
    corpus = Dataset.from_list(
        [{"id": key, "title": "", "text": text} for key, text in documents.items()]
    )
    requested = Dataset.from_list([{"id": key, "text": text} for key, text in queries.items()])
    split = {"corpus": corpus, "queries": requested, "relevant_docs": qrels, "top_ranked": None}
    others = their_score(
        abstasks.AbsTaskRetrieval, "Retrieval", "ndcg_at_10", {"default": {"test": split}}, tmp_path
    )
    result = evaluate_set(
        Ours(),
        "r",
        TASK_TYPES["retrieval"],
        RankingData(documents=documents, queries=queries, qrels=qrels),
    ).score
    assert result.score == pytest.approx(others, abs=1e-4) and 0.2 < others < 0.9

    candidates = {query: list(judged) for query, judged in qrels.items()}
    split = {**split, "top_ranked": candidates}
    others = their_score(
        abstasks.AbsTaskRetrieval,
        "Reranking",
        "map_at_1000",
        {"default": {"test": split}},
        tmp_path,
    )
    data = RankingData(documents=documents, queries=queries, qrels=qrels, candidates=candidates)
    assert evaluate_set(Ours(), "r", TASK_TYPES["reranking"], data).score.score == pytest.approx(
        others, abs=1e-4
    )


def pairs(n: int, most: int = 8) -> tuple[list[str], list[str], np.ndarray]:
    rng = np.random.default_rng(2)
    first = [draw(rng, 8) for _ in range(n)]
    shared = rng.integers(0, most + 1, n)
    second = [
        " ".join([*text.split()[:k], *rng.choice(WORDS, 8 - k)])
        for text, k in zip(first, shared, strict=True)
    ]
    return first, second, np.round(shared / 8 + rng.normal(0, 0.2, n), 1)


def test_sts(tmp_path):
    first, second, gold = pairs(200)
    dataset = DatasetDict(
        {
            "test": Dataset.from_dict(
                {"sentence1": first, "sentence2": second, "score": gold.tolist()}
            )
        }
    )
    others = their_score(
        abstasks.AbsTaskSTS, "STS", "cosine_spearman", dataset, tmp_path, min_score=0, max_score=1
    )
    result = evaluate_set(
        Ours(),
        "s",
        TASK_TYPES["sts"],
        PairData(first=first, second=second, scores=gold, languages=[""] * 200),
    )
    assert result.score.score == pytest.approx(others, abs=1e-4) and 0.4 < others < 0.95


def test_pair_classification(tmp_path):
    """Without equal texts: mteb's best of five similarities includes one that ranks pairs of equal
    vectors by rounding errors.
    """
    first, second, gold = pairs(200, most=7)
    labels = (gold > 0.5).astype(int)
    dataset = DatasetDict(
        {
            "test": Dataset.from_dict(
                {"sentence1": first, "sentence2": second, "labels": labels.tolist()}
            )
        }
    )
    others = their_score(
        abstasks.AbsTaskPairClassification, "PairClassification", "max_ap", dataset, tmp_path
    )
    result = evaluate_set(
        Ours(),
        "p",
        TASK_TYPES["pair-classification"],
        PairData(first=first, second=second, scores=labels.astype(float), languages=[""] * 200),
    )
    assert result.score.score == pytest.approx(others, abs=1e-4) and 0.5 < others < 0.98


def test_bitext(tmp_path):
    first, second, _ = pairs(120)
    dataset = DatasetDict({"test": Dataset.from_dict({"sentence1": first, "sentence2": second})})
    others = their_score(abstasks.AbsTaskBitextMining, "BitextMining", "f1", dataset, tmp_path)
    result = evaluate_set(
        Ours(),
        "b",
        TASK_TYPES["bitext"],
        PairData(first=first, second=second, scores=None, languages=[""] * 120),
    )
    assert result.score.score == pytest.approx(others, abs=1e-4) and 0.2 < others < 0.95


def test_summarisation(tmp_path):
    rng = np.random.default_rng(4)
    human = [[draw(rng, 10) for _ in range(3)] for _ in range(12)]
    machine = [
        [" ".join([*rng.choice(row[0].split(), k + 1), *rng.choice(WORDS, 6)]) for k in range(6)]
        for row in human
    ]
    gold = [(np.arange(6) + rng.normal(0, 2, 6)).round(2).tolist() for _ in human]
    gold[3] = [1.0] * 6
    rows = {
        "text": [""] * 12,
        "human_summaries": human,
        "machine_summaries": machine,
        "relevance": gold,
    }
    dataset = DatasetDict({"test": Dataset.from_dict(rows)})
    attributes = {"min_score": 0, "max_score": 5}
    others = their_score(
        abstasks.AbsTaskSummarization,
        "Summarization",
        "cosine_spearman",
        dataset,
        tmp_path,
        **attributes,
    )
    result = evaluate_set(
        Ours(), "s", TASK_TYPES["summarisation"], SummaryData(human, machine, gold)
    ).score
    assert result.score == pytest.approx(others, abs=1e-4) and 0.1 < others < 0.95
    assert result.notes == ("1 texts whose scores or similarities are all equal are left out",)


def topics(n: int, seed: int) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(TOPICS, n, p=[0.4, 0.3, 0.2, 0.1]).tolist()
    return [" ".join([*rng.choice(WORDS, 12), label]) for label in labels], labels


def test_clustering(tmp_path):
    texts, labels = topics(150, 5)
    dataset = DatasetDict({"test": Dataset.from_dict({"sentences": texts, "labels": labels})})
    result = evaluate_set(
        Ours(),
        "c",
        TASK_TYPES["clustering"],
        LabeledData(texts=texts, labels=labels, languages=[""] * 150),
    ).score
    others = their_score(
        abstasks.AbsTaskClustering,
        "Clustering",
        "v_measure",
        dataset,
        tmp_path / "2",
        max_fraction_of_documents_to_embed=None,
    )
    assert result.score == pytest.approx(others, abs=1e-4) and 0.01 < others < 0.9
    complete = DatasetDict({"test": Dataset.from_dict({"sentences": [texts], "labels": [labels]})})
    others = their_score(
        abstasks.AbsTaskClusteringLegacy, "Clustering", "v_measure", complete, tmp_path / "1"
    )
    assert result.scores["V-measure (one clustering)"] == pytest.approx(others, abs=1e-4)


def test_classification(tmp_path):
    (texts, labels), (train_texts, train_labels) = topics(150, 6), topics(300, 7)
    number = {topic: i for i, topic in enumerate(sorted(TOPICS))}
    splits = {"test": (texts, labels), "train": (train_texts, train_labels)}
    dataset = DatasetDict(
        {
            k: Dataset.from_dict({"text": t, "label": [number[each] for each in y]})
            for k, (t, y) in splits.items()
        }
    )
    others = their_score(
        abstasks.AbsTaskClassification, "Classification", "accuracy", dataset, tmp_path / "1"
    )
    data = LabeledData(
        texts=texts,
        labels=labels,
        languages=[""] * 150,
        train=LabeledData(texts=train_texts, labels=train_labels, languages=[""] * 300),
    )
    result = evaluate_set(Ours(), "c", TASK_TYPES["classification"], data).score
    assert result.score == pytest.approx(others, abs=1e-4) and 0.4 < others < 0.98
    others = their_score(
        abstasks.AbsTaskClassification, "Classification", "f1", dataset, tmp_path / "2"
    )
    assert result.scores["macro-F1"] == pytest.approx(others, abs=1e-4)


def test_multilabel(tmp_path):
    def several(n: int, seed: int) -> tuple[list[str], list[list[str]]]:
        rng = np.random.default_rng(seed)
        labels = [
            sorted(rng.choice(TOPICS, rng.integers(1, 4), replace=False).tolist()) for _ in range(n)
        ]
        return [" ".join([*rng.choice(WORDS, 3), *row]) for row in labels], labels

    (texts, labels), (train_texts, train_labels) = several(120, 8), several(200, 9)
    number = {topic: i for i, topic in enumerate(TOPICS)}
    splits = {"test": (texts, labels), "train": (train_texts, train_labels)}
    dataset = DatasetDict(
        {
            k: Dataset.from_dict({"text": t, "label": [[number[e] for e in row] for row in y]})
            for k, (t, y) in splits.items()
        }
    )
    others = their_score(
        abstasks.AbsTaskMultilabelClassification,
        "MultilabelClassification",
        "accuracy",
        dataset,
        tmp_path,
    )
    data = LabeledData(
        texts=texts,
        labels=labels,
        languages=[""] * 120,
        train=LabeledData(texts=train_texts, labels=train_labels, languages=[""] * 200),
    )
    result = evaluate_set(Ours(), "m", TASK_TYPES["multilabel"], data).score
    assert result.score == pytest.approx(others, abs=1e-4) and 0.1 < others < 0.95
