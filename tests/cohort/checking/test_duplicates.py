"""Copies of scans: planted ones of every kind are found, distinct subjects are not, and a leak stops a training run."""

import multiprocessing

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from cohort.atlas import load_template
from cohort.atlas import resample as template_on
from cohort.checking import checked, duplicates
from cohort.checking.checked import Copies, name_sets, refuse_duplicates
from cohort.checking.duplicates import (
    NEIGHBOURS,
    SHAPE,
    SPACING_MM,
    Pair,
    Search,
    calibrated,
    find_pairs,
    thumbnail,
)
from cohort.grids import GRIDS
from cohort.scans import normalise, resample
from runtime.errors import InputError
from tests.support.scans import brain, save

GRID = GRIDS["smoke"]
AFFINE = GRIDS["demo"].affine
COUNT = 40


@pytest.fixture(scope="module")
def people():
    """Forty brains at 4 mm: the template, bent differently for each, with texture of its own; float32, 0 outside."""
    image = load_template("icbm2009a")
    template = normalise(template_on(np.asarray(image.dataobj), image.affine, GRIDS["demo"]))
    place = np.indices(template.shape).astype(np.float32)
    brains = []
    for seed in range(COUNT):
        draw = np.random.default_rng(seed)
        bend = [8 * ndimage.gaussian_filter(draw.standard_normal(template.shape), 2.5) for _ in range(3)]
        texture = 1 + ndimage.gaussian_filter(draw.standard_normal(template.shape), 1.0)
        bent = ndimage.map_coordinates(template, place + 2 * np.array(bend), order=1)
        brains.append((bent * texture * (bent > 0.1) * 800).astype(np.float32))
    return brains


def noisy(image, share, seed=0):
    noise = np.random.default_rng(seed).normal(0, share * np.percentile(image[image > 0], 99), image.shape)
    return np.where(image > 0, image + noise, 0).astype(np.float32)


