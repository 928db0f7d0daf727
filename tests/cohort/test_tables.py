"""Tables: what is read, what is refused with line and column, and that writing then reading changes nothing."""

import math
import os

import pandas as pd
import pytest

from cohort.tables import COLUMNS, read_table, write_table
from runtime.errors import InputError


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b", "c", "d"):
        (tmp_path / f"{name}.nii").write_bytes(b"x")
    return tmp_path


def table(folder, text, name="t.csv", encoding="utf-8"):
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


GOOD = "subject,file,diagnosis,session,age,sex,site,group\n01,a.nii,HC,,34.5,f,X,\n02,b.nii,TLE-L,,n/a,Male,,fam\n"


def test_columns_and_codings(folder):
    frame = read_table(table(folder, GOOD))
    assert tuple(frame.columns) == COLUMNS
    assert frame["subject"].tolist() == ["01", "02"]
    assert frame["file"].tolist() == [str(folder / "a.nii"), str(folder / "b.nii")]
    assert frame["label"].tolist() == [0, 1]
    assert frame["side"].tolist() == ["", "L"]
    assert frame["sex"].tolist() == ["F", "M"]
    assert frame["group"].tolist() == ["01", "fam"]
    assert frame["age"][0] == 34.5
    assert math.isnan(frame["age"][1])


@pytest.mark.parametrize("change", [lambda t: "\ufeff" + t, lambda t: t.replace("\n", "\r\n"), lambda t: t + "\n\n"])
def test_bom_crlf_and_blank_lines_change_nothing(folder, change):
    pd.testing.assert_frame_equal(read_table(table(folder, change(GOOD))), read_table(table(folder, GOOD, "good.csv")))


def test_optional_columns_may_be_absent_and_others_are_kept(folder):
    frame = read_table(table(folder, "file,diagnosis,subject,note\na.nii,HC,s1,007\n"))
    assert frame.loc[0, ["session", "sex", "site", "group", "note"]].tolist() == ["", "", "", "s1", "007"]


def test_a_column_side_completes_a_plain_tle_and_is_written_as_the_diagnosis(folder):
    rows = "s,a.nii,TLE,left\nt,b.nii,TLE,R\nu,c.nii,TLE,bilateral\nv,d.nii,HC,L\n"
    frame = read_table(table(folder, "subject,file,diagnosis,side\n" + rows))
    assert frame["side"].tolist() == ["L", "R", "", ""]
    assert frame["diagnosis"].tolist() == ["TLE-L", "TLE-R", "TLE", "HC"]
    write_table(folder / "again.csv", frame)
    pd.testing.assert_frame_equal(read_table(folder / "again.csv"), frame)
    with pytest.raises(InputError, match="line 2, column side: R, but the diagnosis is TLE-L"):
        read_table(table(folder, "subject,file,diagnosis,side\ns,a.nii,TLE-L,right\n"))


