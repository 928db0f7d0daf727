"""Tables as the tools write them, made here from one set of volumes: all are read as the same, and what is wrong with
one is named.
"""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cohort.anatomy import volume_readers
from cohort.anatomy.volume_readers import key_of, regions_of, volume_column
from cohort.anatomy.volume_tables import KnownVolumes, crossed_sides, read_volumes
from cohort.atlas import REGIONS, native_atlas
from runtime.errors import InputError, InputWarning
from tests.support.volumes import ASEG, HEADS_ML, SUBJECTS, WRITERS, volumes_ml, write_stats, write_synthseg

FRAME = pd.DataFrame({"subject": SUBJECTS, "session": ""})


@pytest.mark.parametrize("tool", WRITERS)
def test_every_tool_is_read_as_the_same_volumes_in_ml(tool, tmp_path, recwarn):
    """Also subjects in another order, and of those not in the table: nothing."""
    path, regions = WRITERS[tool](tmp_path)
    table = read_volumes(path)
    assert set(table.regions) >= set(regions)
    order = [3, 0, 2]
    found = table.of(FRAME.iloc[order], regions)
    np.testing.assert_allclose(found, volumes_ml()[order][:, [REGIONS.index(name) for name in regions]], rtol=1e-4)
    other = pd.DataFrame({"subject": ["somebody", SUBJECTS[1]]})
    assert np.isnan(table.of(other, regions)[0]).all()
    assert np.isfinite(table.of(other, regions)[1]).all()
    assert not [warning for warning in recwarn if issubclass(warning.category, InputWarning)]


@pytest.mark.parametrize("tool", ["freesurfer", "asegstats2table", "synthseg", "muse", "deepmriprep", "own"])
def test_volumes_by_head_are_those_of_a_head_of_1500_ml(tool, tmp_path):
    path, _ = WRITERS[tool](tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)  # heads may have the other unit
        found = read_volumes(path, per_head=True).of(FRAME, REGIONS[:2])
    np.testing.assert_allclose(found, volumes_ml()[:, :2] * 1500 / HEADS_ML[:, None], rtol=1e-4)


@pytest.mark.parametrize(("tool", "hint"), [("fastsurfer", "--tal_reg"), ("hippunfold", "leave --per-head out")])
def test_what_does_not_know_the_head_says_so(tool, hint, tmp_path):
    path, _ = WRITERS[tool](tmp_path)
    with pytest.raises(InputError, match=f"--per-head: .* does not say how large heads are; .*{hint}"):
        read_volumes(path, per_head=True)
    with pytest.raises(InputError, match="give these, too"):
        KnownVolumes(per_head=True).known_volumes()


def test_the_names_are_regions_of_the_atlas_each_once_for_a_side():
    names = volume_readers.names_and_regions()
    assert {region for _, _, region in names} - {volume_readers.HEAD} <= set(native_atlas()[0].codes)
    for tool, name, region in names:
        if tool in ("freesurfer", "synthseg", "deepmriprep"):
            assert ("left" in name.lower()) == region.startswith("Left"), (tool, name)
            assert ("right" in name.lower()) == region.startswith("Right"), (tool, name)
    codes = native_atlas()[0].codes  # MUSE numbers regions as the atlas does
    assert {regions_of("muse")[str(codes[region])] for region in REGIONS} == set(REGIONS)
    assert all(regions_of("muse")[str(codes[region])] == region for region in REGIONS)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("sub-01_ses-2_T1w.nii.gz", ("01", "2")),
        ("sub-01_ses-2.long.sub-01", ("01", "2")),
        ("sub-A12", ("A12", "")),
        ("P.001.nii", ("P.001", "")),
        ("sim0-0001", ("sim0-0001", "")),
    ],
)
def test_names_say_whose_scan_it_is(text, key):
    assert key_of(text) == key


