"""The peak that commands predict before they start, against what they then take; and what --fit makes of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from runtime import memory
from runtime.config import FitConfig
from runtime.errors import InputError
from runtime.memory import MOMENTS, forecast, peak_bytes, settle, step_bytes, weight_bytes
from tests.runtime.test_memory import CPU, NETWORKS, vae, vae_step
from tests.support.processes import ROOT, environment

UNITS = {"MiB": 2**20, "GiB": 2**30}
settled = partial(settle, vae_step, device=CPU, layers="convolutions")


def config(**changes: object) -> FitConfig:
    fields = {"run_dir": Path("run"), "steps": 1, "batch_size": 12, "lr": 0.1, "warmup_steps": 1}
    return FitConfig(**fields | {"val_every_steps": 1, "save_every_steps": 1} | changes)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_imitation_takes_what_the_network_takes_and_leaves_it_alone(name: str) -> None:
    make, step = NETWORKS[name]
    network = make()
    predicted = [step_bytes(step, network, cases) for cases in (1, 5)]
    assert all(parameter.grad is None for parameter in network.parameters())
    measured = []
    for cases in (1, 5):
        network.zero_grad(set_to_none=True)
        measured.append(peak_bytes(partial(step, network, cases)))
    assert predicted == pytest.approx(measured, rel=0.01)


def need_of(network: torch.nn.Module, cases: int) -> float:
    """GiB that a step of so many of twelve cases is predicted to take."""
    work = step_bytes(vae_step, network, cases, 12 // cases)
    return forecast(work, CPU, "convolutions", MOMENTS * weight_bytes(network)).ahead / 2**30


def test_a_limit_chooses_the_most_cases_that_fit_and_recomputes_where_it_has_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside a program of no size: what this one holds grows with each imitation by more than recomputing saves."""
    monkeypatch.setattr(memory, "held_bytes", lambda _: 0)
    need = {cases: need_of(vae(), cases) for cases in (1, 2, 3, 4)}
    assert need[1] < need[2] < need[3] < need[4]
    network = vae()
    for limit, cases in (((need[3] + need[4]) / 2, 3), ((need[2] + need[3]) / 2, 2), (50, 12)):
        assert settled(network, config(fit=limit))[0] == cases
        assert not network.recompute
    lean = need_of(vae(recompute=True), 1)
    cases, said = settled(network, config(fit=(need[1] + lean) / 2))
    assert network.recompute
    assert cases == 1
    assert "for a step, 1 of 12 cases at once with recomputed activations" in said


def test_what_fits_in_no_way_is_told_what_it_needs() -> None:
    with pytest.raises(InputError, match=r"--fit 0.01: one case with recomputed activations needs \d+\.\d+ GiB; hint"):
        settled(vae(), config(fit=0.01), hint="; hint")
    with pytest.raises(InputError, match="--micro-batch 5 does not divide the 12 cases of a process"):
        settled(vae(), config(micro_batch=5))


def test_what_is_done_between_steps_counts_when_it_takes_more() -> None:
    network = vae()
    many = 2**30
    between = forecast(many + 2 * weight_bytes(network), CPU, "convolutions", MOMENTS * weight_bytes(network))
    assert "for a step, 12 of 12 cases at once" in settled(network, config(), other=1)[1]
    assert "for validation, more than for a step, 12 of 12 cases at once" in settled(network, config(), other=many)[1]
    with pytest.raises(InputError, match=r"--fit 1: validation needs \d\.\d+ GiB"):
        settled(network, config(fit=1), other=many)
    assert settled(network, config(fit=between.ahead / 2**30 + 0.05), other=many)[0] == 12


def peak(module: str, *words: object) -> tuple[float, int]:
    """The bytes that a command said it would take, and those that its process took."""
    command = [sys.executable, "-m", module, *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), **pipes)
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, said
    number, unit = re.search(r"memory: about ([\d.]+) (MiB|GiB) at the peak", said).groups()
    return float(number) * UNITS[unit], 1024 * usage.ru_maxrss


@pytest.mark.slow
@pytest.mark.parametrize("batch", [8, 128, 512])
def test_a_training_takes_what_it_said(batch: int, cohort_dir: Path, tmp_path: Path) -> None:
    """Of which two thirds are activations in the largest."""
    tables = ("--train-csv", cohort_dir / "train.csv", "--val-csv", cohort_dir / "val.csv")
    words = ("smoke", *tables, "--cache-dir", tmp_path / "cache", "--run-dir", tmp_path / "run", "--threads", 1)
    brief = ("--steps", 2, "--warmup-steps", 1, "--val-every-steps", 2, "--save-every-steps", 2)
    said, taken = peak("VAE.train", *words, *brief, "--batch-size", batch)
    assert said == pytest.approx(taken, rel=0.15)
