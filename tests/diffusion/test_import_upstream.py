"""Weights of NeuroLDM-3D's trainer in this project's DiT: the same outputs, and refusals of what it cannot hold."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from diffusion.checkpoint import load_diffusion, start_from
from diffusion.config import ModelConfig, ProcessConfig
from diffusion.model import DiT
from diffusion.upstream import HEADS, read_upstream
from runtime.checkpoints import load_tensors, load_weights
from runtime.errors import InputError

LATENT = (3, 6, 10, 4)
PATCH = (2, 2, 4)
PREFIXES = ("", "model.", "module.model.")


class Published(nn.Module):
    """The trainer's network by its description, in the plainest form: the names of its tensors matter."""

    def __init__(self, dim: int = 48, depth: int = 2, heads: int = 3, latent: tuple = LATENT, patch: tuple = PATCH):
        super().__init__()
        C, self.patch = latent[0], patch
        self.grid = [size // p for size, p in zip(latent[1:], patch, strict=True)]
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(C, dim, patch, stride=patch)})
        self.pos_embed = nn.Parameter(torch.zeros(1, math.prod(self.grid), dim), requires_grad=False)
        self.t_embedder = nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))})
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(3, dim)})
        self.blocks = nn.ModuleList(PublishedBlock(dim, heads) for _ in range(depth))
        self.final_layer = nn.ModuleDict({
            "linear": nn.Linear(dim, math.prod(patch) * C),
            "adaLN_modulation": nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim)),
        })  # fmt: skip

    def forward(self, z_t: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed["proj"](z_t).flatten(2).transpose(1, 2) + self.pos_embed
        angles = t[:, None] * torch.exp(-math.log(10_000) * torch.arange(128) / 128)
        c = self.t_embedder["mlp"](torch.cat([angles.cos(), angles.sin()], 1)) + self.y_embedder["embedding_table"](y)
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.final_layer["adaLN_modulation"](c).chunk(2, 1)
        x = self.final_layer["linear"](shifted(x, shift, scale))
        out = torch.empty_like(z_t)
        p, q, r = self.patch
        for row, place in enumerate(torch.cartesian_prod(*(torch.arange(n) for n in self.grid)).tolist()):
            i, j, k = (index * side for index, side in zip(place, self.patch, strict=True))
            out[:, :, i : i + p, j : j + q, k : k + r] = x[:, row].view(-1, p, q, r, z_t.shape[1]).movedim(4, 1)
        return out


class PublishedBlock(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attn = nn.ModuleDict({"qkv": nn.Linear(dim, 3 * dim), "proj": nn.Linear(dim, dim)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, 4 * dim), "fc2": nn.Linear(4 * dim, dim)})
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, 1)
        q, k, v = self.attn["qkv"](shifted(x, shift1, scale1)).chunk(3, 2)
        heads = []
        for one, two, three in zip(*(part.chunk(self.heads, 2) for part in (q, k, v)), strict=True):
            heads.append((one @ two.transpose(1, 2) * one.shape[2] ** -0.5).softmax(2) @ three)
        x = x + gate1[:, None] * self.attn["proj"](torch.cat(heads, 2))
        hidden = nn.functional.gelu(self.mlp["fc1"](shifted(x, shift2, scale2)))
        return x + gate2[:, None] * self.mlp["fc2"](hidden)


