"""Reranking: order the given candidates of each query."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from taskdistill.errors import BadInput
from taskdistill.evaluate import rankings
from taskdistill.evaluate.exact_search import rank
from taskdistill.evaluate.set_data import RankingData
from taskdistill.evaluate.task_type import (
    EvalSet,
    EvaluationTask,
    Score,
    Vectors,
    split_files,
)
from taskdistill.io.beir import first_row, rows, sample
from taskdistill.tasks import Role, Task


class Reranking(EvaluationTask[RankingData]):
    """`reranking/NAME/`, where the judged documents are the candidates, or pairs with negatives."""

    name, title, order = "reranking", "Reranking", 2
    metric, metrics = "MAP@1000", rankings.METRICS
    adapter, query_role = Task.RETRIEVAL, Role.QUERY
    mteb_type, data_type = "Reranking", RankingData
    takes_prompts = True

    def find(self, root: Path, split: str) -> Iterator[EvalSet]:
        """Yield folders below `reranking/`, and files of `pairs/` whose first row has negatives."""
        for name, files in rankings.ranking_folders(root / "reranking", split):
            yield self.eval_set(name, split, *files)
        for name, path in split_files(root / "pairs", split):
            if first_row(path).get("negatives"):
                yield self.eval_set(name, split, path)

    def load(self, name: str, files: tuple[Path, ...], limit: int | None, seed: int) -> RankingData:
        """Read three files, or one of pairs."""
        if len(files) > 1:
            data = rankings.read_ranking(name, files, limit, seed)
        else:
            data = _read_negatives(files[0], limit, seed)
        if not data.queries:
            raise BadInput(
                f"{name}: no row of {files[0]} has negatives to rank against;"
                " give rows with `negatives`"
            )
        return replace(
            data, candidates={query: list(judged) for query, judged in data.qrels.items()}
        )

    def score(self, data: RankingData, vectors: Vectors) -> Score:
        """Rank each query's candidates by cosine; one unit a query."""
        ranking = rank(data, vectors["queries"], vectors["documents"])
        return rankings.score_ranking(data, ranking, self.metric)


def _read_negatives(path: Path, limit: int | None, seed: int) -> RankingData:
    notes: list[str] = []
    with_negatives = [
        row for row in rows(path, ("query", "positive"), notes) if row.get("negatives")
    ]
    data = RankingData(documents={}, queries={}, qrels={})
    equal = 0
    for i, row in enumerate(sample(with_negatives, limit, seed)):
        negatives = [text for text in row["negatives"] if text != row["positive"]]
        equal += len(row["negatives"]) - len(negatives)
        if not negatives:
            continue
        data.queries[f"q{i}"] = row["query"]
        documents = {f"q{i}d{j}": text for j, text in enumerate([row["positive"], *negatives])}
        data.documents.update(documents)
        data.qrels[f"q{i}"] = {key: int(j == 0) for j, key in enumerate(documents)}
    if equal:
        notes.append(f"{equal} negatives equal their positive and are left out")
    return replace(data, notes=tuple(notes))


TASK = Reranking()
