"""Where voxels lie: units, quaternions, forms that are not set, other formats, and a user's word instead."""

import gzip
import shutil

import nibabel as nib
import numpy as np
import pytest

from cohort.checking.faults import examine
from cohort.decoding import RefusedError, ending_and_hash, read_voxels
from cohort.grids import GRIDS
from cohort.reading.headers import Placement
from cohort.scans import load_scan, normalise
from tests.support.scans import brain, edit, refusal

GRID = GRIDS["smoke"]


def affine_of(path, placement=None):
    return read_voxels(path, placement)[1]


@pytest.mark.parametrize(("unit", "in_mm"), [("micron", 1e3), ("meter", 1e-3)])
def test_a_unit_of_length_is_honoured(tmp_path, unit, in_mm):
    image = nib.Nifti1Image(brain(), np.diag([in_mm] * 3 + [1]) @ GRID.affine)
    image.set_qform(image.affine, code=1)
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "sform.nii")
    image.set_sform(None, code=0)
    nib.save(image, tmp_path / "qform.nii")
    for form in ("sform", "qform"):
        assert np.allclose(affine_of(tmp_path / f"{form}.nii"), GRID.affine, atol=1e-4)
        assert np.array_equal(load_scan(tmp_path / f"{form}.nii", GRID), normalise(brain()))
    warned = [text for _, text in examine(tmp_path / "sform.nii")[0].warnings]
    assert len(warned) == 1
    assert "and it is read so" in warned[0]


def test_a_unit_that_makes_no_head_is_read_as_mm(tmp_path):
    image = nib.Nifti1Image(brain(), GRID.affine)
    image.header.set_xyzt_units("meter")
    nib.save(image, tmp_path / "a.nii")
    assert np.array_equal(affine_of(tmp_path / "a.nii"), GRID.affine)


@pytest.mark.parametrize("bcd", [(0.70710705, 0.7071075, 0), (0.7071068, 0.70710704, 0), (0, 0, 1.000001)])
def test_a_half_turn_whose_quaternion_was_rounded(tmp_path, bcd):
    """Public files have b2 + c2 + d2 beyond 1 by 4e-7 to 2e-6, where nibabel refuses from 3.6e-7 on."""
    image = nib.Nifti1Image(brain(), GRID.affine)
    image.set_qform(GRID.affine, code=1)
    image.set_sform(None, code=0)
    nib.save(image, tmp_path / "a.nii")
    names = ("quatern_b", "quatern_c", "quatern_d")
    edit(tmp_path / "a.nii", lambda header: [header.__setitem__(*pair) for pair in zip(names, bcd, strict=True)])
    unit = np.array(bcd) / np.linalg.norm(bcd)
    half_turn = 2 * np.outer(unit, unit) - np.eye(3)
    assert np.abs(affine_of(tmp_path / "a.nii")[:3, :3] / 8 - half_turn).max() < 1e-3  # 0.06 degrees
    edit(tmp_path / "a.nii", lambda header: header.__setitem__("quatern_b", 1.5))
    assert "the qform is no rotation" in refusal(tmp_path / "a.nii")


def test_a_sform_of_zeros_gives_way_to_the_qform(tmp_path):
    image = nib.Nifti1Image(brain(), GRID.affine)
    image.set_qform(GRID.affine, code=1)
    nib.save(image, tmp_path / "a.nii")
    edit(tmp_path / "a.nii", lambda header: header.set_sform(np.zeros((4, 4)), code=1))
    assert np.array_equal(load_scan(tmp_path / "a.nii", GRID), normalise(brain()))
    assert [text for _, text in examine(tmp_path / "a.nii")[0].warnings] == [
        "the determinant of the sform is zero; the qform counts"
    ]
    edit(tmp_path / "a.nii", lambda header: header.__setitem__("qform_code", 0))
    assert "determinant of the affine is zero" in refusal(tmp_path / "a.nii")


