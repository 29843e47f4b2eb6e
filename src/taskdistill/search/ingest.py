"""Add documents to an index from a stream, embedding only what is new or changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput
from taskdistill.io.records import check_text
from taskdistill.search.candidates import Rows
from taskdistill.search.corpus import Document
from taskdistill.search.passages import PassageSettings, split
from taskdistill.search.settings import SearchEncoder, unit_vectors
from taskdistill.search.storage import commit
from taskdistill.search.storage.segment import titled
from taskdistill.search.storage.segment_writer import canonical_metadata, content_hash
from taskdistill.search.storage.snapshot import Snapshot, open_snapshot

BATCH = 4096
"""Passages that are embedded and acknowledged together."""

MAX_CHARACTERS = 32 << 20
"""Text that is held in memory at a time, in characters."""

Progress = Callable[[int, int], None]
"""Called with the documents done and their number, 0 where it is unknown."""


@dataclass
class IngestReport:
    """What became of documents."""

    added: int = 0
    """Documents with new ids."""
    replaced: int = 0
    """Documents whose id was known, with other content."""
    unchanged: int = 0
    """Documents that were there already, word for word; they were not embedded again."""
    passages: int = 0
    """Passages embedded."""


def ingest(
    snapshot: Snapshot,
    encoder: SearchEncoder,
    documents: Iterable[Document],
    *,
    batch: int = BATCH,
    total: int = 0,
    progress: Progress | None = None,
) -> tuple[Snapshot, IngestReport]:
    """Add documents batch by batch, each acknowledged before the next; the caller holds the lock.

    `encoder`: the model the index was made with. `documents`: of several with one id the last one
    stays. `batch`: passages embedded and acknowledged together; one long document may make it
    larger. `total`: number of documents, for `progress`; 0 where unknown. Returns the generation
    after the last batch, and what became of the documents.
    """
    settings = snapshot.manifest.settings
    settings.check_documents(encoder)
    if batch < 1:
        raise BadInput(f"batch {batch} cannot be; give at least 1 passage")
    report, done = IngestReport(), 0
    for group in _groups(documents, batch):
        metadata = {document.id: canonical_metadata(document) for document in group}
        hashes = {name: content for name, (_, _, content) in snapshot.find(metadata).items()}
        changed = [
            document
            for document in group
            if hashes.get(document.id) != content_hash(document, metadata[document.id])
        ]
        report.unchanged += len(group) - len(changed)
        for part, spans in _cut(changed, settings.passages, batch):
            texts = [
                titled(part[at].text[start:end], part[at].metadata.get("title"))
                for at, start, end in spans.tolist()
            ]
            vectors = encoder.encode(
                texts,
                task=settings.task,
                prompt_name=settings.document_prompt,
                truncate_dim=settings.dim,
            )
            snapshot, replaced = add(snapshot, part, spans, vectors)
            report.replaced += replaced
            report.added += len(part) - replaced
            report.passages += len(spans)
        # Counted once the whole group is on the disk.
        done += len(group)
        if progress is not None:
            progress(done, total)
    return snapshot, report


def add(
    snapshot: Snapshot, documents: Sequence[Document], spans: Rows, vectors: NDArray[np.floating]
) -> tuple[Snapshot, int]:
    """Add documents with their vectors; the caller holds the lock.

    Small segments are merged first where there are many. `documents`: documents with distinct ids.
    `spans`: `(rows, 3)` document, start, end of each passage. `vectors`: `(rows, dim)` vectors.
    Returns the next generation, and how many documents were replaced.
    """
    unit = unit_vectors(vectors, snapshot.manifest.settings.dim, "document")
    if len(unit) != len(spans):
        raise BadInput(f"{len(spans)} passages came with {len(unit)} vectors; give one a passage")
    while positions := commit.due_merge(snapshot.manifest):
        commit.merge(snapshot, positions)
        snapshot = open_snapshot(snapshot.path, previous=snapshot)
    replaced = commit.append(snapshot, documents, spans, unit)
    return open_snapshot(snapshot.path, previous=snapshot), replaced


def check_document(document: Document) -> None:
    """Refuse a document that an index cannot hold."""
    try:
        if not isinstance(document.id, str) or not document.id:
            raise ValueError("the id must be a text that is not empty")
        if not isinstance(document.text, str) or not document.text.strip():
            raise ValueError("the text is empty")
        check_text(document.id, "id")
        check_text(document.text, "text")
        check_text(canonical_metadata(document), "metadata")
    except (TypeError, ValueError) as error:
        raise BadInput(
            f"the document {document.id!r:.80} cannot be indexed: {error}; correct it or leave it "
            "out"
        ) from None


def _groups(documents: Iterable[Document], batch: int) -> Iterator[list[Document]]:
    """Yield checked documents with distinct ids, at most `batch` and some MiB of text at a time."""
    group: dict[str, Document] = {}
    characters = 0
    for document in documents:
        check_document(document)
        group.pop(document.id, None)  # so that the later one also comes later
        group[document.id] = document
        characters += len(document.text)
        if len(group) >= batch or characters >= MAX_CHARACTERS:
            yield list(group.values())
            group, characters = {}, 0
    if group:
        yield list(group.values())


def _cut(
    documents: Sequence[Document], passages: PassageSettings | None, batch: int
) -> Iterator[tuple[list[Document], Rows]]:
    """Yield documents with the spans of their passages, about `batch` passages at a time."""
    part: list[Document] = []
    spans: list[tuple[int, int, int]] = []
    for document in documents:
        spans += [(len(part), *span) for span in split(document.text, passages)]
        part.append(document)
        if len(spans) >= batch:
            yield part, np.array(spans, np.int64)
            part, spans = [], []
    if part:
        yield part, np.array(spans, np.int64)
