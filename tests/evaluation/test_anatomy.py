"""Effects by the side of the epilepsy: planted on one side, found there, whichever side is larger in everyone; and on
volumes of a table.
"""

import json
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from cohort.anatomy.regional_volumes import by_side
from cohort.anatomy.volume_tables import read_volumes
from cohort.atlas import REGIONS
from cohort.grids import GRIDS
from evaluation.anatomy import Sided, against_known, laterality, measurable, same_tool, swaps_by_side, volumes_in_table
from evaluation.effects import cohens_d
from runtime.errors import InputError, InputWarning
from tests.support.volumes import volumes_ml, write_synthseg

NAMES = ("Left Hippocampus", "Right Hippocampus", "Left Thalamus", "Right Thalamus", "Brain Stem")
ASYMMETRIES = ("asymmetry of Hippocampus", "asymmetry of Thalamus")
MODELLED = NAMES[:4]


def cohort(seed, n=400, left=0.75, shift=-1.0):
    """Half HC, half TLE, most of them left; the hippocampus of the epilepsy's side is `shift` smaller, and the right
    one is larger by 3 in everybody. Standard deviations are 1.
    """
    draw = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    sides = np.where(labels == 0, "", np.where(draw.random(n) < left, "L", "R"))
    values = 30 + draw.normal(size=(n, 5)) + np.array([0, 3, 0, 0, 0])
    values[:, 0] += shift * (sides == "L")
    values[:, 1] += shift * (sides == "R")
    asymmetry = [(a - b) / (a + b) for a, b in (values[:, :2].T, values[:, 2:4].T)]
    return Sided((*NAMES, *ASYMMETRIES), np.column_stack([values, *asymmetry]), labels, sides)


def test_measures_are_ordered_by_each_subjects_side_and_the_middle_is_left_out():
    values = np.array([[1.0, 2.0, 3.0, 4.0, 9.0, 0.1, -0.2], [1.0, 2.0, 3.0, 4.0, 9.0, 0.1, -0.2]])
    names, ordered = by_side((*NAMES, *ASYMMETRIES), values, np.array(["L", "R"]))
    assert names == (
        "ipsilateral Hippocampus", "ipsilateral Thalamus", "contralateral Hippocampus", "contralateral Thalamus",
        *ASYMMETRIES,
    )  # fmt: skip
    assert ordered.tolist() == [[1, 3, 2, 4, 0.1, -0.2], [2, 4, 1, 3, -0.1, 0.2]]


def test_a_planted_effect_is_found_on_its_side_alone():
    sets = {"train": cohort(0), "synthetic": cohort(1), "test": cohort(2)}
    found = laterality(sets, MODELLED, seed=0)
    for key in sets:
        measures = found["effects"][key]["measures"]
        d = {name: effect["d"] for name, effect in measures.items()}
        assert d["ipsilateral Hippocampus"] == pytest.approx(-1, abs=0.2)
        assert abs(d["contralateral Hippocampus"]) < 0.2
        assert abs(d["ipsilateral Thalamus"]) < 0.2
        assert d["asymmetry of Hippocampus"] == pytest.approx(-1 / np.sqrt(2), abs=0.2)
        assert "Brain Stem" not in measures
    sides = found["sides"]["train"]
    assert sides["left"] + sides["right"] == 200
    assert sides["unknown"] == 0
    assert found["agreement"]["synthetic with train"]["correlation"] > 0.9
    assert set(found["agreement"]) == {"synthetic with train", "test with train"}
    json.dumps(found, allow_nan=False)


def test_each_side_counts_for_what_it_is_whatever_the_mix() -> None:
    """As many left as right, or nearly all left: the same effects, though left and right differ threefold as much."""
    for left in (0.5, 0.95):
        own = cohort(3, left=left).ordered(seed=0)
        d = dict(zip(own.names, cohens_d(own.values, own.labels), strict=True))
        assert d["ipsilateral Hippocampus"] == pytest.approx(-1, abs=0.2)
        assert abs(d["contralateral Hippocampus"]) < 0.2
        assert own.values[:, own.names.index("ipsilateral Hippocampus")].mean() == pytest.approx(31, abs=0.2)


