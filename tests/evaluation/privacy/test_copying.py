"""The audit finds planted copies, keeps silent about new people and smooth ones, and its figures are closed forms."""

import json
import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from scipy import ndimage, stats
from sklearn.metrics import pairwise_distances

from evaluation import cards, figures
from evaluation.privacy import copying
from evaluation.privacy.copying import audit_spaces
from evaluation.privacy.embedding import VoxelSpace, mirrored
from evaluation.privacy.nearest import (
    Pool,
    Reals,
    Space,
    exact_squared,
    from_near_to_far,
    neighbours,
    squared_distances,
)
from runtime import seeding
from runtime.errors import InputError
from tests.support.scans import brains

SPECTRUM = 1.0 / np.sqrt(np.arange(1, 31))


def people(draw, n):
    """Vectors as of n different people: most of the variance in few directions, as in features of scans."""
    return draw.normal(size=(n, len(SPECTRUM))) * SPECTRUM


def reals(embeddings, letter, mirrored=None):
    return Reals(embeddings, np.array([f"{letter}{k:03d}" for k in range(len(embeddings))]), mirrored)


def space(seed, synthetic=None, n=(60, 40, 60), **controls):
    draw = np.random.default_rng(seed)
    train, held_out, fresh = (people(draw, count) for count in n)
    made = fresh if synthetic is None else synthetic(draw, train, fresh)
    return Space(reals(train, "t"), reals(held_out, "h"), made, controls)


def result_of(cohort, seed=0):
    return audit_spaces({"vectors": cohort}, seed=seed, permutations=399)


# Distances.


def test_distances_equal_scikit_learn_and_near_ones_are_exact_far_from_the_origin():
    draw = np.random.default_rng(0)
    a, b = (draw.normal(size=(n, 50)).astype(np.float32) + 300 for n in (300, 270))
    expected = pairwise_distances(a.astype(np.float64), b.astype(np.float64), metric="sqeuclidean")
    np.testing.assert_allclose(squared_distances(a, b), expected, rtol=1e-9)
    a[0] = b[7] + np.float32(2**-14)  # far below what float32 norms could tell apart
    found = neighbours(a, reals(b, "t"))
    assert found.squared[0].argmin() == 7
    assert (
        found.squared[0, 7]
        == exact_squared(a, b, np.array([0]), np.array([7]))[0]
        == pytest.approx(50 * 2.0**-28, rel=1e-12)
    )


def test_a_subject_is_as_near_as_its_nearest_scan_or_mirror_image():
    draw = np.random.default_rng(1)
    scans, flipped, queries = (draw.normal(size=(n, 5)) for n in (12, 12, 6))
    subjects = np.array(list("aabbbcdddeff"))
    found = neighbours(queries, Reals(scans, subjects, flipped))
    for q, query in enumerate(queries):
        for s, name in enumerate("abcdef"):
            rows = [
                (np.sum((stack[k] - query) ** 2), k, side)
                for side, stack in enumerate((scans, flipped))
                for k in np.flatnonzero(subjects == name)
            ]
            best, scan, side = min(rows)
            assert found.squared[q, s] == pytest.approx(best)
            assert (found.scans[q, s], found.mirrored[q, s]) == (scan, bool(side))


def test_a_subject_on_both_sides_and_one_sided_mirrors_are_refused():
    a, b = reals(np.zeros((9, 3)), "t"), reals(np.zeros((9, 3)), "h")
    with pytest.raises(InputError, match="both in training and held out"):
        Pool.of(a, a)
    with pytest.raises(InputError, match="mirrored"):
        Pool.of(a, replace(b, mirrored=b.embeddings))
    with pytest.raises(InputError, match="at least"):
        Pool.of(a, reals(np.zeros((3, 3)), "h"))


# Closed forms.


@pytest.mark.parametrize(("n", "m"), [(6, 3), (3, 6), (4, 4)])
def test_share_is_the_mean_over_all_subsets_of_equal_size(n, m):
    draw = np.random.default_rng(n)
    squared = draw.uniform(size=(7, n + m))
    trained = np.arange(n + m) < n
    order = from_near_to_far(squared, draw)
    k = min(n, m)
    wins = [
        squared[:, list(some)].min(1) < squared[:, list(others)].min(1)
        for some in combinations(np.flatnonzero(trained), k)
        for others in combinations(np.flatnonzero(~trained), k)
    ]
    assert copying.shares(trained[order]) == pytest.approx(np.mean(wins, axis=0))


