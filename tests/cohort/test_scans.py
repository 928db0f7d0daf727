"""Scans: geometry against closed forms, number types, intensities."""

import nibabel as nib
import numpy as np
import pytest

from cohort import decoding
from cohort.grids import GRIDS, Grid
from cohort.scans import DARKEST, head_mask, load_scan, normalise, resample
from cohort.volumes import Volume, write_volume
from runtime.errors import InputError
from tests.support.scans import brain, refusal, save

GRID = GRIDS["smoke"]


# Reading -------------------------------------------------------------------------------------------------------------


def test_on_the_grid_only_the_scale_changes(tmp_path):
    scan = load_scan(save(tmp_path / "a.nii.gz", brain()), GRID)
    assert scan.dtype == np.float32
    assert scan.flags.c_contiguous
    assert np.array_equal(scan, normalise(brain()))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64, ">i2", ">f4"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_number_types_and_both_versions_of_nifti(tmp_path, dtype, kind):
    whole = np.round(brain()).astype(dtype)
    header = kind.header_class(endianness=">" if np.dtype(dtype).byteorder == ">" else "<")
    image = kind(whole, GRID.affine, header)
    image.set_data_dtype(dtype)
    nib.save(image, tmp_path / "a.nii")
    assert np.array_equal(load_scan(tmp_path / "a.nii", GRID), normalise(np.round(brain())))


def test_voxels_are_what_nibabel_reads_with_slope_and_intercept(tmp_path):
    image = nib.Nifti1Image(np.round(brain()).astype(np.int16), GRID.affine)
    image.header.set_slope_inter(0.25, -3)
    nib.save(image, tmp_path / "a.nii.gz")
    stored = nib.load(tmp_path / "a.nii.gz").get_fdata(dtype=np.float32)
    assert np.array_equal(decoding.read_voxels(tmp_path / "a.nii.gz")[0], stored)


def test_trailing_one_is_squeezed(tmp_path):
    path = save(tmp_path / "a.nii.gz", brain()[..., None])
    assert np.array_equal(load_scan(path, GRID), normalise(brain()))


def test_pickles(tmp_path):
    write_volume(tmp_path / "bare.pkl", Volume(brain(), 0))
    assert np.array_equal(load_scan(tmp_path / "bare.pkl", GRID), normalise(brain()))
    write_volume(tmp_path / "small.pkl", Volume(brain((8, 8, 8)), 0))
    assert "(8, 8, 8) is not that of smoke, (20, 24, 20)" in refusal(tmp_path / "small.pkl")
    turned = np.diag([-1.0, 1, 1, 1])
    turned[0, 3] = GRID.shape[0] - 1
    write_volume(tmp_path / "las.pkl", Volume(brain()[::-1].copy(), 0, affine=GRID.affine @ turned))
    assert np.array_equal(load_scan(tmp_path / "las.pkl", GRID), normalise(brain()))


# Geometry ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codes", ["LAS", "RAS", "LPI", "SRA", "AIL"])
@pytest.mark.parametrize("spacing", [8.0, 3.3])
def test_orientation_of_the_file_does_not_matter(tmp_path, codes, spacing):
    fine = Grid("fine", (50, 60, 50), spacing, (0.7, -16.9, 8.1))
    image = nib.Nifti1Image(brain(fine.shape), fine.affine)
    wanted = nib.orientations.axcodes2ornt(codes)
    turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), wanted))
    assert "".join(nib.aff2axcodes(turned.affine)) == codes
    nib.save(image, tmp_path / "ras.nii.gz")
    nib.save(turned, tmp_path / "turned.nii.gz")
    assert np.array_equal(load_scan(tmp_path / "ras.nii.gz", GRID), load_scan(tmp_path / "turned.nii.gz", GRID))


