"""Random anatomies: what their labels sum to, and that these are the labels of the simulation."""

import numpy as np
import pytest

from cohort.atlas import REGIONS, native_atlas
from cohort.grids import GRIDS
from cohort.labelling.anatomies import NEIGHBOURS, anatomies_on, finer, log_volumes, mirrored, opposite, region_box
from cohort.labelling.imaging import as_scanned, in_random_contrast, levels
from cohort.simulation import warps
from cohort.simulation.effects import subjects
from cohort.simulation.simulator import LATTICE
from runtime.seeding import rng


@pytest.fixture(scope="module")
def anatomies():
    return anatomies_on(GRIDS["smoke"])


def test_box_holds_all_regions_and_is_symmetric():
    box = region_box(GRIDS["demo"])
    assert box.grid.affine[0, 3] == -box.grid.affine[0, 0] * (box.grid.shape[0] - 1) / 2
    np.testing.assert_allclose(box.grid.affine[:3, 3], GRIDS["demo"].affine[:3] @ [*(s.start for s in box.slices), 1])
    labels, affine = native_atlas()
    places = np.argwhere(np.isin(labels.labels, [labels.codes[name] for name in REGIONS])) @ affine[:3, :3].T
    places += affine[:3, 3]
    last = box.grid.affine[:3, 3] + box.grid.spacing_mm * (np.array(box.grid.shape) - 1)
    assert (places.min(axis=0) - box.grid.affine[:3, 3] > 10).all()
    assert (last - places.max(axis=0) > 10).all()


@pytest.mark.slow
def test_shares_sum_to_volumes_wherever_the_grid_lies_and_these_are_the_simulations():
    """Through subjects' maps, on the demo's grid, on one of half its spacing, and as the simulation says."""
    anatomies = anatomies_on(GRIDS["demo"])
    simulator, fine = anatomies.simulator, warps.world(finer(anatomies.grid, 2.0))
    found = []
    for subject in subjects(5, 3):
        warp, own = simulator.warp(5, subject), []
        for at, voxel_mm3 in ((simulator.voxels_mm, 64), (fine, 8)):
            shift = warps.sample(warp.random, warps.to_voxels(at, LATTICE)) * np.float32(LATTICE.spacing_mm)
            shares = anatomies.labels_at(simulator.through_regions(at + shift, warp.regions))[: len(REGIONS)]
            own.append(shares.sum(axis=(1, 2, 3)) * voxel_mm3)
        found.append([*own, warp.volumes_mm3])
    coarse, fine, true = np.moveaxis(np.array(found), 1, 0)
    large = simulator.model.label_volumes > 3000
    np.testing.assert_allclose(coarse, fine, rtol=0.06)
    np.testing.assert_allclose(coarse[:, large], fine[:, large], rtol=0.02)
    np.testing.assert_allclose(coarse, true, rtol=0.15)  # the simulation's own map and its inverse differ by so much
    np.testing.assert_allclose(coarse[:, large].mean(axis=0), true[:, large].mean(axis=0), rtol=0.05)


def test_shares_sum_to_one_inside_the_brain_and_to_less_outside(anatomies):
    anatomy = anatomies.draw(rng(0, "anatomy"))
    total = np.concatenate([anatomy.shares, anatomy.others]).sum(axis=0)
    assert anatomy.shares.min() >= 0
    assert anatomy.others.min() >= 0
    assert total.max() <= 1 + 1e-5
    middle = tuple(size // 2 for size in total.shape)
    assert total[middle] == pytest.approx(1, abs=1e-3)
    assert (anatomy.shares.sum(axis=(1, 2, 3)) > 0).all()


def test_an_anatomy_is_a_function_of_its_address(anatomies):
    first, again, other = (anatomies.draw(rng(0, "anatomy", k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(first.shares, again.shares)
    np.testing.assert_array_equal(first.template, again.template)
    assert not np.array_equal(first.shares, other.shares)


def test_volumes_vary_far_more_than_peoples():
    drawn = np.exp([log_volumes(rng(0, "volumes", k)) for k in range(400)])
    hippocampus = drawn[:, REGIONS.index("Left Hippocampus")]
    assert hippocampus.min() < 0.62
    assert hippocampus.max() > 1.6
    ratio = np.log(hippocampus / drawn[:, REGIONS.index("Right Hippocampus")])
    assert ratio.std() > 0.15  # the sides are drawn apart


def test_mirroring_exchanges_sides_and_twice_is_nothing(anatomies):
    anatomy = anatomies.draw(rng(0, "anatomy", 3))
    turned = mirrored(anatomy)
    left, right = REGIONS.index("Left Hippocampus"), REGIONS.index("Right Hippocampus")
    np.testing.assert_array_equal(turned.shares[left], anatomy.shares[right][::-1])
    horn = NEIGHBOURS.index("Left Inf Lat Vent")
    np.testing.assert_array_equal(turned.others[horn], anatomy.others[horn + 1][::-1])
    for first, again in zip(anatomy, mirrored(turned), strict=True):
        np.testing.assert_array_equal(first, again)
    assert opposite(("Left X", "3rd Ventricle", "Right X", "Brain Stem")) == [2, 1, 0, 3]


def test_images_are_normalised_and_show_fluid_darker_than_tissue(anatomies):
    for k in range(3):
        draw = rng(0, "image", k)
        anatomy = anatomies.draw(draw)
        for image in (as_scanned(anatomy, draw), in_random_contrast(anatomy, draw)):
            assert image.shape == anatomies.grid.shape
            assert image.dtype == np.float32
            assert image.min() >= 0
            assert image.max() == 1
            ventricle, thalamus = (
                anatomy.shares[[REGIONS.index(f"{side} {name}") for side in ("Left", "Right")]].sum(axis=0)
                for name in ("Lateral Ventricle", "Thalamus")
            )
            assert np.average(image, weights=ventricle) < np.average(image, weights=thalamus)


def test_levels_follow_the_tissues():
    drawn = np.array([levels(rng(0, "levels", k)) for k in range(50)])
    csf, grey, white = drawn[:, -3:].T
    assert (csf < grey).all()
    assert (grey < white).all()
    ventricle = drawn[:, REGIONS.index("Left Lateral Ventricle")]
    np.testing.assert_allclose(ventricle, csf, atol=0.05)
