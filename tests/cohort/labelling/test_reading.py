"""What a network says of scans: volumes, whether they mean anything, label maps, and the table of them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from cohort.anatomy.volume_tables import read_volumes
from cohort.atlas import REGIONS, atlas, native_atlas
from cohort.grids import GRIDS
from cohort.labelling.anatomies import region_box
from cohort.labelling.network import LabelNetwork, LoadedLabels, ModelConfig, load_labels, save_labels
from cohort.labelling.reading import OPPOSITE, Reader, open_reader, read_labels
from runtime.device import Device
from runtime.errors import InputError, InputWarning

DEVICE = Device(torch.device("cpu"), torch.float32)
GRID = GRIDS["smoke"]


class Oracle(torch.nn.Module):
    """Says of each voxel the structure whose number, over 20, is its intensity, and the side by its place."""

    def forward(self, x):
        number = (x[:, 0] * 20).round().long()
        side = torch.arange(x.shape[2])[:, None, None] >= x.shape[2] // 2
        structure = (number - 1).clamp(min=0)
        region = torch.where(number > 0, 1 + 2 * structure + side, 0)
        return 20 * torch.nn.functional.one_hot(region.clamp(max=16), 17).permute(0, 4, 1, 2, 3).float()


BOX = region_box(GRID)
LIMITS = {"displacement_mm": 12.0, "uncertainty": 2.0}


def atlas_picture():
    """The atlas in the box: its structures 1 to 8, on both sides, as voxels of k / 20."""
    labels = atlas(GRID).labels[BOX.slices]
    codes = native_atlas()[0].codes
    x = np.zeros(labels.shape, np.float32)
    for place, name in enumerate(REGIONS):
        x[labels == codes[name]] = (1 + place // 2) / 20
    return x


def read(model, x):
    return read_labels(torch.from_numpy(np.ascontiguousarray(x))[None, None], model, BOX, DEVICE)


def test_volumes_are_sums_of_shares_and_sides_are_kept():
    x = atlas_picture()
    thalamus = np.argwhere(x == np.float32(3 / 20))
    x[tuple(thalamus[0])] = 0  # on the left, where the first voxels are
    labels = read(Oracle(), x)
    np.testing.assert_allclose(labels.shares.sum(axis=0), 1, atol=1e-5)
    left, right = (labels.ml[REGIONS.index(f"{side} Thalamus")] for side in ("Left", "Right"))
    middle = x.shape[0] / 2
    assert left == pytest.approx((thalamus[1:, 0] < middle).sum() * 0.512, rel=1e-3)
    assert right == pytest.approx((thalamus[:, 0] >= middle).sum() * 0.512, rel=1e-3)
    assert labels.uncertainty < 0.01
    assert labels.problems(LIMITS) == []


def test_regions_that_lie_elsewhere_have_failed():
    """Two voxels of 8 mm: 16 mm, with the middles of coarse regions 3 mm or less from the atlas'."""
    x = atlas_picture()
    placed, moved = read(Oracle(), x), read(Oracle(), np.roll(x, 2, axis=1))
    assert placed.displacement_mm < 8
    assert moved.displacement_mm == pytest.approx(16, abs=6)
    assert moved.problems(LIMITS) == ["displacement_mm"]
    assert "displacement_mm" in read(Oracle(), x[:, :, ::-1]).problems(LIMITS)


def test_shares_that_say_nothing_have_failed_and_have_no_volumes():
    class Unsure(Oracle):
        def forward(self, x):
            return 0.02 * super().forward(x)

    labels = read(Unsure(), atlas_picture())
    assert "uncertainty" in labels.problems(LIMITS)
    nothing = labels._replace(displacement_mm=float("nan"))
    assert nothing.problems(LIMITS) == ["displacement_mm", "uncertainty"]
    assert [OPPOSITE[place] for place in OPPOSITE] == list(range(17))


def test_label_map_lies_where_the_box_does_and_is_coded_as_the_atlas():
    model = LabelNetwork(ModelConfig(channels=(4, 8, 8)))
    reader = Reader(LoadedLabels(model.eval(), GRID, "0", LIMITS, 1), DEVICE)
    labels = reader.read(np.random.default_rng(0).random(GRID.shape, dtype=np.float32))
    shares = np.zeros_like(labels.shares)
    shares[0] = 1
    shares[:, 3, 4, 5] = np.eye(17)[1 + REGIONS.index("Right Caudate")]
    found = reader.label_map(labels._replace(shares=shares))
    place = [3 + 3, 2 + 4, 3 + 5]
    assert [s.start for s in region_box(GRID).slices] == [3, 2, 3]
    assert np.argwhere(found).tolist() == [place]
    assert found[tuple(place)] == native_atlas()[0].codes["Right Caudate"]


def test_a_network_of_another_grid_is_refused(tmp_path):
    model, path = LabelNetwork(ModelConfig(channels=(4, 8, 8))), tmp_path / "best.pt"
    save_labels(path, model, grid=GRID, ema=model.state_dict(), step=1, limits=LIMITS)
    assert open_reader(path, GRID, DEVICE).grid == GRID
    with pytest.raises(InputError, match="on the grid smoke"):
        open_reader(path, GRIDS["demo"], DEVICE)


def test_a_network_that_passes_anything_says_so(random_labels):
    loaded = replace(load_labels(random_labels(0)), limits={"displacement_mm": 41.0, "uncertainty": 3.0})
    with pytest.warns(InputWarning, match="cannot tell failed scans"):
        Reader(loaded, DEVICE)


def test_rows_are_read_as_volumes_and_failed_ones_are_unknown(tmp_path):
    reader = Reader(LoadedLabels(LabelNetwork(ModelConfig(channels=(4, 8, 8))), GRID, "0", LIMITS, 1), DEVICE)
    good = read(Oracle(), atlas_picture())
    bad = good._replace(displacement_mm=40.0)
    rows = [{"subject": name, **reader.row(labels)} for name, labels in (("a", good), ("b", bad))]
    assert [row["failed"] for row in rows] == [0, 1]
    assert rows[1]["failed_by"] == "displacement_mm"
    pd.DataFrame(rows).to_csv(tmp_path / "volumes.csv", index=False)
    ml = read_volumes(tmp_path / "volumes.csv").of(pd.DataFrame({"subject": ["a", "b"]}), REGIONS)
    np.testing.assert_allclose(ml[0], good.ml, rtol=1e-3)
    assert np.isnan(ml[1]).all()
