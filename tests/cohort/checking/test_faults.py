"""What an examination finds unusual in a scan, and the one name of its voxels."""

import gzip
import json
from dataclasses import asdict

import nibabel as nib
import numpy as np

from cohort.checking.faults import Examination, examine
from cohort.grids import GRIDS
from cohort.scans import load_scan
from tests.support.scans import brain, edit, save

GRID = GRIDS["smoke"]


def warned(path):
    return " | ".join(text for _, text in examine(path)[0].warnings)


def centred(shape, edges_mm):
    """An affine that places the middle of an image where the grid has its."""
    affine = np.diag([*edges_mm, 1.0])
    affine[:3, 3] = np.array(GRID.centre_mm) - np.array(edges_mm) * (np.array(shape) - 1) / 2
    return affine


def test_an_ordinary_scan_has_no_warning(tmp_path):
    found, picture = examine(save(tmp_path / "a.nii.gz", brain()))
    assert found.warnings == []
    assert (found.shape, found.spacing_mm, found.orientation) == (list(GRID.shape), [8.0, 8.0, 8.0], "RAS")
    assert picture.any()
    assert Examination(**json.loads(json.dumps(asdict(found)))) == found


def test_sform_and_qform_that_differ(tmp_path):
    image = nib.Nifti1Image(brain(), GRID.affine)
    away = GRID.affine.copy()
    away[0, 3] += 5
    image.set_sform(GRID.affine, code=4)
    image.set_qform(away, code=1)
    nib.save(image, tmp_path / "a.nii")
    assert warned(tmp_path / "a.nii") == "sform and qform place its corners up to 5.0 mm apart; the sform counts"
    away[0, 3] -= 4.5
    image.set_qform(away, code=1)
    nib.save(image, tmp_path / "b.nii")
    assert warned(tmp_path / "b.nii") == ""
    nib.save(nib.Nifti1Image(brain(), GRID.affine), tmp_path / "c.nii")
    assert np.array_equal(load_scan(tmp_path / "a.nii", GRID), load_scan(tmp_path / "c.nii", GRID))


def test_what_is_unusual_about_a_header(tmp_path):
    metres = nib.Nifti1Image(brain(), GRID.affine)
    metres.header.set_xyzt_units("meter")
    nib.save(metres, tmp_path / "m.nii")
    assert warned(tmp_path / "m.nii") == "the unit of length is metre, which makes no head of it; it is read as mm"
    edit(save(tmp_path / "p.nii", brain()), lambda header: header["pixdim"].__setitem__(1, 4.0))
    assert "pixdim says voxels of 4 x 8 x 8 mm, the affine 8 x 8 x 8 mm" in warned(tmp_path / "p.nii")
    thick = save(tmp_path / "t.nii", brain((130, 160, 27)), centred((130, 160, 27), (1.2, 1.2, 6)))
    assert warned(thick) == "thick slices: voxels of 1.2 x 1.2 x 6 mm"
    long = save(tmp_path / "l.nii", brain((20, 24, 54)), centred((20, 24, 54), (8, 8, 8)))
    assert "a field of view of 160 x 192 x 432 mm; expected 100 to 400 mm" in warned(long)


def test_what_is_unusual_about_voxels(tmp_path):
    image = brain()
    assert "only 1 distinct values" in warned(save(tmp_path / "a.nii", (image > 0).astype(np.uint8)))
    assert "clipped: " in warned(save(tmp_path / "b.nii", np.minimum(image, 120)))
    assert "-100 is taken for air: the intensities reach from -" in warned(save(tmp_path / "c.nii", image - 100))


def test_voxels_have_one_name_however_they_are_stored(tmp_path):
    image = np.round(brain())
    save(tmp_path / "a.nii.gz", image)
    (tmp_path / "renamed.nii.gz").write_bytes((tmp_path / "a.nii.gz").read_bytes())
    (tmp_path / "level.nii.gz").write_bytes(gzip.compress(gzip.decompress((tmp_path / "a.nii.gz").read_bytes()), 1))
    save(tmp_path / "short.nii", image.astype(np.int16))
    ras = nib.Nifti1Image(image, GRID.affine)
    for codes in ("LAS", "PIR"):
        turn = nib.orientations.ornt_transform(nib.io_orientation(ras.affine), nib.orientations.axcodes2ornt(codes))
        nib.save(ras.as_reoriented(turn), tmp_path / f"{codes}.nii.gz")
    found = {path.name: examine(path)[0] for path in sorted(tmp_path.iterdir())}
    assert len({scan.voxels for scan in found.values()}) == 1
    assert {found["LAS.nii.gz"].orientation, found["PIR.nii.gz"].orientation} == {"LAS", "PIR"}
    mirror = examine(save(tmp_path / "mirror.nii", image[::-1]))[0]
    assert mirror.voxels != found["a.nii.gz"].voxels
    assert mirror.image == found["a.nii.gz"].image
    changed = image.copy()
    changed[10, 10, 10] += 1
    assert examine(save(tmp_path / "changed.nii", changed))[0].image != mirror.image
