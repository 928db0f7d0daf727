"""What a step takes of memory: predicted as measured; and what is said when a process really has too little."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from classifier.config import ModelConfig as ResNetConfig
from classifier.model import build_model
from cohort.grids import GRIDS, Grid
from diffusion.config import ModelConfig as DiTConfig
from diffusion.model import DiT
from runtime import memory
from runtime.device import Device
from runtime.errors import InputError
from runtime.memory import Need, explained, is_out_of_memory, measure, peak_bytes, step_advice
from tests.support.processes import ROOT, environment, run_here
from VAE.checkpoint import save_vae
from VAE.config import PRESETS as VAES
from VAE.config import ModelConfig
from VAE.model import Autoencoder

GRID = GRIDS["smoke"]
RESNET = ResNetConfig(widths=(8, 16, 32), blocks=1, stem_stride=1)
CPU = Device(torch.device("cpu"), torch.float32)


def test_what_lives_at_once_is_counted_and_what_has_gone_is_not() -> None:
    def work() -> None:
        a = torch.zeros(1000)
        b = a + 1  # two at once
        a = b.view(10, 100)  # no copy
        del b
        c = a * 2
        del a
        c.add_(1)

    assert peak_bytes(work) == 2 * 4000


def test_views_of_what_was_there_take_nothing() -> None:
    weight, x = torch.ones(1000, 100), torch.ones(1, 100)
    assert peak_bytes(lambda: (weight.T, weight.view(100, 1000), weight[:10])) == 0
    assert peak_bytes(lambda: x @ weight.T) == 4000


def vae_step(network: Autoencoder, cases: int) -> None:
    x, eps = torch.rand(cases, 1, *GRID.shape), torch.randn(cases, *network.latent_shape(GRID.shape))
    x_hat, mu, logvar = network(x, eps)
    ((x_hat - x).abs().mean() + mu.square().mean() + logvar.mean()).backward()


def dit_step(network: DiT, cases: int) -> None:
    z, y = torch.randn(cases, *network.latent_shape), torch.zeros(cases, dtype=torch.int64)
    network(z, y, y).square().mean().backward()


def classifier_step(network: nn.Module, cases: int) -> None:
    network.both(torch.rand(cases, 1, *GRID.shape)).sum().backward()


def vae(*, recompute: bool = False) -> Autoencoder:
    network = Autoencoder(ModelConfig(channels=(16, 32), groups=8))
    if recompute:
        network.recompute_activations()
    return CPU.module(network)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable]] = {
    "vae": (vae, vae_step),
    "vae with recomputed activations": (lambda: vae(recompute=True), vae_step),
    "dit": (lambda: DiT(DiTConfig(dim=96, depth=3, heads=2, patch=(2, 2, 2)), (4, 10, 12, 10)), dit_step),
    "classifier": (lambda: build_model(RESNET, GRID, 0.0, 1.0).eval(), classifier_step),
}


def allocated(work: Callable[[], object]) -> int:
    """The most bytes that the CPU's allocator had given out at once, beyond those before, as the profiler saw it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    now = most = 0
    for event in profiler.profiler.kineto_results.events():
        now += event.nbytes() if event.name() == "[memory]" else 0
        most = max(most, now)
    return most


def saved(network: nn.Module, work: Callable[[], object]) -> int:
    """Bytes that autograd keeps for the backward pass, besides the weights."""
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    found = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(tensor.untyped_storage().nbytes() for place, tensor in found.items() if place not in own)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_prediction_is_what_the_allocator_gives_out(name: str) -> None:
    """What six more cases take, predicted from one and two; measured, libraries take some room for themselves."""
    make, step = NETWORKS[name]
    network = make()
    need = measure(step, copy.deepcopy(network))
    step(network, 1)  # gradients are there from now on
    six, twelve = (allocated(partial(step, network, cases)) for cases in (6, 12))
    assert 6 * need.each == pytest.approx(twelve - six, rel=0.2)


@pytest.mark.parametrize("name", ["vae", "dit", "classifier"])
def test_the_prediction_is_what_autograd_saves(name: str) -> None:
    make, step = NETWORKS[name]
    network = make()
    need = measure(step, copy.deepcopy(network))
    assert 6 * need.each == pytest.approx(saved(network, lambda: step(network, 6)), rel=0.15)


def test_measuring_leaves_the_network_as_it_was() -> None:
    network = vae()
    step_advice(vae_step, network, torch.device("cpu"), 8, Autoencoder.recompute_activations)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not network.encoder.recompute


def test_the_advice_names_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    network = vae()
    plain, lean = (measure(vae_step, vae(recompute=flag)) for flag in (False, True))
    free = int((plain.fixed + 3.5 * plain.each) / memory.USABLE["cpu"])
    monkeypatch.setattr(memory, "free_bytes", lambda _: free)
    text = step_advice(vae_step, network, torch.device("cpu"), 64, Autoencoder.recompute_activations)
    first, second, third = text.split("\n  - ")
    assert first == f"out of memory at --batch-size 64; {free / 2**20:.0f} MiB are free for a step"
    assert second == f"each case takes about {plain.each / 2**20:.0f} MiB: --batch-size 3 fits"
    fits = lean.fits(int(memory.USABLE["cpu"] * free))
    assert fits > 3
    assert third == (
        f"with --recompute each case takes about {lean.each / 2**20:.0f} MiB: --recompute --batch-size {fits} fits"
    )
    half = step_advice(vae_step, network, torch.device("cpu"), 4)
    assert half.endswith("--batch-size 2 fits")  # whatever the estimate: four did not
    monkeypatch.setattr(memory, "free_bytes", lambda _: 1000)
    assert step_advice(vae_step, network, torch.device("cpu"), 4).endswith("MiB: not even one case fits")
    assert Need(fixed=100, each=10).fits(90) == 0


