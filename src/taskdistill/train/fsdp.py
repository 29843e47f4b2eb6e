"""Full students on several GPUs: weights, gradients and moments divided among the processes
(FSDP2), batch and loss as ever.

Only phases that train the whole backbone are divided; adapters are small. Each layer is gathered
when a pass reaches it and its gradient is summed where its share lives. Every process runs the same
number of passes, because each one is an exchange.

A pass that fails on one process in the middle of these exchanges would leave the others waiting. So
before each of them all processes vote (`agree`): the one that failed is then in the vote that ends
its work, sees that the others are in that of their next exchange, and all leave the pass at the
same place. A vote is one number through gloo, some 0.1 ms between processes of one host; a layer
needs three in its passes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from taskdistill.errors import WorkFailed
from taskdistill.model.layers import layers_of
from taskdistill.model.student import TransformerModel
from taskdistill.train.distributed import agree, mesh_of_all, reaching_others, sum_over_processes


def shard(model: TransformerModel, device: torch.device) -> TransformerModel:
    """Divide a copy of a model among all processes.

    `model`: the whole model; it stays as and where it is. `device`: where this process trains.
    """
    sharded, mesh = copy.deepcopy(model), mesh_of_all(device.type)
    for layer in layers_of(sharded.backbone):
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded.backbone, mesh=mesh)
    for unit in _units(sharded):
        unit.set_gradient_divide_factor(
            1.0
        )  # each process carries back its own texts, so gradients are summed
        unit.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum
        if can_start_again(sharded):
            unit.set_custom_all_gather(_VotedAllGather())  # type: ignore[arg-type]
            unit.set_custom_reduce_scatter(_VotedReduceScatter())  # type: ignore[arg-type]
    return sharded


# torch 2.13 gave both new names and warns of the old ones.
_all_gather: Callable[..., dist.Work | None] = (
    getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
)
_reduce_scatter: Callable[..., dist.Work | None] = (
    getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
)


class _Allocates:
    """Buffers of an exchange; they are allocated before its vote."""

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)


class _VotedAllGather(_Allocates):
    """What FSDP does by default, behind a vote."""

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        async_op: bool = False,
    ) -> dist.Work | None:
        agree()
        with reaching_others():
            return _all_gather(output_tensor, input_tensor, group=group, async_op=async_op)


class _VotedReduceScatter(_Allocates):
    """What FSDP does by default, behind a vote."""

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: dist.ReduceOp,
        async_op: bool = False,
    ) -> dist.Work | None:
        agree()
        with reaching_others():
            return _reduce_scatter(
                output_tensor, input_tensor, op=op, group=group, async_op=async_op
            )


def _units(model: TransformerModel) -> list[FSDPModule]:
    return [module for module in model.backbone.modules() if isinstance(module, FSDPModule)]


def can_start_again(model: TransformerModel) -> bool:
    """Say whether this version of torch can drop a pass in the middle; before 2.13 a failure there
    ends the work.

    Returns whether `start_again` works and the exchanges of its passes vote.
    """
    return hasattr(model.backbone, "reset_iter_state") and hasattr(
        model.backbone, "set_custom_all_gather"
    )


def start_again(model: TransformerModel) -> None:
    """Forget a pass that ended in the middle, on every process.

    Raises WorkFailed if this version of torch cannot.
    """
    if not can_start_again(model):
        raise WorkFailed(
            "memory ran out in a step with divided weights, and torch before 2.13 cannot run such a"
            " step again; lower micro_batch_tokens or batch_size, or install a newer torch"
        )
    model.backbone.reset_iter_state()
    for unit in _units(model):
        # gradients that autograd left on whole weights are out of reach while only shares are in
        # the modules
        unit.unshard()
        for parameter in model.backbone.parameters():
            parameter.grad = None
        unit.reshard()


def is_sharded(model: nn.Module) -> bool:
    """Say whether a model's weights are divided.

    Returns whether `shard` made it; its weights may be gathered at the moment.
    """
    return isinstance(getattr(model, "backbone", None), FSDPModule)


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a tensor if it is divided; every process must take part then."""
    if not isinstance(tensor, DTensor):
        return tensor
    with reaching_others():
        return tensor.full_tensor()


def local_tensor(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def all_reduce_scalar(number: Tensor) -> Tensor:
    """Add a number up over all processes. Returns the sum, the same on every process."""
    total = number.clone()
    sum_over_processes(total)
    return total


@torch.no_grad()
def copy_full_(target: Tensor, source: Tensor) -> None:
    """Copy a whole tensor into a tensor, or this process's share of it.

    `target`: a tensor or a share of one, changed in place. `source`: the whole tensor, the same on
    every process.
    """
    target.copy_(shard_like(target, source))


def shard_like(target: Tensor, source: Tensor) -> Tensor:
    """Divide a whole tensor as another one is divided.

    `source`: the whole tensor, the same on every process. Returns the source on the target's
    device, divided if the target is.
    """
    moved = source.to(target.device, target.dtype)
    if not isinstance(target, DTensor):
        return moved
    return distribute_tensor(moved, target.device_mesh, target.placements, src_data_rank=None)


@torch.no_grad()
def clear_rows(tensor: Tensor, rows: Tensor) -> None:
    """Set rows of a matrix to zero, or those of them that are in this process's share.

    `tensor`: a matrix or a share of one, changed in place. `rows`: `(rows of the whole matrix,)` of
    bool: the rows to clear.
    """
    mask = (
        local_tensor(shard_like(tensor, rows.to(tensor.dtype))) > 0
    )  # divided as the matrix is: along its rows
    local_tensor(tensor)[mask] = 0


@torch.no_grad()
def write_back(sharded: TransformerModel, model: TransformerModel) -> None:
    """Carry the weights of a divided copy into the whole model, on every process."""
    shares: Mapping[str, nn.Parameter] = dict(sharded.backbone.named_parameters())
    for name, parameter in model.backbone.named_parameters():
        parameter.copy_(full_tensor(shares[name].detach()))
