"""Whether synthetic volumes are nearer to training subjects than chance allows. Pure functions of vectors.

What is asked of every space (down-sampled voxels, a learned embedding, latents):

- Membership: is a volume's nearest real subject a training one more often than equal numbers would make it? Smoothness
  alone cannot do that: a blurred or average brain is near to training and to held-out subjects alike.
- Copies: pairs closer than different real people are. Rules and their false alarms are taken from real pairs.

The p-values exchange the roles of training and held-out subjects, subject by subject. They are exact when nothing but
training tells these apart; so an embedding must have been fitted to both or to neither.

Nothing here can show that a generator remembers nobody: a result that is silent comes with its detection limit.
"""

import math
from collections.abc import Mapping

import numpy as np
from scipy import stats

from evaluation.privacy.nearest import (
    LEAST_SUBJECTS,
    Neighbours,
    Pool,
    Space,
    closest_pairs,
    directional_squared,
    exposure,
    from_near_to_far,
    neighbours,
)
from runtime import seeding
from runtime.errors import InputError

ALPHA = 0.01
"""Chance of saying "copying" of a generator that does not copy, over all spaces and both tests together."""
PERMUTATIONS = 1999
POWER = 0.95
"""With this probability, a share of copies at the detection limit is found."""
TESTS = {
    "membership": "synthetic volumes are nearer to training subjects than to as many held-out ones",
    "copies": "synthetic volumes are closer to training subjects than different people are",
}
"""The two tests that a conclusion may rest on, in words."""
QUANTILE = 0.01
"""Of real scans' distances to their nearest other subject: a volume closer than that is taken for a copy, and so are
1 % of new people. (Dar et al. 2025, https://doi.org/10.1038/s41551-025-01468-8, take a quantile over all pairs.)"""


def audit_spaces(spaces: Mapping[str, Space], *, seed: int, permutations: int = PERMUTATIONS) -> dict:
    """The whole audit of spaces that hold the same synthetic volumes: each, its controls, and what may be said.

    Args:
        permutations: of the roles of subjects; the smallest p is 1 / (permutations + 1).

    Returns:
        ``spaces``: name -> ``synthetic`` and ``controls`` (name -> ...), each as of `audit`; ``finding`` of `conclude`.

    Raises:
        InputError: too few subjects, or so few permutations that no p-value could be small enough.
    """
    alpha = ALPHA / (len(TESTS) * len(spaces))  # Bonferroni
    if 1 / (permutations + 1) > alpha:
        raise InputError(
            f"{permutations} permutations: p-values below {alpha:.2g} need at least {math.ceil(1 / alpha)}"
        )
    settings = {"alpha": alpha, "seed": seed, "permutations": permutations}
    results = {
        name: {
            "synthetic": audit(space.synthetic, Pool.of(space.train, space.held_out), **settings),
            "controls": audit_controls(space, **settings),
        }
        for name, space in spaces.items()
    }
    return {"spaces": results, "finding": conclude(results, alpha)}


