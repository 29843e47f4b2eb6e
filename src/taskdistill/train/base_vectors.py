"""Vectors of the base without adapter, which an adapter is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from taskdistill.model.student import TransformerModel
from taskdistill.train.distributed import SINGLE, ProcessGroup
from taskdistill.train.microbatch import MicroBatch
from taskdistill.train.shared_batch import SharedBatch
from taskdistill.train.workers import WorkerPool


def base_vectors(
    model: TransformerModel,
    ids: Sequence[np.ndarray],
    *,
    threads: WorkerPool,
    micro_batch_tokens: int,
    processes: ProcessGroup = SINGLE,
    compute: torch.dtype | None = None,
) -> Tensor:
    """Embed a batch without gradients, each process its share.

    Micro-batches are those of one process, and none is cut further for more workers, so the vectors
    are the same bits. `model`: the model in training mode, with no adapter selected.
    `micro_batch_tokens`: tokens of one forward pass. `compute`: number type of the passes; None for
    that of the weights. Returns `(texts, D)`, the same on every process. Raises WorkFailed if a
    single text does not fit into memory.
    """
    batch = SharedBatch(
        model=model,
        ids=ids,
        threads=threads,
        processes=processes,
        micro_batch_tokens=micro_batch_tokens,
        spreads=False,
    )

    def embed(piece: MicroBatch) -> Tensor:
        with (
            torch.no_grad(),
            torch.autocast(model.device.type, compute, enabled=compute is not None),
        ):
            vectors = model.embed([ids[i] for i in piece.rows])
        return vectors if compute is None else vectors.float()

    def run() -> Tensor:
        every = batch.pieces()
        with processes.together():
            held = batch.prepare(list(threads.map(embed, every[processes.rank])), every)
        batch.gather(held)
        return batch.ordered(held, every)

    return batch.until_it_fits(run)
