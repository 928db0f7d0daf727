"""The LPIPS networks against plain functional convolutions on the same file of weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from runtime import seeding
from runtime.device import Device
from runtime.errors import InputError
from VAE import losses
from VAE.config import LossConfig
from VAE.objective import build_judges, objective

Weights = dict[str, torch.Tensor]
NAMES = ("alex", "vgg", "squeeze")
# Of each convolution: name in the file, width, input channels, kernel size.
ALEX = (
    ("slice1.0", 64, 3, 11), ("slice2.3", 192, 64, 5), ("slice3.6", 384, 192, 3), ("slice4.8", 256, 384, 3),
    ("slice5.10", 256, 256, 3),
)  # fmt: skip
VGG = (
    ("slice1.0", 64, 3, 3), ("slice1.2", 64, 64, 3),
    ("slice2.5", 128, 64, 3), ("slice2.7", 128, 128, 3),
    ("slice3.10", 256, 128, 3), ("slice3.12", 256, 256, 3), ("slice3.14", 256, 256, 3),
    ("slice4.17", 512, 256, 3), ("slice4.19", 512, 512, 3), ("slice4.21", 512, 512, 3),
    ("slice5.24", 512, 512, 3), ("slice5.26", 512, 512, 3), ("slice5.28", 512, 512, 3),
)  # fmt: skip
FIRES = (  # name, input channels, squeezed, width of each half
    ("slice2.3", 64, 16, 64), ("slice2.4", 128, 16, 64), ("slice3.6", 128, 32, 128), ("slice3.7", 256, 32, 128),
    ("slice4.9", 256, 48, 192), ("slice5.10", 384, 48, 192), ("slice6.11", 384, 64, 256), ("slice7.12", 512, 64, 256),
)  # fmt: skip
SQUEEZE = (
    ("slice1.0", 64, 3, 3),
    *((f"{name}.squeeze", squeezed, channels, 1) for name, channels, squeezed, _ in FIRES),
    *((f"{name}.expand1x1", width, squeezed, 1) for name, _, squeezed, width in FIRES),
    *((f"{name}.expand3x3", width, squeezed, 3) for name, _, squeezed, width in FIRES),
)
CONVOLUTIONS = {"alex": ALEX, "vgg": VGG, "squeeze": SQUEEZE}
CHANNELS = {
    "alex": (64, 192, 384, 256, 256),
    "vgg": (64, 128, 256, 512, 512),
    "squeeze": (64, 128, 256, 384, 384, 512, 512),
}


def random_weights(name: str) -> Weights:
    """A state dict as the lpips package saves it, second names included, that keeps the spread of features."""
    torch.manual_seed(0)
    weights = {
        "scaling_layer.shift": torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1),
        "scaling_layer.scale": torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1),
    }
    for layer, width, channels, size in CONVOLUTIONS[name]:
        spread = (2 / (channels * size * size)) ** 0.5
        weights[f"net.{layer}.weight"] = spread * torch.randn(width, channels, size, size)
        weights[f"net.{layer}.bias"] = 0.1 * torch.randn(width)
    for index, channels in enumerate(CHANNELS[name]):
        weights[f"lin{index}.model.1.weight"] = torch.rand(1, channels, 1, 1)
        weights[f"lins.{index}.model.1.weight"] = weights[f"lin{index}.model.1.weight"]
    return weights


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    paths = {name: tmp_path_factory.mktemp("lpips") / f"{name}.pt" for name in NAMES}
    for name, path in paths.items():
        torch.save(random_weights(name), path)
    yield paths
    for path in paths.values():
        path.unlink()  # VGG's is 60 MB


@pytest.fixture(scope="module")
def judges(files: dict[str, Path]) -> dict[str, losses.Lpips]:
    return {name: losses.perceptual_network(f"lpips_{name}", path) for name, path in files.items()}


def convolve(weights: Weights, h: torch.Tensor, layer: str, **options: int) -> torch.Tensor:
    return F.conv2d(h, weights[f"net.{layer}.weight"], weights[f"net.{layer}.bias"], **options).relu()


def alex_maps(weights: Weights, x: torch.Tensor) -> list[torch.Tensor]:
    first = convolve(weights, x, "slice1.0", stride=4, padding=2)
    second = convolve(weights, F.max_pool2d(first, 3, 2), "slice2.3", padding=2)
    third = convolve(weights, F.max_pool2d(second, 3, 2), "slice3.6", padding=1)
    fourth = convolve(weights, third, "slice4.8", padding=1)
    return [first, second, third, fourth, convolve(weights, fourth, "slice5.10", padding=1)]


def vgg_maps(weights: Weights, x: torch.Tensor) -> list[torch.Tensor]:
    maps = []
    for number in range(1, 6):
        h = F.max_pool2d(maps[-1], 2, 2) if maps else x
        for layer in [layer for layer, *_ in VGG if layer.startswith(f"slice{number}.")]:
            h = convolve(weights, h, layer, padding=1)
        maps.append(h)
    return maps


def squeeze_maps(weights: Weights, x: torch.Tensor) -> list[torch.Tensor]:
    def fire(h: torch.Tensor, layer: str) -> torch.Tensor:
        h = convolve(weights, h, f"{layer}.squeeze")
        halves = [convolve(weights, h, f"{layer}.expand1x1"), convolve(weights, h, f"{layer}.expand3x3", padding=1)]
        return torch.cat(halves, dim=1)

    def pool(h: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(h, 3, 2, ceil_mode=True)

    first = convolve(weights, x, "slice1.0", stride=2)
    second = fire(fire(pool(first), "slice2.3"), "slice2.4")
    third = fire(fire(pool(second), "slice3.6"), "slice3.7")
    fourth = fire(pool(third), "slice4.9")
    fifth = fire(fourth, "slice5.10")
    sixth = fire(fifth, "slice6.11")
    return [first, second, third, fourth, fifth, sixth, fire(sixth, "slice7.12")]


MAPS = {"alex": alex_maps, "vgg": vgg_maps, "squeeze": squeeze_maps}


def reference(name: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """LPIPS of grey slices (n, 1, rows, columns) in [0, 1], by the paper's equation 1 in float64: (n,)."""
    weights = {key: value.double() for key, value in random_weights(name).items()}

    def maps(slices: torch.Tensor) -> list[torch.Tensor]:
        colour = (slices.double() * 2 - 1).repeat(1, 3, 1, 1)
        found = MAPS[name](weights, (colour - weights["scaling_layer.shift"]) / weights["scaling_layer.scale"])
        return [h / ((h**2).sum(1, keepdim=True) + 1e-10).sqrt() for h in found]

    total = torch.zeros(len(a), dtype=torch.float64)
    for index, (h_a, h_b) in enumerate(zip(maps(a), maps(b), strict=True)):
        total += F.conv2d((h_a - h_b) ** 2, weights[f"lin{index}.model.1.weight"]).mean((1, 2, 3))
    return total