@pytest.mark.parametrize(("n", "m"), [(9, 5), (5, 9)])
def test_jackknife_equals_leaving_each_subject_out(n, m):
    draw = np.random.default_rng(n)
    squared, trained = draw.uniform(size=(20, n + m)), np.arange(n + m) % 2 == 0
    trained = draw.permutation(np.arange(n + m) < n)
    order = from_near_to_far(squared, draw)
    variance = 0.0
    for role, size in ((True, n), (False, m)):
        values = []
        for s in np.flatnonzero(trained == role):
            kept = np.delete(np.arange(n + m), s)
            part = from_near_to_far(squared[:, kept], draw)
            values.append(copying.shares(trained[kept][part]).mean())
        variance += (size - 1) / size * np.sum((np.array(values) - np.mean(values)) ** 2)
    assert copying.jackknife_variance(order, trained) == pytest.approx(variance)


def test_detection_limit_is_where_enough_copies_are_nearly_certain():
    limit = copying.detection_limit(180, 180, 75, 0.005)
    c = limit["copies_needed"]
    chance = [math.comb(180, k) / math.comb(255, k) for k in (c, c - 1)]
    assert chance[0] < 0.005 <= chance[1]
    assert stats.binom.sf(c - 1, 180, limit["share"]) == pytest.approx(copying.POWER)
    assert limit["rule_of_three"] == pytest.approx(3 / 180, rel=0.01)
    assert copying.detection_limit(5, 180, 75, 0.005)["share"] is None
    fairer = copying.detection_limit(180, 180, 180, 0.005)
    assert fairer["share"] < limit["share"]  # more held-out subjects, better eyes


def test_copies_at_the_detection_limit_are_found_about_as_often_as_stated():
    found = []
    alpha = copying.ALPHA / 2
    for seed in range(40):
        limit = copying.detection_limit(60, 60, 60, alpha)

        def copy_some(draw, train, fresh, share=limit["share"]):
            chosen = draw.uniform(size=60) < share
            fresh[chosen] = train[chosen]
            return fresh

        cohort = space(seed, copy_some, n=(60, 60, 60))
        pool = Pool.of(cohort.train, cohort.held_out)
        near = neighbours(cohort.synthetic, pool.reals)
        roles = copying.assign_roles(pool.trained, 999, np.random.default_rng(seed))
        found.append(copying.count_copies(cohort.synthetic, near, pool, roles)["p"] < alpha)
    assert np.mean(found) > copying.POWER - 3 * math.sqrt(0.05 * 0.95 / 40)


# False alarms.


@pytest.mark.slow
def test_new_people_raise_alarms_at_the_stated_rate():
    """100 cohorts: p below 0.05 in about 5 %, the interval holds 0.5, copies are as few as stated."""
    p_share, p_copies, covered, alarms, counted = [], [], [], [], []
    for seed in range(100):
        cohort = space(seed, n=(40, 30, 40))
        pool = Pool.of(cohort.train, cohort.held_out)
        found = neighbours(cohort.synthetic, pool.reals)
        roles = copying.assign_roles(pool.trained, 199, np.random.default_rng(seed))
        order = from_near_to_far(found.squared, np.random.default_rng(seed))
        share = copying.closer_to_training(order, roles)
        copies = copying.count_copies(cohort.synthetic, found, pool, roles)
        p_share.append(share["p"])
        p_copies.append(copies["p"])
        covered.append(share["low"] <= 0.5 <= share["high"])
        counted.append(copies["share"])
        alarms.append(copies["false_alarms"]["share"])
    allowed = stats.binom.ppf(0.999, 100, 0.05) / 100
    assert np.mean(np.array(p_share) <= 0.05) <= allowed
    assert np.mean(np.array(p_copies) <= 0.05) <= allowed
    assert stats.kstest(p_share, "uniform").pvalue > 0.001
    assert np.mean(covered) >= 0.9
    assert np.mean(counted) <= 0.01
    assert np.mean(alarms) <= 0.01


