"""Volume pickles and NIfTI: write then read, older files, and every refusal with the file's name."""

import os
import pickle

import nibabel as nib
import numpy as np
import pytest

from cohort.decoding import read_voxels
from cohort.grids import GRIDS
from cohort.scans import load_scan
from cohort.volumes import (
    Volume,
    list_volumes,
    read_image,
    read_volume,
    side_of,
    volume_name,
    write_nifti,
    write_scan,
    write_volume,
)
from runtime.errors import InputError

GRID = GRIDS["smoke"]


def image(seed=0):
    return np.random.default_rng(seed).random(GRID.shape, dtype=np.float32)


def dump(path, value):
    path.write_bytes(pickle.dumps(value))
    return path


def test_round_trip(tmp_path):
    volume = Volume(image(), 1, 42, GRID.affine, "abc", "def", "ddim", 50, 1.5, "R")
    path = tmp_path / volume_name(1, 42)
    write_volume(path, volume)
    back = read_volume(path)
    assert path.name == "TLE_000042.pkl"
    assert np.array_equal(back.image, volume.image)
    assert back.image.dtype == np.float32
    assert np.array_equal(back.affine, GRID.affine)
    names = ("label", "seed", "vae", "diffusion", "sampler", "steps", "guidance", "side")
    assert [getattr(back, name) for name in names] == [1, 42, "abc", "def", "ddim", 50, 1.5, "R"]
    assert side_of(path) == "R"
    assert side_of(tmp_path / "absent.pkl") == ""


def test_contents_are_a_plain_dict(tmp_path):
    write_volume(tmp_path / "v.pkl", Volume(image(), np.int64(0), np.int64(3)))
    contents = pickle.loads((tmp_path / "v.pkl").read_bytes())
    assert contents["format"] == 1
    assert type(contents["label"]) is int
    assert type(contents["seed"]) is int


def test_older_file_with_image_and_label_only(tmp_path):
    back = read_volume(dump(tmp_path / "old.pkl", {"image": image().astype(np.float64), "label": np.int64(1)}))
    assert back.image.dtype == np.float32
    assert back.label == 1
    assert back.seed is None
    assert back.side == ""
    assert back.affine is None


