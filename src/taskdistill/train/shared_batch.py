"""A batch that several threads and processes embed: how it is cut, how its vectors come together,
what a lack of memory does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from taskdistill.errors import WorkFailed
from taskdistill.model.student import TransformerModel
from taskdistill.train.distributed import ProcessGroup
from taskdistill.train.fsdp import is_sharded, start_again
from taskdistill.train.memory import OutOfMemory, free_memory
from taskdistill.train.microbatch import TOGETHER, MicroBatch, micro_batches, split, spread
from taskdistill.train.workers import WorkerPool

Result = TypeVar("Result")


class LossTooLarge(OutOfMemory):
    """Memory ran out while the loss was taken, on some process."""


@dataclass(slots=True)
class Gathering:
    """The vectors of one process, and room for those of all."""

    own: Tensor
    """`(own texts, D)`, in the order of this process's pieces."""
    room: Tensor | None
    """See `Processes.gather_room`."""


@dataclass(slots=True, kw_only=True)
class SharedBatch:
    """A batch, and those who run it through the model."""

    model: TransformerModel
    ids: Sequence[np.ndarray]
    threads: WorkerPool
    processes: ProcessGroup
    micro_batch_tokens: int
    spreads: bool = True
    """Whether micro-batches are cut further where there are more workers than micro-batches."""
    lengths: np.ndarray = field(init=False)
    batches: list[np.ndarray] = field(init=False)
    further: int = field(init=False)

    def __post_init__(self) -> None:
        self.lengths = np.fromiter(
            (len(row) for row in self.ids), dtype=np.int64, count=len(self.ids)
        )
        self.batches = micro_batches(self.lengths, self.micro_batch_tokens, TOGETHER)
        # Families that cannot be packed draw dropout masks for each run of texts of equal length,
        # which must then
        # stay whole.
        divisible = self.spreads and (self.model.packs or not self.model.tasks)
        self.further = (
            spread(self.batches, self.lengths, self.threads.count * self.processes.size)
            if divisible
            else 0
        )

    def pieces(self) -> list[list[MicroBatch]]:
        """Cut the batch as it is cut now, smaller after memory ran out.

        Returns the pieces of every process: those of process r of n are every n-th from r on. The
        same on every process.
        """
        every = split(
            self.batches,
            range(len(self.batches)),
            self.lengths,
            self.threads.halvings + self.further,
        )
        return [every[rank :: self.processes.size] for rank in range(self.processes.size)]

    def most_tokens(self, every: Sequence[Sequence[MicroBatch]]) -> int:
        """Count the tokens of the process that has most."""
        return max(
            sum(int(self.lengths[piece.rows].sum()) for piece in rank_batches)
            for rank_batches in every
        )

    def prepare(self, local: Sequence[Tensor], every: Sequence[Sequence[MicroBatch]]) -> Gathering:
        """Join this process's vectors, and allocate what collecting those of all takes.

        Returns to be given to `gather`.
        """
        weight = next(self.model.parameters())
        empty = torch.zeros(0, self.model.embedding_dim, dtype=weight.dtype, device=weight.device)
        vectors = torch.cat([each.detach() for each in local]) if local else empty
        return Gathering(vectors, self.processes.gather_room(vectors, _counts(every)))

    def gather(self, held: Gathering) -> None:
        """Collect the vectors of all processes.

        `held`: what `prepare` returned; its room is filled.
        """
        if held.room is not None:
            self.processes.fill(held.room)

    def ordered(self, held: Gathering, every: Sequence[Sequence[MicroBatch]]) -> Tensor:
        """Put the vectors of all processes in the order of the batch.

        Returns `(texts, D)`, the same on every process.
        """
        joined = held.own if held.room is None else self.processes.cut(held.room, _counts(every))
        order = torch.from_numpy(
            np.concatenate([piece.rows for rank_batches in every for piece in rank_batches])
        ).to(joined.device)
        return torch.empty_like(joined).index_copy_(0, order, joined)

    def until_it_fits(self, run: Callable[[], Result]) -> Result:
        """Run something; where memory runs out on any process, run it again in smaller pieces on
        all of them.

        `run`: raises OutOfMemory on every process or on none, and can be run again then. Raises
        WorkFailed if a single text, or the loss by itself, does not fit.
        """
        in_loss = 0
        while True:
            try:
                return run()
            except OutOfMemory as error:
                in_loss = in_loss + 1 if isinstance(error, LossTooLarge) else 0
            free_memory()
            if is_sharded(self.model):
                start_again(self.model)
            if in_loss > 1:
                raise WorkFailed(
                    f"the loss of a batch of {len(self.ids)} texts does not fit into memory, even"
                    " with no graph of a pass beside it; lower batch_size, or give the process"
                    " more memory"
                )
            if all(
                len(piece.rows) == 1 for rank_batches in self.pieces() for piece in rank_batches
            ):
                raise WorkFailed(
                    "a step does not fit into memory even text by text (the longest of its"
                    f" {len(self.ids)} texts has {self.lengths.max()} tokens); lower max_length or"
                    " batch_size, or give the process more memory"
                )
            self.threads.halvings += 1


def _counts(every: Sequence[Sequence[MicroBatch]]) -> list[int]:
    return [sum(len(piece.rows) for piece in rank_batches) for rank_batches in every]