def audit_controls(space: Space, *, alpha: float, seed: int, permutations: int) -> dict[str, dict]:
    """The same audit for volumes that are known not to be copies, and for half of the held-out scans themselves.

    A control made from a held-out scan would find itself among them: so one half of the held-out subjects is searched
    in, and controls of the other half (or of other subjects) are the queries, if `LEAST_SUBJECTS` or more.
    """
    names = seeding.rng(seed, "memorization halves").permutation(space.held_out.names)
    searched = names[len(names) // 2 :]
    if len(searched) < LEAST_SUBJECTS:
        return {}
    pool = Pool.of(space.train, space.held_out.of(searched))
    results = {}
    for name, control in {"held_out": space.held_out, **space.controls}.items():
        used = control.embeddings[~np.isin(control.subjects, searched)]
        if len(used) >= LEAST_SUBJECTS:
            results[name] = audit(used, pool, alpha=alpha, seed=seed, permutations=permutations)
    return results


def audit(queries: np.ndarray, pool: Pool, *, alpha: float, seed: int, permutations: int) -> dict:
    """All that is measured of one set of volumes (Q, F) in one space; ``exposure`` alone names subjects.

    ``nearest``: quantiles of the distances; ``pairs``: the closest ones; the rest as of the functions of these names.

    Raises:
        InputError: fewer than `LEAST_SUBJECTS` volumes, or values that are not finite.
    """
    if len(queries) < LEAST_SUBJECTS:
        raise InputError(f"{len(queries)} volumes: an audit needs at least {LEAST_SUBJECTS}")
    found = neighbours(queries, pool.reals)
    roles = assign_roles(pool.trained, permutations, seeding.rng(seed, "memorization roles"))
    order = from_near_to_far(found.squared, seeding.rng(seed, "memorization ties"))
    n_train, n_held_out = int(pool.trained.sum()), int((~pool.trained).sum())
    nearest = {}
    for side, subjects in (("to_training", pool.trained), ("to_held_out", ~pool.trained)):
        values = np.quantile(np.sqrt(found.squared[:, subjects].min(axis=1)), (0.0, 0.05, 0.5, 0.95))
        nearest[side] = dict(zip(("min", "p05", "median", "p95"), values.tolist(), strict=True))
    return {
        "n": {"volumes": len(queries), "training_subjects": n_train, "held_out_subjects": n_held_out},
        "nearest": nearest,
        "closer_to_training": closer_to_training(order, roles),
        "copies": count_copies(queries, found, pool, roles),
        "detection_limit": detection_limit(len(queries), n_train, n_held_out, alpha),
        "pairs": closest_pairs(found, pool),
        "exposure": exposure(found, pool),
    }


def assign_roles(trained: np.ndarray, permutations: int, draw: np.random.Generator) -> np.ndarray:
    """bool (permutations + 1, S): who counts as trained on; the first row is the truth."""
    roles = np.tile(trained, (permutations + 1, 1))
    roles[1:] = draw.permuted(roles[1:], axis=1)
    return roles


def closer_to_training(order: np.ndarray, roles: np.ndarray) -> dict[str, float]:
    """Mean of `shares`, from subjects from near to far (Q, S) and roles (P + 1, S), the truth first.

    Returns:
        ``share``; ``low`` and ``high``, 95 % over volumes and subjects (variance over volumes plus jackknife over
        subjects); ``expected``; ``null_low`` and ``null_high``, 95 % of the permutations; ``p``, one-sided.
    """
    values = np.array([shares(trained[order]).mean() for trained in roles])
    variance = shares(roles[0][order]).var(ddof=1) / len(order) + jackknife_variance(order, roles[0])
    margin = 1.959964 * math.sqrt(variance)
    null_low, null_high = np.quantile(values[1:], (0.025, 0.975))
    return {
        "share": float(values[0]),
        "low": float(max(0.0, values[0] - margin)),
        "high": float(min(1.0, values[0] + margin)),
        "expected": 0.5,
        "null_low": float(null_low),
        "null_high": float(null_high),
        "p": _upper_p(values),
    }


def shares(trained: np.ndarray) -> np.ndarray:
    """For each query (Q,), how often its nearest of m training subjects is nearer than its nearest of m held-out ones.

    m is the smaller of the two numbers. This is the mean over all subsets of m of the larger side, in closed form: with
    k training subjects before the first held-out one, none of them is in a random m of n with probability
    C(n - k, m) / C(n, m).

    Args:
        trained: bool (Q, S), from the nearest subject of each query to the farthest.
    """
    n = int(trained[0].sum())
    m = trained.shape[1] - n
    if n >= m:
        return 1.0 - _missed(n, m)[trained.argmin(axis=1)]
    return _missed(m, n)[trained.argmax(axis=1)]


def _missed(n: int, m: int) -> np.ndarray:  # C(n - k, m) / C(n, m) for k = 0 ... n
    k = np.arange(n)
    return np.concatenate([[1.0], np.cumprod((n - m - k).clip(min=0) / (n - k))])


def jackknife_variance(order: np.ndarray, trained: np.ndarray) -> float:
    """Variance of the mean of `shares` over the choice of subjects, each left out once (Efron and Stein 1981).

    Training and held-out subjects are two samples, so each value is compared with the mean of its own side.
    `order` is (Q, S), from near to far.
    """
    by_rank = trained[order]
    left_out = np.array([shares(by_rank[order != s].reshape(len(order), -1)).mean() for s in range(len(trained))])
    means = np.where(trained, left_out[trained].mean(), left_out[~trained].mean())
    n = np.where(trained, trained.sum(), (~trained).sum())
    return float(np.sum((n - 1) / n * (left_out - means) ** 2))


def count_copies(queries: np.ndarray, found: Neighbours, pool: Pool, roles: np.ndarray) -> dict:
    """Volumes closer to a training subject than `QUANTILE` of real scans are to their nearest other subject.

    ``closer`` counts by distance alone. ``copies`` must also lie in the subject's direction from the centre, by the
    same quantile of the same real scans (`directional_squared`): an average brain is not a copy.

    Returns:
        ``quantile``, ``threshold``; ``closer``, ``copies``, ``share`` of the volumes with ``low`` and ``high`` (95 %,
        Clopper-Pearson, given the rule); ``towards_held_out``, the number that the same rule finds close to held-out
        subjects, whom nobody can have copied; ``p`` of a surplus towards training subjects that large;
        ``false_alarms``, the same rule asked of held-out scans; ``memorized``, share of the training subjects.
    """
    trained = pool.trained
    limit, angle_limit = limit_of(pool.among), limit_of(pool.among_directions)
    close = found.squared < limit
    copied = close & (directional_squared(queries, found, pool.reals, pool.centre) < angle_limit)
    towards_training, towards_held_out = (_any(copied, who) for who in (roles, ~roles))
    count, n = int(towards_training[0]), int(trained.sum())
    held_out = np.isin(pool.reals.subjects, pool.reals.names[~trained])
    alarms = ((pool.among < limit) & (pool.among_directions < angle_limit))[held_out][:, trained].any(axis=1)
    return {
        "quantile": QUANTILE,
        "threshold": float(math.sqrt(limit)),
        "closer": int(close[:, trained].any(axis=1).sum()),
        "copies": count,
        "share": count / len(queries),
        **exact_interval(count, len(queries)),
        "towards_held_out": int(towards_held_out[0]),
        "p": _upper_p(towards_training - n / (~trained).sum() * towards_held_out),
        "false_alarms": {"share": float(alarms.mean()), **exact_interval(int(alarms.sum()), len(alarms))},
        "memorized": float(copied.any(axis=0)[trained].mean()),
    }


def limit_of(values: np.ndarray) -> float:
    """`QUANTILE` of the smallest of real scans' (N, S) distances, infinite to themselves."""
    return float(np.quantile(values.min(axis=1), QUANTILE, method="lower"))


def _any(hits: np.ndarray, roles: np.ndarray) -> np.ndarray:  # queries with a hit, by assignment of roles (P + 1,)
    some = hits[hits.any(axis=1)].astype(np.float32)
    return np.sum(some @ roles.T.astype(np.float32) > 0, axis=0).astype(float)


def _upper_p(values: np.ndarray) -> float:
    """Share of values as large as the first, which is the one observed."""
    return float(np.mean(values >= values[0] - 1e-12))


def exact_interval(count: int, n: int) -> dict[str, float]:
    """``low`` and ``high``, 95 %, of a share: `count` of `n` independent cases (Clopper and Pearson)."""
    interval = stats.binomtest(count, n).proportion_ci(method="exact")
    return {"low": float(interval.low), "high": float(interval.high)}


def detection_limit(volumes: int, n_train: int, n_held_out: int, alpha: float) -> dict:
    """The smallest share of copies that the audit would report. It holds for recognisable copies of different subjects.

    c copies of c different subjects, all of them training ones, have p = C(n, c) / C(S, c) among S subjects of either
    role; the least c with p < alpha is needed, and a share gives so many among `volumes` with probability `POWER` by
    the binomial distribution.

    Returns:
        ``copies_needed`` and ``share``, None where no number would do; ``alpha``, ``power``; ``rule_of_three``, the
        share of copies that no copy among `volumes` excludes with 95 % (1 - 0.05^(1/N), about 3 / N).
    """
    c = np.arange(1, min(volumes, n_train) + 1)
    p = np.cumprod((n_train - c + 1) / (n_train + n_held_out - c + 1))
    enough = np.flatnonzero(p < alpha)
    needed = int(c[enough[0]]) if len(enough) else None
    share = float(stats.beta.ppf(POWER, needed, volumes - needed + 1)) if needed else None
    return {
        "copies_needed": needed,
        "share": share,
        "alpha": alpha,
        "power": POWER,
        "rule_of_three": float(1 - 0.05 ** (1 / volumes)),
    }


def p_values(measured: dict) -> dict[str, float]:
    """The p-value of each of `TESTS` in what `audit` returned."""
    return {"membership": measured["closer_to_training"]["p"], "copies": measured["copies"]["p"]}


def conclude(results: Mapping[str, dict], alpha: float) -> dict:
    """What may be said: copying only when a test fires for the synthetic volumes, in a space whose controls are silent.

    Returns:
        ``copying`` (bool), ``alpha``, ``alpha_per_test`` (given), and ``text``, sentences for people.
    """
    copying, silent, text = False, True, []
    for space, measured in results.items():
        loud = [name for name, control in measured["controls"].items() if min(p_values(control).values()) < alpha]
        ending = "no control is: copying, or overfitting to these subjects"
        if loud:
            ending = f"but controls raise alarms, too ({', '.join(loud)}): no conclusion"
        for test, p in p_values(measured["synthetic"]).items():
            if p < alpha:
                copying, silent = copying or not loud, False
                text.append(f"{space}: {TESTS[test]} (p = {p:.4f}), {ending}")
        text.append(f"{space}: {_limit_in_words(measured['synthetic'])}")
    if silent:
        text.insert(0, "No sign of copying was found; that is not proof that there is none.")
    return {"copying": copying, "alpha": ALPHA, "alpha_per_test": alpha, "text": text}


def _limit_in_words(measured: dict) -> str:
    limit, volumes = measured["detection_limit"], measured["n"]["volumes"]
    if limit["share"] is None:
        return "with so few volumes or held-out subjects no number of copies would have been reported"
    return (
        f"if {limit['share']:.1%} of volumes were recognisable copies of different subjects, that would have been "
        f"reported with {POWER:.0%} probability ({limit['copies_needed']} of {volumes} are needed)"
    )
