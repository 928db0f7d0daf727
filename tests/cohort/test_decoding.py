"""Real damage in real files: each is refused, by name and with the reason."""

import gzip
import itertools
import pickle

import nibabel as nib
import numpy as np
import pytest

from cohort.grids import GRIDS
from cohort.scans import load_scan
from tests.support.scans import brain, edit, refusal, save

GRID = GRIDS["smoke"]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_gzip(tmp_path, share):
    path = save(tmp_path / "a.nii.gz", brain())
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert "truncated or damaged gzip" in refusal(path)


@pytest.mark.parametrize("last", [1, 4, 8])
def test_gzip_that_lost_only_its_checksum(tmp_path, last):
    path = save(tmp_path / "a.nii.gz", brain())
    path.write_bytes(path.read_bytes()[:-last])
    assert "truncated or damaged gzip" in refusal(path)


@pytest.mark.parametrize("place", [0.05, 0.3, 0.6, 0.95])
def test_flipped_byte(tmp_path, place):
    path = save(tmp_path / "a.nii.gz", brain())
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 0xFF
    path.write_bytes(bytes(data))
    refusal(path)


def test_flipped_byte_that_inflates_is_caught_by_the_checksum(tmp_path):
    # Stored, not deflated: the stream stays valid whatever a voxel says.
    path = save(tmp_path / "a.nii", brain())
    data = bytearray(gzip.compress(path.read_bytes(), compresslevel=0))
    data[len(data) // 2] ^= 0x01
    (tmp_path / "b.nii.gz").write_bytes(bytes(data))
    assert "CRC check failed" in refusal(tmp_path / "b.nii.gz")


def test_truncated_plain_nifti(tmp_path):
    path = save(tmp_path / "a.nii", brain())
    path.write_bytes(path.read_bytes()[:-1])
    assert "truncated: 38399 bytes of voxels, the header announces 38400" in refusal(path)


def test_false_endings(tmp_path):
    plain, packed = save(tmp_path / "a.nii", brain()), save(tmp_path / "b.nii.gz", brain())
    assert "not compressed" in refusal(plain.rename(tmp_path / "c.nii.gz"))
    assert "named .nii but compressed" in refusal(packed.rename(tmp_path / "d.nii"))
    assert "expected a name ending in" in refusal(tmp_path / "d.mnc")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.pkl"])
def test_empty_and_absent_files_and_text(tmp_path, name):
    assert "no such file" in refusal(tmp_path / name)
    (tmp_path / name).touch()
    assert "empty (0 bytes)" in refusal(tmp_path / name)
    (tmp_path / name).write_text("<html>404 not found</html>")
    refusal(tmp_path / name)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_voxel_that_is_not_finite(tmp_path, value):
    image = brain()
    image[3, 4, 5] = value
    assert "1 of 9600 voxels are not finite" in refusal(save(tmp_path / "a.nii.gz", image))


def test_beyond_float32(tmp_path):
    assert "beyond float32" in refusal(save(tmp_path / "a.nii.gz", brain().astype(np.float64) * 1e300))


@pytest.mark.parametrize("value", [0, 7])
def test_constant(tmp_path, value):
    assert f"constant: every voxel is {value}" in refusal(save(tmp_path / "a.nii", np.full(GRID.shape, value, "f4")))


def test_nothing_but_zeros_on_the_grid(tmp_path):
    image = np.zeros((60, 24, 20), np.float32)
    image[-2:] = 5
    assert "constant within the grid" in refusal(save(tmp_path / "a.nii", image))


@pytest.mark.parametrize("shape", [(20, 24, 20, 2), (20, 24), (20, 24, 1), (20, 24, 20, 1, 3), (20,)])
def test_not_three_dimensional(tmp_path, shape):
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    assert f"not three-dimensional: shape {shape}" in refusal(save(tmp_path / "a.nii.gz", values))


def test_complex_and_rgb(tmp_path):
    assert "complex" in refusal(save(tmp_path / "a.nii", brain().astype(np.complex64)))
    rgb = np.zeros(GRID.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    rgb["R"] = brain() / 2
    assert "RGB" in refusal(save(tmp_path / "b.nii", rgb))
    (tmp_path / "c.pkl").write_bytes(pickle.dumps({"image": brain().astype(np.complex64)}))
    assert "complex" in refusal(tmp_path / "c.pkl")


@pytest.mark.parametrize("column", [[0, 0, 0], [8, 0, 0]])
def test_determinant_zero(tmp_path, column):
    affine = GRID.affine.copy()
    affine[:3, 1] = column
    path = save(tmp_path / "a.nii", brain())
    edit(path, lambda header: header.set_sform(affine, code=2))
    assert "determinant of the affine is zero" in refusal(path)


def test_affine_that_is_not_finite(tmp_path):
    path = save(tmp_path / "a.nii", brain())
    edit(path, lambda header: header["srow_x"].__setitem__(3, np.nan))
    assert "not finite" in refusal(path)


def test_no_overlap_and_wrong_units(tmp_path):
    away = GRID.affine.copy()
    away[0, 3] += 1000
    assert "it reaches from [920, -113, -72] to [1080, 79, 88] mm" in refusal(save(tmp_path / "a.nii", brain(), away))
    metres = np.diag([1e-3, 1e-3, 1e-3, 1]) @ GRID.affine
    assert "no head; are its voxel sizes in mm?" in refusal(save(tmp_path / "b.nii", brain(), metres))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("dims", "reason"),
    [
        ([3, 32767, 32767, 32767, 1, 1, 1, 1], "the limit is 268435456"),
        ([7, 32767, 32767, 32767, 32767, 32767, 32767, 32767], "the limit is 268435456"),
        ([3, -5, 24, 20, 1, 1, 1, 1], "impossible shape"),
        ([3, 0, 24, 20, 1, 1, 1, 1], "impossible shape"),
        ([0, 20, 24, 20, 1, 1, 1, 1], "impossible shape"),
    ],
)
def test_absurd_sizes_are_refused_before_they_are_read(tmp_path, dims, reason, packed):
    path = save(tmp_path / "a.nii", brain())
    edit(path, lambda header: header.__setitem__("dim", dims))
    if packed:
        path = tmp_path / "a.nii.gz"
        path.write_bytes(gzip.compress((tmp_path / "a.nii").read_bytes()))
    assert reason in refusal(path)


def test_absurd_sizes_of_nifti_2(tmp_path):
    path = save(tmp_path / "a.nii", brain(), kind=nib.Nifti2Image)
    data = bytearray(path.read_bytes())
    data[16 + 8 : 16 + 32] = (2**62).to_bytes(8, "little") * 3
    path.write_bytes(bytes(data))
    assert "the limit is 268435456" in refusal(path)


def test_absurd_header_length_type_and_scale(tmp_path):
    changes = {
        "expected 348 to 1048576": lambda header: header.__setitem__("vox_offset", 2.0**40),
        "not a valid NIfTI header": lambda header: header.__setitem__("datatype", 12345),
        "scale of its voxels": lambda header: (
            header.__setitem__("scl_slope", 1),
            header.__setitem__("scl_inter", np.inf),
        ),
    }
    for number, (reason, change) in enumerate(changes.items()):
        path = save(tmp_path / f"{number}.nii", brain())
        edit(path, change)
        assert reason in refusal(path)


def test_a_bomb_behind_a_small_header(tmp_path):
    data = save(tmp_path / "a.nii", brain()).read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(data + bytes(2**24)))
    assert "follow the voxels" in refusal(tmp_path / "b.nii.gz")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgz"])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<!DOCTYPE html>\n<html><head><title>Log in</title>", "a web page, not a scan: it begins '<!DOCTYPE html>"),
        ('{"error": "no such file"}', "text, not a scan: it begins '{"),
    ],
)
def test_a_page_that_was_saved_under_a_scans_name(tmp_path, name, text, reason):
    (tmp_path / name).write_text(text)
    assert reason in (told := refusal(tmp_path / name))
    assert "Fetch it again" in told or "fetch it again" in told


@pytest.mark.parametrize("garbage", [b"<html>", b"\xff" * 5000, b"0"])
def test_garbage_behind_a_whole_gzip_stream(tmp_path, garbage):
    path = save(tmp_path / "a.nii.gz", brain())
    path.write_bytes(path.read_bytes() + garbage)
    assert f"{len(garbage)} bytes of something else follow its gzip data, which are whole" in (told := refusal(path))
    assert "gzip -dcq" in told


def test_what_git_annex_left_of_a_file(tmp_path):
    (tmp_path / "a.nii.gz").symlink_to("../../.git/annex/objects/0F/1a/MD5E-s1--b.nii.gz/MD5E-s1--b.nii.gz")
    assert "was not fetched; fetch it with git annex get (datalad get)" in refusal(tmp_path / "a.nii.gz")


def test_every_reason_is_distinct_from_success(tmp_path):
    """The undamaged file of the tests above is a good one: no refusal came from elsewhere."""
    for ending, affine in itertools.product((".nii", ".nii.gz"), (None, GRID.affine)):
        assert load_scan(save(tmp_path / f"good{ending}", brain(), affine), GRID).max() == 1
