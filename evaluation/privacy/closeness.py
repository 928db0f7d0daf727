"""How near volumes are to training subjects, and to held-out ones: one function a question.

Vectors and names in, JSON values out; distances are Euclidean. What a p-value assumes, and what may be concluded from
all of them together, is said in `evaluation.privacy.copying`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import stats
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from evaluation.privacy.nearest import Neighbours, Reals, joined, neighbours, radii
from runtime import seeding
from runtime.errors import InputError

POWER = 0.95
"""With this probability, a share of copies at the detection limit is found."""
PAIRS_SHOWN = 10
LEAST_SUBJECTS = 8
"""Fewest training and held-out subjects for distances to be compared at all."""

RULES = {"pairs": 0.001, "volumes": 0.01}
"""Quantiles of real distances below which a volume is taken for a copy. ``pairs``: of all pairs of different subjects,
closer than the 99.9th percentile of closeness (Dar et al. 2025, https://doi.org/10.1038/s41551-025-01468-8); a volume
meets many subjects, so that its false alarms are many times 0.1 %. ``volumes``: of each scan's distance to its nearest
other subject, so that 1 % of new people are false alarms. Conclusions are drawn from the second."""

_CELL_SUBJECTS = 15  # held-out subjects per k-means cell, so that each can be ranked
_LEAST_IN_CELL = 5
_CELL_DIMENSIONS = 16


@dataclass(frozen=True)
class Pool:
    """Training and held-out scans together, and how near real people are to each other."""

    reals: Reals
    trained: np.ndarray
    """bool (S,): which subjects, in the order of their names, were trained on."""
    centre: np.ndarray
    """(F,): mean of all scans."""
    among: Neighbours
    """Of every scan to every other subject; infinite to its own."""

    @classmethod
    def of(cls, train: Reals, held_out: Reals) -> Pool:
        """Raises InputError for too few subjects, and where `joined` does."""
        if min(len(train.names), len(held_out.names)) < LEAST_SUBJECTS:
            raise InputError(
                f"{len(train.names)} training and {len(held_out.names)} held-out subjects: an audit needs at least "
                f"{LEAST_SUBJECTS} of each"
            )
        reals = joined(train, held_out)
        among = neighbours(reals.embeddings, reals)
        among.squared[reals.subjects[:, None] == among.subjects] = np.inf
        centre = reals.embeddings.mean(axis=0, dtype=np.float64)
        return cls(reals, np.isin(among.subjects, train.names), centre, among)

    def turned(self, embeddings: np.ndarray, found: Neighbours) -> np.ndarray:
        """Squared distances (Q, S) of directions from the centre: 2 (1 - cosine), whatever the distances to the centre.

        An average volume is near to everybody, because it is near to the centre; in no subject's direction is it more
        than a new person is. A copy is, also when it was shrunk towards the mean.

        Args:
            embeddings: (Q, F) whose distances to the scans are `found`.
        """
        own = radii(embeddings, self.centre)[:, None]
        scans = self._radii[found.mirrored.astype(int), found.scans]
        scale = own * scans
        shared = np.divide(own**2 + scans**2 - found.squared, scale, out=np.zeros_like(scale), where=scale > 0)
        return 2.0 - shared

    @cached_property
    def among_turned(self) -> np.ndarray:
        """`turned` (N, S) of every scan to every other subject; infinite to its own."""
        return np.where(np.isfinite(self.among.squared), self.turned(self.reals.embeddings, self.among), np.inf)

    @cached_property
    def _radii(self) -> np.ndarray:
        """(1 or 2, N): distance to the centre of every scan, and of its mirror image where there is one."""
        stacks = [stack for stack in (self.reals.embeddings, self.reals.mirrored) if stack is not None]
        return np.stack([radii(stack, self.centre) for stack in stacks])


def assign_roles(trained: np.ndarray, permutations: int, draw: np.random.Generator) -> np.ndarray:
    """bool (permutations + 1, S): who counts as trained on; the first row is the truth."""
    roles = np.tile(trained, (permutations + 1, 1))
    roles[1:] = draw.permuted(roles[1:], axis=1)
    return roles


def from_near_to_far(squared: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Subjects from near to far for each query, (Q, S); equal distances fall in a random order."""
    shuffle = draw.permutation(squared.shape[1])
    return shuffle[np.argsort(squared[:, shuffle], axis=1, kind="stable")]


def _upper_p(values: np.ndarray) -> float:
    """Share of values as large as the first, which is the one observed."""
    return float(np.mean(values >= values[0] - 1e-12))


def spread(values: np.ndarray) -> dict[str, float]:
    """Smallest value, 5th percentile, median and 95th percentile."""
    quantiles = {"min": 0.0, "p05": 0.05, "median": 0.5, "p95": 0.95}
    return {name: float(np.quantile(values, share)) for name, share in quantiles.items()}


def closer_to_training(order: np.ndarray, roles: np.ndarray) -> dict[str, float]:
    """Share of volumes whose nearest of m training subjects is nearer than their nearest of m held-out ones.

    m is the smaller of the two numbers. The share is the mean over all subsets of the larger side, which has a closed
    form: with k training subjects before the first held-out one, none of them is in a random m of n with probability
    C(n - k, m) / C(n, m).

    Args:
        order: (Q, S) subjects from near to far.
        roles: bool (P + 1, S), the truth first.

    Returns:
        ``share``; ``low`` and ``high``, 95 % over volumes and subjects (variance over volumes plus jackknife over
        subjects); ``expected``; ``null_low`` and ``null_high``, 95 % of the permutations; ``p``, one-sided.
    """
    values = np.array([_shares(order, trained).mean() for trained in roles])
    each = _shares(order, roles[0])
    variance = each.var(ddof=1) / len(each) + _jackknife_variance(order, roles[0])
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


def _missed(n: int, m: int) -> np.ndarray:
    """C(n - k, m) / C(n, m) for k = 0 ... n."""
    k = np.arange(n)
    return np.concatenate([[1.0], np.cumprod((n - m - k).clip(min=0) / (n - k))])


def _shares(order: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """The share for each query (Q,); see `closer_to_training`."""
    flags = trained[order]
    return _from_leads(flags.argmin(axis=1), flags.argmax(axis=1), int(trained.sum()), int((~trained).sum()))


def _from_leads(trained_first: np.ndarray, held_out_first: np.ndarray, n: int, n_held_out: int) -> np.ndarray:
    """Shares from how many training subjects come before the first held-out one, and the other way round."""
    if n >= n_held_out:
        return 1.0 - _missed(n, n_held_out)[trained_first]
    return _missed(n_held_out, n)[held_out_first]


def _jackknife_variance(order: np.ndarray, trained: np.ndarray) -> float:
    """Variance of the mean share over the choice of subjects: each is left out once (Efron and Stein 1981)."""
    flags = trained[order]
    rank = np.argsort(order, axis=1)
    n, n_held_out, S = int(trained.sum()), int((~trained).sum()), len(trained)
    leads = {}
    for role in (True, False):  # where the first and the second subject of a role come
        there = flags == role
        first = there.argmax(axis=1)
        there[np.arange(len(order)), first] = False
        leads[role] = first, there.argmax(axis=1)
    left_out = np.empty(S)
    for s in range(S):
        before = {}
        for role in (True, False):
            first, second = leads[role]
            # Without the first of its own role the second leads, one place earlier as the list is shorter; without one
            # of the other role that came before, the lead moves up by one.
            own = np.where(rank[:, s] == first, second - 1, first)
            before[role] = own if trained[s] == role else first - (rank[:, s] < first)
        left_out[s] = _from_leads(before[False], before[True], n - trained[s], n_held_out - (not trained[s])).mean()
    deviations = left_out.copy()
    for role in (True, False):  # each role is its own sample
        deviations[trained == role] -= left_out[trained == role].mean()
    weights = np.where(trained, (n - 1) / n, (n_held_out - 1) / n_held_out)
    return float(np.sum(weights * deviations**2))


def nearest_ratio(squared: np.ndarray, order: np.ndarray, roles: np.ndarray) -> dict[str, float]:
    """Distance to the nearest training subject over that to the second nearest (NNDR); copies have small ones.

    Returns:
        ``median`` and ``p05`` over volumes; ``expected_median``, the mean of permutations; ``held_out_median``, the
        same among held-out subjects; ``p`` of a mean ratio among training subjects that small against the one among
        held-out subjects.
    """
    ranked = np.sqrt(np.take_along_axis(squared, order, axis=1))
    medians, gaps = np.empty(len(roles)), np.empty(len(roles))
    for index, trained in enumerate(roles):
        ratios = _ratios(ranked, trained[order])
        gap = _ratios(ranked, ~trained[order]).mean() - ratios.mean()
        medians[index], gaps[index] = np.median(ratios), gap
    observed = _ratios(ranked, roles[0][order])
    return {
        "median": float(medians[0]),
        "p05": float(np.quantile(observed, 0.05)),
        "expected_median": float(medians[1:].mean()),
        "held_out_median": float(np.median(_ratios(ranked, ~roles[0][order]))),
        "p": _upper_p(gaps),
    }


def _ratios(ranked: np.ndarray, flags: np.ndarray) -> np.ndarray:
    """d1 / d2 (Q,) among the flagged subjects; 1 where both are 0. Changes `flags`."""
    rows = np.arange(len(ranked))
    first = flags.argmax(axis=1)
    flags[rows, first] = False
    d1, d2 = ranked[rows, first], ranked[rows, flags.argmax(axis=1)]
    return np.divide(d1, d2, out=np.ones_like(d1), where=d2 > 0)


def meehan(queries: np.ndarray, found: Neighbours, pool: Pool, *, seed: int, permutations: int) -> dict:
    """Data-copying test C_T: distances of volumes to the training set ranked among those of held-out scans, by cell.

    Strongly negative: volumes are nearer to the training set than new people are. Over-smooth ones are, too.

    Returns:
        ``c_t`` and ``p`` (one-sided, for low values; labels exchanged within cells), ``c_t_turned`` and
        ``p_turned`` of directions from the centre alone, ``cells`` used, and ``held_out_share`` of
        held-out scans in them. None where no cell holds enough of both.

    Source: Meehan, Chaudhuri and Dasgupta 2020 (https://arxiv.org/abs/2004.05675), section 3.1 for the cells' Z_U and
    definition of C_T; p by permutation instead of a normal table.
    """
    held_out = ~np.isin(pool.reals.subjects, found.subjects[pool.trained])
    cells = _cells(pool, held_out, queries, seed)
    used = [
        cell
        for cell in np.unique(cells["held_out"])
        if min(np.sum(cells[side] == cell) for side in cells) >= _LEAST_IN_CELL
    ]
    covered = float(np.isin(cells["held_out"], used).mean())
    result: dict = {"cells": len(used), "held_out_share": covered}
    kinds = {
        "": (found.squared, pool.among.squared[held_out]),
        "_turned": (pool.turned(queries, found), pool.among_turned[held_out]),
    }
    for kind, (made, own) in kinds.items():
        made, own = (values[:, pool.trained].min(axis=1) for values in (made, own))
        draw = seeding.rng(seed, "memorization cells")
        values = sum(
            np.mean(cells["held_out"] == cell)
            / covered
            * _z_u(made[cells["queries"] == cell], own[cells["held_out"] == cell], permutations, draw)
            for cell in used
        )
        result[f"c_t{kind}"] = float(values[0]) if used else None
        result[f"p{kind}"] = _upper_p(-values) if used else None
    return result


def _cells(pool: Pool, held_out: np.ndarray, queries: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Which k-means cell of the training scans each held-out scan and each query is in."""
    train = pool.reals.embeddings[~held_out]
    state = seeding.address(seed, "memorization k-means") % 2**32
    axes = PCA(min(_CELL_DIMENSIONS, *train.shape, len(train) - 1), svd_solver="randomized", random_state=state)
    count = int(np.clip(held_out.sum() // _CELL_SUBJECTS, 1, 10))
    means = KMeans(count, n_init=4, random_state=state).fit(axes.fit_transform(train))
    sides = {"held_out": pool.reals.embeddings[held_out], "queries": queries}
    return {name: means.predict(axes.transform(side.astype(train.dtype))) for name, side in sides.items()}


def _z_u(made: np.ndarray, own: np.ndarray, permutations: int, draw: np.random.Generator) -> np.ndarray:
    """Standardised Mann-Whitney U of `made` above `own`: observed, then under exchanged labels, (permutations + 1,)."""
    n, m = len(made), len(own)
    ranks = np.tile(stats.rankdata(np.concatenate([made, own])), (permutations + 1, 1))
    ranks[1:] = draw.permuted(ranks[1:], axis=1)
    u = ranks[:, :n].sum(axis=1) - n * (n + 1) / 2
    return (u - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)


def count_copies(queries: np.ndarray, found: Neighbours, pool: Pool, roles: np.ndarray, *, rule: str) -> dict:
    """Volumes closer to a training subject than a quantile of real distances; see `RULES`.

    ``closer`` counts by distance alone. ``copies`` must also lie in the subject's direction from the centre, by the
    same quantile of the same real pairs (`Pool.turned`): an average brain is not a copy.

    Returns:
        ``quantile``, ``threshold``; ``closer``, ``copies``, ``share`` of the volumes with ``low`` and ``high`` (95 %,
        Clopper-Pearson, given the rule); ``towards_held_out``, the number that the same rule finds close to held-out
        subjects, whom nobody can have copied; ``p`` of a surplus towards training subjects that large;
        ``false_alarms``, the same rule asked of held-out scans; ``memorized``, the training subjects concerned.
    """
    quantile = RULES[rule]
    real, real_turned = pool.among.squared, pool.among_turned
    limits = [_limit(values, rule) for values in (real, real_turned)]
    close = found.squared < limits[0]
    copied = close & (pool.turned(queries, found) < limits[1])
    n, n_held_out = int(pool.trained.sum()), int((~pool.trained).sum())
    any_train, any_held_out = (_any(copied, who) for who in (roles, ~roles))
    count = int(any_train[0])
    held_out = ~np.isin(pool.reals.subjects, found.subjects[pool.trained])
    alarms = ((real < limits[0]) & (real_turned < limits[1]))[held_out][:, pool.trained].any(axis=1)
    subjects = np.flatnonzero(copied[:, pool.trained].any(axis=0))
    low, high = clopper_pearson(count, len(queries))
    alarm_low, alarm_high = clopper_pearson(int(alarms.sum()), len(alarms))
    return {
        "quantile": quantile,
        "threshold": float(math.sqrt(limits[0])),
        "closer": int(close[:, pool.trained].any(axis=1).sum()),
        "copies": count,
        "share": count / len(queries),
        "low": low,
        "high": high,
        "towards_held_out": int(any_held_out[0]),
        "p": _upper_p(any_train - n / n_held_out * any_held_out),
        "false_alarms": {"share": float(alarms.mean()), "low": alarm_low, "high": alarm_high, "n": len(alarms)},
        "memorized": {
            "subjects": [str(name) for name in found.subjects[pool.trained][subjects]],
            "share": len(subjects) / n,
        },
    }


def _limit(values: np.ndarray, rule: str) -> float:
    """The quantile of a rule over real scans' (N, S) distances, infinite to themselves."""
    asked = values.min(axis=1) if rule == "volumes" else values[np.isfinite(values)]
    return float(np.quantile(asked, RULES[rule], method="lower"))


def _any(hits: np.ndarray, roles: np.ndarray) -> np.ndarray:
    """How many queries have a hit among the subjects of each assignment of roles, (P + 1,)."""
    some = hits[hits.any(axis=1)].astype(np.float32)
    return np.sum(some @ roles.T.astype(np.float32) > 0, axis=0).astype(float)


def clopper_pearson(count: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a share: `count` of `n` independent cases."""
    tail = (1 - level) / 2
    low = stats.beta.ppf(tail, count, n - count + 1) if count > 0 else 0.0
    high = stats.beta.ppf(1 - tail, count + 1, n - count) if count < n else 1.0
    return float(low), float(high)


def detection_limit(volumes: int, n_train: int, n_held_out: int, alpha: float) -> dict:
    """The smallest share of copies that the audit would report, and what a clean result still allows.

    c copies of c different subjects, all of them training ones, have p = C(n, c) / C(S, c) among S subjects of either
    role; the least c with p < alpha is needed, and a share gives so many among `volumes` with probability `POWER` by
    the binomial distribution. It holds for copies that the rule recognises, and different subjects.

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


def closest_pairs(found: Neighbours, pool: Pool) -> list[dict]:
    """The closest volumes and training scans, nearest first; each volume at most once.

    Returns:
        ``volume`` and ``scan`` (rows of the synthetic and of the training embeddings), ``subject``, ``mirrored``,
        ``distance``, ``to_held_out`` (its nearest held-out subject), ``ratio`` of these two, None where that is 0.
    """
    columns = np.flatnonzero(pool.trained)
    nearest = columns[found.squared[:, columns].argmin(axis=1)]
    rows = np.arange(len(nearest))
    distance = np.sqrt(found.squared[rows, nearest])
    other = np.sqrt(found.squared[:, ~pool.trained].min(axis=1))
    return [
        {
            "volume": int(row),
            "scan": int(found.scans[row, nearest[row]]),
            "subject": str(found.subjects[nearest[row]]),
            "mirrored": bool(found.mirrored[row, nearest[row]]),
            "distance": float(distance[row]),
            "to_held_out": float(other[row]),
            "ratio": float(distance[row] / other[row]) if other[row] > 0 else None,
        }
        for row in np.argsort(distance, kind="stable")[:PAIRS_SHOWN]
    ]


def exposure(found: Neighbours, pool: Pool) -> dict[str, dict[str, float]]:
    """How near the volumes come to each real subject: to the nearest volume, over to the nearest other real subject.

    Near 1 for everybody when volumes are new people; near 0 for a subject that was copied. Held-out subjects, who
    cannot have been copied, say what is usual. Division by the subject's own distance to its nearest neighbour keeps
    ordinary subjects, who are near to all, from looking exposed.

    Returns:
        ``training`` and ``held_out``: subject -> ratio.
    """
    own = np.array([pool.among.squared[pool.reals.subjects == name].min() for name in found.subjects])
    nearest = found.squared.min(axis=0)
    ratio = np.sqrt(np.divide(nearest, own, out=np.ones_like(own), where=own > 0))
    named = dict(zip(map(str, found.subjects), map(float, ratio), strict=True))
    trained = {str(name) for name in found.subjects[pool.trained]}
    return {
        "training": {name: value for name, value in named.items() if name in trained},
        "held_out": {name: value for name, value in named.items() if name not in trained},
    }