def test_only_a_lack_of_memory_is_one() -> None:
    with pytest.raises(RuntimeError, match="alloc") as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_out_of_memory(ValueError("not enough memory"))


def test_the_tensors_of_a_failed_step_are_gone_when_it_is_explained() -> None:
    seen = []

    def step() -> None:
        held = torch.zeros(10)
        seen.append(torch.multiprocessing.reductions.StorageWeakRef(held.untyped_storage()))
        torch.empty(2**60, dtype=torch.uint8)

    with pytest.raises(InputError, match="freed: True"), explained(lambda: f"freed: {seen[0].expired()}"):
        step()


LIMITED = """
import importlib, resource, runpy, sys
from pathlib import Path
module, megabytes = sys.argv[1], int(sys.argv[2])
for name in (module, "torch.utils.tensorboard", "matplotlib.backends.backend_agg", "torch.utils.checkpoint"):
    importlib.import_module(name)
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + megabytes * 2**20,) * 2)
sys.argv = [module, *sys.argv[3:]]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def limited(module: str, megabytes: int, *words: object, ok: bool = True) -> subprocess.CompletedProcess:
    """Runs a script that may take so much more address space than its modules have."""
    command = [sys.executable, "-W", "ignore", "-c", LIMITED, module, str(megabytes), *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert not ok or "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def latents(cohort_dir: Path, tmp_path_factory: pytest.TempPathFactory, random_vae: Path) -> Path:
    folder = tmp_path_factory.mktemp("latents")
    run_here("VAE.save_latent", "--checkpoint", random_vae, "--cache-dir", cohort_dir / "cache", "--out", folder,
             "--csv", cohort_dir / "train.csv", cohort_dir / "val.csv")  # fmt: skip
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("module", ["VAE.train", "diffusion.train", "classifier.train"])
def test_a_first_step_that_does_not_fit_says_what_does(
    module: str, cohort_dir: Path, latents: Path, tmp_path: Path
) -> None:
    """A real allocation fails; what the message then advises works in the same memory."""
    tables = [word for name in ("train", "val") for word in (f"--{name}-csv", cohort_dir / f"{name}.csv")]
    words = {
        "VAE.train": (*tables, "--cache-dir", cohort_dir / "cache"),
        "diffusion.train": ("--latents", latents),
        "classifier.train": (*tables, "--test-csv", cohort_dir / "test.csv", "--cache-dir", cohort_dir / "cache",
                             "--resamples", 10),
    }[module]  # fmt: skip
    words = ("smoke", *words, "--steps", 1, "--threads", 1, "--precision", "float32", "--run-dir", tmp_path)
    done = limited(module, 600, *words, "--batch-size", 2048)
    assert done.returncode == 2, done.stderr
    assert "error: out of memory at --batch-size 2048; " in done.stderr
    advised = [line.split(": ")[1].removesuffix(" fits").split() for line in done.stderr.splitlines() if "  - " in line]
    assert [line[0] for line in advised] == ["--batch-size", "--recompute"][: 1 if module == "classifier.train" else 2]
    assert 0 < int(advised[-1][-1]) <= 1024, done.stderr  # how few depends on what malloc holds back
    done = limited(module, 600, *words, *advised[-1], ok=False)  # the baselines of a classifier may take more
    assert (tmp_path / "checkpoints/last.pt").exists(), done.stderr


@pytest.mark.slow
def test_a_scan_that_does_not_fit_is_sent_to_tiles(tmp_path: Path) -> None:
    grid = Grid("long", (160, 24, 20), 2.0, GRIDS["demo"].centre_mm)
    model = Autoencoder(replace(VAES["smoke"].model, channels=(256,), groups=16, stem_patch=1, linear_path=False))
    path = tmp_path / "vae.pt"
    save_vae(path, model, grid=grid, ledger=[], step=1, ema=model.state_dict())
    scan = np.random.default_rng(0).uniform(1, 2, grid.shape).astype(np.float32)
    nib.save(nib.Nifti1Image(scan, grid.affine), tmp_path / "scan.nii")
    (tmp_path / "one.csv").write_text("subject,file,diagnosis\nnew,scan.nii,HC\n")
    words = ("VAE.infer", 450, "--checkpoint", path, "--csv", tmp_path / "one.csv", "--out", tmp_path / "out",
             "--cache-dir", tmp_path / "cache", "--threads", 1, "--precision", "float32")  # fmt: skip
    done, sizes = limited(*words), [40]
    assert "out of memory at a single scan; " in done.stderr
    # What libraries take beside the tensors is a processor's own: the first size that is advised may be one too many.
    while done.returncode and len(sizes) < 4:
        found = re.search(r"; \d+ MiB were free: --tile (\d+) works piece by piece", done.stderr)
        assert found is not None, done.stderr
        assert 2 <= int(found[1]) < sizes[-1], done.stderr
        sizes.append(int(found[1]))
        done = limited(*words, "--tile", sizes[-1])
    assert done.returncode == 0, done.stderr
