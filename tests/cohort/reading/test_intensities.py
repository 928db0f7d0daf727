"""Which value of a scan is air: the same scan in other units must become the same volume."""

import warnings

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cohort.atlas import load_template
from cohort.checking.faults import examine
from cohort.decoding import read_voxels
from cohort.grids import GRIDS
from cohort.reading.intensities import UNSURE, field_of_view, plain
from cohort.scans import load_scan, normalise, resample
from tests.support.scans import brain, refusal, save

GRID = GRIDS["demo"]


@pytest.fixture(scope="module")
def stripped():
    """A brain with 0 around it, whole numbers."""
    source = load_template("icbm2009a")
    return np.round(4 * resample(np.asarray(source.dataobj), source.affine, GRID.affine, GRID.shape)[0])


def standardised(image, where):
    return (image - image[where].mean()) / image[where].std()


LINEAR = {
    "-1 to 1": lambda v: 2 * v / v.max() - 1,
    "-0.5 to 0.5": lambda v: v / v.max() - 0.5,
    "z-score of the brain, 0 outside": lambda v: np.where(v > 0, standardised(v, v > 0), 0),
    "z-score of the brain, its 0 where that is": lambda v: standardised(v, v > 0),
    "z-score of all voxels": lambda v: standardised(v, np.ones(v.shape, bool)),
    "z-score of the brain, -10 outside": lambda v: np.where(v > 0, standardised(v, v > 0), -10),
    "z-score of the brain, NaN outside": lambda v: np.where(v > 0, standardised(v, v > 0), np.nan),
    "-1000 outside": lambda v: np.where(v > 0, v, -1000),
    "50 outside": lambda v: np.where(v > 0, v, 50),
    "NaN outside": lambda v: np.where(v > 0, v, np.nan),
    "shifted by 50": lambda v: v + 50,
    "shifted by -300": lambda v: v - 300,
}


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("grid", ["demo", "smoke"])
def test_a_stripped_brain_in_other_units_is_read_alike(tmp_path, stripped, name, grid):
    expected = load_scan(save(tmp_path / "plain.nii", stripped, GRID.affine), GRIDS[grid])
    path = save(tmp_path / "other.nii", LINEAR[name](stripped).astype(np.float32), GRID.affine)
    with pytest.warns(UserWarning, match=r"other\.nii: .*(is taken for air|was set to 0)"):
        found = load_scan(path, GRIDS[grid])
    # Of the brain's edge, a few voxels have the value 50 themselves and are joined to the background.
    assert (np.abs(found - expected) > 0.01).mean() <= (0.0005 if name == "50 outside" else 0)
    if grid == "demo":
        assert ((found == 0) != (expected == 0)).mean() <= (0.0005 if name == "50 outside" else 0)
        assert np.array_equal(normalise(found), found)
    assert [kind for kind, _ in examine(path)[0].warnings].count("intensity") >= 1


def test_ordinary_scans_are_taken_as_they_are(tmp_path, stripped):
    random = np.random.default_rng(0)
    noisy = np.round(np.hypot(stripped + random.normal(0, 16, GRID.shape), random.normal(0, 16, GRID.shape)))
    ringing = stripped - 0.02 * np.abs(ndimage.laplace(stripped))
    assert (ringing < 0).mean() > 0.02
    low_bits = np.round(noisy / 8)  # most of its air has one of four values
    for image in (stripped, noisy, ringing, low_bits):
        image = image.astype(np.float32)
        found, notes = plain(image)
        assert found is image
        assert notes == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_scan(save(tmp_path / "a.nii", noisy.astype(np.float32), GRID.affine), GRID)


def test_what_was_filled_outside_a_head_with_air_keeps_that_air(stripped):
    """A raw scan that another program padded: its own air stays near 0, and a value inside that equals the fill too."""
    random = np.random.default_rng(0)
    head = np.round(np.abs(stripped + random.normal(0, 16, GRID.shape))).astype(np.float32)
    assert (head == 50).any()
    for fill in (-1000, 50):
        padded = np.pad(head, 6, constant_values=fill)
        found, notes = plain(padded)
        assert notes == [f"its background is {fill} and was set to 0"]
        assert np.array_equal(found[6:-6, 6:-6, 6:-6], np.where(plain(padded)[0][6:-6, 6:-6, 6:-6] == 0, 0, head))
        assert (found[6:-6, 6:-6, 6:-6] != head).mean() < 0.01
        assert not found[:6].any()


@pytest.mark.parametrize("mode", ["constant", "grid-constant"])  # the second averages fill and air
def test_what_fills_the_corners_of_a_turned_scan_is_not_its_air(stripped, mode):
    random = np.random.default_rng(0)
    head = np.round(np.hypot(stripped + random.normal(0, 9, GRID.shape), random.normal(0, 9, GRID.shape))) + 1
    turn = Rotation.from_euler("xyz", (8, -6, 9), degrees=True).as_matrix()
    middle = (np.array(GRID.shape) - 1) / 2
    offset = middle - turn @ middle
    made = {
        fill: ndimage.affine_transform(head, turn, offset, order=1, mode=mode, cval=fill).astype(np.float32)
        for fill in (0, -1000)
    }
    found, notes = plain(made[-1000])
    assert notes == ["its background is -1000 and was set to 0"]
    inside = ndimage.binary_erosion(made[0] > 0, np.ones((3, 3, 3)))
    assert np.array_equal(found[inside], made[0][inside])
    assert found.min() == 0


