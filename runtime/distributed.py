"""One process or many, with the same code: torchrun's environment variables decide, and without them there is one.

What makes n processes equal one: whatever is random for a batch is drawn for the *global* batch, from a generator that
does not know the rank, and each process keeps its slice (`local`). Averaged gradients then equal those of
one process with the whole batch, up to rounding.
"""

from __future__ import annotations

import datetime
import inspect
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING or "WORLD_SIZE" in os.environ:  # one process needs no torch here: it takes seconds to import
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.nn.functional import all_reduce

T = TypeVar("T")
PATIENCE = datetime.timedelta(minutes=30)
"""How long processes wait for one another: the main one may decode a cohort."""


def init() -> None:
    """Joins the process group that torchrun announced; does nothing without a launcher or when already joined."""
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
        dist.init_process_group("nccl", device_id=torch.device("cuda", local_rank()), timeout=PATIENCE)
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)


def shutdown() -> None:
    """Leaves the process group, if there is one."""
    if "WORLD_SIZE" in os.environ and dist.is_initialized():
        dist.destroy_process_group()


def dismiss() -> bool:
    """Lets all processes go but the main one, which works on as if it had been alone; False in those that are to end.

    For what one process does at the end and takes long: others would wait for it, if only with leaving the group, until
    PATIENCE ends. All call it at about the same time.
    """
    main = is_main()
    shutdown()
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        os.environ.pop(name, None)
    return main


def rank() -> int:
    """This process's number among all, 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process's number on its machine: the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """How many processes work together, 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is the one process that logs and writes."""
    return rank() == 0


def barrier() -> None:
    """Waits for all processes."""
    if world_size() > 1:
        dist.barrier()


def local(batch: torch.Tensor) -> torch.Tensor:
    """This process's contiguous share of a global batch (first axis, which must divide evenly)."""
    if batch.shape[0] % world_size():
        raise ValueError(f"a global batch of {batch.shape[0]} does not divide over {world_size()} processes")
    return batch.chunk(world_size())[rank()]


def shard(items: Sequence[T]) -> list[T]:
    """This process's share of independent work: every world_size-th item, from its rank on."""
    return list(items)[rank() :: world_size()]


def run_of(items: Sequence[T]) -> list[T]:
    """This process's share of independent work, neighbours among it: of as many runs as processes, as long as each
    other to one item, that of its rank.
    """
    first, end = (len(items) * r // world_size() for r in (rank(), rank() + 1))
    return list(items[first:end])


def wrap(module: nn.Module) -> nn.Module:
    """DistributedDataParallel around `module` when there are several processes. Call the wrapper, not ``.module``."""
    if world_size() == 1:
        return module
    ddp = nn.parallel.DistributedDataParallel
    # Called broadcast_buffers before torch 2.13. No network here has buffers that differ between processes.
    known = "forward_sync_buffers" in inspect.signature(ddp).parameters
    buffers = {"forward_sync_buffers" if known else "broadcast_buffers": False}
    if torch.cuda.is_available():
        # Dynamo would cut what is compiled at the edges of DDP's buckets, which fails where activations are recomputed;
        # blocks compiled one by one have such edges already.
        torch._dynamo.config.optimize_ddp = False
    return ddp(module, gradient_as_bucket_view=True, **buffers)


def mean(value: torch.Tensor) -> torch.Tensor:
    """Average of a tensor over all processes (each process gets it)."""
    if world_size() == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value / world_size()


def mean_with_gradient(value: torch.Tensor) -> torch.Tensor:
    """`mean` through which gradients of every process's loss flow back to every process's share."""
    return value if world_size() == 1 else all_reduce(value.clone()) / world_size()


def from_main(value: T) -> T:
    """The main process's value, in every process: what depends on files is decided once."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def gather(value: object) -> list:
    """Python objects of all processes, in the order of ranks (each process gets the list)."""
    values: list = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values
