"""Build an index from a stream of documents; run again after any interruption, it continues."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Sized
from pathlib import Path

from taskdistill.errors import BadInput, WorkFailed
from taskdistill.search.corpus import Document
from taskdistill.search.index import Index
from taskdistill.search.ingest import BATCH, IngestReport, Progress, ingest
from taskdistill.search.settings import SearchEncoder, StorageOptions, settings_for
from taskdistill.search.storage.commit import commit
from taskdistill.search.storage.folder import check_target, missing_folders, remove_new_index
from taskdistill.tasks import Task


def build_index(
    encoder: SearchEncoder,
    documents: Iterable[Document],
    out: str | Path,
    *,
    task: str | None = Task.RETRIEVAL.value,
    storage: StorageOptions = StorageOptions(),
    batch: int = BATCH,
    progress: Progress | None = None,
) -> tuple[Index, IngestReport]:
    """Embed documents into an index folder, new or existing.

    Documents that are there already are not embedded again, so a build that was killed continues
    where it was acknowledged, and a later build of a changed corpus embeds the changes only.
    Nothing is deleted. `documents`: read once; such as a `Corpus`. `task`: None for base
    embeddings. `batch`: passages embedded and acknowledged together.
    """
    out = Path(out)
    settings = settings_for(encoder, task, storage)
    total = len(documents) if isinstance(documents, Sized) else 0
    stream = iter(documents)
    # Before the folder is created: a corpus without a document leaves nothing behind.
    first = list(itertools.islice(stream, 1))
    if not first:
        raise BadInput("there are no documents to index; give a corpus with at least one")
    exists, new_folders = check_target(out), missing_folders(out)
    index = Index.open(out) if exists else Index.create(out, settings)
    index.settings.check_same(settings, getattr(encoder, "extends", ()))
    try:
        with index.writing():
            commit(index.snapshot, {}, building=True)
            index.refresh()
            snapshot, report = ingest(
                index.snapshot,
                encoder,
                itertools.chain(first, stream),
                batch=batch,
                total=total,
                progress=progress,
            )
            commit(snapshot, {}, building=False)
    except BaseException:
        if not exists:
            with contextlib.suppress(OSError, BadInput, WorkFailed):
                remove_new_index(out, new_folders)
        raise
    return index, report