def test_a_fill_that_happens_to_make_the_mean_zero_is_no_air(stripped):
    """Only a z-score has the mean 0 for a reason."""
    head = np.round(stripped + np.random.default_rng(0).uniform(0, 20, GRID.shape))
    fill = -float(np.float32(head.mean()))  # as many voxels again
    padded = np.concatenate([head, np.full(head.shape, fill)]).astype(np.float32)
    found, notes = plain(padded)
    assert notes == [f"its background is {fill:g} and was set to 0"]
    assert np.array_equal(found[: len(head)], head)


def test_what_fills_the_cavities_of_a_head_is_no_tissue(stripped):
    """Thresholded, with -1000 below: some of that lies within the head, joined to nothing."""
    random = np.random.default_rng(0)
    head = np.round(np.hypot(stripped + random.normal(0, 9, GRID.shape), random.normal(0, 9, GRID.shape)))
    hollow = random.random(GRID.shape) < 0.02
    kept = (head > 30) & ~hollow
    found, notes = plain(np.where(kept, head, -1000).astype(np.float32))
    assert notes == ["its background is -1000 and was set to 0"]
    assert np.array_equal(found, np.where(kept, head, 0))


def test_a_positive_fill_below_all_else_may_be_no_air(stripped):
    head = np.where(stripped > 0, stripped + 60, 50).astype(np.float32)
    assert plain(head)[1][-1].endswith(UNSURE)


PADDING = [(9, 17), (12, 0), (5, 8)]


@pytest.mark.parametrize("fills", [(-1000,), (50,), (0,), (4095,), (np.nan,), (0, -1000)])
def test_the_field_of_view_of_a_padded_scan_is_that_of_the_scan(stripped, fills):
    random = np.random.default_rng(0)
    head = np.round(np.abs(stripped + random.normal(0, 16, GRID.shape))).astype(np.float32)
    assert field_of_view(head) == tuple(slice(0, size) for size in head.shape)
    padded = head
    for fill in fills:
        padded = np.pad(padded, PADDING, constant_values=fill)
    assert np.array_equal(padded[field_of_view(padded)], head)


def test_a_scan_of_one_value_is_left_to_those_who_judge_scans():
    for value in (7.0, np.nan):
        assert field_of_view(np.full((8, 9, 10), value, dtype=np.float32)) == (slice(0, 8), slice(0, 9), slice(0, 10))


def test_what_surrounds_a_brain_that_was_cut_out_is_in_its_field_of_view(stripped):
    for fill in (0, -1000):
        image = np.where(stripped > 0, stripped, fill)
        assert field_of_view(image) == tuple(slice(0, size) for size in image.shape)


def test_noise_as_bright_as_tissue_is_no_tissue(stripped):
    """MP2RAGE UNI: outside the head, the ratio of two images of noise."""
    inside = stripped > 0
    uni = stripped / stripped.max() - 0.5 + np.random.default_rng(0).normal(0, 0.02, GRID.shape)
    uni = np.where(inside, uni, np.random.default_rng(1).uniform(-0.5, 0.5, GRID.shape)).clip(-0.5, 0.5)
    fine = ndimage.zoom(uni, 2, order=0)  # 2 mm, as fine as a coarse scan
    draw = np.random.default_rng(2).uniform(-0.5, 0.5, fine.shape)
    wide = ndimage.zoom(inside, 2, order=0)
    found, notes = plain(np.where(wide, fine, draw).astype(np.float32))
    assert any("MP2RAGE" in note for note in notes)
    air = found == 0
    assert air[~wide].mean() > 0.9
    assert air[ndimage.binary_erosion(wide, iterations=3)].mean() < 0.01


def test_nan_inside_the_head_is_refused_and_around_it_is_background(tmp_path):
    image = brain()
    outside = image == 0
    path = save(tmp_path / "around.nii", np.where(outside, np.nan, image).astype(np.float32))
    assert np.array_equal(load_scan(path, GRIDS["smoke"]), normalise(image))
    few = image.copy()
    few[0, 0, :3] = np.nan  # less than any background
    assert np.array_equal(plain(read_voxels(save(tmp_path / "few.nii", few))[0])[0], image)
    image[10, 12, 10] = np.nan
    assert "1 of 9600 voxels are not finite" in refusal(save(tmp_path / "inside.nii", image))
    image[outside] = np.inf
    assert "not finite" in refusal(save(tmp_path / "infinite.nii", image))


def test_voxels_are_as_they_were_stored_for_whoever_compares_files(tmp_path, stripped):
    path = save(tmp_path / "a.nii", (stripped - 300).astype(np.float32), GRID.affine)
    assert np.array_equal(read_voxels(path)[0], nib.load(path).get_fdata(dtype=np.float32))