def test_nothing_is_said_of_new_people_but_the_limit():
    for seed in range(5):
        finding = result_of(space(seed), seed)["finding"]
        assert not finding["copying"]
        assert "not proof" in finding["text"][0]
        assert "would have been reported" in finding["text"][1]


@pytest.mark.parametrize("shrink", [0.0, 0.5, 0.8])
def test_smooth_people_are_near_to_everybody_and_no_copies(shrink):
    """Shrunk towards the mean they are nearer to the training set than new people are, which is not copying."""
    cohort = space(3, lambda draw, train, fresh: shrink * fresh + 1e-3 * draw.normal(size=fresh.shape))
    result = result_of(cohort)
    measured = result["spaces"]["vectors"]["synthetic"]
    assert measured["copies"]["copies"] <= 1
    assert not result["finding"]["copying"]


# Copies.


def one_copy_each(changed, draws=100):
    """Whether a single copy of a training subject is called one, and the share of new people who are, over cohorts."""
    found, alarms = [], []
    for seed in range(draws):
        draw = np.random.default_rng(seed)
        cohort = space(seed, n=(120, 80, 60))
        pool = Pool.of(cohort.train, cohort.held_out)
        copy = changed(draw, cohort.train.embeddings[seed : seed + 1])
        counts = [
            copying.count_copies(queries, neighbours(queries, pool.reals), pool, pool.trained[None])["copies"]
            for queries in (copy, cohort.synthetic)
        ]
        found.append(counts[0])
        alarms.append(counts[1] / len(cohort.synthetic))
    return np.mean(found), np.mean(alarms)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        lambda draw, x: x + 0.3 * draw.normal(size=x.shape) * SPECTRUM,
        lambda draw, x: x / (1 + np.arange(30) / 60),
    ],
    ids=["noise", "blur"],
)
def test_single_copies_are_found_at_the_stated_false_alarms(changed):
    """Noise of 0.3 of what people differ by, or a blur that leaves two thirds of the finest detail: 95 of 100."""
    found, alarms = one_copy_each(changed)
    assert found >= 0.95
    assert alarms <= copying.QUANTILE


@pytest.mark.parametrize(
    "copy",
    [lambda draw, x: x, lambda draw, x: x + 0.05 * draw.normal(size=x.shape), lambda draw, x: 0.8 * x],
    ids=["exact", "noisy", "shrunk"],
)
def test_copies_are_found_and_named(copy):
    def synthetic(draw, train, fresh):
        fresh[:20] = copy(draw, train[20:40])
        return fresh

    result = result_of(space(4, synthetic))
    measured = result["spaces"]["vectors"]["synthetic"]
    assert result["finding"]["copying"]
    copies = measured["copies"]
    assert 20 / 60 <= copies["memorized"] <= 22 / 60
    assert copies["low"] < 20 / 60 < copies["high"]
    assert copies["copies"] - 20 <= 2
    assert {pair["volume"] for pair in measured["pairs"]} <= set(range(20))
    assert all(pair["scan"] == pair["volume"] + 20 for pair in measured["pairs"])
    exposed = measured["exposure"]["training"]
    assert max(exposed[f"t{k:03d}"] for k in range(20, 40)) < min(measured["exposure"]["held_out"].values())


def test_an_alarm_that_controls_raise_too_concludes_nothing():
    cohort = space(5, lambda draw, train, fresh: train[:30])
    spoiled = replace(
        cohort, controls={"spoiled": Reals(cohort.train.embeddings[:30], np.array([f"x{k}" for k in range(30)]))}
    )
    assert result_of(cohort)["finding"]["copying"]
    finding = result_of(spoiled)["finding"]
    assert not finding["copying"]
    assert "no conclusion" in finding["text"][0]


def test_controls_of_held_out_subjects_do_not_find_themselves():
    cohort = space(6)
    control = replace(cohort.held_out, embeddings=0.99 * cohort.held_out.embeddings)
    measured = audit_spaces({"v": replace(cohort, controls={"blurred": control})}, seed=0, permutations=399)["spaces"][
        "v"
    ]
    assert set(measured["controls"]) == {"held_out", "blurred"}
    assert measured["controls"]["blurred"]["n"]["volumes"] == 20
    assert measured["controls"]["blurred"]["nearest"]["to_held_out"]["min"] > 0.1


