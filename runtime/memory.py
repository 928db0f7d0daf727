"""What a computation takes of memory, and what to say when there is not enough of it."""

import copy
import ctypes
import resource
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from runtime import distributed
from runtime.errors import InputError

Step = Callable[[nn.Module, int], object]
USABLE = {"cuda": 0.8, "cpu": 0.4}
"""Share of the free memory to plan tensors with. Allocators leave gaps and libraries want room to work in: on a CPU a
training step was measured to take 17 to 50 percent more than its tensors, and to fail with half of a limit unused."""
_CPU_WORDS = ("DefaultCPUAllocator", "not enough memory", "bad_alloc")
_ONEDNN_WORDS = "could not create a primitive"  # all that it says when there is no memory for its code


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is a lack of memory: a GPU has a class of its own for it, a CPU's is a RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (text == _ONEDNN_WORDS or any(word in text for word in _CPU_WORDS))


@contextmanager
def explained(explain: Callable[[], str]) -> Iterator[None]:
    """Running out of memory in the block becomes an InputError with what `explain` then says; the block's tensors are
    gone by then.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)
        raise InputError(explain()) from None


class _Alive(TorchDispatchMode):
    """Counts the bytes of what operations make, while it lives, and the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        made = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:
            self._known.add(storage)
            self._add(storage.nbytes())
            weakref.finalize(storage, self._add, -storage.nbytes())

    def _add(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)


def peak_bytes(work: Callable[[], object]) -> int:
    """The most bytes of tensors made by `work` that are alive at once, on whatever device. What was there before, such
    as weights, does not count, nor what libraries take for themselves.
    """
    with _Alive() as alive:
        work()
    return alive.most


@dataclass(frozen=True)
class Need:
    """Bytes that a training step takes besides the weights: `fixed`, and for `each` case of its batch."""

    fixed: int
    each: int

    def fits(self, free: int) -> int:
        """How many cases fit in so many bytes."""
        return max(0, int((free - self.fixed) / self.each))


def measure(step: Step, network: nn.Module) -> Need | None:
    """What a training step of Adam takes, from `step` with one case and with two; None where not even one fits."""
    for parameter in network.parameters():
        # Gradients would hide how activations grow: they are let go of as they come, and counted apart.
        parameter.register_post_accumulate_grad_hook(lambda self: setattr(self, "grad", None))
    peaks = []
    try:
        for cases in (1, 2):
            peaks.append(peak_bytes(partial(step, network, cases)))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    if not peaks:
        return None
    each = peaks[1] - peaks[0] if len(peaks) == 2 else peaks[0]
    weights = sum(parameter.nbytes for parameter in network.parameters())
    return Need(fixed=peaks[0] - each + 3 * weights, each=each)  # the gradient and Adam's two averages


def step_advice(
    step: Step,
    network: nn.Module,
    device: torch.device,
    batch_size: int,
    recompute: Callable[[nn.Module], None] | None = None,
    multiple: int = 1,
) -> str:
    """What a training step takes, what there is, and the batch that fits.

    Args:
        step: forward and backward pass of a network over so many cases. It is given copies of `network`, which are not
            compiled and whose gradients are no other process's business.
        batch_size: that did not fit, over all processes.
        recompute: makes a network recompute activations, where it can and does not yet.
        multiple: that a batch has to be of.
    """
    network.zero_grad(set_to_none=True)
    free, processes = free_bytes(device), distributed.world_size()
    usable = int(USABLE[device.type] * free)
    lines = [f"out of memory at --batch-size {batch_size}; {size_text(free)} are free for a step"]
    for flag, change in (("", None), ("--recompute ", recompute)):
        if flag and change is None:
            continue
        copied = copy.deepcopy(network)
        if change is not None:
            change(copied)
        need = measure(step, copied)
        # Never more than half of what has just failed, whatever the estimate.
        cases = 0 if need is None else min(need.fits(usable), batch_size // processes // 2) // multiple * multiple
        how = f"with {flag}" if flag else ""
        takes = "" if need is None else f"each case takes about {size_text(need.each)}: "
        verdict = f"{flag}--batch-size {cases * processes} fits" if cases else "not even one case fits"
        lines.append(how + takes + verdict)
    return "\n  - ".join(lines)


def free_bytes(device: torch.device) -> int:
    """Memory that this process can still take: of a GPU what the driver has, on a CPU the least of what the machine has
    available and what a limit of address space (``ulimit -v``) leaves. What is cached for reuse is given back first.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    [line] = (line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    available, (limit, _) = 1024 * int(line.split()[1]), resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return available
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc's, which was told to keep what is freed
        libc.malloc_trim(0)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return min(available, limit - taken)


def size_text(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.0f} MiB"