def test_scans_are_found_by_subject_session_or_file(tmp_path):
    ml = volumes_ml()[:3]
    names = ["sub-01_ses-1_T1w", "sub-01_ses-2_T1w", "scan7"]
    table = read_volumes(write_synthseg(tmp_path, ml, names))
    frame = pd.DataFrame(
        {"subject": ["sub-01", "01", "x", "01"], "session": ["2", "ses-1", "", ""], "file": ["", "", "a/scan7.nii", ""]}
    )
    found = table.of(frame, REGIONS)
    np.testing.assert_allclose(found[:3], ml[[1, 0, 2]], rtol=1e-4)
    assert np.isnan(found[3]).all()  # either of two sessions
    only = read_volumes(write_synthseg(tmp_path, ml[:1], names[:1]))
    np.testing.assert_allclose(only.of(frame[3:], REGIONS), ml[:1], rtol=1e-4)


def test_two_rows_of_one_scan_are_refused(tmp_path):
    write_stats(tmp_path, ASEG, names=["sub-1_ses-2", "sub-1_ses-2.long.sub-1", "sub-3"])
    with pytest.raises(InputError, match=r"there twice \(1\):\n  - 1_2"):
        read_volumes(tmp_path)


def test_tables_of_nobody_known_and_of_nothing_known_are_refused(tmp_path):
    path = write_synthseg(tmp_path)
    with pytest.raises(InputError, match="has none of the 1 scans; it names s0, the scans Z9"):
        read_volumes(path).of(pd.DataFrame({"subject": ["Z9"]}), REGIONS)
    (tmp_path / "other.csv").write_text("subject,thickness\ns0,2.5\n")
    with pytest.raises(InputError, match="none of its columns is a volume that is known"):
        read_volumes(tmp_path / "other.csv")
    (tmp_path / "nobody.csv").write_text("name,left hippocampus\ns0,2500\n")
    with pytest.raises(InputError, match=r"no column says whose a row is \(subject, participant_id, mrid"):
        read_volumes(tmp_path / "nobody.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no volumes in this folder .*; expected a SUBJECTS_DIR"):
        read_volumes(tmp_path / "empty")
    with pytest.raises(InputError, match=r"absent\.csv: .*no such"):
        read_volumes(tmp_path / "absent.csv")
    (tmp_path / "text.csv").write_text("subject,left hippocampus\ns0,large\n")
    with pytest.raises(InputError, match="column left hippocampus, s0: 'large' is not a number"):
        read_volumes(tmp_path / "text.csv")


def test_a_region_that_is_missing_is_named(tmp_path):
    path = write_synthseg(tmp_path, drop="right amygdala")
    table = read_volumes(path)
    assert "Right Amygdala" not in table.regions
    with pytest.raises(InputError, match=r"\(SynthSeg\) has no volumes of these regions.*\(1\):\n  - Right Amygdala"):
        table.of(FRAME, REGIONS)


def test_cubic_centimetres_are_told_by_magnitude_and_other_units_refused(tmp_path):
    mm3 = read_volumes(write_synthseg(tmp_path / "a")).of(FRAME, REGIONS)
    with pytest.warns(InputWarning, match=r"read in cm\^3, since no .* is so small in mm\^3"):
        cm3 = read_volumes(write_synthseg(tmp_path / "b", volumes_ml() / 1000)).of(FRAME, REGIONS)
    np.testing.assert_allclose(cm3, mm3, rtol=1e-3)
    shares = volumes_ml() / HEADS_ML[:, None] / 1000
    with pytest.raises(InputError, match=r"volumes neither in mm\^3 nor in cm\^3 \(in the middle .*atlas \d+ mm\^3\)"):
        read_volumes(write_synthseg(tmp_path / "c", shares))


