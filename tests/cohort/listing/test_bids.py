"""The participants of a BIDS dataset: whose images are taken, which of several, and who is in one place only."""

import pytest

from cohort.listing.reading import Reading
from cohort.tables import list_table, read_table
from runtime.errors import InputError, InputWarning


def dataset(folder, text, images):
    """A dataset of empty images; spaces are tabs in the table."""
    for image in images:
        path = folder / image
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (folder / "participants.tsv").write_text(text.replace(" ", "\t"))
    return folder / "participants.tsv"


def t1(subject, *parts):
    """The path of an image: `t1("01", "ses-a", "run-1")`."""
    visit = [part for part in parts if part.startswith("ses-")]
    name = "_".join((f"sub-{subject}", *parts, "T1w.nii.gz"))
    return "/".join((f"sub-{subject}", *visit, "anat", name))


def test_columns_and_sessions(tmp_path):
    images = [t1("01"), t1("02", "ses-b", "run-1"), t1("02", "ses-a"), "sub-02/ses-a/anat/sub-02_ses-a_T1w.json"]
    text = "participant_id age sex group site\nsub-01 n/a n/a HC S1\nsub-02 89+ M TLE-R n/a\n"
    frame = read_table(dataset(tmp_path, text, images))
    assert frame["subject"].tolist() == ["sub-01", "sub-02", "sub-02"]
    assert frame["group"].tolist() == ["sub-01", "sub-02", "sub-02"]
    assert frame["session"].tolist() == ["", "ses-a", "ses-b_run-1"]
    assert frame["diagnosis"].tolist() == ["HC", "TLE-R", "TLE-R"]
    assert frame["site"].tolist() == ["S1", "", ""]
    assert frame["file"][0] == str(tmp_path / images[0])


def test_participants_without_scans_are_all_named(tmp_path):
    text = "participant_id diagnosis\nsub-01 HC\nsub-02 HC\n../etc HC\nsub-04 HC\n"
    path = dataset(tmp_path, text, ["sub-04/anat/sub-04_T1w.nii"])
    with pytest.raises(InputError) as refusal:
        read_table(path)
    assert "refused (3)" in str(refusal.value)
    assert "line 3, column participant_id: no anat/*_T1w.nii.gz" in str(refusal.value)


def test_people_in_no_row_are_all_named(tmp_path):
    """As in public datasets, one of which lacks eleven of its participants in its table."""
    text = "participant_id diagnosis\n01 HC\n02 TLE\n"
    path = dataset(tmp_path, text, [*map(t1, ("01", "02", "03", "04")), "sub-05/func/sub-05_bold.nii.gz"])
    with pytest.raises(InputError) as refusal:
        read_table(path)
    assert "refused (2)" in str(refusal.value)
    for name in ("03", "04"):
        assert f"sub-{name}: {tmp_path / t1(name)} is in no row of participants.tsv" in str(refusal.value)
    with pytest.warns(InputWarning, match=r"differ \(2\)"):
        frame = read_table(path, Reading(partial=True))
    assert frame["subject"].tolist() == ["01", "02"]


def test_names_that_nearly_agree_are_asked_about(tmp_path):
    path = dataset(tmp_path, "participant_id diagnosis\nsub-1 HC\nsub-10 HC\n", [t1("01"), t1("10")])
    with pytest.raises(InputError, match=r"sub-1 or its sessions; is it sub-01\?"):
        read_table(path)


def test_excluded_people_are_neither_absent_nor_unlisted(tmp_path):
    path = dataset(tmp_path, "participant_id group\nsub-1 HC\nsub-2 other\nsub-3 other\n", [t1("1"), t1("2")])
    listed = list_table(path, Reading(label_map={"other": "exclude"}))
    assert listed.frame["subject"].tolist() == ["sub-1"]
    assert not listed.differences()


def test_a_table_with_capitals(tmp_path):
    path = dataset(tmp_path, "Participant_ID Age Group\nsub-1 30 HC\nsub-2 40 TLE\n", [t1("1"), t1("2")])
    with pytest.warns(InputWarning, match="column Group is read as group"):
        frame = read_table(path)
    assert frame[["subject", "diagnosis", "age"]].to_numpy().tolist() == [["sub-1", "HC", 30], ["sub-2", "TLE", 40]]


def test_hidden_files_are_no_images(tmp_path):
    """A disk that was in a Mac holds one beside every file."""
    hidden = ["sub-1/anat/._sub-1_T1w.nii.gz", "._sub-2/anat/sub-2_T1w.nii.gz"]
    path = dataset(tmp_path, "participant_id group\nsub-1 HC\n", [t1("1"), *hidden])
    assert read_table(path)["file"].tolist() == [str(tmp_path / t1("1"))]


def not_fetched(path):
    """What git-annex has in the place of a file that is elsewhere."""
    path.unlink(missing_ok=True)
    path.symlink_to(f"../../.git/annex/objects/{path.name}")


def test_images_that_are_not_fetched(tmp_path):
    path = dataset(tmp_path, "participant_id group\nsub-1 HC\nsub-2 HC\n", [t1("1"), t1("2")])
    not_fetched(tmp_path / t1("2"))
    with pytest.raises(InputError, match=rf"line 3.*not fetched.*datalad get {tmp_path / t1('2')}"):
        read_table(path)
    with pytest.warns(InputWarning, match="not fetched"):
        assert read_table(path, Reading(partial=True))["subject"].tolist() == ["sub-1"]
    not_fetched(tmp_path / t1("1"))
    with pytest.raises(InputError, match=r"none of the scans is there \(2\)"):
        read_table(path, Reading(partial=True))


