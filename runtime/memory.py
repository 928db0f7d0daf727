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
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from runtime import distributed
from runtime.config import FitConfig
from runtime.errors import InputError

Step = Callable[[nn.Module, int], object]
Thing = TypeVar("Thing")
USABLE = {"cuda": 0.8, "cpu": 0.4}
"""Share of the free memory to plan tensors with. Allocators leave gaps and libraries want room to work in: on a CPU a
training step was measured to take 17 to 50 percent more than its tensors, and to fail with half of a limit unused."""
MOMENTS = 2
"""Copies of the weights that Adam keeps."""
Layers = Literal["convolutions", "matrices"]
ROOM = {
    ("cpu", "convolutions"): 0.45, ("cpu", "matrices"): 0.2, ("cuda", "convolutions"): 0.1, ("cuda", "matrices"): 0.05,
}  # fmt: skip
"""Room that libraries take for themselves while they compute, as a share of the tensors: on a CPU measured (for
convolutions oneDNN's is about the same at all sizes), on a GPU a guess."""
AMX_ROOM = 0.8
"""The same of convolutions in bfloat16 where the CPU has AMX, whose kernels copy what they read: measured."""
KERNELS = 20 * 2**20
"""Code that oneDNN makes for the layers of a network, on a CPU."""
_CPU_WORDS = ("DefaultCPUAllocator", "not enough memory", "bad_alloc")
_ONEDNN_WORDS = "could not create a primitive"  # all that it says when there is no memory for its code


class Where(Protocol):
    """What counts here of a `runtime.device.Device`."""

    kind: torch.device
    precision: torch.dtype


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
        for storage in _storages((args, kwargs)):  # there before, or known: a view of weights makes nothing
            self._known.add(storage)
        made = operation(*args, **(kwargs or {}))
        for storage in _storages(made):
            self._note(storage)
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:
            self._known.add(storage)
            self._add(storage.nbytes())
            weakref.finalize(storage, self._add, -storage.nbytes())

    def _add(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)


def _storages(values: Any) -> list[torch.UntypedStorage]:
    """Of all tensors in nested values."""
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def peak_bytes(work: Callable[[], object]) -> int:
    """The most bytes of tensors made by `work` that are alive at once, on whatever device. What was there before, such
    as weights, does not count, nor what libraries take for themselves.
    """
    with _Alive() as alive:
        work()
    return alive.most


def imitation(things: Thing) -> Thing:
    """A copy of networks whose tensors have shapes and strides and no values: what it computes takes no memory and
    hardly any time, and `peak_bytes` of it is that of the real one.
    """
    with FakeCopyMode(FakeTensorMode(allow_non_fake_inputs=True)):
        return copy.deepcopy(things)


def zeros(network: nn.Module, *shape: int) -> torch.Tensor:
    """Zeros where a network is, float32; imitated ones for an `imitation`."""
    return next(network.parameters()).new_zeros(shape, dtype=torch.float32)


def step_bytes(step: Step, network: nn.Module, cases: int, parts: int = 1) -> int:
    """The most bytes of tensors that forward and backward pass of so many cases make, gradients among them; of several
    parts of a batch, gradients are there before the passes of the second.
    """
    copied = imitation(network)
    return peak_bytes(lambda: [step(copied, cases) for _ in range(min(parts, 2))])


@dataclass(frozen=True)
class Need:
    """Bytes that a training step takes besides the weights: `fixed`, and for `each` case of its batch."""

    fixed: int
    each: int

    def fits(self, free: int) -> int:
        """How many cases fit in so many bytes."""
        return max(0, int((free - self.fixed) / self.each))


def measure(step: Step, network: nn.Module) -> Need:
    """What a training step of Adam takes, from `step` with one case and with two."""
    one, two = (step_bytes(step, network, cases) for cases in (1, 2))
    return Need(fixed=one - (two - one) + MOMENTS * weight_bytes(network), each=two - one)


def weight_bytes(network: nn.Module) -> int:
    """Of all parameters."""
    return sum(parameter.nbytes for parameter in network.parameters())


def step_advice(
    step: Step, network: nn.Module, device: torch.device, batch_size: int,
    recompute: Callable[[nn.Module], None] | None = None, multiple: int = 1,
) -> str:  # fmt: skip
    """What a training step takes, what there is, and the batch that fits.

    Args:
        step: forward and backward pass of a network over so many cases. It is given imitations of `network`, which are
            not compiled and whose gradients are no other process's business.
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
        copied = imitation(network)
        if change is not None:
            change(copied)
        need = measure(step, copied)
        # Never more than half of what has just failed, whatever the estimate.
        cases = min(need.fits(usable), batch_size // processes // 2) // multiple * multiple
        how = f"with {flag}" if flag else ""
        verdict = f"{flag}--batch-size {cases * processes} fits" if cases else "not even one case fits"
        lines.append(f"{how}each case takes about {size_text(need.each)}: {verdict}")
    return "\n  - ".join(lines)


@dataclass(frozen=True)
class Forecast:
    """Bytes that this process will have taken at its peak: of the device, or on a CPU of the machine's memory."""

    held: int
    """Before the work: on a CPU the program itself, and everywhere data, weights and their averages."""
    state: int
    """That comes with the first step and stays: the optimiser's moments."""
    work: int
    """Gradients, activations, and what libraries take while they compute."""
    most: int
    """Of the process so far."""

    @property
    def ahead(self) -> int:
        """At the peak of the work."""
        return self.held + self.state + self.work

    @property
    def total(self) -> int:
        """At the peak, which may have been before: reading data, for example."""
        return max(self.most, self.ahead)

    def text(self, what: str, device: torch.device) -> str:
        """One line for people; `what` says what the work is, such as "a step of 8 cases"."""
        parts = {"held now": self.held, "for the optimiser": self.state, f"for {what}": self.work}
        listed = ", ".join(f"{size_text(count)} {name}" for name, count in parts.items() if count >= 2**20)
        free = free_bytes(device)
        warning = "; THAT IS MORE THAN THERE IS" if self.state + self.work > free else ""
        return f"memory: about {size_text(self.total)} at the peak ({listed}); {size_text(free)} are free{warning}"


