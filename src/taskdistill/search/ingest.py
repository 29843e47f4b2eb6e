"""Add documents to an index from a stream: in bounded memory, embedding only what is new or changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taskdistill.errors import BadInput
from taskdistill.io.json_rows import check_text
from taskdistill.search.corpus import Document
from taskdistill.search.passages import split
from taskdistill.search.protocol import SearchEncoder, unit_vectors
from taskdistill.search.storage import commit
from taskdistill.search.storage.segment import titled
from taskdistill.search.storage.segment_writer import Rows, canonical, content_of
from taskdistill.search.storage.snapshot import Snapshot, open_snapshot

BATCH = 4096
"""Passages that are embedded and acknowledged together."""

_CHARACTERS = 32 << 20
"""Text that is held at a time, in characters."""

Progress = Callable[[int, int], None]


@dataclass
class IngestReport:
    """What became of documents.

    Attributes:
        added: Documents with new ids.
        replaced: Documents whose id was known, with other content.
        unchanged: Documents that were there already, word for word; they were not embedded again.
        passages: Passages embedded.
    """

    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    passages: int = 0


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

    Args:
        snapshot: The current generation.
        encoder: The model the index was made with.
        documents: The documents; of several with one id the last one stays.
        batch: Passages embedded and acknowledged together; one long document may make it larger.
        total: Number of documents, for `progress`; 0 where unknown.
        progress: Told the documents done and `total`.

    Returns:
        The generation after the last batch, and what became of the documents.

    Raises:
        BadInput: If the encoder does not match, a document cannot be kept, or a vector is zero or not finite.
    """
    settings = snapshot.manifest.settings
    settings.check_documents(encoder)
    if batch < 1:
        raise BadInput(f"batch {batch} cannot be; give at least 1 passage")
    report, done = IngestReport(), 0
    for group in _groups(documents, batch):
        metadata = {each.id: canonical(each) for each in group}
        known = {name: content for name, (_, _, content) in snapshot.find(metadata).items()}
        changed = [
            each for each in group if known.get(each.id) != content_of(each, metadata[each.id])
        ]
        report.unchanged += len(group) - len(changed)
        for part, places in _cut(changed, snapshot, batch):
            texts = [
                titled(part[at].text[start:end], part[at].metadata.get("title"))
                for at, start, end in places.tolist()
            ]
            vectors = encoder.encode(
                texts,
                task=settings.task,
                prompt_name=settings.document_prompt,
                truncate_dim=settings.dim,
            )
            snapshot, replaced = add(snapshot, part, places, vectors)
            report.replaced += replaced
            report.added += len(part) - replaced
            report.passages += len(places)
        done += len(group)
        if progress is not None:
            progress(done, total)
    return snapshot, report


def add(
    snapshot: Snapshot, documents: Sequence[Document], places: Rows, vectors: NDArray[np.floating]
) -> tuple[Snapshot, int]:
    """Add documents with their vectors, merging small segments first where there are many; the caller holds the lock.

    Args:
        snapshot: The current generation.
        documents: Documents with distinct ids.
        places: (rows, 3) document, start, end of each passage.
        vectors: (rows, dim) vectors.

    Returns:
        The next generation, and how many documents were replaced.

    Raises:
        BadInput: If a vector is zero or not finite, or their number or dimension does not fit.
    """
    unit = unit_vectors(vectors, snapshot.manifest.settings.dim, "document")
    if len(unit) != len(places):
        raise BadInput(f"{len(places)} passages came with {len(unit)} vectors; give one a passage")
    while positions := commit.due(snapshot.manifest):
        commit.merge(snapshot, positions)
        snapshot = open_snapshot(snapshot.path, previous=snapshot)
    replaced = commit.append(snapshot, documents, places, unit)
    return open_snapshot(snapshot.path, previous=snapshot), replaced


def checked(document: Document) -> Document:
    """Refuse a document that an index cannot keep.

    Args:
        document: Any document.

    Returns:
        The same document.

    Raises:
        BadInput: If id or text is empty or no proper Unicode, or the metadata is not JSON.
    """
    try:
        if not isinstance(document.id, str) or not document.id:
            raise ValueError("the id must be a text that is not empty")
        if not isinstance(document.text, str) or not document.text.strip():
            raise ValueError("the text is empty")
        check_text(document.id)
        check_text(document.text)
        check_text(canonical(document))
    except (TypeError, ValueError) as error:
        raise BadInput(
            f"the document {document.id!r:.80} cannot be indexed: {error}; correct it or leave it out"
        ) from None
    return document


def _groups(documents: Iterable[Document], batch: int) -> Iterator[list[Document]]:
    """Yield checked documents with distinct ids, at most `batch` and some MiB of text at a time."""
    group: dict[str, Document] = {}
    characters = 0
    for document in documents:
        group.pop(document.id, None)
        group[document.id] = checked(document)
        characters += len(document.text)
        if len(group) >= batch or characters >= _CHARACTERS:
            yield list(group.values())
            group, characters = {}, 0
    if group:
        yield list(group.values())


def _cut(
    documents: Sequence[Document], snapshot: Snapshot, batch: int
) -> Iterator[tuple[list[Document], Rows]]:
    """Yield documents with the places of their passages, about `batch` passages at a time."""
    part: list[Document] = []
    places: list[tuple[int, int, int]] = []
    for document in documents:
        places += [
            (len(part), *span) for span in split(document.text, snapshot.manifest.settings.passages)
        ]
        part.append(document)
        if len(places) >= batch:
            yield part, np.array(places, np.int64)
            part, places = [], []
    if part:
        yield part, np.array(places, np.int64)
