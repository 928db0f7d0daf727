"""Inputs as real folders have them, one function per row of docs/awkward_inputs.md: each fills the folder `in`."""

from __future__ import annotations

import collections
import functools
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage

from cohort.atlas import load_template
from cohort.grids import GRIDS, Grid
from cohort.scans import resample
from tests.support.scans import edit

OWN = Grid("own", (28, 34, 28), 6.0, GRIDS["smoke"].centre_mm)
"""Of the scans that are made here: no grid of a stage."""
CLASSES = ("TLE", "HC")


@functools.cache
def _template() -> np.ndarray:
    source = load_template("icbm2009a")
    return resample(np.asarray(source.dataobj), source.affine, OWN.affine, OWN.shape)[0]


def person(number: int) -> np.ndarray:
    """The template with a texture of one's own, (28, 34, 28), whole numbers, 0 outside the brain."""
    coarse = np.random.default_rng(number).normal(0, 0.2, (7, 9, 7))
    texture = ndimage.zoom(coarse, np.array(OWN.shape) / coarse.shape, order=3)
    return np.clip(10 * _template() * (1 + texture), 0, 30000).round()


def save(path: Path, image: np.ndarray, affine: np.ndarray = OWN.affine, kind: type = np.int16) -> Path:
    """Writes a NIfTI with both codes set."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = nib.Nifti1Image(image.astype(kind), affine)
    written.set_sform(affine, code=1)
    written.set_qform(affine, code=1)
    nib.save(written, path)
    return path


def listed(path: Path, rows: Iterable[tuple[object, ...]], header: str = "subject,file,diagnosis") -> None:
    """Writes a table, comma or tab by its ending."""
    lines = [header, *(",".join(map(str, row)) for row in rows)]
    text = "\n".join(lines) + "\n"
    path.write_text(text.replace(",", "\t") if path.suffix == ".tsv" else text)


def scans(folder: Path, count: int, table: str = "t.csv", diagnosis: Callable[[int], str] = lambda k: CLASSES[k % 2]):
    """So many people and their table."""
    for k in range(count):
        save(folder / f"P{k}.nii", person(k))
    listed(folder / table, [(k, f"P{k}.nii", diagnosis(k)) for k in range(count)])


def bids(folder: Path, rows: list[tuple], header: str, people: int = 0) -> None:
    """A dataset with a scan of each of so many people, by default of those in the table."""
    for k in range(1, (people or len(rows)) + 1):
        save(folder / f"sub-{k:02d}/anat/sub-{k:02d}_T1w.nii.gz", person(k))
    listed(folder / "participants.tsv", rows, header)


def annexed_table(folder: Path) -> None:
    bids(folder, [("sub-01", "HC"), ("sub-02", "TLE")], "participant_id,group")
    (folder / "participants.tsv").unlink()
    (folder / "participants.tsv").symlink_to(".git/annex/objects/qF/8V/MD5E-s1896--439b.tsv")


def appledouble(folder: Path) -> None:
    bids(folder, [("sub-01", "HC"), ("sub-02", "TLE")], "participant_id,group")
    for path in list(folder.rglob("*_T1w.nii.gz")):
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(200))


def folders_not_in_table(folder: Path) -> None:
    bids(folder, [("sub-01", "HC"), ("sub-02", "TLE")], "participant_id,group", people=4)


def healthy_only_bids(folder: Path) -> None:
    bids(folder, [(f"sub-{k:02d}", 20 + k, "R") for k in (1, 2, 3)], "participant_id,age,handedness")


def row_per_session(folder: Path) -> None:
    rows = [("sub-01", "ses-1", 30, "HC"), ("sub-01", "ses-2", 32, "HC"), ("sub-02", "ses-1", 31, "TLE")]
    for k, (subject, session, *_) in enumerate(rows):
        save(folder / f"{subject}/{session}/anat/{subject}_{session}_T1w.nii.gz", person(k))
    listed(folder / "participants.tsv", rows, "participant_id,session_id,age,group")


def sex_other(folder: Path) -> None:
    rows = [("sub-01", 30, "F", "HC"), ("sub-02", 31, "O", "TLE"), ("sub-03", "20-25", "M", "HC")]
    bids(folder, [*rows, ("sub-04", "-", "M", "TLE")], "participant_id,age,sex,group")


def several_t1_per_session(folder: Path) -> None:
    for k in range(1, 9):
        base = folder / f"sub-{k:02d}/anat/sub-{k:02d}"
        for kind, gain in (
            ("run-01", 1),
            ("rec-norm_run-01", 1.05),
            ("ce-gadolinium", 1.1),
            ("echo-1", 1),
            ("echo-2", 0.5),
        ):
            save(base.with_name(f"{base.name}_{kind}_T1w.nii.gz"), person(k) * gain)
    listed(folder / "participants.tsv", [(f"sub-{k:02d}", CLASSES[k % 2]) for k in range(1, 9)], "participant_id,group")


def four_d_multi_echo(folder: Path) -> None:
    image = person(0)
    save(folder / "echoes.nii", np.stack([image / echo for echo in (1, 2, 3, 4)], -1))
    save(folder / "one_frame.nii", person(1)[..., None])
    save(folder / "channel_first.nii", image[None])
    names = ("echoes", "one_frame", "channel_first")
    listed(folder / "t.csv", [(name, f"{name}.nii", "HC") for name in names])


def cohort_of_healthy_only(folder: Path) -> None:
    scans(folder, 8, diagnosis=lambda k: "HC")


def identity_affine(folder: Path) -> None:
    for k in range(4):
        save(folder / f"P{k}.nii", person(k), np.diag([6.0, 6, 6, 1]))
    for name, own in (("t", range(4)), ("tr", (0, 1)), ("va", (2, 3))):
        listed(folder / f"{name}.csv", [(k, f"P{k}.nii", CLASSES[k % 2]) for k in own])


def labels_to_leave_out(folder: Path) -> None:
    kinds = ["HC", "left", "right", "HC", "left", "HC", "right", "HC", "bilateral", "", "extratemporal"]
    for k in range(len(kinds)):
        save(folder / f"P{k}.nii", person(k))
    listed(folder / "t.csv", [(k, f"P{k}.nii", kind) for k, kind in enumerate(kinds)], "subject,file,kind")


def oasis_no_codes(folder: Path) -> None:
    scans(folder, 2)
    for path in folder.glob("*.nii"):
        edit(path, lambda header: header.__setitem__("sform_code", 0))
        edit(path, lambda header: header.__setitem__("qform_code", 0))


def quaternion_rounding(folder: Path) -> None:
    scans(folder, 1)
    half_turn = {"sform_code": 0, "quatern_b": 0.70710705, "quatern_c": 0.7071075, "quatern_d": 0}
    edit(folder / "P0.nii", lambda header: [header.__setitem__(*pair) for pair in half_turn.items()])


def zero_sform_code1(folder: Path) -> None:
    scans(folder, 1)
    edit(folder / "P0.nii", lambda header: header.set_sform(np.zeros((4, 4)), code=1))


def signed_intensities(folder: Path) -> None:
    plain = person(0)
    inside = plain > 0
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, plain.shape)
    kinds = {
        "plain": plain,
        "minus1_to_1": 2 * plain / plain.max() - 1,
        "zscore": np.where(inside, (plain - plain[inside].mean()) / plain[inside].std(), 0),
        "uni": np.where(inside, (plain / np.percentile(plain[inside], 99) - 0.5).clip(-0.5, 0.5), noise),
        "padded": np.where(inside, plain, -1000),
        "cut": np.where(inside, np.maximum(plain, np.median(plain[inside])), 0),
    }
    for name, image in kinds.items():
        save(folder / f"{name}.nii", image, kind=np.float32)
    listed(folder / "t.csv", [(name, f"{name}.nii", "HC") for name in kinds])


def units_micron(folder: Path) -> None:
    pair_of_tables(folder)
    image = nib.Nifti1Image(person(0).astype(np.int16), np.diag([1000.0, 1000, 1000, 1]) @ OWN.affine)
    image.header.set_xyzt_units("micron")
    nib.save(image, folder / "P0.nii")


def torch_in_pickles(folder: Path) -> None:
    image = resample(person(0), OWN.affine, GRIDS["smoke"].affine, GRIDS["smoke"].shape)[0] / 30000
    kinds = {
        "tensor": {"image": torch.tensor(image), "label": 0},
        "channel_first": {"image": image[None], "label": 0},
        "plain": {"image": image, "label": 0},
    }
    for name, contents in kinds.items():
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(contents))
    listed(folder / "t.csv", [(name, f"{name}.pkl", "HC") for name in kinds])
    torch.save(collections.OrderedDict(weights=torch.nn.Linear(2, 2)), folder / "module.pt")
    (folder / "lfs.pt").write_text("version https://git-lfs.github.com/spec/v1\n")


def latents_of_other_programs(folder: Path) -> None:
    draw = np.random.default_rng(0)
    for kind, names in (("codes", (0, 1)), ("texts", ("HC", "TLE"))):
        for k in range(4):
            contents = {"mu": draw.normal(size=(4, 10, 12, 10)).astype(np.float32), "label": names[k % 2]}
            path = folder / kind / "train" / f"{k}.pkl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pickle.dumps({**contents, "logvar": np.full((4, 10, 12, 10), -6, np.float32)}))


def ten_to_one(folder: Path) -> None:
    scans(folder, 44, diagnosis=lambda k: "HC" if k % 11 else "TLE")


def pair_of_tables(folder: Path) -> None:
    """Six people, four to train on and two held out."""
    scans(folder, 6)
    for name, own in (("tr", range(4)), ("va", (4, 5))):
        listed(folder / f"{name}.csv", [(k, f"P{k}.nii", CLASSES[k % 2]) for k in own])


text_labels = latents_of_other_programs
train_longer = nan_before_first_checkpoint = odd_global_batch = pair_of_tables
