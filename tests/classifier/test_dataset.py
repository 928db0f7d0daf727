import dataclasses

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from classifier.config import AugmentConfig
from classifier.dataset import Answers, Volumes, augment, counts, counts_text, mirrored, sides
from cohort.grids import GRIDS
from cohort.stacks import load_scans
from cohort.tables import read_table
from cohort.volumes import Volume, write_volume
from runtime.device import Device
from runtime.errors import InputError

CPU = Device(torch.device("cpu"), torch.float32)
STILL = AugmentConfig(rotate_degrees=0, shift_mm=0, scale=0, gamma=0, noise=0)


def test_no_augmentation_changes_nothing():
    x = torch.rand(2, 1, 9, 12, 10)
    torch.testing.assert_close(augment(x, STILL, 4.0, seed=0, step=1), x, atol=1e-5, rtol=0)


def test_augmentation_is_addressed_by_seed_and_step():
    x = torch.rand(2, 1, 9, 12, 10)
    first = augment(x, AugmentConfig(), 4.0, seed=0, step=1)
    assert torch.equal(first, augment(x, AugmentConfig(), 4.0, seed=0, step=1))
    assert not torch.equal(first, augment(x, AugmentConfig(), 4.0, seed=0, step=2))
    assert (first - x).abs().mean() > 0.01


def test_half_of_the_volumes_are_mirrored_with_their_answers():
    B = 400
    x = torch.rand(B, 1, 3, 2, 2)
    volumes = torch.stack([torch.arange(B), -torch.arange(B)], dim=1)[:, None].float()
    given = Answers(torch.arange(B) % 2, torch.arange(B) % 3 - 1, volumes)
    turned, answers = mirrored(x, given, seed=0, step=1)
    flipped = (turned == x.flip(2)).flatten(1).all(1)
    assert ((turned == x).flatten(1).all(1) | flipped).all()
    assert 160 < flipped.sum() < 240
    assert torch.equal(answers.labels, given.labels)
    expected = torch.where(flipped, torch.tensor([-1, 1, 0])[given.sides + 1], given.sides)  # unknown stays unknown
    assert torch.equal(answers.sides, expected)
    assert torch.equal(answers.volumes[flipped], volumes[flipped].flip(2))
    assert torch.equal(answers.volumes[~flipped], volumes[~flipped])
    assert torch.equal(mirrored(x, given, 0, 1)[0], turned)
    assert not torch.equal(mirrored(x, given, 0, 2)[0], turned)


def test_rotation_is_rigid_on_a_grid_that_is_no_cube():
    """Distances between two bright places stay the same in voxels, whatever the shape of the grid."""
    x = torch.zeros(64, 1, 24, 48, 24)
    places = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in (24, 48, 24)), indexing="ij"))
    spots = [torch.tensor([11.5, 12.0, 11.5]), torch.tensor([11.5, 35.0, 11.5])]
    for spot in spots:
        x[:] += torch.exp(-((places - spot.view(3, 1, 1, 1)) ** 2).sum(0) / 8)
    turned = augment(x, dataclasses.replace(STILL, rotate_degrees=6), 4.0, seed=0, step=1)[:, 0]
    half = torch.stack([(part * places[:, :, rows]).sum((2, 3, 4)) / part.sum((2, 3, 4)) for part, rows in (
        (turned[:, None, :, :24], slice(0, 24)), (turned[:, None, :, 24:], slice(24, 48)),
    )])  # fmt: skip
    distance = (half[0] - half[1]).norm(dim=1)
    assert (distance - 23).abs().max() < 0.4
    moved = (half[0] - spots[0]).norm(dim=1)
    assert 0.5 < moved.mean() < 3


def test_shift_is_in_millimetres():
    x = torch.zeros(200, 1, 20, 24, 20)
    x[:, 0, 10, 12, 10] = 1
    places = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in (20, 24, 20)), indexing="ij"))
    moved = augment(x, dataclasses.replace(STILL, shift_mm=4.0), 8.0, seed=0, step=1)[:, 0]
    centre = (moved[:, None] * places).sum((2, 3, 4)) / moved[:, None].sum((2, 3, 4))
    assert torch.allclose(centre.std(0), torch.full((3,), 0.5), atol=0.1)  # 4 mm are half a voxel


def test_constants_and_mean_volume(scans):
    volumes = Volumes(scans, CPU)
    everything = scans.volumes[:]
    mean, std = volumes.constants()
    np.testing.assert_allclose([mean, std], [everything.mean(), everything.std()], rtol=1e-4)
    np.testing.assert_allclose(volumes.mean_volume(0).numpy(), everything[scans.labels == 0].mean(0), atol=1e-6)
    assert volumes.batch(torch.tensor([3, 1])).shape == (2, 1, *scans.grid.shape)
    np.testing.assert_array_equal(volumes.batch(torch.tensor([3]))[0, 0].numpy(), everything[3])


def test_real_and_synthetic_volumes_come_out_alike_whatever_their_scale(cohort, tmp_path):
    """The same anatomy as a scan and as a synthetic volume in other units gives the same batch."""
    row = read_table(cohort / "train.csv").head(1)
    image = nib.load(row["file"][0])
    made = tmp_path / "HC_000000.pkl"
    write_volume(made, Volume(37.5 * image.get_fdata(dtype=np.float32), 0, 0, image.affine))
    both = pd.concat([row, row.assign(subject="synthetic", file=str(made))], ignore_index=True)
    volumes = Volumes(load_scans(both, GRIDS["smoke"], cache_dir=tmp_path / "cache"), CPU)
    real, synthetic = volumes.batch(torch.tensor([0, 1]))
    torch.testing.assert_close(synthetic, real, rtol=0, atol=1e-5)  # rounding of float32, in volumes that span 0 to 1
    assert real.max() == 1


def test_synthetic_volumes_of_another_grid_are_named(tmp_path):
    path = tmp_path / "HC_000000.pkl"
    write_volume(path, Volume(np.random.default_rng(0).random((10, 12, 10), dtype=np.float32), 0, 0, None))
    frame = pd.DataFrame({"subject": ["x"], "file": [str(path)], "label": [0]})
    with pytest.raises(InputError, match=r"HC_000000\.pkl.*\(10, 12, 10\) is not that of smoke"):
        load_scans(frame, GRIDS["smoke"], cache_dir=tmp_path / "cache")


def test_counts_by_origin_and_class(scans):
    frame = scans.frame.assign(
        repeated=[row < 3 for row in range(len(scans))], synthetic=[3 <= row < 8 for row in range(len(scans))]
    )
    marked = dataclasses.replace(scans, frame=frame)
    found = counts(marked)
    assert sum(found.values()) == 24
    assert (found["repeated_HC"], found["repeated_TLE"]) == (2, 1)
    assert (found["synthetic_HC"], found["synthetic_TLE"]) == (2, 3)
    assert "3 synthetic TLE" in counts_text(marked)


def test_sides_are_known_for_some():
    frame = pd.DataFrame({"side": ["L", "", "R"]})
    assert sides(frame).tolist() == [0, -1, 1]