def test_failed_cases_are_named_and_never_filled_in(tmp_path):
    """One of volume 0, one empty cell, one without a row; the others keep theirs."""
    ml = volumes_ml().copy()
    ml[1] = 0
    ml[2, REGIONS.index("Left Hippocampus")] = np.nan
    table = read_volumes(write_synthseg(tmp_path, ml))
    frame = pd.DataFrame({"subject": [*SUBJECTS, "lost"]})
    found = table.of(frame, REGIONS)
    assert np.isnan(found[[1, -1]]).all()
    assert np.isnan(found[2]).sum() == 1
    np.testing.assert_allclose(found[[0, *range(3, len(SUBJECTS))]], ml[[0, *range(3, len(ml))]], rtol=1e-4)
    with pytest.warns(InputWarning) as said:
        table.warn(frame, REGIONS[:2])
    assert str(said[0].message).splitlines()[1:] == [
        "  - s1: no volume (0 or empty)",
        "  - s2: no volume of Left Hippocampus (0 or empty)",
        "  - lost: no row",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table.warn(frame.iloc[[0, 3]], REGIONS)


def test_what_a_stats_file_leaves_out_is_unknown(tmp_path):
    """FreeSurfer writes no line for an empty structure, and nothing at all when it was interrupted."""
    write_stats(tmp_path, ASEG)
    file = tmp_path / SUBJECTS[0] / "stats/aseg.stats"
    file.write_text("".join(line for line in file.read_text().splitlines(True) if "Left-Hippocampus" not in line))
    (tmp_path / SUBJECTS[1] / "stats/aseg.stats").write_text("# Title Segmentation Statistics\n")
    found = read_volumes(tmp_path).of(FRAME, REGIONS[:2])
    assert np.isnan(found).tolist()[:3] == [[True, False], [True, True], [False, False]]
    (tmp_path / SUBJECTS[2] / "stats/aseg.stats").write_text("# ColHeaders StructName NumVert SurfArea\n")
    with pytest.raises(InputError, match="its columns are StructName, NumVert, SurfArea; expected"):
        read_volumes(tmp_path)


def test_a_subfield_of_volume_0_is_a_failed_hippocampus(tmp_path):
    path, _ = WRITERS["hippunfold"](tmp_path)
    (file,) = (path / f"sub-{SUBJECTS[0]}").rglob("*_volumes.tsv")
    table = pd.read_csv(file, sep="\t").assign(CA3=[0, 200])
    table.to_csv(file, sep="\t", index=False)
    found = read_volumes(path).of(FRAME, REGIONS[:2])
    assert np.argwhere(np.isnan(found)).tolist() == [[0, 0]]
    (file.parent / "again_volumes.tsv").write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="s0 has L twice; give one table of one atlas"):
        read_volumes(path)
    file.write_text("region\tvolume\nCA1\t500\n")
    with pytest.raises(InputError, match="no column subject, hemi; it has region, volume"):
        read_volumes(path)


def test_exchanged_sides_are_noticed_by_our_own_measure(tmp_path):
    """Each side is measured with as much noise as it differs between people; 60 people, eight structures."""
    ml = volumes_ml(60)
    own = ml * (1 + 0.1 * np.random.default_rng(1).normal(size=ml.shape))
    names = [f"s{k}" for k in range(60)]
    frame = pd.DataFrame({"subject": names})
    swapped = ml[:, np.arange(16) ^ 1]
    for values, word in ((ml, ""), (swapped, "left and right look exchanged")):
        table = read_volumes(write_synthseg(tmp_path, values, names))
        told = crossed_sides(table, table.of(frame, REGIONS), own, REGIONS)
        assert word in told
        assert bool(told) == bool(word)
    few = table.of(frame, REGIONS)[:19]
    assert crossed_sides(table, few, own[:19], REGIONS) == ""


def test_our_own_columns_are_called_as_the_simulation_writes_them():
    assert volume_column("Left Lateral Ventricle") == "volume_left_lateral_ventricle_mm3"


def test_the_list_of_names_says_where_each_is_from():
    table = pd.read_csv(Path(volume_readers.__file__).with_name("volume_names.csv"))
    assert table["source"].str.len().min() > 5
    assert not table.duplicated(["tool", "name"]).any()
    assert set(table["tool"]) | {"own"} == set(volume_readers.TITLES)