def shifted(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    x = (x - x.mean(2, keepdim=True)) / (x.var(2, correction=0, keepdim=True) + 1e-6).sqrt()
    return x * (1 + scale[:, None]) + shift[:, None]


def published(seed: int = 0, **options) -> Published:
    """With random tensors everywhere."""
    network, generator = Published(**options), torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def file_of(path: Path, ema: dict, raw: dict | None = None, prefix: str = "") -> Path:
    """As the trainer writes it."""
    states = {
        "model_state": {f"{prefix}{name}": value for name, value in (ema if raw is None else raw).items()},
        "ema_state": {f"{prefix}{name}": value for name, value in ema.items()},
    }
    torch.save({"epoch": 7, **states, "optimizer_state": {"state": {}, "param_groups": [{"lr": 1e-4}]}}, path)
    return path


@torch.no_grad()
def assert_same_outputs(theirs: Published, ours: DiT, latent: tuple[int, int, int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    z_t = torch.randn(4, *latent, generator=generator)
    t, y = torch.tensor([0, 250, 500, 999]), torch.tensor([0, 1, 2, 0])
    expected = theirs(z_t, t, y)
    assert expected.std() > 0.05
    torch.testing.assert_close(ours(z_t, t, y), expected, atol=1e-5, rtol=1e-5)


@pytest.fixture(autouse=True)
def small_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HEADS, 48, 3)


def loaded(path: Path, latent: tuple = LATENT, weights: str = "ema") -> DiT:
    """The network that a file implies, with its weights."""
    record = read_upstream(load_tensors(path), path, weights, latent)
    config = {name: tuple(v) if isinstance(v, list) else v for name, v in record["model_config"].items()}
    network = DiT(ModelConfig(**config), latent).eval()
    load_weights(network, record["weights"], path)
    return network


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_same_outputs(prefix: str, tmp_path: Path) -> None:
    theirs = published()
    ours = loaded(file_of(tmp_path / "best.pt", theirs.state_dict(), prefix=prefix))
    config = ours.config
    assert (config.dim, config.depth, config.heads, config.patch, config.classes) == (48, 2, 3, PATCH, 2)
    assert_same_outputs(theirs, ours, LATENT)


def test_odd_sizes_and_another_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latent, patch = (4, 9, 5, 7), (3, 5, 1)
    monkeypatch.setitem(HEADS, 48, 4)
    theirs = published(depth=3, heads=4, latent=latent, patch=patch)
    assert_same_outputs(theirs, loaded(file_of(tmp_path / "best.pt", theirs.state_dict()), latent), latent)


def test_averaged_or_raw_weights(tmp_path: Path) -> None:
    ema, raw = published(0), published(1)
    path = file_of(tmp_path / "best.pt", ema.state_dict(), raw.state_dict())
    for weights, theirs in (("ema", ema), ("raw", raw)):
        assert_same_outputs(theirs, loaded(path, weights=weights), LATENT)


def test_all_that_is_wrong_is_named_at_once(tmp_path: Path) -> None:
    state = published().state_dict()
    del state["blocks.0.attn.qkv.bias"], state["pos_embed"]
    state["blocks.1.attn.q_norm.weight"] = torch.ones(16)
    state["final_layer.linear.bias"] = torch.ones(96)
    state["y_embedder.embedding_table.weight"] = torch.ones(3, 47)
    with pytest.raises(InputError) as refusal:
        loaded(file_of(tmp_path / "best.pt", state))
    for said in (
        "(5):",
        "blocks.0.attention.qkv.bias: missing",
        "positions: missing",
        "blocks.1.attn.q_norm.weight: not part of this network",
        "out.bias: shape (96,), this network has (48,)",
        "label.weight: shape (3, 47), this network has (3, 48)",
    ):
        assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "latent", "said"),
    [
        ({"blocks.0.attn.rel_pos_x": torch.ones(5, 16)}, LATENT, "relative positions"),
        ({"patch_embed.proj.weight": torch.ones(48, 3, 2, 2)}, LATENT, r"proj.weight \(48, 3, 2, 2\)"),
        ({}, (3, 6, 11, 4), "do not divide latents"),
        ({}, (4, 6, 10, 4), "3 channels"),
        ({}, (3, 6, 20, 4), r"positions: shape \(15, 48\), this network has \(30, 48\)"),
        ({"patch_embed.proj.weight": torch.ones(40, 3, *PATCH)}, LATENT, "width 40, whose number of heads is not"),
        ({"epochs": 3}, LATENT, "no weights under 'ema_state'"),
    ],
)
def test_what_the_model_cannot_hold_is_refused(changes: dict, latent: tuple, said: str, tmp_path: Path) -> None:
    path = file_of(tmp_path / "best.pt", published().state_dict() | changes)
    with pytest.raises(InputError, match=said):
        loaded(path, latent)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"epoch": 1, "model_state": {"a": torch.ones(1)}}, "no weights under 'ema_state'.*model_state"),
        ({"ema_state": {"a": torch.ones(1)}}, "not a diffusion network of NeuroLDM-3D"),
        ({"ema_state": {}}, "no weights under"),
    ],
)
def test_another_file_is_refused(record: dict, said: str, tmp_path: Path) -> None:
    torch.save(record, tmp_path / "other.pt")
    with pytest.raises(InputError, match=said):
        loaded(tmp_path / "other.pt")


def test_a_file_is_loaded_like_a_checkpoint_and_gone_on_from(tmp_path: Path) -> None:
    latent = (4, 28, 34, 28)
    theirs = Published(dim=384, depth=1, heads=6, latent=latent, patch=(4, 2, 4))
    path = file_of(tmp_path / "best.pt", theirs.state_dict(), prefix="module.model.")
    found = load_diffusion(path)
    assert found.model.config.heads == 6
    assert (found.space.statistics.vae, found.space.statistics.std) == ("", (1.0,) * 4)
    assert (found.process_config, found.label_dropout) == (ProcessConfig(), 0.1)
    fresh = DiT(found.model.config, latent)
    start_from(path, fresh, ProcessConfig(), {})
    assert all(torch.equal(v, found.model.state_dict()[k]) for k, v in fresh.state_dict().items())
