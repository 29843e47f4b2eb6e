"""One recipe on several processes: what they exchange, and nothing else.

Every process computes the same batch, tokenises it and runs its own share of the micro-batches. The pooled vectors are then
gathered on all of them, so that each process takes the loss of the whole batch, with every negative, and carries back only the
rows that it made; the weights' gradients are added up. No gradient flows through the exchange itself, so there is no factor to
get wrong: the sum is the gradient of one process, up to the order of additions. Only the process with rank 0 writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
BUCKET = 8_388_608
"""Numbers that are added up in one exchange."""
PATIENCE = timedelta(days=7)
"""How long a process waits for another, which may be filling the teacher store."""


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes that work on one run; alone by default."""

    rank: int = 0
    size: int = 1
    on_this_host: int = 1
    """How many of them share this host's cores."""

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def gather(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Collect the rows of all processes; gloo refuses unequal sizes, so shorter shares are padded and cut again.

        Args:
            rows: This process's rows, `(n, D)`.
            counts: Rows of every process.

        Returns:
            `(sum of counts, D)`, by rank, the same on every process.
        """
        if self.size == 1:
            return rows
        most = max(counts)
        padded = torch.cat([rows, rows.new_zeros(most - len(rows), rows.shape[1])]).contiguous()
        found = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(found, padded)
        return torch.cat([part[:count] for part, count in zip(found, counts, strict=True)])

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, the same bits on every one.

        Args:
            tensors: Same shapes and order on every process; changed in place.
        """
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            dist.all_reduce(flat)
            start = 0
            for tensor in bucket:
                tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
                start += tensor.numel()

    def any(self, flag: bool) -> bool:
        """Say whether the flag is true on any process.

        Args:
            flag: This process's flag.

        Returns:
            The same on every process.
        """
        if self.size == 1:
            return flag
        found = torch.tensor(int(flag))
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found)

    def same(self, value: T) -> T:
        """Give every process the first one's value.

        Args:
            value: Plain data; ignored on all but the first.

        Returns:
            The first one's.
        """
        if self.size == 1:
            return value
        held: list[Any] = [value]
        dist.broadcast_object_list(held)
        return held[0]  # type: ignore[no-any-return]

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """Let the first process do something, such as writing a folder, before the others do it too.

        Yields:
            Nothing.
        """
        if self.size > 1 and not self.leads:
            dist.barrier()
        yield
        if self.size > 1 and self.leads:
            dist.barrier()


ALONE = Processes()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket, count = list[Tensor](), 0
    for tensor in tensors:
        if bucket and (count + tensor.numel() > BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, count = [], 0
        bucket.append(tensor)
        count += tensor.numel()
    if bucket:
        yield bucket


@contextmanager
def joined(size: int, on_this_host: int = 1) -> Iterator[Processes]:
    """Join the processes that a launcher such as torchrun started, and leave them at the end.

    Args:
        size: How many the launcher started; 1 joins nothing.
        on_this_host: How many of them run on this host.

    Yields:
        The processes.
    """
    if size <= 1:
        yield ALONE
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), on_this_host)
    finally:
        dist.destroy_process_group()
