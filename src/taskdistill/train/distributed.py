"""One recipe on several processes: what they exchange, and nothing else.

Every process computes the same batch, tokenises it and runs its own share of the micro-batches. The
pooled vectors are then gathered on all of them, so that each process takes the loss of the whole
batch, with every negative, and carries back only the rows that it made; the weights' gradients are
added up. No gradient flows through the exchange itself, so there is no factor to get wrong: the sum
is the gradient of one process, up to the order of additions. Only the process with rank 0 writes.

A collective that one process does not reach lasts until the time-out on all others. So everything
that may fail on one process alone runs inside `Processes.together`, which ends with a vote: either
it went well everywhere, or every process leaves it alike. What the first process does while the
others wait for it goes through `leading.by_first`.

There are two kinds of waiting. The exchanges of a step take seconds, and one that takes minutes has
lost a process: their time-out is a setting. Rank 0 also works alone for hours (it fills the teacher
store, writes folders, scores the model), and the others wait for that in a gloo group of their own,
whose patience has no such limit: a process that dies closes its connections, which gloo notices at
once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from taskdistill.errors import WorkFailed
from taskdistill.train.memory import OutOfMemory, is_out_of_memory

T = TypeVar("T")
BUCKET = 8_388_608
"""Numbers that are added up in one exchange."""
TIMEOUT = timedelta(minutes=10)
"""How long a process waits in an exchange of a step, if the recipe does not say otherwise."""
START = timedelta(minutes=30)
"""How long a process waits for the others to be started."""
PATIENCE = timedelta(days=7)
"""How long a process waits for what the first one does alone, which may be filling the teacher
store.
"""

FAILED_ELSEWHERE = "the work of another process failed, so this one ends; its own output says why"

_of_steps: dist.ProcessGroup | None = None
"""The group of the exchanges of a step, one a process like torch's default group; None is that
default group.
"""


class Outcome(IntEnum):
    """How local work went; the largest of all processes decides for all."""

    DONE = 0
    OUT_OF_MEMORY = 1
    FAILED = 2


class Agreed(Exception):
    """Raised by a vote in the middle of local work: the outcome is already known to every process,
    so there is no further vote.
    """

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome


class LostProcess(WorkFailed):
    """Another process of the run ended, failed or did not answer in time."""


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The processes that work on one run; alone by default."""

    rank: int = 0
    size: int = 1
    on_this_host: int = 1
    """How many of them share this host's cores."""
    patient: dist.ProcessGroup | None = None
    """The gloo group in which the others wait for what rank 0 does alone."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    @contextmanager
    def together(self, *, votes: bool = True) -> Iterator[None]:
        """Run work of this process alone, and go on only if it went well on every process.

        `votes`: whether a failure is voted on. False where the block holds exchanges that do not
        vote: then this process ends by itself, and the others notice its end. Yields nothing. The
        block must hold no exchange, except those that vote themselves (`agree`). Raises OutOfMemory
        on every process, if memory ran out on one. Raises LostProcess if the work of another
        process failed in another way; that one raises what it met.
        """
        outcome, failure, voted = Outcome.DONE, None, self.size == 1
        try:
            yield
        except Agreed as vote:
            outcome, voted = vote.outcome, True
        except Exception as error:
            if self.size > 1 and _of_an_exchange(
                error
            ):  # one that is not ours; there is nobody left to vote with
                raise _lost(error) from error
            outcome = Outcome.OUT_OF_MEMORY if is_out_of_memory(error) else Outcome.FAILED
            failure = (
                error if outcome is Outcome.FAILED else None
            )  # of memory: nothing may hold the traceback, and with it the tensors
            voted = voted or not votes
        if not voted:
            try:
                outcome = _vote(outcome)
            except LostProcess:
                if failure is None:
                    raise
        if failure is not None:
            raise failure
        if outcome is Outcome.FAILED:
            raise LostProcess(FAILED_ELSEWHERE)
        if outcome is Outcome.OUT_OF_MEMORY:
            raise OutOfMemory

    def gather_room(self, rows: Tensor, counts: Sequence[int]) -> Tensor | None:
        """Allocate what collecting rows takes, so that a lack of memory shows before the exchange
        begins.

        Gloo refuses unequal sizes, so shorter shares are padded and cut again. `rows`: this
        process's rows, `(n, D)`. Returns `(size + 1, largest count, D)`, whose last part holds this
        process's rows; None for one process.
        """
        if self.size == 1:
            return None
        room = rows.new_zeros(self.size + 1, max(counts), rows.shape[1])
        room[-1, : len(rows)] = rows
        return room

    def fill(self, room: Tensor) -> None:
        """Exchange the rows of all processes.

        `room`: what `gather_room` returned on every process; filled in place.
        """
        with reaching_others():
            dist.all_gather(list(room[:-1].unbind()), room[-1], group=_of_steps)

    def cut(self, room: Tensor, counts: Sequence[int]) -> Tensor:
        """Cut the padding from what was exchanged.

        Returns `(sum of counts, D)`, by rank, the same on every process.
        """
        return torch.cat([part[:count] for part, count in zip(room[:-1], counts, strict=True)])

    def gather(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Collect the rows of all processes.

        `rows`: this process's rows, `(n, D)`. Returns `(sum of counts, D)`, by rank, the same on
        every process.
        """
        room = self.gather_room(rows, counts)
        if room is None:
            return rows
        self.fill(room)
        return self.cut(room, counts)

    def sum_room(self, tensors: Sequence[Tensor]) -> dict[torch.dtype, Tensor]:
        """Allocate what `add_up` needs, so that a lack of memory shows before the exchange begins.

        Returns a buffer for each number type.
        """
        if self.size == 1:
            return {}
        sizes: dict[torch.dtype, int] = {}
        for bucket in _buckets(tensors):
            count = 0 if _in_place(bucket) else sum(tensor.numel() for tensor in bucket)
            sizes[bucket[0].dtype] = max(sizes.get(bucket[0].dtype, 0), count)
        device = tensors[0].device if tensors else None
        return {
            dtype: torch.empty(count, dtype=dtype, device=device) for dtype, count in sizes.items()
        }

    def all_reduce_(
        self, tensors: Sequence[Tensor], room: dict[torch.dtype, Tensor] | None = None
    ) -> None:
        """Replace each tensor by its sum over all processes, the same bits on every one.

        `tensors`: same shapes and order on every process; changed in place. `room`: what `sum_room`
        returned; None allocates it here.
        """
        if self.size == 1:
            return
        room = self.sum_room(tensors) if room is None else room
        for bucket in _buckets(tensors):
            if _in_place(bucket):
                sum_over_processes(bucket[0])
                continue
            flat = room[bucket[0].dtype][: sum(tensor.numel() for tensor in bucket)]
            parts = torch.split(flat, [tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                part.copy_(tensor.reshape(-1))
            sum_over_processes(flat)
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def any_rank(self, flag: bool) -> bool:
        """Say whether the flag is true on any process. Returns the same on every process."""
        if self.size == 1:
            return flag
        return bool(_largest(int(flag)))

    def broadcast(self, value: T) -> T:
        """Give every process the first one's value, however long that one takes.

        `value`: plain data; ignored on all but the first.
        """
        if self.size == 1:
            return value
        held: list[Any] = [value]
        with reaching_others():
            dist.broadcast_object_list(held, group=self.patient)
        return held[0]  # type: ignore[no-any-return]

    def wait(self) -> None:
        """Let all processes go on only when each has come here, however long that takes."""
        if self.size > 1:
            with reaching_others():
                dist.barrier(group=self.patient)

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Let the first process do something, such as writing a folder, before the others do it
        too.
        """
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()


SINGLE = ProcessGroup()


def sum_over_processes(tensor: Tensor) -> None:
    """Replace a tensor by its sum over all processes. `tensor`: contiguous; changed in place."""
    with reaching_others():
        dist.all_reduce(tensor, group=_of_steps)


def mesh_of_all(device_type: str) -> DeviceMesh:
    """Return all processes as the mesh that weights are divided over.

    Returns a mesh of one dimension, whose exchanges have the time-out of those of a step.
    """
    if _of_steps is None:
        return init_device_mesh(device_type, (dist.get_world_size(),))
    return DeviceMesh.from_group(_of_steps, device_type)


def agree(outcome: Outcome = Outcome.DONE) -> None:
    """Vote in the middle of work that runs inside `Processes.together`, before an exchange that
    needs every process.

    Raises Agreed if some process fares badly.
    """
    if (worst := _vote(outcome)) is not Outcome.DONE:
        raise Agreed(worst)


def _vote(outcome: Outcome) -> Outcome:
    return Outcome(_largest(int(outcome)))


def _largest(number: int) -> int:
    """Return the largest of all processes' numbers. A tensor of the CPU goes through gloo also
    where training is on GPUs.
    """
    held = torch.tensor(number)
    with reaching_others():
        dist.all_reduce(held, dist.ReduceOp.MAX, group=_of_steps)
    return int(held)


@contextmanager
def reaching_others() -> Iterator[None]:
    """Turn what a broken exchange raises into the one line that a person is to read."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, WorkFailed):
            raise
        raise _lost(error) from error


def _lost(error: Exception) -> LostProcess:
    return LostProcess(
        f"another process of this run ended or did not answer in time ({_first_line(error)}); its"
        " own output says why. If it was only slow, raise `process_timeout`; run the same command"
        " again to go on from the last checkpoint"
    )


def _of_an_exchange(error: Exception) -> bool:
    """Say whether torch's exchanges raised an error; gloo's have no type of their own, but name its
    source.
    """
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "/gloo/" in str(error)
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines() or [type(error).__name__]
    return text[0].split("] ", 1)[-1].strip().rstrip(".")[:200]


def _in_place(bucket: Sequence[Tensor]) -> bool:
    return len(bucket) == 1 and bucket[0].is_contiguous()


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
def init_distributed(
    size: int, on_this_host: int = 1, timeout: timedelta = TIMEOUT
) -> Iterator[ProcessGroup]:
    """Join the processes that a launcher such as torchrun started, and leave them at the end.

    `size`: how many the launcher started; 1 joins nothing. `timeout`: how long an exchange of a
    step may take.
    """
    if size <= 1:
        yield SINGLE
        return
    global _of_steps
    with reaching_others():
        # A group has one time-out for all its exchanges, so each kind of waiting has a group: for
        # the start, for what
        # the first process does alone, and for the steps.
        dist.init_process_group("gloo", timeout=START)
        patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        _of_steps = dist.new_group(
            backend="cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=timeout
        )
    try:
        yield ProcessGroup(dist.get_rank(), dist.get_world_size(), on_this_host, patient)
    finally:
        _of_steps = None
        dist.destroy_process_group()