def resampled(image, spacing):
    affine = np.diag([spacing] * 3 + [1.0])
    affine[:3, 3] = AFFINE[:3, 3] + (0.3, 1.1, -0.7)
    shape = tuple(int(size * 4 // spacing) for size in image.shape)
    return resample(image, AFFINE, affine, shape)[0], affine


def shifted(image):
    """Other voxels (by less than one), in another place: the header knows nothing of it."""
    moved = AFFINE.copy()
    moved[:3, 3] += (2.7, -1.3, 3.1)
    away = AFFINE.copy()
    away[:3, 3] += (40, -25, 60)
    return resample(image, AFFINE, moved, image.shape)[0], away


def biased(image):
    x, _, z = np.meshgrid(*[np.linspace(-1, 1, size) for size in image.shape], indexing="ij")
    return (image * np.exp(0.2 * x - 0.15 * z)).astype(np.float32)


PLANTS = {
    "copied": lambda image: (image, AFFINE),
    "mirrored": lambda image: (image[::-1], AFFINE),
    "noise": lambda image: (noisy(image, 0.08), AFFINE),
    "to 3 mm": lambda image: resampled(image, 3.0),
    "to 5.5 mm": lambda image: resampled(image, 5.5),
    "scaled": lambda image: (3.7 * image, AFFINE),
    "contrast": lambda image: (image**1.3, AFFINE),
    "bias": lambda image: (biased(image), AFFINE),
    "shifted": shifted,
    "mirrored, shifted and with noise": lambda image: shifted(noisy(image, 0.04)[::-1]),
}


def search(thumbnails, groups=None):
    names = [str(number) for number in range(len(thumbnails))] if groups is None else groups
    return find_pairs(lambda row: thumbnails[row], names)


@pytest.fixture(scope="module")
def thumbnails(people):
    return [thumbnail(image, AFFINE) for image in people]


def test_planted_copies_of_every_kind_are_found_and_nothing_else(people, thumbnails):
    copies = [thumbnail(*change(people[3 * number])) for number, change in enumerate(PLANTS.values())]
    found = {(pair.first, pair.second): pair.mirrored for pair in search(thumbnails + copies).pairs}
    expected = {(3 * number, COUNT + number): "mirrored" in name for number, name in enumerate(PLANTS)}
    assert found == expected


def test_distinct_people_are_not_copies(thumbnails):
    for count in (COUNT, 12, 3, 2, 1):
        assert search(thumbnails[:count]).pairs == ()


def test_two_kinds_of_scans_in_one_cohort_do_not_hide_a_copy(people, thumbnails):
    """Half of the people are much alike, as by one scanner: the deviation is then that between the halves."""
    middle = np.mean(people, axis=0)
    alike = [thumbnail(0.6 * middle + 0.4 * image, AFFINE) for image in people[: COUNT // 2]]
    cohort = [*alike, *thumbnails[COUNT // 2 :]]
    copy = thumbnail(noisy(people[-1], 0.16), AFFINE)
    found = search([*cohort, copy])
    assert found.fine_threshold == duplicates.FINE_CEILING
    assert [(pair.first, pair.second) for pair in found.pairs] == [(COUNT - 1, COUNT)]
    assert found.pairs[0].correlation < 0.98


def test_few_scans_are_judged_by_the_floor(people, thumbnails):
    copy = thumbnail(noisy(people[1], 0.05)[::-1], AFFINE)
    found = search([*thumbnails[:3], copy])
    assert [(pair.first, pair.second, pair.mirrored) for pair in found.pairs] == [(1, 3, True)]
    assert (found.coarse_threshold, found.fine_threshold) == (duplicates.COARSE_FLOOR, duplicates.FINE_FLOOR)


def test_a_cohort_of_nothing_but_pairs_does_not_hide_them(people, thumbnails):
    copies = [thumbnail(noisy(image, 0.03, seed), AFFINE) for seed, image in enumerate(people)]
    found = search(thumbnails + copies)
    assert {(pair.first, pair.second) for pair in found.pairs} == {(row, COUNT + row) for row in range(COUNT)}


def test_scans_of_one_group_are_expected_to_be_alike(thumbnails):
    doubled = thumbnails[:4] + thumbnails[:4]
    names = ["a", "b", "c", "d"]
    assert search(doubled, names + names).pairs == ()
    assert [(pair.first, pair.second) for pair in search(doubled, [*names, "a", "b", "c", "other"]).pairs] == [(3, 7)]


def test_blocks_of_any_size_give_one_result(people, thumbnails, monkeypatch):
    planted = [*thumbnails, thumbnail(noisy(people[5], 0.05), AFFINE)]
    whole = search(planted)
    monkeypatch.setattr(duplicates, "_BLOCK", 7)
    parts = search(planted)
    assert [(pair.first, pair.second) for pair in parts.pairs] == [(5, COUNT)]
    assert parts.pairs == whole.pairs
    assert parts.coarse_threshold == pytest.approx(whole.coarse_threshold, abs=1e-5)


def test_neighbours_agree_with_numpy(thumbnails, tmp_path):
    """Correlations of every pair, plain and mirrored, computed at once and in float64."""
    found = duplicates._nearest(duplicates._features(tmp_path / "f", thumbnails.__getitem__, 20), np.arange(20))
    rows = np.stack([duplicates.coarse_feature(picture) for picture in thumbnails[:20]]).astype(np.float64)
    boxes = rows.reshape(-1, *duplicates.COARSE_SHAPE)
    boxes = boxes - (boxes.mean(axis=0) + boxes[:, ::-1].mean(axis=0)) / 2
    plain = np.corrcoef(boxes.reshape(20, -1))
    both = np.corrcoef(np.concatenate([boxes.reshape(20, -1), boxes[:, ::-1].reshape(20, -1)]))[:20, 20:]
    best = np.maximum(plain, both)
    np.fill_diagonal(best, -2)
    order = np.argsort(-best, axis=1)[:, :NEIGHBOURS]
    assert np.array_equal(found.partners, order)
    assert np.allclose(found.scores, np.take_along_axis(best, order, axis=1), atol=1e-4)
    assert np.array_equal(found.mirrored, np.take_along_axis(both > plain, order, axis=1))


def test_threshold_is_a_robust_extreme_between_floor_and_ceiling():
    z = np.random.default_rng(0).normal(0.6, 0.05, 100_000)
    z[:20_000] = 3.0
    clean = np.tanh(0.6 + duplicates.DEVIATIONS * 0.05)
    assert calibrated(np.tanh(z[20_000:]), 0.1, 0.99) == pytest.approx(clean, abs=0.003)
    # A fifth of outliers moves median and deviation by known quantiles of the normal, and not by their distance.
    assert clean < calibrated(np.tanh(z), 0.1, 0.99) < np.tanh(0.6 + 0.02 + 1.5 * duplicates.DEVIATIONS * 0.05)
    assert calibrated(np.tanh(z[20_000:]), 0.9, 0.99) == 0.9
    assert calibrated(np.tanh(z[20_000:]), 0.1, 0.7) == 0.7
    assert calibrated(np.tanh(z[:29]), 0.123, 0.99) == 0.123


# Thumbnails ----------------------------------------------------------------------------------------------------------


def test_thumbnail_is_centred_and_does_not_know_where_the_head_was(people):
    picture = thumbnail(people[0], AFFINE)
    assert (picture.shape, picture.dtype, picture.max()) == (SHAPE, np.uint8, 255)
    away = AFFINE.copy()
    away[:3, 3] += 32
    assert np.array_equal(thumbnail(people[0], away), picture)
    turned = AFFINE @ np.diag([-1.0, 1, 1, 1])
    turned[:3, 3] = AFFINE[:3, 3] + AFFINE[:3, 0] * (people[0].shape[0] - 1)
    assert np.array_equal(thumbnail(np.ascontiguousarray(people[0][::-1]), turned), picture)
    middle = ndimage.center_of_mass(picture > 0)
    assert np.abs(np.array(middle) - (np.array(SHAPE) - 1) / 2).max() < 0.5


def test_mirror_image_has_the_mirrored_thumbnail(people):
    picture, mirror = (thumbnail(np.ascontiguousarray(image), AFFINE) for image in (people[0], people[0][::-1]))
    assert np.abs(mirror.astype(int) - picture[::-1]).max() <= 1


def test_fine_scans_are_averaged():
    x, y, z = np.meshgrid(*[np.arange(size) for size in (160, 192, 160)], indexing="ij")
    ball = ((x - 80) ** 2 + (y - 96) ** 2 + (z - 80) ** 2 < 60**2) * (100.0 + 50 * (x % 2))
    picture = thumbnail(ball.astype(np.float32), np.eye(4))
    inner = picture[15:25, 19:29, 15:25].astype(float)
    assert inner.std() < 0.05 * inner.mean()
    assert (picture > 127).sum() * SPACING_MM**3 == pytest.approx(4 / 3 * np.pi * 60**3, rel=0.05)


# What training scripts run -------------------------------------------------------------------------------------------


def listed(folder, name, images, groups=None, **columns):
    rows = []
    for number, image in enumerate(images):
        subject = f"{name}{number}"
        path = save(folder / f"{subject}.nii.gz", image)
        rows.append({"subject": subject, "group": subject, "file": str(path), "label": number % 2})
    frame = pd.DataFrame(rows).assign(**columns)
    return frame.assign(group=groups or frame["group"])


@pytest.fixture
def leaking(tmp_path):
    """Training scans, and a test table whose second scan is a training scan, mirrored and with noise."""
    train = listed(tmp_path, "train", [brain(seed=seed) for seed in range(6)])
    leaked = noisy(brain(seed=4), 0.02)[::-1]
    return {"train": train, "test": listed(tmp_path, "test", [brain(seed=10), leaked, brain(seed=11)])}


def test_a_leak_across_splits_is_refused_and_named(leaking, tmp_path):
    with pytest.raises(InputError) as refusal:
        refuse_duplicates(leaking, cache_dir=tmp_path / "cache")
    message = str(refusal.value)
    assert "(1):" in message
    for part in ("train: train4 (", "test: test1 (", "train4.nii.gz", "left and right exchanged", "--allow-leak"):
        assert part in message
    allowed = refuse_duplicates(leaking, allow_leak=True, cache_dir=tmp_path / "cache")
    assert allowed.within == ()
    assert [line.startswith("train: train4 (") for line in allowed.across] == [True]


def test_the_same_file_under_two_names_is_refused(tmp_path):
    frames = {name: listed(tmp_path, name, [brain(seed=1), brain(seed=seed)]) for seed, name in ((2, "a"), (3, "b"))}
    with pytest.raises(InputError, match=r"a: a0 .* and b: b0 .*: the same image"):
        refuse_duplicates(frames, cache_dir=tmp_path / "cache")


def test_clean_splits_pass_and_copies_within_one_are_a_warning(leaking, tmp_path):
    clean = {"train": leaking["train"], "val": listed(tmp_path, "val", [brain(seed=20), brain(seed=21)])}
    assert refuse_duplicates(clean, cache_dir=tmp_path / "cache") == Copies((), ())
    images = [brain(seed=30), brain(seed=31), noisy(brain(seed=30), 0.02)]
    within = {"train": listed(tmp_path, "w", images), "val": clean["val"]}
    found = refuse_duplicates(within, cache_dir=tmp_path / "cache")
    assert (len(found.across), len(found.within)) == (0, 1)
    assert "train: w0 (" in found.within[0]
    assert "train: w2 (" in found.within[0]
    grouped = {"train": listed(tmp_path, "g", images, groups=["p", "q", "p"]), "val": clean["val"]}
    assert refuse_duplicates(grouped, cache_dir=tmp_path / "cache") == Copies((), ())


def test_synthetic_rows_are_left_out(leaking, tmp_path):
    made = leaking["train"].assign(synthetic=leaking["train"]["subject"] == "train4")
    assert refuse_duplicates({**leaking, "train": made}, cache_dir=tmp_path / "cache") == Copies((), ())


def test_second_time_nothing_is_compared_and_damage_to_the_cache_is_mended(leaking, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = refuse_duplicates(leaking, allow_leak=True, cache_dir=cache)
    compared = []
    original = duplicates.find_pairs
    monkeypatch.setattr(duplicates, "find_pairs", lambda *given: compared.append(1) or original(*given))
    assert refuse_duplicates(leaking, allow_leak=True, cache_dir=cache) == first
    assert not compared
    (entry,) = (cache / "searches").iterdir()
    entry.write_text(entry.read_text()[:20])
    for picture in (cache / "scans").iterdir():
        picture.write_bytes(picture.read_bytes()[:100])
    assert refuse_duplicates(leaking, allow_leak=True, cache_dir=cache) == first
    assert compared == [1]
    other = {**leaking, "test": listed(tmp_path, "other", [brain(seed=40)])}
    assert refuse_duplicates(other, cache_dir=cache) == Copies((), ())
    assert compared == [1, 1]


def test_two_processes_share_the_cache(leaking, tmp_path):
    def check(answers):
        answers.put(refuse_duplicates(leaking, allow_leak=True, cache_dir=tmp_path / "cache"))

    fork = multiprocessing.get_context("fork")  # starts at once, with all modules loaded
    answers = fork.Queue()
    both = [fork.Process(target=check, args=(answers,)) for _ in range(2)]
    for process in both:
        process.start()
    found = [answers.get(timeout=120) for _ in both]
    assert found == [refuse_duplicates(leaking, allow_leak=True, cache_dir=tmp_path / "own")] * 2
    assert not list((tmp_path / "cache").rglob(".tmp-*"))


def test_a_cache_that_cannot_be_written(leaking, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="the cache cannot be written"):
        refuse_duplicates(leaking, cache_dir=tmp_path / "file")


def test_rows_are_paired_by_image_and_apart_by_group(monkeypatch, tmp_path):
    """Rows 0 and 2 have one image, 1 and 4 too but are one group's; the images of rows 1 and 3 look alike."""
    keys, groups = ["x", "y", "x", "z", "y"], ["a", "b", "c", "d", "b"]
    monkeypatch.setattr(duplicates, "find_pairs", lambda *_: Search((Pair(1, 2, 0.98765, True),), 0.5, 0.9))
    found = checked.search(keys, groups, None, tmp_path).pairs
    assert found == (Pair(0, 2, None, False), Pair(1, 3, 0.9877, True), Pair(3, 4, 0.9877, True))
    assert found[0].likeness == "the same image"
    assert found[1].likeness == "correlation 0.988, left and right exchanged"
    assert name_sets([], ()) == []
    assert name_sets(["e", "d", "c", "b", "a", "z"], found) == ["c", "a", "c", "a", "a", ""]
