from dataclasses import replace

import numpy as np
import pytest

from cohort.atlas import REGIONS, native_atlas
from cohort.grids import GRIDS
from cohort.simulation import warps
from cohort.simulation.effects import subjects
from cohort.simulation.simulator import LATTICE, Simulator

LEFT = REGIONS.index("Left Hippocampus")


@pytest.fixture(scope="module")
def simulator():
    return Simulator(GRIDS["demo"])


@pytest.fixture(scope="module")
def severe():
    """The case with the smallest left hippocampus."""
    return min(subjects(0, 60), key=lambda s: s.relative_volume[LEFT])


def test_volumes_reached_are_the_prescribed_ones(simulator):
    for subject in subjects(0, 4):
        scan = simulator.scan(0, subject)
        prescribed = simulator.model.label_volumes * subject.relative_volume
        np.testing.assert_allclose(list(scan.facts["volumes_mm3"].values()), prescribed, rtol=0.005)
        assert scan.facts["min_jacobian"] > 0
        assert 1.8 < scan.facts["displacement_mm"] < 3.2


def test_truth_equals_labels_carried_through_the_map_of_the_image(simulator, severe):
    """The truth comes from the Jacobian of the way back; counting labels read through the way there must agree."""
    warp = simulator.warp(0, severe)
    atlas, affine = native_atlas()
    fine = np.stack(np.meshgrid(np.arange(-60, 60.0), np.arange(-100, 50.0), np.arange(-50, 50.0), indexing="ij"))
    fine = fine.astype(np.float32)
    shift = warps.sample(warp.random, (fine - LATTICE.affine[:3, 3].reshape(3, 1, 1, 1)) / LATTICE.spacing_mm)
    position = simulator.through_regions(fine + shift * LATTICE.spacing_mm, warp.regions)
    voxel = np.rint((position - affine[:3, 3].reshape(3, 1, 1, 1)) / affine[0, 0]).astype(int)
    carried = atlas.labels[tuple(np.clip(v, 0, n - 1) for v, n in zip(voxel, atlas.labels.shape, strict=True))]
    counted = np.array([(carried == atlas.codes[region]).sum() for region in REGIONS])
    np.testing.assert_allclose(counted, warp.volumes_mm3, rtol=0.08)  # small regions: nearest label, 1 mm
    large = warp.volumes_mm3 > 2000
    np.testing.assert_allclose(counted[large], warp.volumes_mm3[large], rtol=0.03)


def test_atrophy_is_drawn_on_its_side_and_in_its_place(simulator, severe):
    spared = severe.relative_volume.copy()
    spared[LEFT] /= 1 + severe.change[LEFT]
    with_loss = simulator.scan(0, severe).image.astype(float)
    without = simulator.scan(0, replace(severe, relative_volume=spared)).image.astype(float)
    difference = np.abs(with_loss - without)
    at = np.indices(difference.shape).reshape(3, -1) * 4.0 + simulator.grid.affine[:3, 3:]
    centre = np.average(at, axis=1, weights=difference.ravel() ** 2)
    np.testing.assert_allclose(centre, (-25, -20, -19), atol=6)  # between the hippocampus and the horn below it


def test_the_horn_beside_a_smaller_hippocampus_widens_and_the_other_does_not(simulator):
    model = simulator.model
    atlas, affine = native_atlas()
    labels, _ = warps._crop(atlas.labels, affine, [atlas.codes[region] for region in REGIONS])
    horns = [warps._by_cell(labels == atlas.codes[name]).ravel() for name in warps.HORNS]
    for side in (0, 1):
        target = model.label_volumes.copy()
        target[LEFT + side] *= 0.82
        push = warps.solve(model, np.zeros_like(model.fields[0]), target).push
        growth = [np.average(warps.jacobian_determinant(push).ravel(), weights=horn) - 1 for horn in horns]
        assert growth[side] == pytest.approx(0.31, abs=0.05)
        assert abs(growth[1 - side]) < 0.01


def test_same_seed_same_scan_other_subject_other_brain(simulator):
    first, second = subjects(0, 2)
    images = [simulator.scan(0, subject).image.astype(float).ravel() for subject in (first, second, first)]
    np.testing.assert_array_equal(images[0], images[2])
    a, b = images[:2]
    assert 0.5 < np.corrcoef(a, b)[0, 1] < 0.985


def test_scan_is_a_brain_on_black(simulator):
    image = simulator.scan(0, subjects(0, 1)[0]).image
    assert image.dtype == np.int16
    assert image.min() == 0
    assert 0.3 < (image > 0).mean() < 0.5
    assert not image[0].any()
    assert not image[-1].any()


def test_no_ventricle_is_taken_for_background(simulator):
    widest = sorted(subjects(0, 100), key=lambda s: s.relative_volume[REGIONS.index("Left Lateral Ventricle")])[-3:]
    for subject in widest:
        image = simulator.scan(0, subject).image
        x, y, z = np.indices(image.shape) * 4.0 + simulator.grid.affine[:3, 3].reshape(3, 1, 1, 1)
        middle = (np.abs(x) < 25) & (y > -50) & (y < 20) & (z > 5) & (z < 30)
        assert image[middle].min() > 0.15 * np.median(image[middle])
