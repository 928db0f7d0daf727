"""Diffusion checkpoints: which weights a loader returns, and what may go on from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffusion.checkpoint import load_diffusion, resume_diffusion, save_diffusion, start_from
from diffusion.config import ModelConfig, ProcessConfig
from diffusion.dataset import LatentSpace
from diffusion.model import DiT
from diffusion.process import build_process
from runtime.checkpoints import load_checkpoint
from runtime.errors import InputError
from tests.support.checkpoints import awake
from VAE.latents import Statistics

MODEL = ModelConfig(dim=16, depth=1, heads=1, patch=(2, 2, 2), covariates=("age",))
PROCESS = ProcessConfig(schedule="flow", target="velocity")
LATENT = (4, 4, 4, 4)


def space(vae: str = "abc") -> LatentSpace:
    statistics = Statistics((0.5,) * 4, (2.0,) * 4, 7, "train", vae, {"name": "smoke"}, ["hash"])
    return LatentSpace(statistics, torch.zeros(LATENT), torch.ones(LATENT))


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, DiT]:
    model = awake(DiT(MODEL, LATENT, build_process(PROCESS)))
    tracks = {
        name: {key: value * factor for key, value in model.state_dict().items()}
        for name, factor in (("0.05", 2.0), ("0.15", 3.0))
    }
    path = tmp_path / "best.pt"
    save_diffusion(
        path, model, PROCESS, space(), ema=tracks, track="0.15", step=5, best=0.5, stale=1, ledger=["hash"],
        label_dropout=0.2, covariates={"age": (40.0, 10.0)}, optimiser=[],
    )  # fmt: skip
    return path, model


def test_the_chosen_average_or_the_raw_weights_come_back(saved: tuple[Path, DiT]) -> None:
    path, model = saved
    loaded = load_diffusion(path)
    assert torch.equal(loaded.model.embed.weight, 3 * model.embed.weight)
    assert torch.equal(load_diffusion(path, weights="raw").model.embed.weight, model.embed.weight)
    assert (loaded.model.config, loaded.process_config) == (MODEL, PROCESS)
    assert (loaded.step, loaded.label_dropout, loaded.covariates) == (5, 0.2, {"age": (40.0, 10.0)})
    assert loaded.space.statistics == space().statistics
    assert not loaded.model.training


def test_a_run_starts_from_finished_weights_and_their_space(saved: tuple[Path, DiT]) -> None:
    path, model = saved
    fresh = DiT(MODEL, LATENT, build_process(PROCESS))
    assert start_from(path, fresh, PROCESS, {}).space.statistics.std == (2.0,) * 4
    assert torch.equal(fresh.embed.weight, 3 * model.embed.weight)
    with pytest.raises(InputError, match=r"process_config\.target: the checkpoint has 'velocity', this command 'x0'"):
        start_from(path, fresh, replace(PROCESS, target="x0"), {})


def test_a_run_is_not_continued_on_other_latents(saved: tuple[Path, DiT]) -> None:
    path, model = saved
    assert resume_diffusion(path, model, PROCESS, space())["step"] == 5
    with pytest.raises(InputError, match=r"latents\.vae: the checkpoint has 'abc', this command 'xyz'"):
        resume_diffusion(path, model, PROCESS, space("xyz"))
    other = DiT(replace(MODEL, depth=2), LATENT, build_process(PROCESS))
    with pytest.raises(InputError, match=r"model_config\.depth: the checkpoint has 1, this command 2"):
        resume_diffusion(path, other, PROCESS, space())


def test_a_file_with_window_settings_is_read_where_no_block_used_them(saved: tuple[Path, DiT], tmp_path: Path) -> None:
    path, model = saved
    record = load_checkpoint(path, "diffusion")
    record["model_config"] |= {"window": [0, 0, 0], "window_blocks": [], "latent_channels": 4}
    for weights in (record["weights"], *record["ema"].values()):
        weights["covariates.untold"] = weights.pop("covariates.unknown")
    torch.save(record, tmp_path / "older.pt")
    loaded = load_diffusion(tmp_path / "older.pt", weights="raw")
    assert torch.equal(loaded.model.covariates.unknown, model.covariates.unknown)
    record["model_config"] |= {"window": [1, 0, 0], "window_blocks": [0]}
    torch.save(record, tmp_path / "older.pt")
    with pytest.raises(InputError, match="confined to windows"):
        load_diffusion(tmp_path / "older.pt")


def test_a_start_whose_means_did_not_follow_covariates_is_read_and_continued(tmp_path: Path) -> None:
    config = replace(MODEL, linear_rank=2)
    model = awake(DiT(config, LATENT, build_process(PROCESS)))
    model.start.means.normal_(generator=torch.Generator().manual_seed(0))
    weights = {name: value for name, value in model.state_dict().items() if "slopes" not in name}
    weights.pop("start.centres")
    path = tmp_path / "older.pt"
    scales, rest = {"age": (40.0, 10.0)}, {"step": 5, "best": 0.5, "stale": 1, "label_dropout": 0.2, "optimiser": []}
    save_diffusion(
        path, model, PROCESS, space(), ema={"0.05": weights}, track="0.05", ledger=[], covariates=scales, **rest
    )
    record = load_checkpoint(path, "diffusion")
    del record["model_config"]["means_window"]
    record["weights"] = weights
    torch.save(record, path)
    loaded = load_diffusion(path).model
    t, y = torch.tensor([500.0]), torch.tensor([1])
    z = torch.randn(1, *LATENT, generator=torch.Generator().manual_seed(1))
    assert torch.equal(loaded.start(z, t, y, None, torch.tensor([[2.0]])), model.start(z, t, y))
    assert resume_diffusion(path, DiT(config, LATENT, build_process(PROCESS)), PROCESS, space())["step"] == 5