class Half:
    """Measures the left hippocampus in what is bright, and nothing in the rest."""

    def table(self, volumes):
        ml = np.array([[volume.mean()] if volume.mean() > 0.5 else [np.nan] for volume in volumes])
        return ("Left Hippocampus",), ml


def test_volumes_in_which_nothing_is_measured_are_left_out_and_counted():
    volumes = [np.full(GRIDS["smoke"].shape, value, np.float32) for value in (0.7, 0.1, 0.9)]
    with pytest.warns(InputWarning, match=r"train: nothing could be measured in 1 of 3 volumes.*rows 1"):
        names, values, rows = measurable("train", volumes, GRIDS["smoke"], Half())
    assert names == ("Left Hippocampus",)
    assert rows.tolist() == [0, 2]
    assert values[:, 0] == pytest.approx([0.7, 0.9])


def test_patients_of_unknown_side_are_counted_and_left_out():
    half = cohort(0)
    some = np.where(np.arange(400) < 200, half.sides, "")
    found = laterality({"train": Sided(half.names, half.values, half.labels, some)}, MODELLED, seed=0)
    assert found["sides"]["train"]["unknown"] == 100
    assert found["effects"]["train"]["n"] == {"HC": 200, "TLE": 100}
    none = Sided(half.names, half.values, half.labels, np.full(400, ""))
    assert laterality({"train": none}, MODELLED, seed=0)["skipped"] == "of no patients the side is known"


def test_the_same_noise_as_hc_left_and_right():
    """Even seeds are L, odd ones R; the swapped folder has the other sides."""
    draw = np.random.default_rng(0)
    hc, change = 30 + draw.normal(size=(20, 4)), np.array([-0.5, 0.1, 0, 0])
    changes = {"L": change, "R": change[[1, 0, 3, 2]]}
    made = {("HC", seed): row for seed, row in enumerate(hc)}
    made |= {(f"TLE-{'LR'[seed % 2]}", seed): row + changes["LR"[seed % 2]] for seed, row in enumerate(hc)}
    swapped = {(f"TLE-{'RL'[seed % 2]}", seed): row + changes["RL"[seed % 2]] for seed, row in enumerate(hc)}

    def differences(found):
        return [entry["difference"] for entry in found["measures"].values()]

    alone = swaps_by_side(MODELLED, made, {}, seed=0)
    assert alone["HC to TLE"]["n"] == 20
    assert differences(alone["HC to TLE"]) == pytest.approx([-0.5, 0, 0.1, 0])
    assert alone["HC to TLE-L"]["n"] == 10
    assert differences(alone["HC to TLE-R"]) == pytest.approx([0.1, -0.5, 0, 0])
    assert alone["TLE-L to TLE-R"]["skipped"].startswith("0 seeds")
    both = swaps_by_side(MODELLED, made, swapped, seed=0)
    assert (both["HC to TLE"]["n"], both["HC to TLE-L"]["n"], both["TLE-L to TLE-R"]["n"]) == (20, 20, 20)
    assert differences(both["TLE-L to TLE-R"]) == pytest.approx([0.6, -0.6, 0, 0])
    assert swaps_by_side(MODELLED, {("TLE-", 0): hc[0]}, {}, seed=0)["HC to TLE"]["skipped"].startswith("0 seeds")


def test_volumes_are_keyed_by_class_side_and_seed():
    found = Sided(MODELLED, np.arange(16.0).reshape(4, 4), np.array([0, 1, 1, 1]), np.array(["", "L", "", "R"]))
    rows = found.by_seed([5, 5, 6, None], ("Right Thalamus",))
    assert {key: row.tolist() for key, row in rows.items()} == {("HC", 5): [3], ("TLE-L", 5): [7], ("TLE-", 6): [11]}


