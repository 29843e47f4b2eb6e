"""A few searches at the end of a run: what the model finds in the collection it was evaluated on."""

from __future__ import annotations

from pathlib import Path

from taskdistill.encode.encoder import Encoder
from taskdistill.evaluate.kinds import Kind
from taskdistill.evaluate.ranking import top_documents
from taskdistill.evaluate.reading import RankingData
from taskdistill.evaluate.sets import find_sets
from taskdistill.recipe import Recipe
from taskdistill.vocabulary import Task

SHOWN = 3
WIDTH = 120


def search_examples(recipe: Recipe, out: Path) -> list[tuple[str, list[tuple[float, str]]]]:
    """Search the run's first retrieval set with the recipe's example queries.

    Args:
        recipe: The recipe.
        out: The run folder.

    Returns:
        Each query with its best documents: cosine, and the id with the beginning of the text.
    """
    root = Path(recipe.evaluation.root) if recipe.evaluation.root else evaluation_folder(recipe, out)
    retrieval = [each for each in find_sets(root) if each.kind is Kind.RETRIEVAL]
    if not retrieval:
        return []
    data = retrieval[0].load()
    assert isinstance(data, RankingData)
    encoder = Encoder.load(out / "model", threads=recipe.threads)
    task = Task.RETRIEVAL.value if Task.RETRIEVAL in encoder.tasks else None
    names, texts = list(data.documents), list(data.documents.values())
    documents = encoder.encode_reporting(texts, task=task, prompt_name="document").vectors
    queries = encoder.encode(recipe.evaluation.examples, task=task, prompt_name="query")
    places, scores = top_documents(queries, documents, SHOWN)
    return [
        (
            query,
            [
                (float(score), f"{names[place]}: {' '.join(texts[place].split())}"[:WIDTH])
                for place, score in zip(row, row_scores, strict=True)
            ],
        )
        for query, row, row_scores in zip(recipe.evaluation.examples, places.tolist(), scores.tolist(), strict=True)
    ]


def evaluation_folder(recipe: Recipe, out: Path) -> Path:
    """Find the data folder of a finished run.

    Args:
        recipe: The recipe.
        out: The run folder.

    Returns:
        The folder that holds its evaluation sets.
    """
    return out.parent / f"{out.name}-data" if recipe.data.root == "docstrings" else Path(recipe.data.root)
