"""What is compiled, and how often: one network serves training and validation, and no batch is compiled for alone.

A CPU runs eagerly, so `Device.compiles` is told otherwise here; of torch.compile all is real but the last stage, the
code generator, which has a test of its own in test_save_synth.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from runtime.device import Device
from runtime.runs import Run
from tests.support.processes import run_here
from VAE.latents import read_latent

CPU = Device(torch.device("cpu"), torch.float32)
EVERY_STEP = ("--val-every-steps", 1, "--log-every-steps", 1, "--save-every-steps", 100)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Runs a script in this process; how many graphs were compiled by each line of its log, and by its end."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(Device, "compiles", lambda _self, asked: asked)
    monkeypatch.setattr("classifier.train.evaluate", lambda *_: None)
    log = Run.log

    def count(*words: object) -> list[int]:
        torch.compiler.reset()
        counters.clear()
        found = []
        monkeypatch.setattr(Run, "log", lambda *line: (found.append(counters["stats"]["unique_graphs"]), log(*line)))
        run_here(*words, "--precision", "float32", "--threads", 1)
        return [*found, counters["stats"]["unique_graphs"]]

    return count


def test_on_a_cpu_nothing_is_compiled_and_on_a_gpu_what_is_asked() -> None:
    gpu = Device(torch.device("cuda"), torch.bfloat16)
    assert [gpu.compiles(True), gpu.compiles(False), CPU.compiles(True)] == [True, False, False]


def training_words(cohort_dir: Path, run_dir: Path) -> tuple:
    """Two steps, each with a validation, so that the log has four lines."""
    return ("--cache-dir", cohort_dir / "cache", "--train-csv", cohort_dir / "train.csv", "--val-csv",
            cohort_dir / "val.csv", "--run-dir", run_dir, "--steps", 2, *EVERY_STEP)  # fmt: skip


@pytest.mark.slow
def test_a_vae_is_compiled_once_for_training_and_once_for_validation(
    cohort_dir: Path, tmp_path: Path, graphs: Callable[..., list[int]]
) -> None:
    """Encoder and decoder, each twice: a graph with gradients is another one."""
    assert graphs("VAE.train", "smoke", *training_words(cohort_dir, tmp_path / "run")) == [2, 4, 4, 4, 4]
    words = training_words(cohort_dir, tmp_path / "eager")
    assert graphs("VAE.train", "smoke", *words, "--no-compile") == [0] * 5


@pytest.mark.slow
def test_a_classifier_is_compiled_once_for_training_and_once_for_validation(
    cohort_dir: Path, tmp_path: Path, graphs: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its held-out scans come in batches of one size, though three do not divide four."""
    monkeypatch.setattr("classifier.evaluation.EVAL_BATCH", 3)
    words = ("--test-csv", cohort_dir / "test.csv", *training_words(cohort_dir, tmp_path))
    assert graphs("classifier.train", "smoke", *words) == [1, 2, 2, 2, 2]


@pytest.mark.slow
def test_a_diffusion_model_is_compiled_once_for_training_and_once_for_validation(
    cohort_dir: Path, tmp_path: Path, random_vae: Path, graphs: Callable[..., list[int]]
) -> None:
    """One block, whose graph serves the others."""
    latents = tmp_path / "latents"
    run_here("VAE.save_latent", "--checkpoint", random_vae, "--cache-dir", cohort_dir / "cache", "--out", latents,
             "--csv", cohort_dir / "train.csv", cohort_dir / "val.csv", "--no-compile")  # fmt: skip
    words = ("--latents", latents, "--run-dir", tmp_path / "run", "--steps", 2, *EVERY_STEP)
    assert graphs("diffusion.train", "smoke", *words) == [1, 2, 2, 2, 2]


@pytest.mark.slow
def test_synthesis_compiles_network_and_decoder_for_one_batch(
    tmp_path: Path, random_vae: Path, random_diffusion: Callable[..., Path], graphs: Callable[..., list[int]]
) -> None:
    words = ("diffusion.save_synth", "--vae", random_vae, "--diffusion", random_diffusion(), "--label", "HC", "--count",
             2, "--steps", 2, "--out", tmp_path)  # fmt: skip
    assert graphs(*words) == [2]


@pytest.mark.slow
@pytest.mark.parametrize(("words", "count"), [((), 2), (("--tile", 8), 0)])
def test_infer_compiles_encoder_and_decoder_for_one_shape(
    cohort_dir: Path, tmp_path: Path, random_vae: Path, graphs: Callable[..., list[int]], words: tuple, count: int
) -> None:
    asked = ("VAE.infer", "--checkpoint", random_vae, "--csv", cohort_dir / "val.csv", "--cache-dir",
             cohort_dir / "cache", *words)  # fmt: skip
    assert graphs(*asked, "--out", tmp_path / "compiled") == [count]
    assert graphs(*asked, "--out", tmp_path / "eager", "--no-compile") == [0]
    means = [json.loads((tmp_path / name / "summary.json").read_text())["mean"] for name in ("compiled", "eager")]
    assert means[0] == pytest.approx(means[1], abs=1e-5)


@pytest.mark.slow
def test_save_latent_fills_its_last_batch_up(
    cohort_dir: Path, tmp_path: Path, random_vae: Path, graphs: Callable[..., list[int]]
) -> None:
    """Twelve and four scans in batches of five: the encoder sees one shape."""
    words = ("VAE.save_latent", "--checkpoint", random_vae, "--cache-dir", cohort_dir / "cache", "--batch-size", 5,
             "--csv", cohort_dir / "train.csv", cohort_dir / "val.csv")  # fmt: skip
    assert graphs(*words, "--out", tmp_path / "compiled") == [1]
    assert graphs(*words, "--out", tmp_path / "eager", "--no-compile") == [0]
    for name in ("train/train11.pkl", "val/val03.pkl"):
        one, other = (read_latent(tmp_path / folder / name) for folder in ("compiled", "eager"))
        torch.testing.assert_close(torch.from_numpy(one.mu), torch.from_numpy(other.mu), atol=1e-5, rtol=1e-5)