@pytest.mark.parametrize("name", NAMES)
def test_distance_equals_a_plain_reference(name: str, judges: dict[str, losses.Lpips]) -> None:
    a, b = torch.rand(2, 2, 1, 41, 46, generator=torch.Generator().manual_seed(1))
    expected = reference(name, a, b)
    assert expected.min() > 0.01
    torch.testing.assert_close(judges[name].distance(a, b).double(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_distance_is_zero_for_equals_and_grows_with_distortion(name: str, judges: dict[str, losses.Lpips]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = F.interpolate(torch.rand(1, 1, 8, 8, 8, generator=generator), size=(32, 34, 33), mode="trilinear")
    noise = torch.randn(x.shape, generator=generator)

    def distance(x_hat: torch.Tensor) -> float:
        return judges[name](x_hat, x, 2, torch.Generator().manual_seed(0)).item()

    assert distance(x) == 0
    values = [distance(x + scale * noise) for scale in (0.01, 0.05, 0.2)]
    assert 0 < values[0] < values[1] < values[2]


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_the_reconstruction_and_stay_finite(name: str, judges: dict[str, losses.Lpips]) -> None:
    x = torch.rand(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    for start, moves in ((x, False), (torch.zeros_like(x), True), (1 - x, True)):
        x_hat = start.clone().requires_grad_()
        judges[name](x_hat, x, 2, torch.Generator().manual_seed(0)).backward()
        assert x_hat.grad.isfinite().all()
        assert bool(x_hat.grad.any()) is moves
    assert not any(parameter.requires_grad for parameter in judges[name].parameters())


@pytest.mark.parametrize("name", NAMES)
def test_slices_too_small_for_the_strides_are_refused(name: str, judges: dict[str, losses.Lpips]) -> None:
    side = judges[name].network.stack.smallest
    assert judges[name].distance(*torch.rand(2, 1, 1, side, side + 3)).isfinite().all()
    with pytest.raises(InputError, match=f"lpips_{name}: slices of {side + 3} x {side - 1} voxels.* {side} x {side}"):
        judges[name].distance(*torch.rand(2, 1, 1, side + 3, side - 1))
    with pytest.raises(RuntimeError):  # what torch would say, of a layer nobody can place
        judges[name].network.net(torch.rand(1, 3, side + 3, side - 1))


def test_all_weights_that_do_not_fit_are_named_at_once(files: dict[str, Path], tmp_path: Path) -> None:
    weights = random_weights("squeeze")
    del weights["scaling_layer.shift"], weights["lin6.model.1.weight"]
    weights["net.slice2.3.squeeze.weight"] = torch.zeros(16, 32, 1, 1)
    weights["lins.7.model.1.weight"] = torch.zeros(1, 512, 1, 1)
    torch.save(weights, tmp_path / "other.pt")
    with pytest.raises(InputError) as refusal:
        losses.perceptual_network("lpips_squeeze", tmp_path / "other.pt")
    lines = str(refusal.value).splitlines()
    assert str(tmp_path / "other.pt") in lines[0]
    assert lines[1:] == [
        "  - lin6.model.1.weight: missing",
        "  - lins.7.model.1.weight: not part of this network",
        "  - net.slice2.3.squeeze.weight: shape (16, 32, 1, 1), this network has (16, 64, 1, 1)",
        "  - scaling_layer.shift: missing",
    ]
    with pytest.raises(InputError, match=r"net\.slice2\.3\.expand1x1\.bias: missing"):
        losses.perceptual_network("lpips_squeeze", files["alex"])


def test_a_file_without_the_second_names_is_the_same(files: dict[str, Path], tmp_path: Path) -> None:
    weights = {key: value for key, value in random_weights("squeeze").items() if not key.startswith("lins.")}
    torch.save(weights, tmp_path / "older.pt")
    older, newer = (
        losses.perceptual_network("lpips_squeeze", path) for path in (tmp_path / "older.pt", files["squeeze"])
    )
    a, b = torch.rand(2, 1, 1, 20, 20)
    assert torch.equal(older.distance(a, b), newer.distance(a, b))


@pytest.mark.parametrize("name", NAMES)
def test_missing_weights_are_an_error_never_a_zero(name: str, tmp_path: Path) -> None:
    cpu = Device(torch.device("cpu"), torch.float32)
    loss = LossConfig(perceptual=0.1, perceptual_network=f"lpips_{name}")
    with pytest.raises(InputError, match=rf"lpips_{name}.*--loss\.perceptual-weights"):
        build_judges(loss, 1e-3, cpu)
    with pytest.raises(InputError, match="no such file"):
        losses.perceptual_network(f"lpips_{name}", tmp_path / "none.pt")
    assert build_judges(LossConfig(perceptual_network=f"lpips_{name}"), 1e-3, cpu).perceptual is None


def test_the_trainers_objective_is_judged_by_it(files: dict[str, Path]) -> None:
    """The perceptual term of a step is the reference's distance of the slices drawn for that step."""
    loss = LossConfig(
        perceptual=0.5, perceptual_network="lpips_squeeze", perceptual_weights=files["squeeze"], perceptual_slices=3
    )
    judges = build_judges(loss, 1e-3, Device(torch.device("cpu"), torch.float32))
    x, x_hat = torch.rand(2, 2, 1, 20, 24, 20, generator=torch.Generator().manual_seed(0))
    mu = logvar = torch.zeros(2, 1, 5, 6, 5)
    total, terms = objective(x_hat, x, mu, logvar, judges, loss, step=4, seed=7)
    a, b, share = losses.random_slices(x_hat, x, 3, seeding.generator(7, "slices", 4, 0))
    expected = (reference("squeeze", a, b) / share).mean()
    torch.testing.assert_close(terms["loss/perceptual"].double(), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(total, terms["loss/reconstruction"] + 0.5 * terms["loss/perceptual"])
