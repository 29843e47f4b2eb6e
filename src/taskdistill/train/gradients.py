"""One optimiser step's gradients: micro-batches over worker threads, the loss over the whole batch.

The vectors of all micro-batches are joined, the loss is taken of them as leaves, and its gradient
is carried back through each micro-batch. If the batch is small enough the graphs of the first pass
are kept; otherwise a second forward pass makes them again (gradient caching). Where the loss is a
sum over texts, each micro-batch is carried back at once and no graph outlives it. Dropout masks
come from a generator seeded by step and micro-batch, and a batch is cut into the same micro-batches
whatever the number of workers; so all these ways give the same numbers, and so does any number of
threads and processes.

A step that does not fit into memory is run again with the same micro-batches in halves and no graph
kept: the same masks, the same sums, up to the order of additions. Everything that can run out of
memory on one process runs inside `Processes.together`, so that all processes leave it alike;
exchanges stand outside, and what they need is allocated before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from taskdistill.model.student import StaticModel, TransformerModel
from taskdistill.train.batch_loss import StepLosses, static_gradients
from taskdistill.train.distributed import SINGLE, ProcessGroup
from taskdistill.train.divided import DividedGradients
from taskdistill.train.fsdp import is_sharded
from taskdistill.train.gradient_step import Passes, StepLoss
from taskdistill.train.replicated import ReplicatedGradients
from taskdistill.train.shared_batch import SharedBatch
from taskdistill.train.timer import Timer
from taskdistill.train.workers import WorkerPool


def gradients(
    model: TransformerModel | StaticModel,
    ids: Sequence[np.ndarray],
    loss: StepLoss,
    trained: Sequence[nn.Parameter],
    passes: Passes,
    *,
    threads: WorkerPool,
    processes: ProcessGroup = SINGLE,
    clock: Timer | None = None,
) -> StepLosses:
    """Set the gradients of one step.

    `model`: the model in training mode, with the right adapter selected. `trained`: its parameters
    that are trained; those of the heads get their gradients from the loss itself. `clock`: told the
    seconds of the forward passes, the loss, the backward passes and the exchange. Returns each
    term's value, the weighted sum, and the masked share; the same on every process. Raises
    WorkFailed if a single text, or the loss by itself, does not fit into memory.
    """
    clock = clock or Timer()
    if isinstance(model, StaticModel):
        return static_gradients(model, ids, loss.terms, loss.weights, threads.table_gradient, clock)
    batch = SharedBatch(
        model=model,
        ids=ids,
        threads=threads,
        processes=processes,
        micro_batch_tokens=passes.micro_batch_tokens,
    )
    kind = DividedGradients if is_sharded(model) else ReplicatedGradients
    # Each attempt has a step of its own, so that nothing of a failed one is held in the next.
    return batch.until_it_fits(
        lambda: kind(batch=batch, loss=loss, trained=trained, passes=passes, clock=clock).run()
    )
