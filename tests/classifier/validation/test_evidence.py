from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from classifier.validation import evidence
from classifier.validation.evidence import Maps
from classifier.validation.planted import mark_of
from cohort.atlas import atlas
from cohort.grids import GRIDS

GRID = GRIDS["smoke"]
ATLAS = atlas(GRID)
LEFT, RIGHT = (ATLAS.mask(f"{side} Hippocampus") for side in ("Left", "Right"))
SIDES = ["L", "R"] * 4


def brain() -> np.ndarray:
    at = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in GRID.shape), indexing="ij"))
    return (at**2).sum(0) < 0.7


def truth() -> evidence.Truth:
    shares = [(LEFT if side == "L" else RIGHT).astype(float) for side in SIDES]
    return evidence.truth_of(shares, SIDES, brain(), GRID.spacing_mm, 39, np.random.default_rng(0))


def test_mirrored_patients_and_their_difference_are_in_one_frame():
    patients = np.stack([np.where(LEFT, 2.0, 0.5), np.where(np.flip(LEFT, 0), 2.0, 0.5)])
    maps = Maps(patients, ["L", "R"], np.full((3, *GRID.shape), 0.5))
    np.testing.assert_array_equal(*evidence.ipsilateral(maps.patients, maps.sides))
    difference, _ = evidence.group_difference(maps, truth())
    np.testing.assert_array_equal(difference, np.where(LEFT, 1.5, 0.0))


def test_edges_that_all_classes_share_vanish_from_the_difference():
    """Maps that are stronger on an edge, in everybody, than on the truth: only their difference points at it."""
    edge = np.where(ATLAS.mask("Left Thalamus") | ATLAS.mask("Right Thalamus"), 5.0, 0.0)
    patients = np.stack([edge + np.where(LEFT if side == "L" else RIGHT, 1.0, 0.0) for side in SIDES])
    maps = Maps(patients, SIDES, np.stack([edge] * 3))
    assert evidence.localisation(maps, truth())["pointing"][:, 0].mean() == 0
    assert evidence.group_difference(maps, truth())[1]["pointing"]["value"] == 1


def test_the_side_is_that_of_the_stronger_hippocampus_and_a_tie_is_wrong():
    maps = [np.where(LEFT, -2.0, 0.0), np.where(RIGHT, 2.0, 1.0), np.where(RIGHT, 2.0, 0.0), np.ones(GRID.shape)]
    found = evidence.side_accuracy(maps, ["L", "R", "L", "R"], ATLAS)
    assert (found["hits"], found["count"], found["value"]) == (2, 4, 0.5)
    assert evidence.side_accuracy([-maps[0]] * 8, ["L"] * 8, ATLAS)["low"] == pytest.approx(0.025 ** (1 / 8))


def test_trend_is_spearman_and_covers_no_trend():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((3, 20)) + np.array([[0.0], [1.0], [2.0]])
    found = evidence.trend([0.0, 1.0, 1.9], values, rng, 500)
    assert found["value"] == pytest.approx(spearmanr(np.repeat([0.0, 1.0, 1.9], 20), values.ravel()).statistic)
    assert found["low"] > 0
    flat = evidence.trend([0.0, 1.0, 1.9], rng.standard_normal((3, 20)), rng, 500)
    assert flat["low"] < 0 < flat["high"]


def test_a_mark_that_a_map_shows_ranks_first():
    mark = mark_of(GRID)
    rng = np.random.default_rng(0)
    maps = 0.01 * rng.standard_normal((6, *GRID.shape)) + mark
    weights = rng.dirichlet(np.ones(6), 100)
    found = evidence.mark_exposure(maps, mark, ATLAS, weights)
    assert found["rank"] == 1
    assert found["share"]["low"] > 10 * mark.mean()
    assert evidence.mark_exposure(np.ones_like(maps), mark, ATLAS, weights)["rank"] == found["regions"]


def test_the_coarse_atlas_keeps_the_modelled_regions_and_loses_no_voxel():
    coarse = evidence.merged(ATLAS)
    np.testing.assert_array_equal(coarse.mask("Left Hippocampus"), LEFT)
    np.testing.assert_array_equal(coarse.labels > 0, ATLAS.labels > 0)
    assert len(np.unique(coarse.labels)) < 22
