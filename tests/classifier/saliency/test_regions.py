import dataclasses

import numpy as np
import pytest
from scipy import stats

from classifier.saliency.regions import (
    Relevance,
    agreement,
    choose_regions,
    correlation_interval,
    lateralisation,
    rank_regions,
    region_means,
    region_sums,
)
from cohort.atlas import Atlas, atlas
from cohort.grids import GRIDS
from runtime.errors import InputError


def small_atlas() -> Atlas:
    labels = np.zeros((4, 4, 4), np.int16)
    labels[0], labels[1, 0] = 3, 7
    return Atlas(labels, {3: "big", 7: "small", 9: "absent"})


def paired_atlas() -> Atlas:
    labels = np.zeros((4, 4, 4), np.int16)
    for code in range(1, 5):
        labels[code - 1] = code
    return Atlas(labels, {1: "Left Hippocampus", 2: "Right Hippocampus", 3: "Left Amygdala", 4: "Right Amygdala"})


def relevance(count: int, regions: int, seed: int, *, clusters=None, noise=1.0) -> Relevance:
    """Strength that grows with the region's number, plus noise; TLE have more of it in the later regions."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    values = np.arange(regions) * (1 + 0.3 * labels[:, None]) + noise * rng.normal(size=(count, regions)) + 5
    names = np.arange(count).astype(str) if clusters is None else clusters
    return Relevance(values, labels, np.array(["HC", "TLE"])[labels], np.asarray(names))


def of_diagnoses(magnitudes: np.ndarray, diagnoses: np.ndarray) -> Relevance:
    return Relevance(magnitudes, (diagnoses != "HC").astype(int), diagnoses, np.arange(len(diagnoses)))


def test_ranking_has_intervals_and_the_difference_of_the_classes():
    small = small_atlas()
    np.testing.assert_allclose(region_means((small.labels == 3) * 2.0, small), [2, 0, np.nan])
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    magnitudes = np.stack([np.full(40, 1.0), 2 + labels + rng.normal(size=40) * 0.1, np.full(40, np.nan)], axis=1)
    table = rank_regions(Relevance(magnitudes, labels, labels, np.arange(40)), small, rng, resamples=300)
    assert table["region"].tolist() == ["small", "big"]
    assert table["voxels"].tolist() == [4, 16]
    first = table.iloc[0]
    assert first["low"] < first["mean_abs"] < first["high"]
    assert first["TLE_minus_HC"] == pytest.approx(1.0, abs=0.1)
    assert first["difference_low"] > 0.8
    assert table.iloc[1]["TLE_minus_HC"] == pytest.approx(0.0, abs=1e-12)


def test_sums_in_logits_add_up_with_what_is_outside_and_keep_their_sign():
    small = small_atlas()
    map_ = np.random.default_rng(0).normal(size=(4, 4, 4))
    sums = region_sums(map_, small)
    assert sums[2] == 0
    assert sums.sum() + map_[small.labels == 0].sum() == pytest.approx(map_.sum())
    assert sums[0] == pytest.approx(map_[0].sum())

    labels = np.arange(20) % 2
    maps = [np.where(small.labels == 7, -0.5 * label, 0.01) for label in labels]  # 4 voxels speak for HC, 16 hardly
    columns = (labels, labels, np.arange(20))
    means, sums = (np.array([of(part, small) for part in parts]) for of, parts in (
        (region_means, np.abs(maps)), (region_sums, maps)))  # fmt: skip
    table = rank_regions(Relevance(means, *columns, sums), small, np.random.default_rng(0), 50).set_index("region")
    assert table.loc["small", ["logits_HC", "logits_TLE"]].tolist() == pytest.approx([0, -2])
    assert table.loc["small", ["logits_low", "logits_TLE_minus_HC", "logits_high"]].tolist() == pytest.approx([-2] * 3)
    assert table.loc["big", "logits_TLE"] == pytest.approx(0.16)
    assert "logits_HC" not in rank_regions(Relevance(means, *columns), small, np.random.default_rng(0), 50)


def test_the_strength_of_a_region_does_not_grow_with_its_size():
    small = small_atlas()
    means = region_means(np.ones((4, 4, 4)), small)
    assert means[0] == means[1] == 1.0


def test_chosen_regions_alone_are_left():
    whole = atlas(GRIDS["smoke"])
    chosen = choose_regions(whole, ("Left Hippocampus", "Right Amygdala"))
    assert set(chosen.names.values()) == {"Left Hippocampus", "Right Amygdala"}
    assert set(np.unique(chosen.labels)) == {0, *chosen.names}
    assert np.array_equal(chosen.mask("Left Hippocampus"), whole.mask("Left Hippocampus"))
    assert choose_regions(whole, ()) is whole


def test_unknown_regions_are_all_named_with_what_is_near():
    with pytest.raises(InputError, match=r"(?s)\(2\).*'Left Hipocampus'; near it: Left Hippocampus.*'Xyzzy'"):
        choose_regions(atlas(GRIDS["smoke"]), ("Left Hipocampus", "Right Amygdala", "Xyzzy"))


def test_agreement_is_spearmans_with_an_interval():
    a, b = relevance(30, 12, 0, noise=4.0), relevance(20, 12, 1, noise=4.0)
    found = agreement(a, b, np.random.default_rng(0), resamples=400)
    expected = stats.spearmanr(a.magnitudes.mean(0), b.magnitudes.mean(0)).statistic
    assert found["mean_abs"]["value"] == pytest.approx(expected, abs=1e-12)
    difference = [
        part.magnitudes[part.labels == 1].mean(0) - part.magnitudes[part.labels == 0].mean(0) for part in (a, b)
    ]
    assert found["TLE_minus_HC"]["value"] == pytest.approx(stats.spearmanr(*difference).statistic, abs=1e-12)
    for cell in found.values():
        assert cell["low"] < cell["value"] < cell["high"] <= 1
    reverse = dataclasses.replace(b, magnitudes=-b.magnitudes)
    assert agreement(a, reverse, np.random.default_rng(0), 10)["mean_abs"]["value"] == pytest.approx(-expected)


def test_the_ceiling_is_what_other_subjects_of_the_same_population_reach():
    """Rankings of two samples that differ in their subjects alone: their correlation, on average, is the ceiling."""
    for quantity, noise, least in (("mean_abs", 9.0, 0.7), ("TLE_minus_HC", 3.0, 0.3)):
        draws = [relevance(24, 12, seed, noise=noise) for seed in range(80)]
        found = [agreement(a, b, np.random.default_rng(0), 5) for a, b in zip(draws[:40], draws[40:], strict=True)]
        reached, ceilings = ([cell[quantity][key] for cell in found] for key in ("value", "ceiling"))
        assert np.mean(ceilings) == pytest.approx(np.mean(reached), abs=0.04)
        assert least < np.mean(ceilings) < 0.9
    alone = relevance(3, 12, 0)
    one = agreement(alone, alone, np.random.default_rng(0), 5)["mean_abs"]
    assert np.isnan(one["ceiling"])  # one patient has no halves


def test_subjects_of_both_sets_are_drawn_together():
    """A ranking agrees with itself in every resample; with its own copy under other names it does not."""
    a = relevance(12, 10, 0, noise=20.0)
    itself = agreement(a, a, np.random.default_rng(0), resamples=200)["mean_abs"]
    ends = [itself[name] for name in ("low", "value", "high")]
    assert ends == pytest.approx([1, 1, 1], abs=0.01)  # a step of ranks is 0.012
    assert itself["ceiling"] < 0.95  # who looks at the same people shares their noise
    other = dataclasses.replace(a, clusters=np.char.add("copy ", a.clusters))
    assert agreement(a, other, np.random.default_rng(0), resamples=200)["mean_abs"]["low"] < itself["low"] - 0.02


def test_the_interval_of_a_correlation_holds_it_where_all_resamples_lie_below():
    cell = correlation_interval(np.array([0.91, *np.linspace(0.82, 0.90, 101)]), regions=40)
    assert cell["low"] < cell["value"] == 0.91 < cell["high"]
    z = np.arctanh([cell[end] for end in ("low", "value", "high")])
    assert (
        z[2] - z[1]
        == pytest.approx(z[1] - z[0])
        == pytest.approx(1.96 * np.arctanh(np.linspace(0.82, 0.90, 101)).std(), rel=1e-4)
    )


def test_agreement_of_one_class_has_no_difference_and_absent_regions_are_left_out():
    a = relevance(10, 6, 0)
    absent = np.where(np.arange(6) == 2, np.nan, a.magnitudes)
    b = dataclasses.replace(a, magnitudes=absent, labels=np.ones(10, int))
    found = agreement(a, b, np.random.default_rng(0), resamples=50)
    assert set(found) == {"mean_abs"}
    kept = [0, 1, 3, 4, 5]
    expected = stats.spearmanr(a.magnitudes.mean(0)[kept], b.magnitudes.mean(0)[kept]).statistic
    assert found["mean_abs"]["value"] == pytest.approx(expected)


def test_sides_are_found_where_they_were_planted():
    """Left cases have three times as much in the left hippocampus, right cases in the right; amygdalae are even."""
    rng = np.random.default_rng(0)
    diagnoses = np.array(["HC", "TLE-L", "TLE-R"])[np.arange(60) % 3]
    magnitudes = np.ones((60, 4))
    magnitudes[diagnoses == "TLE-L", 0] = 3
    magnitudes[diagnoses == "TLE-R", 1] = 3
    magnitudes *= np.exp(0.1 * rng.normal(size=magnitudes.shape))
    table = lateralisation(of_diagnoses(magnitudes, diagnoses), paired_atlas(), rng, 300)
    cells = table.set_index(["group", "structure"])
    for group, index in (("HC", 0.0), ("TLE-L", 0.5), ("TLE-R", -0.5), ("TLE-L minus TLE-R", 1.0)):
        row = cells.loc[(group, "Hippocampus")]
        assert row["index"] == pytest.approx(index, abs=0.05)
        assert row["low"] <= row["index"] <= row["high"]
    contrast = cells.loc[("TLE-L minus TLE-R", "Hippocampus")]
    assert contrast["low"] > 0.9
    assert contrast["volumes"] == 40
    even = cells.loc[("TLE-L minus TLE-R", "Amygdala")]
    assert even["low"] < 0 < even["high"]


def test_sides_without_any_relevance_and_without_pairs():
    rng = np.random.default_rng(0)
    table = lateralisation(of_diagnoses(np.zeros((4, 4)), np.array(["TLE"] * 4)), paired_atlas(), rng, 20)
    assert table["group"].tolist() == ["TLE", "TLE"]
    assert (table[["index", "low", "high"]] == 0).all(axis=None)
    one_sided = Atlas(np.ones((2, 2, 2), np.int16), {1: "Left Hippocampus"})
    assert lateralisation(of_diagnoses(np.ones((4, 1)), np.array(["TLE"] * 4)), one_sided, rng, 20).empty


def test_a_hundred_null_sides_have_intervals_that_hold_zero():
    """Coverage of the bootstrap: about 95 of 100 intervals of a true 0 contain it."""
    rng = np.random.default_rng(1)
    diagnoses = np.array(["TLE-L", "TLE-R"])[np.arange(60) % 2]
    hits = 0
    for _ in range(100):
        magnitudes = np.exp(0.3 * rng.normal(size=(60, 4)))
        table = lateralisation(of_diagnoses(magnitudes, diagnoses), paired_atlas(), rng, 200)
        row = table[table["group"] == "TLE-L minus TLE-R"].iloc[0]
        hits += row["low"] <= 0 <= row["high"]
    assert 86 <= hits <= 100  # binomial(100, 0.95) is outside with p < 0.001
