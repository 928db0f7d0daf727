"""Augmentation: off is the identity, each part alone does what its name says, draws are reproducible."""

from __future__ import annotations

import pytest
import torch
from scipy import ndimage

from VAE.config import AugmentConfig
from VAE.dataset import augment, cut, rotations


def head(count: int = 2) -> torch.Tensor:
    """Smooth blobs off centre, (count, 1, 16, 20, 24) in [0, 1], 0 at the rim."""
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in (16, 20, 24)), indexing="ij")
    blob = torch.exp(-sum((a - c) ** 2 / 18 for a, c in zip(axes, (6, 9, 14), strict=True)))
    return (blob * (blob > 0.01)).repeat(count, 1, 1, 1, 1)


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws(count: int, seed: int = 0) -> list[torch.Generator]:
    return [draw(1000 * seed + place) for place in range(count)]


def centre(x: torch.Tensor) -> torch.Tensor:
    return torch.tensor([ndimage.center_of_mass(volume[0].numpy()) for volume in x])


def test_off_is_the_identity() -> None:
    x = head()
    assert augment(x, AugmentConfig(), draws(len(x))) is x


def test_the_same_generator_gives_the_same_variants_and_another_gives_others() -> None:
    config = AugmentConfig(rotate_degrees=10, scale=0.1, shift_voxels=2, gamma=0.2, bias=0.2)
    one, same, other = (augment(head(), config, draws(len(head()), seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)
    assert not torch.allclose(one[0], one[1])  # every volume of a batch has its own
    torch.testing.assert_close(augment(head()[1:], config, draws(len(head()), 1)[1:]), one[1:])  # whatever is beside it
    assert one.min() >= 0
    assert one.max() <= 1


def test_shift_moves_the_centre_by_at_most_what_was_asked_and_keeps_the_shape() -> None:
    x = head(16)
    moved = centre(augment(x, AugmentConfig(shift_voxels=2.0), draws(16))) - centre(x)
    assert moved.abs().max() < 2.1
    assert moved.abs().amax(0).min() > 1.0  # along every axis


def test_rotations_are_rigid_and_small() -> None:
    found = rotations(8, 20.0, draw())
    torch.testing.assert_close(found @ found.transpose(1, 2), torch.eye(3).expand(8, 3, 3), atol=1e-5, rtol=0)
    assert (torch.linalg.det(found) - 1).abs().max() < 1e-5
    cosine = (found.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
    assert cosine.min() > torch.cos(torch.deg2rad(torch.tensor(20.0 * 3**0.5))) - 1e-3
    assert cosine.max() < 1.0


@pytest.mark.parametrize("config", [AugmentConfig(gamma=0.3), AugmentConfig(bias=0.3)])
def test_intensity_changes_leave_the_background_and_the_geometry(config: AugmentConfig) -> None:
    x = head()
    changed = augment(x, config, draws(len(x)))
    assert (changed[x == 0] == 0).all()
    assert not torch.allclose(changed, x)
    inside = x > 0.05
    ratio = (changed[inside].log() - x[inside].log()).abs() / x[inside].log().abs().clamp(min=1)
    assert ratio.max() < 0.36


def test_flips_mirror_left_and_right_only_when_asked() -> None:
    x = head()
    assert torch.equal(augment(x, AugmentConfig(flip=1.0), draws(len(x))), x.flip(2))
    assert AugmentConfig().flip == 0


def test_a_patch_is_a_cube_of_its_volume_from_anywhere_in_it() -> None:
    x = torch.arange(2 * 12 * 5 * 9.0).view(2, 1, 12, 5, 9)
    starts = set()
    for seed in range(40):
        parts = cut(x, 8, draws(2, seed))
        assert parts.shape == (2, 1, 8, 5, 8)
        for volume, part in zip(x, parts, strict=True):
            first, _, last = ((volume == part.min()).nonzero()[0, 1:]).tolist()
            assert torch.equal(part, volume[:, first : first + 8, :, last : last + 8])
            starts.add((first, last))
    assert starts == {(first, last) for first in range(5) for last in range(2)}
    assert torch.equal(cut(x, 8, draws(2)), cut(x, 8, draws(2)))
