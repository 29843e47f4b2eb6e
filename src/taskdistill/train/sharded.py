"""Full students on several GPUs: weights, gradients and moments divided among the processes (FSDP2), batch and loss as ever.

Only phases that train the whole backbone are divided; adapters are small. Each layer is gathered when a pass reaches it and
its gradient is summed where its share lives. Every process runs the same number of passes, because each one is an exchange.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from taskdistill.model.backbone import layers_of
from taskdistill.model.student import TransformerModel


def shard(model: TransformerModel, device: torch.device) -> TransformerModel:
    """Divide a copy of a model among all processes.

    Args:
        model: The whole model; it stays as and where it is.
        device: Where this process trains.

    Returns:
        The copy, whose parameters are shares.
    """
    made, mesh = copy.deepcopy(model), init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in layers_of(made.backbone):
        fully_shard(layer, mesh=mesh)
    fully_shard(made.backbone, mesh=mesh)
    for module in made.backbone.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # each process carries back its own texts, so gradients are summed
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum
    return made


def is_sharded(model: nn.Module) -> bool:
    """Say whether a model's weights are divided.

    Args:
        model: Any model.

    Returns:
        Whether its first parameter is a share.
    """
    return isinstance(next(model.parameters(), None), DTensor)


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor if it is divided; every process must take part then.

    Args:
        tensor: A tensor or a share of one.

    Returns:
        The whole tensor.
    """
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor.

    Args:
        tensor: A tensor or a share of one.

    Returns:
        The tensor, or the share as a plain tensor.
    """
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def summed(number: Tensor) -> Tensor:
    """Add a number up over all processes.

    Args:
        number: Scalar of this process.

    Returns:
        The sum, the same on every process.
    """
    total = number.clone()
    dist.all_reduce(total)
    return total


@torch.no_grad()
def copy_whole(target: Tensor, source: Tensor) -> None:
    """Copy a whole tensor into a tensor, or this process's share of it.

    Args:
        target: A tensor or a share of one, changed in place.
        source: The whole tensor, the same on every process.
    """
    target.copy_(like(target, source))


def like(target: Tensor, source: Tensor) -> Tensor:
    """Divide a whole tensor as another one is divided.

    Args:
        target: A tensor or a share of one.
        source: The whole tensor, the same on every process.

    Returns:
        The source on the target's device, divided if the target is.
    """
    moved = source.to(target.device, target.dtype)
    if not isinstance(target, DTensor):
        return moved
    return distribute_tensor(moved, target.device_mesh, target.placements, src_data_rank=None)


@torch.no_grad()
def write_back(made: TransformerModel, model: TransformerModel) -> None:
    """Carry the weights of a divided copy into the whole model, on every process.

    Args:
        made: What `shard` returned.
        model: The whole model.
    """
    shares: Mapping[str, nn.Parameter] = dict(made.backbone.named_parameters())
    for name, parameter in model.backbone.named_parameters():
        parameter.copy_(whole(shares[name].detach()))