def ramp(shape, affine):
    """x + 2 y + 3 z in mm at every voxel: linear, so that linear resampling has no error."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return (index @ affine[:3, :3].T + affine[:3, 3]) @ [1.0, 2.0, 3.0]


def tilted(degrees, edges, shift):
    turn = np.eye(4)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn[:3, :3] = [[c, -s, 0], [s, c, 0], [0, 0, 1]]
    affine = turn @ np.diag([*edges, 1])
    affine[:3, 3] = shift
    return affine


@pytest.mark.parametrize(
    ("edges", "degrees"), [((8, 8, 8), 0), ((9, 10, 11), 0), ((4, 4, 4), 0), ((1.5, 7, 9), 0), ((6, 9, 8), 20)]
)
def test_a_ramp_is_resampled_exactly_away_from_the_border(edges, degrees):
    affine = tilted(degrees, edges, (-150, -200, -120))
    shape = tuple(round(330 / edge) for edge in edges)
    out, covered = resample(ramp(shape, affine).astype(np.float32), affine, GRID.affine, GRID.shape)
    inner = (slice(6, -6),) * 3
    assert covered > 0.9
    assert np.abs(out - ramp(GRID.shape, GRID.affine))[inner].max() < 2e-3


def test_a_shift_of_the_affine_is_a_shift_of_the_image(tmp_path):
    path = save(tmp_path / "here.nii", brain())
    moved = GRID.affine.copy()
    moved[:3, 3] += np.array([2, 0, -1]) * GRID.spacing_mm
    there = load_scan(save(tmp_path / "there.nii", brain(), moved), GRID)
    assert np.array_equal(there[2:, :, :-1] > 0, load_scan(path, GRID)[:-2, :, 1:] > 0)
    assert not there[:2].any()
    assert not there[:, :, -1].any()


def test_half_a_voxel_averages_neighbours():
    image = np.random.default_rng(0).random(GRID.shape, dtype=np.float32)
    moved = GRID.affine.copy()
    moved[0, 3] -= GRID.spacing_mm / 2
    out, _ = resample(image, moved, GRID.affine, GRID.shape)
    assert np.allclose(out[:-1], (image[:-1] + image[1:]) / 2, atol=1e-6)


def test_finer_scans_are_averaged_not_aliased():
    fine = Grid("fine", (160, 192, 160), 1.0, GRID.centre_mm)
    stripes = np.broadcast_to((np.arange(160) % 8 < 4)[:, None, None], fine.shape).astype(np.float32)
    out, _ = resample(stripes, fine.affine, GRID.affine, GRID.shape)
    assert np.abs(out[2:-2, 2:-2, 2:-2] - 0.5).max() < 0.02


def test_a_scan_of_exactly_the_field_of_view_fills_the_grid():
    fine = Grid("fine", (40, 48, 40), 4.0, GRID.centre_mm)
    out, covered = resample(np.ones(fine.shape, np.float32), fine.affine, GRID.affine, GRID.shape)
    assert covered == 1
    assert (out == 1).all()


def test_outside_the_field_of_view_is_zero_and_the_edge_is_not_drawn_out():
    half = (GRID.shape[0] // 2, *GRID.shape[1:])
    out, covered = resample(np.ones(half, np.float32), GRID.affine, GRID.affine, GRID.shape)
    assert covered == 0.5
    assert (out[: half[0]] == 1).all()
    assert not out[half[0] :].any()


def test_sform_counts_when_its_code_is_set_else_the_qform(tmp_path):
    mirrored = GRID.affine @ np.diag([-1, 1, 1, 1])
    mirrored[0, 3] = -GRID.affine[0, 3]
    image = nib.Nifti1Image(brain(), GRID.affine)
    image.set_sform(GRID.affine, code=4)
    image.set_qform(mirrored, code=1)
    nib.save(image, tmp_path / "both.nii")
    image.set_sform(GRID.affine, code=0)
    nib.save(image, tmp_path / "qform.nii")
    expected = normalise(brain())
    assert np.array_equal(load_scan(tmp_path / "both.nii", GRID), expected)
    assert np.array_equal(load_scan(tmp_path / "qform.nii", GRID), expected[::-1])
    image.set_qform(mirrored, code=0)
    nib.save(image, tmp_path / "none.nii")
    assert "neither sform nor qform" in refusal(tmp_path / "none.nii")


# Normalisation and mask ----------------------------------------------------------------------------------------------


def test_normalise_by_percentiles_of_what_is_not_zero():
    values = np.zeros((10, 10, 20), np.float32)
    values[:, :, 10:] = np.arange(1, 1001).reshape(10, 10, 10)
    low, high = 5, 996  # of 1 to 1000, the values about 0.5 and 99.5 percent of the way
    out = normalise(values)
    scaled = DARKEST + (1 - DARKEST) * np.clip((values - low) / (high - low), 0, 1)
    assert np.allclose(out, np.where(values > 0, scaled, 0), atol=1e-6)
    assert (out.min(), out.max(), out.dtype) == (0, 1, np.float32)
    assert np.allclose(normalise(7 * values), out, atol=1e-6)
    assert np.array_equal(out == 0, values == 0)  # no part of the head becomes background


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("depth", [2, 9, 40])
def test_what_is_normalised_stays_as_it_is(seed, depth):
    """A synthetic volume is written in normalised intensities and read like a scan: nothing may tell them apart."""
    random = np.random.default_rng(seed)
    scan = normalise(random.gamma(2, 100, (depth, 9, 11)) * (random.random((depth, 9, 11)) < 0.4))
    assert np.array_equal(normalise(scan), scan)


def test_normalise_at_the_edges_of_its_domain():
    assert not normalise(np.zeros((2, 2, 2))).any()
    mask = np.zeros((2, 2, 2))
    mask[0] = 3
    assert np.array_equal(normalise(mask), mask / 3)
    signed = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    assert normalise(signed)[2] == 0
    with pytest.raises(InputError, match="non-finite"):
        normalise(np.array([1.0, np.nan]))


def ball(shape, radius):
    axes = np.meshgrid(*[np.linspace(-1, 1, size) for size in shape], indexing="ij")
    return sum(axis**2 for axis in axes) < radius**2


@pytest.mark.parametrize("air", [0.0, 0.02])
def test_head_mask_is_the_head_with_its_ventricles_and_without_specks(air):
    shape = (40, 48, 40)
    head = ball(shape, 0.8)
    volume = np.where(head, 0.6, 0) * np.where(ball(shape, 0.2), 0.05, 1)
    volume += air * np.abs(np.random.default_rng(0).standard_normal(shape))
    volume[:2, :2, :2] = 0.9
    mask = head_mask(volume.clip(0, 1).astype(np.float32))
    assert mask.dtype == bool
    assert np.array_equal(mask, head)


def test_head_mask_of_nothing_and_of_everything():
    assert not head_mask(np.zeros((4, 4, 4))).any()
    assert head_mask(np.full((4, 4, 4), 0.7)).all()


@pytest.mark.parametrize(("edges", "fits"), [((6, 6, 6), True), ((6.1, 6.1, 6.1), False), ((1, 1, 6.5), False)])
def test_a_source_much_coarser_than_the_grid_is_refused(tmp_path, edges, fits):
    """The demo grid has 4 mm: up to 6 mm is resampled, also when only one axis is coarser."""
    grid = GRIDS["demo"]
    shape = tuple(int(200 / edge) for edge in edges)
    affine = np.diag([*edges, 1.0])
    affine[:3, 3] = np.array(grid.centre_mm) - np.array(edges) * (np.array(shape) - 1) / 2
    image = np.random.default_rng(0).uniform(1, 2, shape).astype(np.float32)
    nib.save(nib.Nifti1Image(image, affine), tmp_path / "scan.nii")
    if fits:
        assert load_scan(tmp_path / "scan.nii", grid).shape == grid.shape
        return
    with pytest.raises(InputError, match=r"scan\.nii: voxels of 6\.\d mm are too coarse: .* 1\.5 times the 4 mm"):
        load_scan(tmp_path / "scan.nii", grid)
