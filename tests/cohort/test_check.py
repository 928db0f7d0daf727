"""The check as a script: every kind of damage in one report with nothing lost, copies, and the exit code."""

import json
import os
import runpy
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cohort.checking import checked
from cohort.checking import faults as scan_faults
from cohort.checking.checked import Examined, examine_all
from cohort.checking.faults import examine
from cohort.grids import GRIDS
from cohort.tables import read_table
from cohort.volumes import Volume, write_volume
from runtime.errors import InputError
from tests.support.processes import fill, small_disk
from tests.support.scans import brain, edit, save

GRID = GRIDS["smoke"]


@pytest.fixture
def check(monkeypatch, capsys, tmp_path):
    """Runs the script as `python -m cohort.check` does: exit status, standard output, findings, and its folder."""

    def run(*tables, words=(), cache="cache", out="out"):
        out = tmp_path / out
        argv = ["check", "--csv", *map(str, tables), "--out", str(out), "--cache-dir", str(tmp_path / cache), *words]
        monkeypatch.setattr(sys, "argv", argv)
        status = 0
        try:
            runpy.run_module("cohort.check", run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            status = stop.code
        printed = capsys.readouterr()
        found = out / "findings.csv"
        frame = pd.read_csv(found, keep_default_na=False, dtype={"subject": str}) if found.exists() else None
        return status, printed.out + printed.err, frame, out

    return run


def table(path, rows, header="subject,file,diagnosis"):
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def cohort(folder, count=12, name="s", seed=0):
    """A folder of distinct scans, and the rows that list them."""
    folder.mkdir(exist_ok=True)
    rows = []
    for number in range(count):
        save(folder / f"{name}{number}.nii.gz", brain(seed=seed + number))
        rows.append(f"{name}{number},{folder.name}/{name}{number}.nii.gz,{('HC', 'TLE')[number % 2]}")
    return rows


def of_kind(frame, kind, severity=None):
    chosen = frame[frame["kind"] == kind]
    return chosen if severity is None else chosen[chosen["severity"] == severity]


def test_flagged_scans_are_errors_or_with_keep_flagged_warnings(check, tmp_path):
    said = {4: "brain mask: 2912 ml", 5: "look: noisy"}
    rows = [f"{row},{said.get(number, 'ok')}" for number, row in enumerate(cohort(tmp_path / "s"))]
    index = table(tmp_path / "index.csv", rows, "subject,file,diagnosis,qc")
    for words, severity, code in (((), "error", 1), (("--keep-flagged",), "warning", 0)):
        status, _, found, _ = check(index, words=words)
        assert status == code
        named = of_kind(found, "quality")
        assert named[["subject", "severity"]].to_numpy().tolist() == [["s4", severity], ["s5", "warning"]]
        assert "brain mask: 2912 ml" in named["message"].iloc[0]
        assert named["message"].iloc[1] == "worth a look: noisy"


# Bad input: all of it in one report ----------------------------------------------------------------------------------


def spoiled(folder):
    """Files with real damage, and what the report has to say of each."""
    folder.mkdir()
    good = save(folder / "good.nii.gz", brain(seed=50)).read_bytes()
    plain = save(folder / "good.nii", brain(seed=51)).read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 0xFF
    (folder / "10.nii.gz").write_bytes(good[: len(good) // 10])
    (folder / "50.nii.gz").write_bytes(good[: len(good) // 2])
    (folder / "99.nii.gz").write_bytes(good[:-4])
    (folder / "flip.nii.gz").write_bytes(bytes(flipped))
    (folder / "plain.nii.gz").write_bytes(plain)
    (folder / "packed.nii").write_bytes(good)
    (folder / "zero.nii").write_bytes(b"")
    holes = brain(seed=52)
    holes[3, 4, 5] = np.nan
    save(folder / "nan.nii.gz", holes)
    save(folder / "constant.nii", np.full(GRID.shape, 7, np.float32))
    save(folder / "4d.nii.gz", np.stack([brain(seed=53)] * 2, axis=-1))
    rgb = np.zeros(GRID.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    rgb["R"] = brain(seed=54) / 2
    save(folder / "rgb.nii", rgb)
    flat = GRID.affine.copy()
    flat[:3, 1] = 0
    edit(save(folder / "flat.nii", brain(seed=55)), lambda header: header.set_sform(flat, code=2))
    huge = [3, 32767, 32767, 32767, 1, 1, 1, 1]
    edit(save(folder / "huge.nii", brain(seed=56)), lambda header: header.__setitem__("dim", huge))
    (folder / "text.nii").write_text("<html>404 not found</html>")
    write_volume(folder / "small.pkl", Volume(brain((8, 8, 8)), 0))
    for name in ("good.nii.gz", "good.nii"):
        (folder / name).unlink()
    return {
        "10.nii.gz": "truncated or damaged gzip",
        "50.nii.gz": "truncated or damaged gzip",
        "99.nii.gz": "truncated or damaged gzip",
        "flip.nii.gz": "",
        "plain.nii.gz": "not compressed",
        "packed.nii": "named .nii but compressed",
        "zero.nii": "empty (0 bytes)",
        "nan.nii.gz": "1 of 9600 voxels are not finite",
        "constant.nii": "constant: every voxel is 7",
        "4d.nii.gz": "not three-dimensional",
        "rgb.nii": "RGB",
        "flat.nii": "determinant of the affine is zero",
        "huge.nii": "the limit is 268435456",
        "text.nii": "a web page, not a scan",
        "small.pkl": "that of no grid",
    }


def test_every_bad_scan_is_named_in_one_report_and_the_good_ones_are_checked(tmp_path, check):
    reasons = spoiled(tmp_path / "bad")
    rows = cohort(tmp_path / "good", 6) + [f"b{k},bad/{name},HC" for k, name in enumerate(reasons)]
    status, printed, frame, out = check(table(tmp_path / "t.csv", rows))
    assert status == 1
    bad = of_kind(frame, "unreadable", "error").set_index("subject")
    assert sorted(bad.index) == sorted(f"b{k}" for k in range(len(reasons)))
    for number, (name, reason) in enumerate(reasons.items()):
        assert bad.loc[f"b{number}", "file"] == str(tmp_path / "bad" / name)
        assert reason in bad.loc[f"b{number}", "message"]
        assert int(bad.loc[f"b{number}", "row"]) == 7 + number
    told = json.loads((out / "findings.json").read_text())
    assert (told["scans"], told["readable"]) == (6 + len(reasons), 6)
    assert told["counts"]["error"] == len(reasons) == len(frame[frame["severity"] == "error"])
    assert "not three-dimensional" in printed


def test_faults_of_a_table_and_of_its_files(tmp_path, check):
    rows = cohort(tmp_path / "scans", 4)
    (tmp_path / "scans" / "loop.nii").symlink_to(tmp_path / "scans" / "loop.nii")
    (tmp_path / "scans" / "zero.nii").touch()
    rows += ["p,scans/loop.nii,HC", "q,scans/zero.nii,HC", "r,scans/absent.nii,HC"]
    frame = check(table(tmp_path / "t.csv", rows))[2]
    absent = of_kind(frame, "absent", "error").set_index("subject")["message"]
    assert "a symbolic link that leads nowhere" in absent["p"]
    assert "no such file" in absent["r"]
    assert "empty" in of_kind(frame, "unreadable", "error").set_index("subject")["message"]["q"]
    outside = save(tmp_path / "outside.nii", brain(seed=70))
    rows += ["s0,scans/s0.nii.gz,HC", "q,scans/s2.nii.gz,XX", f"t,{outside},HC"]
    status, _, frame, _ = check(table(tmp_path / "t.csv", rows), words=("--data-root", str(tmp_path / "scans")))
    assert status == 1
    told = " | ".join(of_kind(frame, "table", "error")["message"])
    for part in (
        "line 9, column subject: s0 is on line 2 already",
        "line 9, column file: the same file as on line 2",
        "line 10, column diagnosis: unknown diagnosis 'XX'",
        "line 11, column file: ",
    ):
        assert part in told
    assert "leaves --data-root" in told
    assert str(outside) not in set(frame["file"])


def test_what_a_table_cannot_say_and_people_in_no_row(tmp_path, check):
    """As a BIDS dataset may come: values of another coding are warnings, people in one place only errors."""
    rows = ["participant_id\tage\tgroup\n", *(f"sub-{k}\t{30 + k}\t{('HC', 'TLE')[k % 2]}\n" for k in range(4))]
    rows[2] = rows[2].replace("31", "20-25")
    for k in (0, 1, 2, 5):
        (tmp_path / f"sub-{k}/anat").mkdir(parents=True)
        save(tmp_path / f"sub-{k}/anat/sub-{k}_T1w.nii", brain(seed=k))
    (tmp_path / "participants.tsv").write_text("".join(rows))
    status, _, frame, _ = check(tmp_path / "participants.tsv")
    assert status == 1
    (note,) = of_kind(frame, "table", "warning")["message"]
    assert "column age: 1 of 4 cells cannot be read" in note
    absent = of_kind(frame, "absent", "error").set_index("subject")
    assert absent["row"].to_dict() == {"sub-3": "4", "sub-5": ""}
    assert absent["message"]["sub-5"] == "in no row of participants.tsv"
    status, _, frame, _ = check(tmp_path / "participants.tsv", words=("--partial",))
    assert status == 0
    assert list(of_kind(frame, "absent", "warning")["subject"]) == ["sub-3", "sub-5"]


def test_crlf_and_a_byte_order_mark_change_nothing(tmp_path, check):
    rows = cohort(tmp_path / "scans", 4)
    path = table(tmp_path / "t.csv", rows)
    plain = check(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    again = check(path)
    assert plain[0] == again[0] == 0
    pd.testing.assert_frame_equal(plain[2], again[2])


@pytest.mark.parametrize("content", [None, b"", b"subject,file,diagnosis\n", b"\xff\xfe\x00"])
def test_a_table_that_is_none_is_one_finding(tmp_path, check, content):
    path = tmp_path / "t.csv"
    if content is not None:
        path.write_bytes(content)
    status, _, frame, out = check(path)
    assert status == 1
    assert frame[["severity", "kind"]].to_numpy().tolist() == [["error", "table"]]
    assert json.loads((out / "findings.json").read_text())["scans"] == 0


def test_no_permission_is_named(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user for a moment")
    open_to_all = Path(tempfile.mkdtemp())  # pytest's own folders are closed to other users
    try:
        open_to_all.chmod(0o755)
        path = save(open_to_all / "a.nii", brain())
        path.chmod(0)
        os.seteuid(65534)
        try:
            with pytest.raises(InputError) as refusal:
                examine(path)
        finally:
            os.seteuid(0)
    finally:
        shutil.rmtree(open_to_all)
    assert str(refusal.value) == f"{path}: cannot be read: Permission denied"


def test_a_full_disk_keeps_what_was_examined_and_the_same_command_goes_on(tmp_path, check, monkeypatch):
    path = table(tmp_path / "t.csv", cohort(tmp_path / "scans", 8))
    with small_disk(tmp_path / "disk", megabytes=2) as disk:
        filler = fill(disk, leave_kilobytes=340)
        status, printed, frame, _ = check(path, cache="disk/cache")
        assert status == 2
        assert "the cache cannot be written: No space left on device" in printed
        assert frame is None
        kept = list(disk.rglob("*.npz"))
        assert 0 < len(kept) < 8
        assert not list(disk.rglob(".tmp-*"))
        filler.unlink()
        examined = []
        monkeypatch.setattr(checked, "examine", lambda file: examined.append(file) or examine(file))
        assert check(path, cache="disk/cache")[0] == 0
        assert len(examined) == 8 - len(kept)


def test_a_full_disk_for_the_report_leaves_the_old_one(tmp_path, check):
    path = table(tmp_path / "t.csv", cohort(tmp_path / "scans", 4))
    with small_disk(tmp_path / "disk", megabytes=1) as disk:
        assert check(path, out="disk/out")[0] == 0
        before = {file.name: file.read_bytes() for file in (disk / "out").iterdir()}
        fill(disk, leave_kilobytes=0)
        status, printed, _, _ = check(path, out="disk/out")
        assert status == 2
        assert "No space left" in printed
        assert {file.name: file.read_bytes() for file in (disk / "out").iterdir()} == before


# Copies --------------------------------------------------------------------------------------------------------------


def planted(folder):
    """Twelve people, and copies of some: renamed, mirrored, with noise; rows for a table."""
    rows = cohort(folder, 12)
    shutil.copy(folder / "s1.nii.gz", folder / "renamed.nii.gz")
    save(folder / "mirror.nii", brain(seed=2)[::-1])
    noise = np.random.default_rng(0).normal(0, 3, GRID.shape)
    save(folder / "noise.nii.gz", np.where(brain(seed=5) > 0, brain(seed=5) + noise, 0))
    return [
        *rows,
        f"renamed,{folder.name}/renamed.nii.gz,TLE",
        f"mirror,{folder.name}/mirror.nii,HC",
        f"noise,{folder.name}/noise.nii.gz,HC",
    ]


def test_copies_in_one_table_and_the_groups_that_keep_them_together(tmp_path, check):
    path = table(tmp_path / "t.csv", planted(tmp_path / "scans"))
    status, _, frame, out = check(path)
    assert status == 1
    equal = of_kind(frame, "duplicate", "error").set_index("subject")["message"]
    assert sorted(equal.index) == ["mirror", "renamed"]
    assert "renamed and s1" in equal["renamed"]
    assert "the same voxels, left and right exchanged" in equal["mirror"]
    near = of_kind(frame, "near-duplicate")
    assert near[["severity", "subject"]].to_numpy().tolist() == [["warning", "noise"]]
    assert of_kind(frame, "label", "error")["message"].tolist() == [
        f"noise is HC, its copy s5 ({tmp_path / 'scans' / 's5.nii.gz'}) is TLE"
    ]
    groups = pd.read_csv(out / "groups.csv", keep_default_na=False).set_index("subject")["group"]
    assert groups[groups != ""].to_dict() == {
        "s1": "renamed", "renamed": "renamed", "s2": "mirror", "mirror": "mirror", "s5": "noise", "noise": "noise",
    }  # fmt: skip
    assert len(groups) == 15


def test_groups_given_in_the_table_settle_it(tmp_path, check):
    rows = planted(tmp_path / "scans")
    names = {"s1": "p", "renamed": "p", "s2": "q", "mirror": "q", "s5": "r", "noise": "r"}
    rows = [f"{row.replace('noise.nii.gz,HC', 'noise.nii.gz,TLE')},{names.get(row.split(',')[0], '')}" for row in rows]
    status, _, frame, _ = check(table(tmp_path / "t.csv", rows, "subject,file,diagnosis,group"))
    assert status == 0
    assert len(of_kind(frame, "near-duplicate")) == 0
    twice = of_kind(frame, "duplicate", "warning")
    assert twice["subject"].tolist() == ["renamed", "mirror"]
    assert all("counted twice" in message for message in twice["message"])


def test_copies_across_splits_are_errors_that_name_both(tmp_path, check):
    rows = planted(tmp_path / "scans")
    train = table(tmp_path / "train.csv", rows[:12])
    test = table(tmp_path / "test.csv", [*rows[12:], *cohort(tmp_path / "scans", 2, "t", seed=40)])
    status, _, frame, _ = check(train, test)
    assert status == 1
    leaks = pd.concat([of_kind(frame, "duplicate"), of_kind(frame, "near-duplicate")])
    assert set(leaks["severity"]) == {"error"}
    assert sorted(leaks["subject"]) == ["mirror", "noise", "renamed"]
    assert all("in train and test" in message and "a leak" in message for message in leaks["message"])


def test_one_subject_in_two_splits_is_an_error(tmp_path, check):
    rows = cohort(tmp_path / "scans", 4)
    later = save(tmp_path / "later.nii", brain(seed=90))
    train = table(tmp_path / "train.csv", rows)
    test = table(tmp_path / "test.csv", [f"s0,{later},HC"])
    status, _, frame, _ = check(train, test)
    assert status == 1
    assert "subject s0 is in train and test" in of_kind(frame, "split", "error")["message"].tolist()


def test_distinct_people_pass_and_a_second_run_examines_nothing(tmp_path, check, monkeypatch):
    path = table(tmp_path / "t.csv", cohort(tmp_path / "scans", 32))
    status, printed, frame, out = check(path)
    assert status == 0
    assert len(frame) == 0
    assert "0 errors and 0 warnings" in printed
    before = (out / "findings.json").read_bytes()
    monkeypatch.setattr(checked, "examine", lambda file: pytest.fail(f"{file} was examined again"))
    assert check(path)[0] == 0
    assert (out / "findings.json").read_bytes() == before


def test_the_cache_follows_content_and_version_and_survives_damage(tmp_path, monkeypatch):
    cohort(tmp_path / "scans", 3)
    files = sorted(map(str, (tmp_path / "scans").iterdir()))
    cache = tmp_path / "cache"
    first = [scan.examination for scan in examine_all(files, cache)]
    entries = sorted(cache.rglob("*.npz"))
    entries[0].write_bytes(entries[0].read_bytes()[:500])
    again = examine_all(files, cache)
    assert [scan.examination for scan in again] == first
    assert all(isinstance(scan, Examined) and scan.thumbnail().any() for scan in again)
    save(files[0], brain(seed=77))
    assert examine_all(files, cache)[0].examination != first[0]
    monkeypatch.setattr(scan_faults, "VERSION", scan_faults.VERSION + 1)
    examine_all(files, cache)
    assert len(list(cache.rglob("*.npz"))) == 7
    shutil.move(files[1], tmp_path / "false.nii")
    assert "named .nii but compressed" in str(examine_all([tmp_path / "false.nii"], cache)[0])


def test_site_and_age_are_judged(tmp_path, check):
    rows = cohort(tmp_path / "scans", 40)
    rows = [f"{row},{'AB'[k % 2]},{30 + 10 * (k % 2) + k % 7}" for k, row in enumerate(rows)]
    path = table(tmp_path / "t.csv", rows, "subject,file,diagnosis,site,age")
    status, printed, frame, out = check(path)
    assert status == 0
    assert sorted(frame["kind"]) == ["age", "site", "site"]
    told = json.loads((out / "findings.json").read_text())["confounds"]
    assert told["sites"] == {"A": {"HC": 20, "TLE": 0}, "B": {"HC": 0, "TLE": 20}}
    assert told["site_auc"]["auc"] == 1
    assert "site alone, AUC 1.00" in printed
    assert read_table(path)["site"].nunique() == 2