# A user's word -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codes", ["RAS", "LAS", "PSR", "LIA", "SRP"])
def test_voxels_lie_where_a_user_says(tmp_path, codes):
    image = nib.Nifti1Image(brain(), GRID.affine)
    turn = nib.orientations.ornt_transform(*map(nib.orientations.axcodes2ornt, ("RAS", codes)))
    turned = image.as_reoriented(turn)
    nib.save(nib.Nifti1Image(np.asarray(turned.dataobj), None, turned.header), tmp_path / "lost.nii")
    edit(tmp_path / "lost.nii", lambda header: (header.set_sform(None, 0), header.set_qform(None, 0)))
    assert "where left and right are; if you know" in refusal(tmp_path / "lost.nii")
    assert "--reset-affine" in refusal(tmp_path / "lost.nii")
    assert np.allclose(affine_of(tmp_path / "lost.nii", Placement(codes)), turned.affine)
    coarse = affine_of(tmp_path / "lost.nii", Placement(codes, spacing_mm=3.0))
    assert np.allclose(np.linalg.norm(coarse[:3, :3], axis=0), 3)
    assert "".join(nib.aff2axcodes(coarse)) == codes


@pytest.mark.parametrize("codes", ["RA", "RAL", "RRS", "ras", "XYZ", "RASS"])
def test_what_is_no_orientation(codes):
    with pytest.raises(ValueError, match="no orientation"):
        Placement(codes)


# Other formats -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.mgz", "a.mgh"])
def test_freesurfer_volumes(tmp_path, name):
    turned = np.diag([-1.0, 1, 1, 1])
    turned[0, 3] = GRID.shape[0] - 1
    nib.save(nib.MGHImage(brain()[::-1].copy(), GRID.affine @ turned), tmp_path / name)
    assert np.array_equal(load_scan(tmp_path / name, GRID), normalise(brain()))
    assert examine(tmp_path / name)[0].warnings == []
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    refusal(tmp_path / name)


def test_a_freesurfer_volume_without_an_orientation(tmp_path):
    nib.save(nib.MGHImage(brain(), GRID.affine), tmp_path / "a.mgz")
    data = bytearray(gzip.decompress((tmp_path / "a.mgz").read_bytes()))
    data[28:30] = b"\0\0"  # goodRASFlag
    (tmp_path / "a.mgz").write_bytes(gzip.compress(bytes(data)))
    assert "--reset-affine" in refusal(tmp_path / "a.mgz")
    # Without the flag the file's voxel sizes count for nothing either.
    assert np.allclose(affine_of(tmp_path / "a.mgz", Placement("RAS", spacing_mm=8.0)), GRID.affine)


@pytest.mark.parametrize("ending", [".hdr", ".img"])
def test_pairs_of_files(tmp_path, ending):
    nib.save(nib.Nifti1Pair(brain(), GRID.affine), tmp_path / "nifti.img")
    assert np.array_equal(load_scan(tmp_path / f"nifti{ending}", GRID), normalise(brain()))
    analyze = nib.AnalyzeImage(brain(), None)
    analyze.header.set_zooms((8, 8, 8))
    nib.save(analyze, tmp_path / "analyze.img")
    assert "does not say where left and right are" in refusal(tmp_path / f"analyze{ending}")
    image, affine, header = read_voxels(tmp_path / f"analyze{ending}", Placement("RAS"))
    assert np.array_equal(image, brain())
    assert np.allclose(affine, GRID.affine)
    assert header is None
    other = "nifti.img" if ending == ".hdr" else "nifti.hdr"
    before = ending_and_hash(tmp_path / f"nifti{ending}")
    (tmp_path / other).write_bytes((tmp_path / other).read_bytes() + b"\0")
    assert ending_and_hash(tmp_path / f"nifti{ending}") != before
    (tmp_path / other).unlink()
    assert f"one of a pair of files, of which {other} is missing" in refusal(tmp_path / f"nifti{ending}")


def test_a_header_of_a_pair_under_the_name_of_one_file(tmp_path):
    nib.save(nib.Nifti1Pair(brain(), GRID.affine), tmp_path / "a.img")
    shutil.copy(tmp_path / "a.hdr", tmp_path / "a.nii")
    with pytest.raises(RefusedError, match=r"a pair of files \(\.hdr and \.img"):
        read_voxels(tmp_path / "a.nii")