# Each fault alone: the rows, and what the message has to say.
FAULTS = {
    "empty subject": (",a.nii,HC,,,,", ["line 2, column subject", "empty"]),
    "unknown diagnosis": ("s,a.nii,AD,,,,", ["line 2, column diagnosis", "'AD'", "HC, TLE, TLE-L, TLE-R"]),
    "empty diagnosis": ("s,a.nii,,,,,", ["line 2, column diagnosis", "''"]),
    "missing file": ("s,nowhere.nii,HC,,,,", ["line 2, column file", "no such file", "nowhere.nii"]),
    "empty file": ("s,,HC,,,,", ["line 2, column file", "empty"]),
    "folder as file": ("s,.,HC,,,,", ["line 2, column file", "no such file"]),
    "repeated row": ("s,a.nii,HC,1,,,\ns,b.nii,HC,1,,,", ["line 3, column subject", "s, session 1 is on line 2"]),
    "repeated file": ("s,a.nii,HC,,,,\nt,./a.nii,HC,,,,", ["line 3, column file", "same file as on line 2"]),
    "decimal comma": ('s,a.nii,HC,,"34,5",,', ["line 2, column age", "decimal comma", "34.5"]),
    "unquoted decimal comma": ("s,a.nii,HC,,34,5,,", ["line 2", "8 fields", "7 columns", "decimal comma"]),
    "negative age": ("s,a.nii,HC,,-3,,", ["line 2, column age", "-3", "0 to 120"]),
    "absurd age": ("s,a.nii,HC,,1985,,", ["line 2, column age", "1985"]),
    "worded age": ("s,a.nii,HC,,inf,,", ["line 2, column age", "'inf'", "not a number"]),
    "sex as number": ("s,a.nii,HC,,,1,", ["line 2, column sex", "'1'", "F, M"]),
    "short row": ("s,a.nii,HC", ["line 2", "3 fields", "7 columns"]),
    "two sexes": ("s,a.nii,HC,1,,F,\ns,b.nii,HC,2,,M,", ["line 3, column sex", "s is M here and F on line 2"]),
    "two classes": ("s,a.nii,HC,1,,,\ns,b.nii,TLE,2,,,", ["line 3, column diagnosis", "HC on line 2"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_names_file_line_and_column(folder, fault):
    rows, expected = FAULTS[fault]
    path = table(folder, f"subject,file,diagnosis,session,age,sex,site\n{rows}\n")
    with pytest.raises(InputError) as refusal:
        read_table(path)
    message = str(refusal.value)
    assert str(path) in message
    assert "refused (1)" in message
    for part in expected:
        assert part in message


def test_all_faults_at_once(folder):
    text = 'subject,file,age,sex\n,gone.nii,"1,5",x\ns,a.nii,200,\n'
    with pytest.raises(InputError) as refusal:
        read_table(table(folder, text))
    message = str(refusal.value)
    assert "refused (6)" in message
    assert "column diagnosis is missing; the table has subject, file, age, sex" in message
    assert message.count("line 2") == 4
    assert "line 3, column age: 200 years" in message


def test_line_numbers_survive_blank_lines_and_quoted_line_ends(folder):
    text = 'subject,file,diagnosis,note\n\ns,a.nii,HC,"two\nlines"\n\nt,b.nii,XX,\n'
    with pytest.raises(InputError, match="line 6, column diagnosis"):
        read_table(table(folder, text))


@pytest.mark.parametrize(
    ("text", "encoding", "message"),
    [
        ("", "utf-8", "the table is empty"),
        ("subject,file,diagnosis\n", "utf-8", "no rows"),
        ("subject;file;diagnosis\ns;a.nii;HC\n", "utf-8", "semicolons"),
        ("subject,file,file,diagnosis\ns,a.nii,a.nii,HC\n", "utf-8", "more than once: file"),
        ("subject,file,diagnosis,site\ns,a.nii,HC,Zürich\n", "latin-1", "not UTF-8"),
        ('subject,file,diagnosis\ns,"a.nii,HC\n', "utf-8", "line 2: not a delimited table"),
        ("subject,file,diagnosis\ns,a\0.nii,HC\n", "utf-8", "line 2"),
    ],
)
def test_tables_that_are_none(folder, text, encoding, message):
    with pytest.raises(InputError, match=message):
        read_table(table(folder, text, encoding=encoding))


def test_no_such_table(tmp_path):
    with pytest.raises(InputError, match="no such table"):
        read_table(tmp_path / "absent.csv")


def test_data_root_is_where_files_are_and_a_border(folder):
    inner = folder / "root"
    (inner / "csv").mkdir(parents=True)
    (inner / "in.nii").write_bytes(b"x")
    os.symlink(folder / "a.nii", inner / "link.nii")
    os.symlink(folder, inner / "out")
    header = "subject,file,diagnosis\n"
    frame = read_table(table(inner, header + "s,in.nii,HC\n", "csv/t.csv"), data_root=inner)
    assert frame["file"][0] == str(inner / "in.nii")
    rows = f"p,../a.nii,HC\nq,{folder}/b.nii,HC\nr,link.nii,HC\ns,out/c.nii,HC\n"
    with pytest.raises(InputError) as refusal:
        read_table(table(inner, header + rows, "csv/t.csv"), data_root=inner)
    message = str(refusal.value)
    assert message.count("leaves --data-root") == 4
    assert [f"line {line}, column file" in message for line in (2, 3, 4, 5)] == [True] * 4
    assert len(read_table(table(inner, header + "r,../link.nii,HC\n", "csv/t.csv"))) == 1


def test_label_column_and_map(folder):
    text = "subject,file,HC_vs_LTLE_vs_RTLE_string\np,a.nii,HC\nq,b.nii,left\nr,c.nii,right\n"
    mapping = {"HC": "HC", "left": "TLE-L", "right": "TLE-R"}
    frame = read_table(table(folder, text), label_column="HC_vs_LTLE_vs_RTLE_string", label_map=mapping)
    assert frame["diagnosis"].tolist() == ["HC", "TLE-L", "TLE-R"]
    assert frame["side"].tolist() == ["", "L", "R"]
    del mapping["right"]
    mapping["HC"] = "control"
    with pytest.raises(InputError) as refusal:
        read_table(table(folder, text), label_column="HC_vs_LTLE_vs_RTLE_string", label_map=mapping)
    assert "line 4, column HC_vs_LTLE_vs_RTLE_string: 'right' is not in --label-map" in str(refusal.value)
    assert "'control'" in str(refusal.value)


def test_group_as_label_is_not_a_group(folder):
    frame = read_table(table(folder, "subject,file,group\np,a.nii,HC\nq,b.nii,HC\n"), label_column="group")
    assert frame["group"].tolist() == ["p", "q"]


def bids(folder, text, images):
    for image in images:
        path = folder / image
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return table(folder, text, "participants.tsv")


def test_bids_participants(tmp_path):
    images = [
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-02/ses-b/anat/sub-02_ses-b_run-1_T1w.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_T1w.json",
    ]
    text = "participant_id\tage\tsex\tgroup\tsite\nsub-01\tn/a\tn/a\tHC\tS1\nsub-02\t89+\tM\tTLE-R\tn/a\n"
    frame = read_table(bids(tmp_path, text, images))
    assert frame["subject"].tolist() == ["sub-01", "sub-02", "sub-02"]
    assert frame["group"].tolist() == ["sub-01", "sub-02", "sub-02"]
    assert frame["session"].tolist() == ["", "ses-a", "ses-b_run-1"]
    assert frame["diagnosis"].tolist() == ["HC", "TLE-R", "TLE-R"]
    assert frame["site"].tolist() == ["S1", "", ""]
    assert frame["file"][0] == str(tmp_path / images[0])


def test_bids_participants_without_scans_are_all_named(tmp_path):
    text = "participant_id\tdiagnosis\nsub-01\tHC\nsub-02\tHC\n../etc\tHC\nsub-04\tHC\n"
    path = bids(tmp_path, text, ["sub-04/anat/sub-04_T1w.nii"])
    with pytest.raises(InputError) as refusal:
        read_table(path)
    assert "refused (3)" in str(refusal.value)
    assert "line 3, column participant_id: no anat/*_T1w.nii.gz" in str(refusal.value)


def test_written_tables_read_back_equal(folder):
    text = GOOD.replace("group\n", "group,note\n").replace("X,\n", 'X,,"a, ""b"""\n').replace("fam\n", "fam,\n")
    frame = read_table(table(folder, text))
    frame.loc[0, "age"] = 1 / 3
    path = folder / "deep" / "csvs" / "out.csv"
    write_table(path, frame)
    assert "../../a.nii" in path.read_text()
    pd.testing.assert_frame_equal(read_table(path), frame)
    assert [p.name for p in path.parent.iterdir()] == ["out.csv"]


def test_write_table_needs_only_three_columns(folder):
    frame = pd.DataFrame({"subject": ["s"], "file": [str(folder / "a.nii")], "diagnosis": ["TLE-R"]})
    write_table(folder / "o.csv", frame)
    assert read_table(folder / "o.csv").loc[0, ["label", "side", "group"]].tolist() == [1, "R", "s"]


def test_commas_under_the_name_of_tabs(folder):
    (folder / "participants.tsv").write_text("participant_id,diagnosis\nsub-1,HC\n")
    with pytest.raises(InputError, match=r"participants\.tsv: line 1: fields are separated by commas; name it \.csv"):
        read_table(folder / "participants.tsv")