def test_a_table_without_diagnoses_says_what_it_has_and_may_be_all_healthy(tmp_path):
    path = dataset(tmp_path, "participant_id age handedness\nsub-1 30 R\n", [t1("1", "run-1")])
    with pytest.raises(InputError, match=r"the table has participant_id, age, handedness;.*--label-column.*--all-hc"):
        read_table(path)
    assert read_table(path, Reading(all_hc=True))["diagnosis"].tolist() == ["HC"]


# Sessions ------------------------------------------------------------------------------------------------------------


def test_a_row_per_session_is_of_its_session_alone(tmp_path):
    text = "participant_id session_id age group\nsub-1 ses-1 30 HC\nsub-1 2 32 HC\nsub-2 ses-1 31 TLE\n"
    path = dataset(tmp_path, text, [t1("1", "ses-1"), t1("1", "ses-2"), t1("2", "ses-1")])
    frame = read_table(path)
    assert frame["session"].tolist() == ["ses-1", "ses-2", "ses-1"]
    assert frame["age"].tolist() == [30, 32, 31]


def test_sessions_in_one_place_only_are_named(tmp_path):
    text = "participant_id session_id group\nsub-1 ses-1 HC\nsub-1 ses-2 HC\n"
    path = dataset(tmp_path, text, [t1("1", "ses-1"), t1("1", "ses-3")])
    differences = list_table(path).differences()
    assert len(differences) == 2
    assert "line 3, column participant_id: no anat/*_T1w.nii.gz in " in differences[0]
    assert f"sub-1 ses-3: {tmp_path / t1('1', 'ses-3')} is in no row" in differences[1]


def test_sessions_of_a_dataset_without_session_folders(tmp_path):
    path = dataset(tmp_path, "participant_id session_id group\nsub-1 1 HC\n", [t1("1")])
    assert read_table(path)["session"].tolist() == [""]


def test_two_rows_of_one_participant_need_sessions(tmp_path):
    path = dataset(tmp_path, "participant_id group\nsub-1 HC\nsub-1 HC\n", [t1("1")])
    with pytest.raises(InputError, match=r"sub-1 is on line 2 already; rows of one subject need .* session"):
        read_table(path)


def test_a_sessions_table_says_what_is_true_of_one_session(tmp_path):
    text = "participant_id age sex group\nsub-1 30 F HC\nsub-2 40 M HC\n"
    path = dataset(tmp_path, text, [t1("1", "ses-1"), t1("1", "ses-2"), t1("2", "ses-1")])
    sessions = tmp_path / "sub-1/sub-1_sessions.tsv"
    sessions.write_text("session_id\tage\tsite\nses-1\tn/a\tX\nses-2\t32.5\tn/a\n")
    frame = read_table(path)
    assert frame["age"].tolist() == [30, 32.5, 40]
    assert frame["site"].tolist() == ["X", "", ""]
    assert frame["sex"].tolist() == ["F", "F", "M"]
    sessions.write_text("visit\tage\nses-1\t31\n")
    with pytest.raises(InputError, match=r"sub-1_sessions.tsv: column session_id is missing"):
        read_table(path)


# Several images of one session ---------------------------------------------------------------------------------------


KINDS = (["rec-norm", "run-01"], ["run-02"], ["run-01"], ["ce-gadolinium"], ["echo-1"], ["echo-2"], ["part-phase"])


def several(folder):
    text = "participant_id group\nsub-1 HC\nsub-2 TLE\n"
    return dataset(folder, text, [t1(subject, *kind) for subject in ("1", "2") for kind in KINDS])


def test_one_image_per_session_without_contrast_agent_and_said(tmp_path):
    with pytest.warns(InputWarning) as said:
        frame = read_table(several(tmp_path))
    assert frame["file"].tolist() == [str(tmp_path / t1(subject, "run-01")) for subject in ("1", "2")]
    (note,) = [str(warning.message) for warning in said]
    assert "one T1-weighted image per session, 2 of 14, none with a contrast agent" in note
    for kind in ("2 ce-gadolinium", "2 echo-1", "2 rec-norm_run-01", "2 run-02"):
        assert kind in note


@pytest.mark.parametrize(
    ("prefer", "taken"),
    [
        (("rec-norm",), "rec-norm_run-01"),
        (("run-2",), "run-02"),
        (("ce",), "ce-gadolinium"),
        (("echo-2", "ce"), "echo-2"),
        (("rec", "run-02"), "rec-norm_run-01"),
    ],
)
def test_preferences_choose(tmp_path, prefer, taken):
    with pytest.warns(InputWarning, match="left out"):
        frame = read_table(several(tmp_path), Reading(prefer=prefer))
    assert frame["session"].tolist() == [taken, taken]


def test_all_images_when_asked(tmp_path):
    assert len(read_table(several(tmp_path), Reading(prefer=("all",)))) == 2 * len(KINDS)


def test_a_preference_that_fits_nothing_is_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"--prefer acq-mprage: no T1-weighted image.*there are ce-gadolinium, echo-1, "
    ):
        read_table(several(tmp_path), Reading(prefer=("acq-mprage", "run-1")))


def test_a_session_with_a_contrast_agent_only_is_named(tmp_path):
    path = dataset(tmp_path, "participant_id group\nsub-1 HC\nsub-2 HC\n", [t1("1"), t1("2", "ce-gd")])
    with pytest.raises(InputError, match=r"line 3.*only with a contrast agent \(ce-gd\); --prefer ce takes it"):
        read_table(path)
    assert len(read_table(path, Reading(prefer=("ce",)))) == 2


def test_the_choice_does_not_depend_on_what_is_fetched(tmp_path):
    path = dataset(tmp_path, "participant_id group\nsub-1 HC\n", [t1("1"), t1("1", "rec-norm")])
    not_fetched(tmp_path / t1("1"))
    with pytest.raises(InputError, match="not fetched"):
        read_table(path)
