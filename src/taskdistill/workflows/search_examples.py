"""A few searches at the end of a run.

The collection it was evaluated on, indexed, and what the model finds in it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from taskdistill.encode.encoder import Encoder
from taskdistill.evaluate.datasets import find_eval_sets
from taskdistill.evaluate.set_data import RankingData
from taskdistill.pipeline.setup import DOCSTRINGS, existing_root
from taskdistill.recipe.recipe import Recipe
from taskdistill.search.build import build_index
from taskdistill.search.corpus import Document
from taskdistill.search.index import Index
from taskdistill.search.storage.folder import remove_index
from taskdistill.tasks import Task
from taskdistill.types import MANIFEST

SHOWN = 3
WIDTH = 120


def search_examples(
    recipe: Recipe, out: Path, recipe_folder: Path | None = None
) -> list[tuple[str, list[tuple[float, str]]]]:
    """Index the run's first retrieval set as RUN/index and ask it the example queries.

    `recipe_folder`: where the recipe file is, for relative paths in it. Returns each query with its
    best documents: cosine, and the id with the beginning of the text. Empty where there is no
    retrieval set, or the packages of the extra `search` are not installed.
    """
    root = (
        Path(recipe.evaluation.root)
        if recipe.evaluation.root
        else evaluation_folder(recipe, out, recipe_folder or Path())
    )
    retrieval = [each for each in find_eval_sets(root) if each.kind == "retrieval"]
    if not retrieval or importlib.util.find_spec("faiss") is None:
        return []
    data = retrieval[0].load()
    assert isinstance(data, RankingData)
    encoder = Encoder.load(out / "model", threads=recipe.threads, device=recipe.device)
    encoder.model.name = str(out / "model")
    index = _index(
        encoder, [Document(name, text) for name, text in data.documents.items()], out / "index"
    )
    hits_of_queries = index.search(recipe.evaluation.examples, SHOWN, encoder=encoder)
    return [
        (query, [(hit.score, f"{hit.id}: {' '.join(hit.text.split())}"[:WIDTH]) for hit in hits])
        for query, hits in zip(recipe.evaluation.examples, hits_of_queries, strict=True)
    ]


def _index(encoder: Encoder, documents: list[Document], path: Path) -> Index:
    """Make the run's index, or go on with it if it is of the same model."""
    if (path / MANIFEST).is_file() and Index.open(path).settings.model_hash not in (
        encoder.model_hash,
        *encoder.extends,
    ):
        remove_index(path)
    task = Task.RETRIEVAL.value if Task.RETRIEVAL in encoder.tasks else None
    return build_index(encoder, documents, path, task=task)[0]


def evaluation_folder(recipe: Recipe, out: Path, recipe_folder: Path) -> Path:
    """Find the data folder of a finished run.

    `recipe_folder`: where the recipe file is, for relative paths in it.
    """
    return (
        out.parent / f"{out.name}-data"
        if recipe.data.root == DOCSTRINGS
        else existing_root(recipe, recipe_folder)
    )
