"""A network whose weights, gradients and optimizer state are shared out among the processes (torch's `fully_shard`).

Every process holds a share of each parameter and gathers a block of the network only while that block runs. A
checkpoint holds the whole of everything, so it goes on with any number of processes, sharded or not.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def shard(network: nn.Module, device: torch.device, precision: str) -> None:
    """Shares the parameters out among all processes, in place; all processes hold the same network before.

    Blocks (what lies in a ModuleList and shares no parameter with anything else) are gathered one at a time.
    """
    from torch.distributed.device_mesh import init_device_mesh  # a second to import, and seldom needed
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    half = torch.bfloat16 if precision.startswith("bf16") else None
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=None if half is None else torch.float32)
    for block in blocks(network):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh, mp_policy=policy)


def blocks(network: nn.Module) -> list[nn.Module]:
    """The outermost blocks whose parameters are theirs alone; what is shared stays with the network as a whole."""
    uses: dict[int, int] = {}
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    owners: dict[int, int] = {}
    found: list[nn.Module] = []
    for _, held in network.named_modules(remove_duplicate=True):
        if isinstance(held, nn.ModuleList) and not any(held is inner for each in found for inner in each.modules()):
            found += [each for each in held if not isinstance(each, nn.ModuleList)]
    for each in found:
        for parameter in set(each.parameters()):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return [each for each in found if _own(each, owners, uses)]


def _own(block: nn.Module, owners: dict[int, int], uses: dict[int, int]) -> bool:
    """Whether nobody outside a block holds one of its parameters."""
    inside: dict[int, int] = {}
    for module in block.modules():
        for parameter in module.parameters(recurse=False):
            inside[id(parameter)] = inside.get(id(parameter), 0) + 1
    return bool(inside) and all(owners[key] == 1 and uses[key] == count for key, count in inside.items())


def whole(value: Tensor) -> Tensor:
    """A tensor with all its shares; every process asks for it. One that is not shared out is returned as it is."""
    gather = getattr(value, "full_tensor", None)  # that of a DTensor
    return value if gather is None else gather()


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    return {name: whole(value.detach()) for name, value in module.state_dict().items()}


def like(value: Tensor, shared: Any) -> Tensor:
    """A whole tensor, the same in every process, shared out as another is; as it is where that one is not."""
    if not hasattr(shared, "placements") or value.shape != shared.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    # without a source nothing is sent: each process cuts out its share
    return distribute_tensor(value.to(shared.device), shared.device_mesh, shared.placements, src_data_rank=None)
