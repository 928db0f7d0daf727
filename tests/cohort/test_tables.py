"""Tables: what is read, what is refused with line and column, and that writing then reading changes nothing."""

import math
import os

import pandas as pd
import pytest

from cohort.listing.reading import Reading
from cohort.tables import COLUMNS, read_table, write_table
from runtime.errors import InputError, InputWarning


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
    "folder as file": ("s,.,HC,,,,", ["line 2, column file", "a folder, not a file"]),
    "repeated row": ("s,a.nii,HC,1,,,\ns,b.nii,HC,1,,,", ["line 3, column subject", "s, session 1 is on line 2"]),
    "repeated file": ("s,a.nii,HC,,,,\nt,./a.nii,HC,,,,", ["line 3, column file", "same file as on line 2"]),
    "decimal comma": ('s,a.nii,HC,,"34,5",,', ["line 2, column age", "decimal comma", "34.5"]),
    "unquoted decimal comma": ("s,a.nii,HC,,34,5,,", ["line 2", "8 fields", "7 columns", "decimal comma"]),
    "negative age": ("s,a.nii,HC,,-3,,", ["line 2, column age", "-3", "0 to 120"]),
    "absurd age": ("s,a.nii,HC,,1985,,", ["line 2, column age", "1985"]),
    "worded age": ("s,a.nii,HC,,inf,,", ["line 2, column age", "'inf'", "not a number", "n/a"]),
    "sex as number": ("s,a.nii,HC,,,1,", ["line 2, column sex", "'1'", "F, M", "--sex-map 1 F"]),
    "short row": ("s,a.nii,HC", ["line 2", "3 fields", "7 columns"]),
    "two sexes": ("s,a.nii,HC,1,,F,\ns,b.nii,HC,2,,M,", ["line 3, column sex", "s is M here and F on line 2"]),
    "two classes": ("s,a.nii,HC,1,,,\ns,b.nii,TLE,2,,,", ["line 3, column diagnosis", "HC on line 2"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_names_file_line_and_column(folder, fault):
    rows, expected = FAULTS[fault]
    path = table(folder, f"subject,file,diagnosis,session,age,sex,site\n{rows}\n")
    with pytest.raises(InputError) as refusal:
        read_table(path, Reading(strict=True))
    message = str(refusal.value)
    assert str(path) in message
    assert "refused (1)" in message
    for part in expected:
        assert part in message


def test_all_faults_at_once(folder):
    text = 'subject,file,age,sex\n,gone.nii,"1,5",x\ns,a.nii,200,\n'
    with pytest.raises(InputError) as refusal:
        read_table(table(folder, text), Reading(strict=True))
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
        ("subject;file;diagnosis\ns;a.nii;HC\n", "utf-8", "separated by semicolons; a table with .csv has commas"),
        ("subject\tfile\tdiagnosis\ns\ta.nii\tHC\n", "utf-8", "separated by tabs.*or rename it to .tsv"),
        ("subject,file,diagnosis\n", "utf-16", "UTF-16 text.*save it as 'CSV UTF-8'"),
        ("PK\x03\x04 and more", "utf-8", "a workbook.*save it as 'CSV UTF-8'"),
        ("<!DOCTYPE html><p>Sign in</p>", "utf-8", "a web page"),
        ('{"age": {"Units": "years"}}', "utf-8", "JSON"),
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
    with pytest.raises(InputError, match="a folder, not a table"):
        read_table(tmp_path)


def test_commas_in_a_tsv_are_named_and_what_to_do(folder):
    with pytest.raises(
        InputError, match=r"commas; a table with .tsv has tabs: save it with those; or rename it to .csv"
    ):
        read_table(table(folder, GOOD, "t.tsv"))


def test_a_link_that_leads_nowhere_is_not_fetched(folder):
    (folder / "linked.csv").symlink_to(".git/annex/objects/qF/8V/MD5E-s9--43.csv/MD5E-s9--43.csv")
    with pytest.raises(InputError, match=rf"not fetched: a symbolic link.*datalad get {folder}/linked.csv"):
        read_table(folder / "linked.csv")
    (folder / "linked.nii").symlink_to(".git/annex/objects/x.nii")
    path = table(folder, "subject,file,diagnosis\ns,linked.nii,HC\nt,a.nii,HC\n")
    with pytest.raises(InputError, match=rf"line 2, column file: not fetched.*datalad get {folder}/linked.nii"):
        read_table(path)


def test_optional_values_that_cannot_be_read_are_unknown_and_said(folder):
    """As BIDS allows (sex O), and as people write what they do not know."""
    rows = "p,a.nii,HC,30,F\nq,b.nii,TLE,31,O\nr,c.nii,HC,20-25,M\ns,d.nii,TLE,-,M\n"
    path = table(folder, "subject,file,diagnosis,age,sex\n" + rows)
    with pytest.warns(InputWarning) as said:
        frame = read_table(path)
    assert frame["sex"].tolist() == ["F", "", "M", "M"]
    assert frame["age"].fillna(-1).tolist() == [30, 31, -1, -1]
    ages, sexes = sorted(str(warning.message) for warning in said)
    assert "column age: 2 of 4 cells cannot be read and count as unknown" in ages
    assert "line 4: '20-25' is not a number of years; write n/a for unknown; line 5: '-'" in ages
    assert "column sex: 1 of 4" in sexes
    assert "--sex-map O" in sexes
    with pytest.raises(InputError, match=r"refused \(3\)"):
        read_table(path, Reading(strict=True))


def test_ages_as_scanners_and_registries_write_them(folder):
    ages = {"a": "034Y", "b": "408M", "c": "90+"}
    rows = "".join(f"{name},{name}.nii,HC,{age}\n" for name, age in ages.items())
    frame = read_table(table(folder, f"subject,file,diagnosis,age\n{rows}d,d.nii,HC,>89\n"), Reading(strict=True))
    assert frame["age"].tolist() == pytest.approx([34, 34, 90, 89])


def test_a_note_counts_the_cells_that_it_does_not_name(folder):
    for name in "efgh":
        (folder / f"{name}.nii").touch()
    rows = "".join(f"{name},{name}.nii,HC,old\n" for name in "abcdefgh")
    with pytest.warns(InputWarning, match="8 of 8 cells.*line 6: 'old'[^']*; and 3 more"):
        read_table(table(folder, "subject,file,diagnosis,age\n" + rows))


def test_sexes_by_a_map(folder):
    path = table(folder, "subject,file,diagnosis,sex\np,a.nii,HC,1\nq,b.nii,HC,2\nr,c.nii,HC,O\ns,d.nii,HC,f\n")
    frame = read_table(path, Reading(strict=True, sex_map={"1": "M", "2": "F", "O": "n/a"}))
    assert frame["sex"].tolist() == ["M", "F", "", "F"]
    with pytest.raises(InputError, match="--sex-map: '1' is mapped to 'boy'; expected F, M, n/a"):
        read_table(path, Reading(sex_map={"1": "boy"}))


def test_columns_called_otherwise_are_adopted_and_said(folder):
    path = table(folder, "subject,file,diagnosis,Age,gender\np,a.nii,HC,30,F\n")
    with pytest.warns(InputWarning) as said:
        frame = read_table(path)
    texts = " ".join(str(warning.message) for warning in said)
    assert "column Age is read as age" in texts
    assert "column gender is read as sex" in texts
    assert frame.loc[0, ["age", "sex"]].tolist() == [30, "F"]
    assert tuple(frame.columns) == COLUMNS
    kept = read_table(table(folder, "subject,file,diagnosis,sex,gender\np,a.nii,HC,F,woman\n"))
    assert kept.loc[0, ["sex", "gender"]].tolist() == ["F", "woman"]


def test_capitals_are_no_reason_to_refuse_a_table(folder):
    plain = table(folder, "subject,file,diagnosis,site\np,a.nii,TLE-L,X\n", "plain.csv")
    other = table(folder, "Subject,FILE,Diagnosis,Site,Group\np,a.nii,TLE-L,X,control\n", "other.csv")
    with pytest.warns(InputWarning, match="column FILE is read as file"):
        found = read_table(other)
    assert found[list(COLUMNS)].equals(read_table(plain)[list(COLUMNS)])  # Group is not what must not be divided


def test_data_root_is_where_files_are_and_a_border(folder):
    inner = folder / "root"
    (inner / "csv").mkdir(parents=True)
    (inner / "in.nii").write_bytes(b"x")
    os.symlink(folder / "a.nii", inner / "link.nii")
    os.symlink(folder, inner / "out")
    header = "subject,file,diagnosis\n"
    frame = read_table(table(inner, header + "s,in.nii,HC\n", "csv/t.csv"), Reading(data_root=inner))
    assert frame["file"][0] == str(inner / "in.nii")
    rows = f"p,../a.nii,HC\nq,{folder}/b.nii,HC\nr,link.nii,HC\ns,out/c.nii,HC\n"
    with pytest.raises(InputError) as refusal:
        read_table(table(inner, header + rows, "csv/t.csv"), Reading(data_root=inner))
    message = str(refusal.value)
    assert message.count("leaves --data-root") == 4
    assert [f"line {line}, column file" in message for line in (2, 3, 4, 5)] == [True] * 4
    assert len(read_table(table(inner, header + "r,../link.nii,HC\n", "csv/t.csv"))) == 1


def test_label_column_and_map(folder):
    text = "subject,file,HC_vs_LTLE_vs_RTLE_string\np,a.nii,HC\nq,b.nii,left\nr,c.nii,right\n"
    mapping = {"HC": "HC", "left": "TLE-L", "right": "TLE-R"}
    frame = read_table(table(folder, text), Reading(label_column="HC_vs_LTLE_vs_RTLE_string", label_map=mapping))
    assert frame["diagnosis"].tolist() == ["HC", "TLE-L", "TLE-R"]
    assert frame["side"].tolist() == ["", "L", "R"]
    del mapping["right"]
    mapping["HC"] = "control"
    with pytest.raises(InputError) as refusal:
        read_table(table(folder, text), Reading(label_column="HC_vs_LTLE_vs_RTLE_string", label_map=mapping))
    assert "line 4, column HC_vs_LTLE_vs_RTLE_string: unknown diagnosis 'right'; expected" in str(refusal.value)
    assert "'control'" in str(refusal.value)


def test_rows_are_left_out_by_label_and_counted(folder):
    rows = "p,a.nii,HC\nq,b.nii,left\nr,c.nii,bilateral\nr,absent.nii,bilateral\ns,d.nii,\nt,d.nii,extratemporal\n"
    path = table(folder, "subject,file,kind\n" + rows)
    mapping = {"left": "TLE-L", "bilateral": "exclude"}
    with pytest.raises(InputError) as refusal:
        read_table(path, Reading(label_column="kind", label_map=mapping))
    message = str(refusal.value)
    assert "line 6, column kind: unknown diagnosis ''" in message
    assert "line 7, column kind: unknown diagnosis 'extratemporal'" in message
    assert "--label-map left TLE-L bilateral exclude n/a ... extratemporal ...\n" in message
    assert "absent.nii" not in message
    mapping |= {"n/a": "exclude", "extratemporal": "exclude"}
    with pytest.warns(InputWarning, match="4 rows left out by --label-map: bilateral 2, empty 1, extratemporal 1"):
        frame = read_table(path, Reading(label_column="kind", label_map=mapping))
    assert frame["subject"].tolist() == ["p", "q"]
    assert frame["diagnosis"].tolist() == ["HC", "TLE-L"]
    everything = dict.fromkeys([*mapping, "HC", "left"], "exclude")
    with pytest.raises(InputError, match="no row is left"):
        read_table(path, Reading(label_column="kind", label_map=everything))


def test_an_unknown_diagnosis_is_one_problem_however_many_rows_have_it(folder):
    path = table(folder, "subject,file,diagnosis\np,a.nii,AD\nq,b.nii,AD\nr,c.nii,HC\n")
    with pytest.raises(InputError) as refusal:
        read_table(path)
    assert "refused (1)" in str(refusal.value)
    assert "line 2, column diagnosis: unknown diagnosis 'AD' in 2 rows" in str(refusal.value)


def test_all_healthy(folder):
    path = table(folder, "subject,file\np,a.nii\nq,b.nii\n")
    with pytest.raises(InputError, match=r"column diagnosis is missing; the table has subject, file;.*--all-hc"):
        read_table(path)
    assert read_table(path, Reading(all_hc=True))["diagnosis"].tolist() == ["HC", "HC"]
    path = table(folder, "subject,file,diagnosis\np,a.nii,HC\nq,b.nii,n/a\nr,c.nii,TLE\n")
    with pytest.raises(InputError) as refusal:
        read_table(path, Reading(all_hc=True))
    assert "refused (1)" in str(refusal.value)
    assert "line 4, column diagnosis: 'TLE', but --all-hc says that everybody is healthy" in str(refusal.value)
    with pytest.raises(InputError, match="--all-hc and --label-map: give one of the two"):
        read_table(path, Reading(all_hc=True, label_map={"TLE": "exclude"}))


def test_partial_leaves_out_what_is_not_there(folder):
    path = table(folder, "subject,file,diagnosis\np,a.nii,HC\nq,gone.nii,TLE\n")
    with pytest.warns(InputWarning, match=r"differ \(1\):\n  - .*line 3, column file: no such file: .*gone.nii"):
        frame = read_table(path, Reading(partial=True))
    assert frame["subject"].tolist() == ["p"]


def test_preferring_needs_a_bids_dataset(folder):
    with pytest.raises(InputError, match="--prefer chooses among the images of a BIDS dataset"):
        read_table(table(folder, GOOD), Reading(prefer=("rec-norm",)))


def test_group_as_label_is_not_a_group(folder):
    frame = read_table(table(folder, "subject,file,group\np,a.nii,HC\nq,b.nii,HC\n"), Reading(label_column="group"))
    assert frame["group"].tolist() == ["p", "q"]


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
