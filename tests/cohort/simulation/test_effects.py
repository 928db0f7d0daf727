import numpy as np
import pytest

from cohort.atlas import REGIONS
from cohort.simulation import effects

COUNT = 400


@pytest.fixture(scope="module")
def cohort():
    return effects.subjects(0, COUNT, "mixed")


@pytest.fixture(scope="module")
def sclerotic():
    return effects.subjects(0, COUNT)


def volumes(cohort, group, side=""):
    chosen = np.array([s.relative_volume for s in cohort if (s.group, s.side) == (group, side)])
    return np.where(["Ventricle" in region for region in REGIONS], np.log(chosen), chosen)


def cohens_d(a, b):
    pooled = (len(a) - 1) * a.var(axis=0, ddof=1) + (len(b) - 1) * b.var(axis=0, ddof=1)
    return (a.mean(axis=0) - b.mean(axis=0)) / np.sqrt(pooled / (len(a) + len(b) - 2))


def test_published_table_has_its_signs_and_sides():
    left = dict(zip(REGIONS, effects.effect_targets("HS", "L"), strict=True))
    right = dict(zip(REGIONS, effects.effect_targets("HS", "R"), strict=True))
    assert left["Left Hippocampus"] == -1.728
    assert right["Right Hippocampus"] == -1.906
    assert left["Right Hippocampus"] == -0.204
    assert right["Left Lateral Ventricle"] == 0.390
    mirrored = dict(zip(REGIONS, effects.effect_targets("MRI-negative", "R"), strict=True))
    assert mirrored["Right Hippocampus"] == -0.30
    assert not effects.effect_targets("HC", "").any()


@pytest.mark.parametrize("group", ["HS", "MRI-negative"])
@pytest.mark.parametrize("side", ["L", "R"])
def test_drawn_volumes_have_the_effects(cohort, group, side):
    d = cohens_d(volumes(cohort, group, side), volumes(cohort, "HC"))
    np.testing.assert_allclose(d, effects.effect_targets(group, side), atol=0.15)


@pytest.mark.parametrize("side", ["L", "R"])
def test_without_other_patients_the_effects_are_the_same(sclerotic, side):
    d = cohens_d(volumes(sclerotic, "HS", side), volumes(sclerotic, "HC"))
    np.testing.assert_allclose(d, effects.effect_targets("HS", side), atol=0.15)
    kinds = [(s.group, s.side) for s in sclerotic]
    assert set(kinds) == {("HC", ""), ("HS", "L"), ("HS", "R")}
    assert kinds.count(("HS", side)) == pytest.approx(COUNT / 4, abs=3)


def test_controls_vary_as_people_do(cohort):
    left, right = volumes(cohort, "HC")[:, :2].T
    assert 0.08 < left.std() / left.mean() < 0.13
    assert np.corrcoef(left, right)[0, 1] == pytest.approx(effects.NORMS["Hippocampus"].symmetry, abs=0.05)
    ages = np.array([s.age for s in cohort if s.group == "HC"])
    ventricles = volumes(cohort, "HC")[:, REGIONS.index("Left Lateral Ventricle")]
    assert np.corrcoef(ages, ventricles)[0, 1] > 0.15
    assert np.corrcoef(ages, left)[0, 1] < -0.05


def test_sclerosis_loosens_the_symmetry(cohort):
    r = [np.corrcoef(volumes(cohort, *kind)[:, :2].T)[0, 1] for kind in (("HC", ""), ("HS", "L"))]
    assert r[1] < r[0] - 0.15


def test_groups_have_their_shares_and_sites_are_independent_of_them(cohort):
    groups = [s.group for s in cohort]
    assert groups.count("HC") == pytest.approx(COUNT / 2, abs=6)
    assert groups.count("MRI-negative") == pytest.approx(COUNT / 6, abs=4)
    for site, share in effects.SITE_SHARES.items():
        for patient in (False, True):
            members = [s for s in cohort if (s.group != "HC") == patient]
            assert np.mean([s.site == site for s in members]) == pytest.approx(share, abs=0.03)


def test_a_subject_does_not_depend_on_how_many_there_are(cohort):
    for few, many in zip(effects.subjects(0, 37, "mixed"), cohort[:37], strict=True):
        assert few.name == many.name
        np.testing.assert_array_equal(few.relative_volume, many.relative_volume)


def test_seeds_give_other_people_under_other_names(cohort):
    other = effects.subjects(1, 12, "mixed")
    assert not {s.name for s in other} & {s.name for s in cohort}
    assert all((a.relative_volume != b.relative_volume).any() for a, b in zip(other, cohort[:12], strict=True))


@pytest.mark.parametrize("size", [0.5, 1.9, 6.0])
@pytest.mark.parametrize("side", ["L", "R"])
def test_a_planted_loss_has_its_effect_size_and_no_company(size, side):
    people = effects.subjects(3, COUNT, "hippocampus", size)
    d = cohens_d(volumes(people, "HS", side), volumes(people, "HC"))
    expected = np.array([-size if i == "LR".index(side) else 0.0 for i in range(len(REGIONS))])
    np.testing.assert_allclose(d, expected, atol=0.15 + 0.05 * size)
    assert [s.side for s in people].count(side) == pytest.approx(COUNT / 4, abs=3)


def test_doses_change_the_same_people_and_nothing_at_zero():
    none, some = (effects.subjects(3, 48, "hippocampus", size) for size in (0.0, 1.0))
    for before, after in zip(none, some, strict=True):
        assert (before.name, before.age, before.etiv_cm3, before.side) == (
            after.name,
            after.age,
            after.etiv_cm3,
            after.side,
        )
        assert not before.change.any()
        changed = np.flatnonzero(before.relative_volume != after.relative_volume)
        assert changed.tolist() == (["LR".index(after.side)] if after.side else [])
    assert {s.group for s in some} == {"HC", "HS"}
