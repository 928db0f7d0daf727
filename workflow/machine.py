"""What the workflow's jobs run on: GPUs of this machine, or nodes of a Slurm cluster."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from runtime.errors import InputError
from runtime.files import atomic_write

POLL_S = 10.0
"""Between two looks at Slurm's queue, which asks to be left in peace."""


def devices_here() -> list[str]:
    """The NVIDIA GPUs that processes of this machine may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for part in visible.split(",") if (device := part.strip()) not in ("", "-1")]
    return [str(number) for number in range(len(gpu_memory_mb()))]


def gpu_memory_mb() -> list[int]:
    """Memory of each NVIDIA GPU of this machine, in MiB; empty where there is none."""
    if shutil.which("nvidia-smi") is None:
        return []
    words = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return [int(line) for line in done.stdout.split()] if done.returncode == 0 else []


def device_pools(devices: Sequence[str]) -> dict[str, int]:
    """Snakemake's resources of this machine: the memory of each GPU in MiB. CUDA and the driver may count GPUs
    otherwise, so it is that of the smallest.
    """
    return {_pool(place): min(gpu_memory_mb(), default=0) for place in range(len(devices))}


def one_gpu(devices: Sequence[str], gpus: int, memory_mb: int, turn: Callable[[Any], int]) -> dict[str, Any]:
    """Snakemake's resources of a job that has one GPU: on this machine its share of the one whose turn it is.

    Args:
        devices: GPUs of this machine that jobs may use; none where jobs run elsewhere.
        gpus: How many a machine has that runs jobs; of 0, a job gets none.
        memory_mb: What the job takes of it.
        turn: A number of the job by its wildcards; successive ones get successive GPUs.
    """
    if not devices or not gpus:
        return {"gpu": min(1, gpus)}

    def share(place: int) -> Callable[[Any], int]:
        return lambda wildcards: memory_mb if turn(wildcards) % len(devices) == place else 0

    return {
        "gpu": 1,
        "device": lambda wildcards: devices[turn(wildcards) % len(devices)],
        **{_pool(place): share(place) for place in range(len(devices))},
    }


def _pool(place: int) -> str:
    return f"gpu{place}_mem_mb"


def on_device(devices: Sequence[str], gpus: int) -> str:
    """What comes before the name of a module that takes one GPU: jobs of one machine have the one of `one_gpu`, those
    of Slurm get their own.
    """
    if "SLURM_JOB_ID" in os.environ or not devices:
        return "python -m "
    return f"CUDA_VISIBLE_DEVICES={'{resources.device}' if gpus else ''} python -m "


def launcher(nodes: int, gpus: int, devices: Sequence[str] = ()) -> str:
    """What comes before the name of a training's module: Python alone, or a process for each GPU of each node. Where
    none of the `devices` of this machine is wanted, none is seen.
    """
    torchrun = f"python -m torch.distributed.run --nproc-per-node {max(1, gpus)}"
    if nodes == 1:
        hidden = "CUDA_VISIBLE_DEVICES= " if devices and not gpus else ""
        return f"{torchrun} --standalone -m " if gpus > 1 else f"{hidden}python -m "
    # Snakemake's Slurm executor hides the list of nodes from its jobs.
    first = "$(scontrol show hostnames $(squeue --noheader --jobs $SLURM_JOB_ID --format %N) | head --lines 1)"
    rendezvous = f"--rdzv-id $SLURM_JOB_ID --rdzv-backend c10d --rdzv-endpoint {first}:29500"
    return f"srun {torchrun} --nnodes {nodes} {rendezvous} -m "


def all_gpus(nodes: int, gpus: int) -> dict[str, Any]:
    """Snakemake's resources of a training that has all GPUs of so many nodes."""
    if nodes == 1:
        return {"gpu": gpus}
    several = {"nodes": nodes, "tasks": nodes, "mpi": "srun"}  # `mpi` says that the job calls srun itself
    return several | ({"slurm_extra": f"'--gpus-per-node={gpus}'"} if gpus else {})


def refuse_machine(settings: dict[str, Any], executor: str, here: int) -> None:
    """Raises InputError where the machine that is to run the jobs lacks what the settings ask for.

    Args:
        settings: Those of `read_settings`.
        executor: Snakemake's executor, such as ``local`` or ``slurm``.
        here: GPUs of this machine.
    """
    if executor == "slurm" and shutil.which("sbatch") is None:
        raise InputError("Slurm is not here (no sbatch): start from a login node, or leave out the Slurm profile")
    if executor == "slurm" and settings["gpus"] == "auto":
        raise InputError("gpus: auto counts those of this machine; say how many a node has, such as gpus: 4, or 0")
    if executor != "local":
        return
    asked, nodes = settings["gpus"], settings["nodes"]
    if asked != "auto" and asked > here:
        why = f"{here} there (nvidia-smi, CUDA_VISIBLE_DEVICES)"
        raise InputError(f"gpus: {asked} asked for, {why}; gpus: 0 uses the CPU")
    if nodes > 1:
        hint = "add --workflow-profile workflow/profiles/slurm"
        raise InputError(f"nodes: {nodes} asked for, and this is one machine; {hint}")


def slurm_name(workflow: Any) -> str:
    """What the Slurm jobs of this command are called: Snakemake's Slurm executor draws it, prints it, and has no public
    name for it.

    Raises:
        InputError: another version keeps it elsewhere.
    """
    try:
        return workflow.scheduler._executor.run_uuid
    except AttributeError as error:
        mine = ", ".join(f"{name} {version(name)}" for name in ("snakemake", "snakemake-executor-plugin-slurm"))
        why = f"{mine} keep the name of their Slurm jobs elsewhere ({error})"
        raise InputError(f"{why}; install the versions that requirements.txt names") from error


def await_jobs(record: Path, name: str) -> None:
    """Waits for Slurm jobs that an earlier command left behind when it was killed; these hold the folders that jobs of
    this one would write.

    Args:
        record: File that keeps the name of a command's jobs.
        name: That of the jobs to come.
    """
    before = record.read_text(encoding="utf-8") if record.exists() else ""
    told = False
    while left := queued(before) if before else []:
        if not told:
            why = "an earlier command sent them and was killed; scancel ends them sooner, and nothing is lost by that"
            print(f"waiting for Slurm jobs {', '.join(left)}: {why}", flush=True)
        told = True
        time.sleep(POLL_S)
    with atomic_write(record) as temporary:
        temporary.write_text(name, encoding="utf-8")


def queued(name: str) -> list[str]:
    """Slurm's numbers of jobs of that name, waiting and running ones."""
    words = ["squeue", "--noheader", "--name", name, "--format", "%i"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"squeue: {done.stderr.strip()}")
    return done.stdout.split()
