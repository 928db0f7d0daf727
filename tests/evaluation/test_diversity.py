"""Support metrics against brute force and scikit-learn; collapse and lost variety; MS-SSIM against MONAI's metric."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.metrics import MultiScaleSSIMMetric
from scipy import ndimage
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from evaluation import distances, diversity, fid
from evaluation.fid import FeatureSet


def gaussian(seed, n, features=6, scale=1.0):
    return np.random.default_rng(seed).normal(0, scale, (n, features))


def support_of(real, synthetic, k=diversity.NEIGHBOURS):
    return distances.support(cdist(real, real), cdist(real, synthetic), cdist(synthetic, synthetic), k)


def test_points_on_a_line_by_hand():
    """k = 1, real 0 1 10, synthetic 0.5 5 30: real radii 1 1 9, synthetic radii 4.5 4.5 25."""
    real, synthetic = np.array([[0.0], [1.0], [10.0]]), np.array([[0.5], [5.0], [30.0]])
    found = support_of(real, synthetic, k=1)
    assert found["precision"] == pytest.approx(2 / 3)  # 0.5 and 5, not 30
    assert found["recall"] == pytest.approx(3 / 3)  # 0 and 1 in the ball of 0.5, 10 in that of 30
    assert found["density"] == pytest.approx((2 + 1) / 3)  # 0.5 in the balls of 0 and 1, 5 in that of 10
    assert found["coverage"] == pytest.approx(3 / 3)


def brute_force(real, synthetic, k):
    """The definitions, one pair at a time, with scikit-learn's neighbours."""

    def radius(points):
        return NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(points).kneighbors(points)[0][:, k]

    def inside(point, centres, reach):
        return np.array([np.linalg.norm(point - c) <= r for c, r in zip(centres, reach, strict=True)])

    real_reach, made_reach = radius(real), radius(synthetic)
    return {
        "precision": np.mean([inside(s, real, real_reach).any() for s in synthetic]),
        "recall": np.mean([inside(r, synthetic, made_reach).any() for r in real]),
        "density": np.mean([inside(s, real, real_reach).sum() / k for s in synthetic]),
        "coverage": np.mean(
            [min(np.linalg.norm(r - s) for s in synthetic) <= reach for r, reach in zip(real, real_reach, strict=True)]
        ),
    }


@pytest.mark.parametrize(("n", "m", "k"), [(30, 30, 5), (40, 25, 3), (12, 50, 1)])
def test_support_equals_brute_force(n, m, k):
    real, synthetic = gaussian(n, n), gaussian(m + 1, m, scale=0.8) + 0.3
    assert support_of(real, synthetic, k) == pytest.approx(brute_force(real, synthetic, k))


def test_equal_distributions_have_the_expected_coverage():
    """Naeem et al. 2020, proposition for equal distributions: E[coverage] = 1 - (N-1)...(N-k) / (2N-1)...(2N-k)."""
    n, k = 40, 5
    expected = 1 - np.prod([(n - i) / (2 * n - i) for i in range(1, k + 1)])
    found = [support_of(gaussian(2 * i, n, 3), gaussian(2 * i + 1, n, 3), k)["coverage"] for i in range(60)]
    assert np.mean(found) == pytest.approx(expected, abs=4 * np.std(found) / np.sqrt(60))


def test_half_the_variance_loses_recall_and_not_precision():
    real = gaussian(0, 300, 8)
    same = support_of(real, gaussian(1, 300, 8))
    narrow = support_of(real, gaussian(1, 300, 8, scale=np.sqrt(0.5)))
    assert narrow["recall"] < same["recall"] - 0.2
    assert narrow["precision"] >= same["precision"]
    assert narrow["density"] > same["density"]


def test_too_few_points_are_refused():
    with pytest.raises(ValueError, match="5-th neighbour"):
        support_of(gaussian(0, 5), gaussian(1, 9))


def feature_sets(synthetic=None, seed=0):
    def entry(number, n):
        pooled = np.stack([gaussian([seed + number, axis], n) for axis in range(3)])
        return FeatureSet(pooled, np.arange(n) % 2)

    sets = {"train": entry(1, 60), "test": entry(2, 40), "synthetic": entry(3, 40)}
    return sets | ({} if synthetic is None else {"synthetic": synthetic(sets)})


def repeated(sets):
    pooled = sets["synthetic"].pooled
    return FeatureSet(np.repeat(pooled[:, :1], pooled.shape[1], axis=1), sets["synthetic"].labels)


def test_one_volume_repeated_covers_next_to_nothing():
    fair, collapsed = (diversity.compare(feature_sets(made), n=10, repeats=10, seed=0) for made in (None, repeated))
    for group in ("overall", "HC"):
        held_out = collapsed["support"][group]["held_out"]
        assert held_out["synthetic"]["recall"]["high"] == 0
        assert held_out["synthetic"]["coverage"]["mean"] < 0.6 * held_out["floor"]["coverage"]["mean"]
        assert held_out["synthetic_minus_floor"]["recall"]["high"] < 0
        assert held_out["floor"] == fair["support"][group]["held_out"]["floor"]


def test_floor_and_a_perfect_generator_differ_by_chance_only():
    found = [diversity.compare(feature_sets(seed=10 * i), n=10, repeats=2, seed=i)["support"] for i in range(1, 41)]
    for group in ("overall", "TLE"):
        for metric in diversity.METRICS:
            values = [entry[group]["held_out"]["synthetic_minus_floor"][metric]["mean"] for entry in found]
            assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))


