"""Anatomy by region: whether real and synthetic subjects have the same volumes, and a diagnosis changes both alike.

A table of measures is (subjects, measures), one row per subject (`regional_volumes.region_table`), and every question
about it a function that returns plain values by measure. Effects are TLE minus HC, differences synthetic minus real;
intervals are 95 %, by bootstrap over subjects within each class (or over seeds).
"""

import numpy as np
from scipy import stats

from cohort.tables import CLASS_NAMES
from runtime import seeding


def cohens_d(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cohen's d of class 1 against class 0, (M,): difference of means over the pooled standard deviation.

    Source: Cohen 1988, "Statistical power analysis", equations 2.5.1 and 2.5.2. NaN where nothing varies.
    """
    return _weighted_d(table, labels, np.ones((1, len(table))))[0]


def _weighted_d(table: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Cohen's d for subjects counted by weights (R, N), (R, M)."""
    means, spreads, sizes = zip(*(_moments(table, weights * (labels == code)) for code in (0, 1)), strict=True)
    pooled = sum((size - 1)[:, None] * variance for size, variance in zip(sizes, spreads, strict=True))
    pooled = np.sqrt(pooled / (sizes[0] + sizes[1] - 2)[:, None])
    return np.divide(means[1] - means[0], pooled, out=np.full_like(pooled, np.nan), where=pooled > 0)


def _moments(table: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean (R, M), unbiased variance (R, M) and total weight (R,) of rows counted by weights (R, N)."""
    size = weights.sum(axis=1)
    if size.min() < 2:
        raise ValueError(f"{int(size.min())} subjects on a side; a standard deviation needs two")
    centre = table.mean(axis=0)  # against cancellation in the squares
    mean = weights @ (table - centre) / size[:, None]
    square = weights @ np.square(table - centre) / size[:, None]
    scale = np.square(table - centre).mean(axis=0)
    variance = np.where(square - mean**2 > 1e-12 * scale, square - mean**2, 0.0)
    return mean + centre, variance * (size / (size - 1))[:, None], size


def resample(labels: np.ndarray, resamples: int, draw: np.random.Generator) -> np.ndarray:
    """How often each subject counts, (1 + resamples, N): once, then as drawn with replacement within each class."""
    weights = np.ones((1 + resamples, len(labels)))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        weights[1:, rows] = draw.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=resamples)
    return weights


def compare_distributions(
    names: tuple[str, ...], real: np.ndarray, synthetic: np.ndarray, *, resamples: int = 1000, seed: int = 0
) -> dict:
    """Each measure of synthetic subjects (N, M) beside real ones. One class at a time: sets may mix them differently.

    Returns:
        ``n_real``, ``n_synthetic``, ``significant`` (how many of the measures at a false discovery rate of 5 %), and
        ``measures``: name -> ``real`` and ``synthetic`` (means), ``difference`` (of means, over the pooled standard
        deviation), ``spread`` (synthetic over real standard deviation), both with low and high, and ``ks``, ``p``,
        ``p_adjusted`` of Kolmogorov and Smirnov's test (Benjamini and Hochberg 1995, J R Stat Soc B 57:289).
    """
    joined, origin = np.concatenate([real, synthetic]), np.repeat([0, 1], [len(real), len(synthetic)])
    weights = resample(origin, resamples, seeding.rng(seed, "morphometry distributions"))
    difference = _weighted_d(joined, origin, weights)
    before, after = (np.sqrt(_moments(joined, weights * (origin == code))[1]) for code in (0, 1))
    spread = np.divide(after, before, out=np.full_like(difference, np.nan), where=before > 0)
    test = stats.ks_2samp(real, synthetic, axis=0)
    adjusted = stats.false_discovery_control(test.pvalue, method="bh")
    columns = {
        "real": real.mean(axis=0),
        "synthetic": synthetic.mean(axis=0),
        **_with_interval("difference", difference),
        **_with_interval("spread", spread),
        "ks": test.statistic,
        "p": test.pvalue,
        "p_adjusted": adjusted,
    }
    sizes = {"n_real": len(real), "n_synthetic": len(synthetic)}
    return {**sizes, "significant": int(np.sum(adjusted < 0.05)), "measures": by_measure(names, columns)}


def class_effects(
    names: tuple[str, ...], table: np.ndarray, labels: np.ndarray, *, resamples: int = 1000, seed: int = 0
) -> dict:
    """Cohen's d of TLE against HC: ``n`` (per class) and ``measures``: name -> ``d``, ``d_low``, ``d_high``."""
    effects = _weighted_d(table, labels, resample(labels, resamples, seeding.rng(seed, "morphometry effects")))
    return {"n": class_counts(labels), "measures": by_measure(names, _with_interval("d", effects))}


def effect_agreement(
    reference: tuple[np.ndarray, np.ndarray],
    sample: tuple[np.ndarray, np.ndarray],
    *,
    resamples: int = 1000,
    permutations: int = 999,
    seed: int = 0,
) -> dict:
    """Whether the diagnosis changes the sample where it changes the reference: d over measures, one against the other.

    The p-value is the share of permutations of the sample's labels that reach the correlation seen: of the statement
    that the label means nothing there. Measures are correlated with one another, and permuting subjects keeps that,
    which permuting regions would not. The interval is by Fisher's z with the bootstrap's standard deviation: each
    resample adds noise to both d, so that its percentiles would lie too low. Noise in d alone keeps the correlation
    below 1; held-out reals in place of the sample show how far.

    `reference` and `sample` are tables (N, M) of the same measures, with labels (N,).

    Returns:
        ``measures``, ``n_reference``, ``n_sample`` (per class), ``correlation`` (Pearson) with low and high, ``slope``
        (least squares through 0 of the sample's d on the reference's: 1 for effects of the same size, less where noise
        is in the reference), ``same_sign`` (share of measures), ``p``. Measures that do not vary on a side are left
        out; where fewer than 3 remain, only ``skipped`` with the reason.
    """
    known = np.isfinite(cohens_d(*reference)) & np.isfinite(cohens_d(*sample))
    if known.sum() < 3:
        return {"skipped": f"{known.sum()} of the measures vary on both sides; a correlation needs 3"}
    reference, sample = ((table[:, known], labels) for table, labels in (reference, sample))
    first, second = cohens_d(*reference), cohens_d(*sample)
    correlation = float(_row_correlation(first[None], second[None])[0])
    drawn = [
        _weighted_d(*side, resample(side[1], resamples, seeding.rng(seed, "morphometry agreement", place))[1:])
        for place, side in enumerate((reference, sample))
    ]
    spread = np.nanstd(_fisher(_row_correlation(*drawn)))
    low, high = np.tanh(_fisher(np.array(correlation)) + 1.959964 * spread * np.array([-1, 1]))
    draw = seeding.rng(seed, "morphometry permutations")
    permuted = np.stack([cohens_d(sample[0], draw.permutation(sample[1])) for _ in range(permutations)])
    chance = _row_correlation(np.broadcast_to(first, permuted.shape), permuted)
    return {
        "measures": len(first),
        "n_reference": class_counts(reference[1]),
        "n_sample": class_counts(sample[1]),
        "correlation": finite(correlation),
        "correlation_low": finite(low),
        "correlation_high": finite(high),
        "slope": finite(first @ second / (first @ first)) if first @ first > 0 else None,
        "same_sign": finite(np.mean(np.sign(first) == np.sign(second))),
        "p": float((1 + np.sum(chance >= correlation)) / (permutations + 1)),
    }


def _row_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson correlation of each row of a (R, M) with that of b, (R,); NaN where a row is constant or holds a NaN."""
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    scale = np.sqrt(np.sum(a**2, axis=1) * np.sum(b**2, axis=1))
    return np.divide(np.sum(a * b, axis=1), scale, out=np.full(len(a), np.nan), where=scale > 0)


def _fisher(correlation: np.ndarray) -> np.ndarray:
    return np.arctanh(np.clip(correlation, -1 + 1e-9, 1 - 1e-9))


def recovery(
    names: tuple[str, ...], measured: np.ndarray, true: np.ndarray, *, resamples: int = 1000, seed: int = 0
) -> dict:
    """``correlation`` over subjects, with low and high, of measured volumes (N, M) with the true ones, by measure."""
    weights = resample(np.zeros(len(true)), resamples, seeding.rng(seed, "morphometry recovery"))
    size = weights.sum(axis=1)[:, None]
    a, b = measured - measured.mean(axis=0), true - true.mean(axis=0)  # against cancellation in the products
    product = weights @ (a * b) / size - (weights @ a / size) * (weights @ b / size)
    covariance = product * size / (size - 1)
    scale = np.sqrt(_moments(a, weights)[1] * _moments(b, weights)[1])
    correlation = np.divide(covariance, scale, out=np.full_like(scale, np.nan), where=scale > 0)
    return {"n": len(true), "measures": by_measure(names, _with_interval("correlation", correlation))}


def paired_effect(
    names: tuple[str, ...], hc: np.ndarray, tle: np.ndarray, *, resamples: int = 1000, seed: int = 0
) -> dict:
    """What the label alone does: the same seeds drawn as HC and as TLE, (n, M) each, row i of both from one seed.

    Returns:
        ``n`` (seeds), ``significant`` (measures at a false discovery rate of 5 %), and ``measures``: name ->
        ``difference`` (TLE minus HC, in the measure's unit, mean over seeds) with low and high, ``d`` (the difference
        over the standard deviation of HC), ``sign`` (-1, 0 or 1), ``same_sign`` (share of seeds whose difference has
        that sign), ``p`` (Wilcoxon's signed-rank test) and ``p_adjusted``.
    """
    if hc.shape != tle.shape or len(hc) < 2:
        raise ValueError(f"tables of shapes {hc.shape} and {tle.shape}: need the same 2 seeds or more")
    change = tle - hc
    weights = resample(np.zeros(len(change)), resamples, seeding.rng(seed, "morphometry pairs"))
    difference = weights @ change / len(change)
    spread = hc.std(axis=0, ddof=1)
    moved = np.any(change != 0, axis=0)
    p = np.ones(change.shape[1])
    p[moved] = stats.wilcoxon(change[:, moved], axis=0).pvalue if moved.any() else 1.0
    adjusted = stats.false_discovery_control(p, method="bh")
    sign = np.sign(difference[0])
    columns = {
        **_with_interval("difference", difference),
        "d": np.divide(difference[0], spread, out=np.full_like(spread, np.nan), where=spread > 0),
        "sign": sign,
        "same_sign": np.mean(np.sign(change) == sign, axis=0),
        "p": p,
        "p_adjusted": adjusted,
    }
    return {"n": len(change), "significant": int(np.sum(adjusted < 0.05)), "measures": by_measure(names, columns)}


def class_counts(labels: np.ndarray) -> dict[str, int]:
    """Subjects of each class."""
    return {name: int(np.sum(labels == code)) for code, name in enumerate(CLASS_NAMES)}


def finite(value: float) -> float | None:
    """A float for JSON; None for what is not finite."""
    return float(value) if np.isfinite(value) else None


def by_measure(names: tuple[str, ...], columns: dict[str, np.ndarray]) -> dict[str, dict[str, float | None]]:
    """Columns (M,) as one dict per measure."""
    return {name: {key: finite(values[place]) for key, values in columns.items()} for place, name in enumerate(names)}


def _with_interval(key: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """The first row of (1 + R, M) as the value, and 95 % of the others, of which NaN do not count."""
    bounds = np.full((2, values.shape[1]), np.nan)
    known = ~np.isnan(values[1:]).all(axis=0)
    bounds[:, known] = np.nanpercentile(values[1:, known], (2.5, 97.5), axis=0)
    return {key: values[0], f"{key}_low": bounds[0], f"{key}_high": bounds[1]}