def forecast(work: int, device: Where, layers: Layers, state: int = 0) -> Forecast:
    """The peak of a process that goes on to make `work` bytes of tensors at once, by layers of one kind, and `state`.

    Args:
        work: `step_bytes`, or `peak_bytes` of an imitation.
        layers: what the network mostly consists of.
    """
    kind = device.kind
    if kind.type == "cuda":
        most, fixed = torch.cuda.max_memory_allocated(kind), 0
    else:
        most, fixed = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, KERNELS
    return Forecast(held_bytes(kind), state, int((1 + room(device, layers)) * work) + fixed, most)


def room(device: Where, layers: Layers) -> float:
    """What libraries take for themselves, as a share of the tensors."""
    if layers == "convolutions" and device.kind.type == "cpu" and device.precision == torch.bfloat16:
        return AMX_ROOM if torch.cpu._is_amx_tile_supported() else ROOM["cpu", layers]
    return ROOM[device.kind.type, layers]


def held_bytes(device: torch.device) -> int:
    """What this process has taken: of a GPU its tensors, of the machine's memory all that it is."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def step_line(step: Step, network: nn.Module, batch_size: int, device: Where, *, started: bool) -> str:
    """A line about what a training step of convolutions takes, its cases all at once.

    Args:
        started: whether the optimiser has its moments already.
    """
    cases = batch_size // distributed.world_size()
    state = 0 if started else MOMENTS * weight_bytes(network)
    return forecast(step_bytes(step, network, cases), device, "convolutions", state).text(
        f"a step of {cases} cases", device.kind
    )


@torch.no_grad()
def inference_bytes(work: Callable[[Thing], object], networks: Thing) -> int:
    """The most bytes of tensors that `work` makes at once without gradients, given imitations of `networks`."""
    return peak_bytes(partial(work, imitation(networks)))


def settle(
    step: Step, network: nn.Module, config: FitConfig, device: Where, layers: Layers, hint: str = "", other: int = 0
) -> tuple[int, str]:
    """How many cases of a training step to compute at once, and a line about the memory that this takes; before the
    run's folder, so that a refusal leaves nothing behind, and before it has given the optimiser its moments.

    They are those of --micro-batch; or with --fit the most, among the divisors of this process's share of the batch,
    whose `forecast` is within it. Activations are recomputed where one case does not fit otherwise.

    Args:
        network: has `recompute_activations`.
        hint: what else takes less memory, for the message where nothing fits.
        other: `inference_bytes` of what the training does between steps, at most.
    """
    share = config.batch_size // distributed.world_size()
    state = MOMENTS * weight_bytes(network)
    cases = config.micro_batch or share
    if share % cases:
        raise InputError(f"--micro-batch {cases} does not divide the {share} cases of a process")
    if other:  # beside the last step's gradients, and the weights that are put back after those of an average
        other += 2 * weight_bytes(network)
    between = forecast(other, device, layers, state)
    if config.fit is not None:
        if other and between.ahead > config.fit * 2**30:
            needed = f"{between.ahead / 2**30:.2f} GiB, whatever a step does"
            raise InputError(f"--fit {config.fit:g}: validation needs {needed}; a coarser --grid needs less")
        cases = _most_cases(step, network, config.fit, device, layers, share, state, hint)
        found = distributed.gather((cases, network.recompute))  # one way for all: passes of all processes meet
        cases = min(count for count, _ in found)
        if any(again for _, again in found):
            network.recompute_activations()
    predicted = forecast(step_bytes(step, network, cases, share // cases), device, layers, state)
    how = f"{cases} of {share} cases at once" + " with recomputed activations" * network.recompute
    if between.work > predicted.work:
        return cases, between.text(f"validation, more than for a step, {how}", device.kind)
    return cases, predicted.text(f"a step, {how}", device.kind)


def _most_cases(
    step: Step, network: nn.Module, limit: float, device: Where, layers: Layers, share: int, state: int, hint: str
) -> int:
    """The largest divisor of `share` within `limit` GiB; makes `network` recompute activations where it has to."""
    for again in (False, True):
        if again:
            network.recompute_activations()
        one, two = (step_bytes(step, network, cases, share) for cases in (1, 2))
        for cases in (count for count in range(share, 0, -1) if share % count == 0):
            needed = forecast(one + (cases - 1) * (two - one), device, layers, state).ahead
            if needed <= limit * 2**30:
                return cases
    raise InputError(f"--fit {limit:g}: one case with recomputed activations needs {needed / 2**30:.2f} GiB{hint}")


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
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.0f} MiB"
