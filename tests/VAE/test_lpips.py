"""LPIPS by its package, which is optional: the refusal without it, and what it is given where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from runtime.device import Device
from runtime.errors import InputError
from VAE import losses
from VAE.config import LossConfig

CPU = Device(torch.device("cpu"), torch.float32)


class StubLPIPS(nn.Module):
    """Stands in for lpips.LPIPS: weighs the mean squared difference of colour images in [-1, 1]."""

    def __init__(self, *, net: str, pretrained: bool, pnet_rand: bool, verbose: bool) -> None:
        super().__init__()
        assert (net, pretrained, pnet_rand, verbose) == ("squeeze", False, True, False)  # nothing is downloaded
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, a: torch.Tensor, b: torch.Tensor, *, normalize: bool) -> torch.Tensor:
        assert a.shape[1] == 3
        assert normalize
        return ((2 * a - 2 * b).square() * self.weight.view(1, 3, 1, 1)).mean((1, 2, 3), keepdim=True)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("lpips")
    module.LPIPS = StubLPIPS
    monkeypatch.setitem(sys.modules, "lpips", module)


@pytest.mark.usefixtures("stub")
def test_the_package_gets_weights_from_the_file_and_slices_in_unit_range(tmp_path: Path) -> None:
    torch.save({"weight": torch.full((3,), 0.5)}, tmp_path / "lpips.pt")
    config = LossConfig(perceptual=0.1, perceptual_network="lpips_squeeze", perceptual_weights=tmp_path / "lpips.pt")
    network = losses.build_networks(config, 1e-3, CPU).perceptual
    a, b = torch.rand(2, 4, 1, 20, 24)
    torch.testing.assert_close(network.distance(a, b), 2 * (a - b).square().mean((1, 2, 3)))
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.usefixtures("stub")
def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    torch.save({"other": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"other\.pt(.|\n)*other: not part of this network(.|\n)*weight: missing"):
        losses.perceptual_network("lpips_squeeze", tmp_path / "other.pt")


def test_without_the_package_the_refusal_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(InputError, match=r"lpips_alex.*pip install lpips torchvision"):
        losses.perceptual_network("lpips_alex", tmp_path / "any.pt")
    with pytest.raises(InputError, match=r"lpips_alex.*--loss\.perceptual-weights"):
        losses.perceptual_network("lpips_alex", None)