@pytest.mark.parametrize("change", ["exact", "noise", "flip", "blur"])
def test_copied_volumes_are_found_in_voxels(change):
    train, held_out, fresh = brains(0, 40), brains(1, 40), brains(2, 30)
    fresh[:20] = {
        "exact": lambda x: x,
        "noise": lambda x: np.where(x > 0, x + np.random.default_rng(0).normal(0, 0.1, x.shape), 0),
        "flip": mirrored,
        "blur": lambda x: ndimage.gaussian_filter(x, (0, 1, 1, 1)),
    }[change](train[:20])
    place = VoxelSpace.fit(np.concatenate([train, held_out]), 4.0)
    sides = [reals(place(x), letter, place(mirrored(x))) for x, letter in ((train, "t"), (held_out, "h"))]
    result = result_of(Space(*sides, place(fresh)))
    measured = result["spaces"]["vectors"]["synthetic"]
    assert result["finding"]["copying"]
    assert measured["copies"]["memorized"] >= 20 / 40
    exposed = measured["exposure"]["training"]
    assert max(exposed[f"t{k:03d}"] for k in range(20)) < min(measured["exposure"]["held_out"].values())
    assert all(pair["scan"] == pair["volume"] for pair in measured["pairs"])
    assert all(pair["mirrored"] == (change == "flip") for pair in measured["pairs"])


def test_blurred_people_are_not_copies_in_voxels():
    train, held_out, fresh = brains(0, 40), brains(1, 40), brains(2, 40)
    place = VoxelSpace.fit(np.concatenate([train, held_out]), 4.0)
    smooth = place(ndimage.gaussian_filter(fresh, (0, 2, 2, 2)))
    control = reals(place(ndimage.gaussian_filter(held_out, (0, 2, 2, 2))), "h")
    result = result_of(Space(reals(place(train), "t"), reals(place(held_out), "h"), smooth, {"blurred": control}))
    assert result["spaces"]["vectors"]["synthetic"]["copies"]["copies"] <= 1
    assert not result["finding"]["copying"]


# What is written.


@pytest.mark.slow
def test_results_are_json_repeatable_and_make_a_card_without_names(tmp_path):
    cohort = space(7, lambda draw, train, fresh: np.concatenate([train[:15], fresh[15:]]))
    result = result_of(cohort)
    assert json.dumps(result, allow_nan=False) == json.dumps(result_of(cohort), allow_nan=False)
    sizes = {key: {"HC": 30, "TLE": 30} for key in ("real_train", "real_test", "synthetic")}
    grid = {"name": "smoke", "spacing_mm": 8.0}
    found = {"audit": result, "attacks": {"losses": "skipped: no checkpoint"}}
    facts = {"n": sizes, "protocol": {"grid": grid}, "checkpoints": {}, "commit": "c0ffee"}
    cards.write_privacy(tmp_path / "card.md", {"privacy": found, **facts})
    card = (tmp_path / "card.md").read_text()
    assert "copying" in card
    assert "skipped: no checkpoint" in card
    assert "None were planted" in card
    assert not any(name in card for name in cohort.train.names)
    volumes = brains(0, 60)
    pairs = result["spaces"]["vectors"]["synthetic"]["pairs"]
    figures.draw_pairs(tmp_path / "pairs.png", volumes, list(volumes), pairs)
    assert (tmp_path / "pairs.png").stat().st_size > 10_000


def test_too_few_permutations_are_refused():
    with pytest.raises(InputError, match="permutations"):
        audit_spaces({"a": space(0), "b": space(0)}, seed=0, permutations=199)


def test_roles_begin_with_the_truth_and_keep_the_counts():
    trained = np.arange(9) < 4
    roles = copying.assign_roles(trained, 50, seeding.rng(0, "test"))
    np.testing.assert_array_equal(roles[0], trained)
    assert np.all(roles.sum(axis=1) == 4)
    assert len(np.unique(roles, axis=0)) > 20