def test_figures_of_a_draw_are_those_of_its_vectors():
    sets = feature_sets()
    found = diversity.compare(sets, n=10, repeats=1, seed=4)["support"]["HC"]["held_out"]["synthetic"]
    real, samples = fid.pairs(fid.draw_all(sets, 10, 1, 4)[0], (0,))["held_out"]
    a, b = (np.concatenate(list(sets[name].pooled[:, rows]), axis=1) for name, rows in (real, samples["synthetic"]))
    assert {name: entry["mean"] for name, entry in found.items()} == pytest.approx(support_of(a, b))


def test_a_sample_of_k_volumes_is_skipped_with_the_reason():
    found = diversity.compare(feature_sets(), n=4, repeats=2, seed=0)
    assert "more than k = 5" in found["support"]["HC"]["skipped"]
    assert found["support"]["overall"]["held_out"]["floor"]["recall"]["mean"] >= 0


def textures(seed, n, shape=(20, 24, 20), smooth=2.0):
    noise = np.random.default_rng(seed).normal(size=(n, *shape))
    soft = np.stack([ndimage.gaussian_filter(entry, smooth) for entry in noise])
    return np.clip(0.5 + 0.15 * soft / soft.std(), 0, 1).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "scales"), [((112, 136, 112), 5), ((40, 48, 40), 3), ((20, 24, 20), 2), ((5, 9, 9), 0)]
)
def test_scales_are_the_most_that_monai_takes(shape, scales):
    assert len(diversity.ssim_weights(shape)) == scales
    if 0 < scales < 5:
        volume = torch.zeros(1, 1, *shape)
        with pytest.raises(ValueError, match="weights"):
            MultiScaleSSIMMetric(3, kernel_size=7, weights=diversity.SSIM_WEIGHTS[: scales + 1])(volume, volume)


def test_ms_ssim_equals_monais_metric_and_is_1_for_itself():
    volumes = textures(0, 4)
    pairs = np.array([[0, 1], [2, 3], [1, 1]])
    weights = np.array(diversity.SSIM_WEIGHTS[:2]) / sum(diversity.SSIM_WEIGHTS[:2])
    metric = MultiScaleSSIMMetric(3, kernel_size=7, weights=weights.tolist(), reduction="none")
    tensors = [torch.from_numpy(volumes[pairs[:, side]])[:, None] for side in (0, 1)]
    found = diversity.ms_ssim(volumes, pairs)
    # MONAI's window is rounded to float32, which moves its values by up to 1e-5 from those of float64.
    np.testing.assert_allclose(found, metric(*tensors).flatten().numpy(), atol=1e-5)
    assert found[2] == pytest.approx(1, abs=1e-6)
    assert found[0] < 0.9


def test_windows_axis_by_axis_are_those_of_one_filter():
    maps = torch.from_numpy(textures(0, 2))
    line = torch.exp(-0.5 * (torch.arange(-3, 4, dtype=torch.float64) / 1.5) ** 2)
    window = torch.einsum("i,j,k->ijk", line, line, line)
    whole = F.conv3d(maps.double()[:, None], (window / window.sum())[None, None])[:, 0]
    torch.testing.assert_close(diversity._windowed(maps), whole.float(), rtol=1e-6, atol=1e-7)


def test_random_pairs_are_distinct_and_never_of_one_subject():
    rows = np.array([3, 5, 8, 9])
    pairs = diversity.random_pairs(rows, 100, np.random.default_rng(0))
    assert len(pairs) == 6
    assert len({frozenset(pair) for pair in pairs.tolist()}) == 6
    assert set(pairs.ravel()) == set(rows)
    assert len(diversity.random_pairs(rows, 4, np.random.default_rng(0))) == 4


def test_ms_ssim_of_one_volume_repeated_is_1_and_the_difference_is_seen():
    real, labels = textures(0, 12), np.arange(12) % 2
    copies = np.repeat(textures(1, 1), 12, axis=0)
    found = diversity.compare_ms_ssim((real, labels), (copies, labels), count=20, resamples=200)
    assert found["protocol"]["scales"] == 2
    for group, n in (("overall", 12), ("HC", 6), ("TLE", 6)):
        entry = found["results"][group]
        assert entry["n"] == n
        assert entry["synthetic"]["mean"] == pytest.approx(1, abs=1e-6)
        assert entry["real"]["low"] < entry["real"]["mean"] < entry["real"]["high"] < 0.95
        assert entry["difference"]["low"] > 0


def test_no_difference_of_similarity_is_claimed_at_the_stated_rate():
    """Subjects with a similarity of their own: resampling pairs instead would be wrong three times as often."""
    misses = 0
    for trial in range(200):
        draw = np.random.default_rng(trial)
        sides = []
        for _ in range(2):
            pairs = diversity.random_pairs(np.arange(30), 120, draw)
            own = draw.normal(size=30)
            sides.append(diversity._pair_means(own[pairs].sum(axis=1), pairs, 200, draw))
        estimate = diversity._estimate(sides[1] - sides[0])
        misses += not estimate["low"] <= 0 <= estimate["high"]
    assert misses / 200 < 0.1


def test_volumes_below_the_kernel_are_skipped_with_the_reason():
    small = np.zeros((4, 5, 9, 9), np.float32), np.arange(4) % 2
    assert "smaller than the kernel" in diversity.compare_ms_ssim(small, small)["skipped"]
    few = textures(0, 2), np.arange(2)
    found = diversity.compare_ms_ssim(few, few, resamples=20)["results"]
    assert all("need 3 subjects" in entry["skipped"] for entry in found.values())