class Scans(NamedTuple):
    """What `volumes_in_table` and `same_tool` look at."""

    labels: np.ndarray
    seeds: list[int | None]


def written(tmp_path, ml, names):
    return read_volumes(write_synthseg(tmp_path, ml, names))


def test_effects_on_known_volumes_are_those_of_the_table_and_ours_are_held_against_them():
    """The hippocampi are a tenth smaller in patients; our measure sees half of a volume, and noise."""
    ml, labels = volumes_ml(200), np.arange(200) % 2
    ml[:, :2] *= np.where(labels == 1, 0.9, 1)[:, None]
    seen = 0.5 * ml + ml.mean(axis=0) * 0.1 * np.random.default_rng(3).normal(size=ml.shape)
    found = against_known(REGIONS, (ml, labels), (seen, labels), (seen, labels), (ml[:100], labels[:100]), seed=0)
    d = [found["known_effects"]["measures"][name]["d"] for name in REGIONS]
    np.testing.assert_allclose(d, cohens_d(ml, labels), rtol=1e-9)
    assert 0.2 < found["recovery"]["measures"]["Left Hippocampus"]["correlation"] < 0.9
    same = found["agreement_with_known"]["synthetic by the same tool"]
    assert same["correlation"] > 0.8
    assert found["known_distributions"]["HC"]["n_synthetic"] == 50
    assert "known_distributions" not in against_known(REGIONS, *[(ml, labels)] * 3, None, seed=0)
    json.dumps(found, allow_nan=False)


def test_a_table_is_read_for_the_scans_that_it_knows_and_its_gaps_and_exchanged_sides_are_said(tmp_path):
    ml, names = volumes_ml(40), [f"s{k}" for k in range(40)]
    frame = pd.DataFrame({"subject": names, "label": np.arange(40) % 2})
    table = written(tmp_path, ml[:38], names[:38])
    with pytest.warns(InputWarning, match="2 of 40 scans .*\n  - s38: no row") as said:
        shared, found = volumes_in_table(table, frame, REGIONS, ml)
    assert (shared, len(said)) == (REGIONS, 1)
    np.testing.assert_allclose(found[:38], ml[:38], rtol=1e-4)
    with pytest.warns(InputWarning, match="left and right look exchanged"):
        volumes_in_table(written(tmp_path, ml[:, np.arange(16) ^ 1], names), frame, REGIONS, ml)
    table = read_volumes(write_synthseg(tmp_path, ml, names, drop="right caudate"))
    with pytest.warns(InputWarning, match="has no volumes of Right Caudate"):
        shared, _ = volumes_in_table(table, frame, REGIONS, ml)
    assert set(REGIONS) - set(shared) == {"Right Caudate"}
    with (
        pytest.warns(InputWarning, match="37 of 40 scans"),
        pytest.raises(InputError, match="the volumes of too few scans are known"),
    ):
        volumes_in_table(written(tmp_path, ml[:3], names[:3]), frame, REGIONS, ml)


def test_rows_that_are_called_as_synthetic_volumes_are_of_these(tmp_path):
    ml = volumes_ml(6)
    table = written(tmp_path, ml, ["HC_000000", "HC_000001", "TLE_000000", "TLE_000007", "HC_000002", "s1"])
    made = Scans(np.array([0, 0, 0, 1, 1, 1]), [0, 1, 2, 0, 7, None])
    with pytest.warns(InputWarning, match="1 of 6 scans"):
        values, labels = same_tool(table, made, REGIONS)
    np.testing.assert_allclose(values, ml[[0, 1, 4, 2, 3]], rtol=1e-4)
    assert labels.tolist() == [0, 0, 0, 1, 1]
    assert same_tool(written(tmp_path, ml, [f"s{k}" for k in range(6)]), made, REGIONS) is None
