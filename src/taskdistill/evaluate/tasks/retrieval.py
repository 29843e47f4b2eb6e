"""Retrieval: rank the documents of a corpus for each query."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from taskdistill.evaluate import rankings
from taskdistill.evaluate.exact_search import rank
from taskdistill.evaluate.set_data import RankingData
from taskdistill.evaluate.task_type import EvalSet, EvaluationTask, Score, Vectors
from taskdistill.tasks import Role, Task


class Retrieval(EvaluationTask[RankingData]):
    """`retrieval/NAME/`: corpus, queries, qrels; nDCG@10 of an exact search."""

    name, title, order = "retrieval", "Retrieval", 1
    metric, metrics = "nDCG@10", rankings.METRICS
    adapter, query_role = Task.RETRIEVAL, Role.QUERY
    mteb_type, data_type = "Retrieval", RankingData
    compressible = takes_prompts = True

    def find(self, root: Path, split: str) -> Iterator[EvalSet]:
        """Yield the folders below `retrieval/` that have all three files."""
        for name, files in rankings.ranking_folders(root / "retrieval", split):
            yield self.eval_set(name, split, *files)

    def load(self, name: str, files: tuple[Path, ...], limit: int | None, seed: int) -> RankingData:
        """Read corpus, queries and judgments."""
        return rankings.read_ranking(name, files, limit, seed)

    def score(self, data: RankingData, vectors: Vectors) -> Score:
        """Rank by cosine; one unit a query."""
        ranking = rank(data, vectors["queries"], vectors["documents"])
        return rankings.score_ranking(data, ranking, self.metric)


TASK = Retrieval()