FAULTS = {
    "a list": ([1, 2], "expected a dict"),
    "no image": ({"label": 0}, "image: expected an array"),
    "no label": ({"image": image()}, "label: expected 0"),
    "label 2": ({"image": image(), "label": 2}, "got 2"),
    "label True": ({"image": image(), "label": True}, "got True"),
    "4D": ({"image": image()[None], "label": 0}, r"\(1, 20, 24, 20\)"),
    "complex": ({"image": image().astype(complex), "label": 0}, "complex128"),
    "not finite": ({"image": np.full(GRID.shape, np.nan), "label": 0}, "9600 voxels are not finite"),
    "affine": ({"image": image(), "label": 0, "affine": np.eye(3)}, "affine: expected 4x4"),
    "format": ({"image": image(), "label": 0, "format": 9}, "format 9"),
    "side": ({"image": image(), "label": 1, "side": "left"}, "side: expected L, R"),
    "side of HC": ({"image": image(), "label": 0, "side": "L"}, "of a TLE; got 'L'"),
    "seed": ({"image": image(), "label": 0, "seed": "7"}, "seed: got '7'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_refusals_name_the_file(tmp_path, fault):
    value, reason = FAULTS[fault]
    path = dump(tmp_path / "bad.pkl", value)
    with pytest.raises(InputError, match=reason) as refusal:
        read_volume(path)
    assert str(path) in str(refusal.value)


def test_what_would_not_be_read_is_not_written(tmp_path):
    with pytest.raises(InputError, match="label"):
        write_volume(tmp_path / "v.pkl", Volume(image(), 7))
    assert list(tmp_path.iterdir()) == []


class Malicious:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("reader", [read_volume, read_image, lambda path: load_scan(path, GRID)])
def test_malicious_pickle_is_refused_and_does_nothing(tmp_path, reader):
    canary = tmp_path / "canary"
    path = dump(tmp_path / "evil.pkl", {"image": image(), "label": 0, "affine": Malicious(canary)})
    with pytest.raises(InputError, match="mkdir") as refusal:
        reader(path)
    assert str(path) in str(refusal.value)
    assert not canary.exists()
    pickle.loads(path.read_bytes())
    assert canary.exists()  # it would have worked


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated_pickle(tmp_path, share):
    write_volume(tmp_path / "v.pkl", Volume(image(), 0))
    data = (tmp_path / "v.pkl").read_bytes()
    (tmp_path / "v.pkl").write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match=r"v\.pkl"):
        read_volume(tmp_path / "v.pkl")


def test_list_is_sorted_and_leaves_unfinished_files_out(tmp_path):
    for name in ("TLE_000001.pkl", "HC_000002.pkl", ".tmp-1.pkl", "manifest.csv"):
        (tmp_path / name).touch()
    assert [path.name for path in list_volumes(tmp_path)] == ["HC_000002.pkl", "TLE_000001.pkl"]
    with pytest.raises(InputError, match="no such folder"):
        list_volumes(tmp_path / "absent")


def test_nifti_overlays_the_template_and_is_the_same_bytes_each_time(tmp_path):
    write_nifti(tmp_path / "a.nii.gz", image(), GRID.affine)
    write_nifti(tmp_path / "b.nii.gz", image(), GRID.affine)
    nifti = nib.load(tmp_path / "a.nii.gz")
    for affine, code in (nifti.get_sform(coded=True), nifti.get_qform(coded=True)):
        assert code == 4
        assert np.allclose(affine, GRID.affine)
    assert nifti.header.get_xyzt_units()[0] == "mm"
    assert nifti.get_data_dtype() == np.float32
    assert np.array_equal(nifti.get_fdata(dtype=np.float32), image())
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_pickle_and_nifti_of_one_volume_load_alike(tmp_path):
    write_nifti(tmp_path / "v.nii.gz", image(), GRID.affine)
    write_volume(tmp_path / "v.pkl", Volume(image(), 0, affine=GRID.affine))
    assert np.array_equal(load_scan(tmp_path / "v.nii.gz", GRID), load_scan(tmp_path / "v.pkl", GRID))


def test_a_scan_of_whole_numbers_is_stored_exactly_in_half_the_bytes(tmp_path):
    whole = np.rint(1000 * image())
    write_scan(tmp_path / "w.nii", whole, GRID.affine)
    assert nib.load(tmp_path / "w.nii").get_data_dtype() == np.int16
    np.testing.assert_array_equal(read_voxels(tmp_path / "w.nii")[0], whole)
    assert (tmp_path / "w.nii").stat().st_size == 352 + 2 * whole.size


@pytest.mark.parametrize(("low", "numbers"), [(0.0, 65535), (-3.0, 32767)])
@pytest.mark.parametrize("high", [1e-3, 1.0, 40_000.0, 3e6])
def test_other_scans_are_off_by_half_a_step_and_keep_what_is_background(tmp_path, low, numbers, high):
    values = high * np.random.default_rng(0).uniform(low / 3, 1, GRID.shape)
    values[2:, :, :3], values[0, 0, :3] = 0, (1e-9 * high, high, 0.2 * high)
    write_scan(tmp_path / "s.nii.gz", values.astype(np.float32), GRID.affine)
    found = read_voxels(tmp_path / "s.nii.gz")[0]
    half = np.abs(values).max() / numbers / 2
    off = np.abs(found - values)
    off[0, 0, 0] = 0  # the faint one
    assert off.max() < 1.01 * half + 1e-6 * high
    assert off.max() > 0.9 * half
    np.testing.assert_array_equal(found == 0, values == 0)
    assert 0 < found[0, 0, 0] <= 2.01 * half
