"""Distances between two sets of feature vectors, permutation tests of them, and the support of one in the other.

Pure functions of arrays. Precision asks whether synthetic volumes lie where real ones do, recall and coverage whether
they lie everywhere that real ones do.
"""

import numpy as np


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Frechet distance between the Gaussians fitted to two samples.

    The trace of the root of the product of the covariances is taken as the sum of the singular values of A B^T, where A
    and B are the centred samples over sqrt(n - 1). That is exact, also where there are fewer samples than features and
    the covariances are singular; no matrix root, no complex parts, no epsilon.

    Args:
        a, b: (N_a, F) and (N_b, F), at least 2 rows each.

    Source: Heusel et al. 2017 (arXiv 1706.08500), equation 6.
    """
    if min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"samples of shapes {a.shape} and {b.shape}: need 2 rows or more, and the same features")
    mean_a, mean_b = a.mean(axis=0), b.mean(axis=0)
    root_a, root_b = (a - mean_a) / np.sqrt(len(a) - 1), (b - mean_b) / np.sqrt(len(b) - 1)
    if max(len(a), len(b)) > a.shape[1]:  # singular values do not change under rotation: (F, F) instead of (N_a, N_b)
        root_a, root_b = np.linalg.qr(root_a, mode="r"), np.linalg.qr(root_b, mode="r")
    shared = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    distance = np.sum((mean_a - mean_b) ** 2) + np.sum(root_a**2) + np.sum(root_b**2) - 2 * shared
    return float(max(distance, 0.0))


def polynomial_kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(a.b / F + 1)^3 for all pairs of rows: the kernel of the KID (Binkowski et al. 2018, arXiv 1801.01401)."""
    return (a @ b.T / a.shape[1] + 1.0) ** 3


def kid(a: np.ndarray, b: np.ndarray) -> float:
    """Kernel inception distance: the unbiased estimate of the squared maximum mean discrepancy; about 0 for equals.

    Source: Gretton et al. 2012 (JMLR 13), equation 3, with `polynomial_kernel`. Negative values are chance.
    """
    within_a, within_b = polynomial_kernel(a, a), polynomial_kernel(b, b)
    mean_a = (within_a.sum() - np.trace(within_a)) / (len(a) * (len(a) - 1))
    mean_b = (within_b.sum() - np.trace(within_b)) / (len(b) * (len(b) - 1))
    return float(mean_a + mean_b - 2.0 * polynomial_kernel(a, b).mean())


def permutation_p_value(
    kernel: np.ndarray, first: np.ndarray, strata: np.ndarray, permutations: int, draw: np.random.Generator
) -> float:
    """Probability of an MMD as large as the one seen if both sets were one.

    Args:
        kernel: (N, N) kernel of all volumes of both sets.
        first: bool (N,), which belong to the first set.
        strata: (N,) class codes; memberships are exchanged within a class only, so that a different mix of classes in
            the two sets is not mistaken for a difference between them.
        permutations: the smallest possible value is 1 / (permutations + 1).
    """
    distances = mmd_of_memberships(kernel, _permuted(first, strata, permutations, draw))
    return float(np.mean(distances >= distances[0] - 1e-12 * abs(distances[0])))


def mmd_of_memberships(kernel: np.ndarray, memberships: np.ndarray) -> np.ndarray:
    """Unbiased squared MMD between the rows inside and those outside of each membership, bool (P, N): (P,)."""
    inside, outside = memberships.astype(float), (~memberships).astype(float)
    across = np.sum(inside @ kernel * outside, axis=1) / (inside.sum(axis=1) * outside.sum(axis=1))
    return _within(kernel, inside) + _within(kernel, outside) - 2 * across


def _within(kernel: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Mean kernel value over the pairs of different rows of each set, 0 or 1 (P, N): (P,)."""
    n = inside.sum(axis=1)
    return (np.sum(inside @ kernel * inside, axis=1) - inside @ np.diag(kernel)) / (n * (n - 1))


def nearer_training(
    kernel: np.ndarray, train: np.ndarray, real: np.ndarray, strata: np.ndarray, permutations: int,
    draw: np.random.Generator,
) -> tuple[float, float]:  # fmt: skip
    """Whether the synthetic set is nearer to the training reals than to the held-out ones by more than chance.

    Where the synthetic volumes do not depend on which reals were trained on, the labels training and held-out may be
    permuted among the reals; a generator that copies its training reals, or fits their averages more closely than those
    of the population, breaks this. The test is exact whatever the three numbers of volumes, provided that the split was
    random within classes.

    Args:
        kernel: (N, N) of all volumes.
        train, real: bool (N,), the training reals, and all reals; the others are synthetic.
        strata: (N,) class codes; labels are exchanged within a class only.

    Returns:
        squared MMD to the training reals less that to the held-out ones (0 on average where the labels are
        exchangeable), and the probability of a value as low by chance.
    """
    among_reals, to_synthetic = kernel[np.ix_(real, real)], kernel[np.ix_(real, ~real)].mean(axis=1)
    memberships = _permuted(train[real], strata[real], permutations, draw)

    def less_common_term(inside: np.ndarray) -> np.ndarray:
        return _within(among_reals, inside) - 2 * inside @ to_synthetic / inside.sum(axis=1)

    differences = less_common_term(memberships.astype(float)) - less_common_term((~memberships).astype(float))
    chance = np.mean(differences <= differences[0] + 1e-12 * abs(differences[0]))
    return float(differences[0]), float(chance)


def _permuted(first: np.ndarray, strata: np.ndarray, permutations: int, draw: np.random.Generator) -> np.ndarray:
    """Memberships bool (permutations + 1, N): as they are, then exchanged at random within each stratum."""
    memberships = np.tile(first, (permutations + 1, 1))
    for stratum in np.unique(strata):
        columns = np.flatnonzero(strata == stratum)
        memberships[1:, columns] = draw.permuted(memberships[1:, columns], axis=1)
    return memberships


def radii(within: np.ndarray, k: int) -> np.ndarray:
    """Distance of each point from its k-th nearest other point, (N,) of distances within a set (N, N), N above k."""
    if len(within) <= k:
        raise ValueError(f"{len(within)} points have no {k}-th neighbour")
    others = within + np.diag(np.full(len(within), np.inf))
    return np.partition(others, k - 1, axis=1)[:, k - 1]


def support(real: np.ndarray, across: np.ndarray, synthetic: np.ndarray, k: int) -> dict[str, float]:
    """Precision, recall, density and coverage, from distances.

    A set's support is the union of balls about its points, each as large as the distance to the point's k-th neighbour.
    Precision: share of synthetic points inside the real support; recall: share of real points inside the synthetic one
    (Kynkaanniemi et al. 2019, arXiv 1904.06991, equations 1 and 2). Density: mean number of real balls that a synthetic
    point lies in, over k, which an outlier's large ball raises less; coverage: share of real balls with a synthetic
    point in them (Naeem et al. 2020, arXiv 2002.09797, equations 2 and 3). Density can exceed 1.

    Args:
        real: distances within the real set (N, N).
        across: of real (rows) from synthetic points, (N, M).
        synthetic: within the synthetic set (M, M).
        k: below N and M.
    """
    inside_real = across <= radii(real, k)[:, None]
    inside_synthetic = across <= radii(synthetic, k)[None]
    return {
        "precision": float(inside_real.any(axis=0).mean()),
        "recall": float(inside_synthetic.any(axis=1).mean()),
        "density": float(inside_real.sum(axis=0).mean() / k),
        "coverage": float(inside_real.any(axis=1).mean()),
    }
