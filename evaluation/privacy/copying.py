"""Whether synthetic volumes are nearer to training subjects than chance allows. Pure functions of vectors.

What is asked of every space (down-sampled voxels, a learned embedding, latents):

- Membership: is a volume's nearest real subject a training one more often than equal numbers would make it? Smoothness
  alone cannot do that: a blurred or average brain is near to training and to held-out subjects alike.
- Copies: pairs closer than different real people are. Rules and their false alarms are taken from real pairs.
- Meehan's test: are volumes nearer to the training set than held-out scans are? Smoothness alone does that, so it is
  reported with and without the distance to the centre, and nothing is concluded from it.

The p-values of the first two exchange the roles of training and held-out subjects, subject by subject. They are exact
when nothing but training tells these apart; so an embedding must have been fitted to both or to neither.

Nothing here can show that a generator remembers nobody: a result that is silent comes with its detection limit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from evaluation.privacy.closeness import (
    LEAST_SUBJECTS,
    POWER,
    RULES,
    Pool,
    assign_roles,
    closer_to_training,
    closest_pairs,
    count_copies,
    detection_limit,
    exposure,
    from_near_to_far,
    meehan,
    nearest_ratio,
    spread,
)
from evaluation.privacy.nearest import Reals, neighbours
from runtime import seeding
from runtime.errors import InputError

ALPHA = 0.01
"""Chance of saying "copying" of a generator that does not copy, over all spaces and both tests together."""
PERMUTATIONS = 1999


@dataclass(frozen=True)
class Space:
    """One space, and everything that was embedded in it."""

    train: Reals
    held_out: Reals
    synthetic: np.ndarray
    """(Q, F), one row per synthetic volume."""
    controls: Mapping[str, Reals] = field(default_factory=dict)
    """Volumes that are not copies but as smooth as synthetic ones, for example held-out scans through the VAE or
    blurred. Their subjects are held-out ones or in neither set."""


def audit_spaces(spaces: Mapping[str, Space], *, seed: int, permutations: int = PERMUTATIONS) -> dict:
    """The whole audit: every space, its controls, and what may be said.

    Args:
        spaces: name to space; all hold the same synthetic volumes in the same order.
        seed: of permutations and cells.
        permutations: of the roles of subjects; the smallest p is 1 / (permutations + 1).

    Returns:
        ``spaces``: name -> ``synthetic`` and ``controls`` (name -> ...), each as `audit` returns it; ``finding``: see
        `judge`.
    """
    alpha = alpha_per_test(len(spaces), permutations)
    results = {}
    for name, space in spaces.items():
        pool = Pool.of(space.train, space.held_out)
        settings = {"alpha": alpha, "seed": seed, "permutations": permutations}
        results[name] = {
            "synthetic": audit(space.synthetic, pool, **settings),
            "controls": audit_controls(space, **settings),
        }
    return {"spaces": results, "finding": judge(results, alpha)}


def alpha_per_test(spaces: int, permutations: int) -> float:
    """`ALPHA` shared equally among tests and spaces (Bonferroni).

    Raises:
        InputError: so few permutations that no p-value could be as small.
    """
    alpha = ALPHA / (len(TESTS) * spaces)
    if 1 / (permutations + 1) > alpha:
        raise InputError(
            f"{permutations} permutations: p-values below {alpha:.2g} need at least {math.ceil(1 / alpha)}"
        )
    return alpha


def audit_controls(
    space: Space, *, alpha: float = ALPHA, seed: int, permutations: int = PERMUTATIONS
) -> dict[str, dict]:
    """The same audit for volumes that are known not to be copies, and for half of the held-out scans themselves.

    A control made from a held-out scan would find itself in the held-out set. So held-out subjects are halved: one half
    is searched in, and controls of the other half are the queries. A control of other subjects is used whole. What is
    left with fewer than `LEAST_SUBJECTS` is left out.
    """
    names = seeding.rng(seed, "memorization halves").permutation(space.held_out.names)
    asked, searched = names[: len(names) // 2], names[len(names) // 2 :]
    if len(searched) < LEAST_SUBJECTS:
        return {}
    pool = Pool.of(space.train, space.held_out.of(searched))
    controls = {"held_out": space.held_out.of(asked), **space.controls}
    results = {}
    for name, control in controls.items():
        used = control.of(np.setdiff1d(control.names, searched))
        if len(used.embeddings) >= LEAST_SUBJECTS:
            results[name] = audit(used.embeddings, pool, alpha=alpha, seed=seed, permutations=permutations)
    return results


def audit(
    queries: np.ndarray, pool: Pool, *, alpha: float = ALPHA, seed: int, permutations: int = PERMUTATIONS
) -> dict:
    """All that is measured of one set of volumes in one space; distances are Euclidean.

    Args:
        queries: (Q, F).
        pool: of the real scans.
        alpha: level of the detection limit.
        seed: of permutations and cells.
        permutations: of the roles of subjects.

    Returns:
        JSON values: ``n``, ``nearest``, ``closer_to_training``, ``ratio``, ``meehan``, ``copies`` (by rule),
        ``detection_limit``, ``pairs`` (the closest ones) and ``exposure`` (by subject).

    Raises:
        InputError: fewer than `LEAST_SUBJECTS` volumes, and where `neighbours` does.
    """
    if len(queries) < LEAST_SUBJECTS:
        raise InputError(f"{len(queries)} volumes: an audit needs at least {LEAST_SUBJECTS}")
    found = neighbours(queries, pool.reals)
    roles = assign_roles(pool.trained, permutations, seeding.rng(seed, "memorization roles"))
    order = from_near_to_far(found.squared, seeding.rng(seed, "memorization ties"))
    train, held_out = (found.squared[:, columns].min(axis=1) for columns in (pool.trained, ~pool.trained))
    n_train, n_held_out = int(pool.trained.sum()), int((~pool.trained).sum())
    return {
        "n": {
            "volumes": len(queries),
            "training_subjects": n_train,
            "held_out_subjects": n_held_out,
            "features": int(queries.shape[1]),
            "mirrored_searched": pool.reals.mirrored is not None,
        },
        "nearest": {"to_training": spread(np.sqrt(train)), "to_held_out": spread(np.sqrt(held_out))},
        "closer_to_training": closer_to_training(order, roles),
        "ratio": nearest_ratio(found.squared, order, roles),
        "meehan": meehan(queries, found, pool, seed=seed, permutations=permutations),
        "copies": {name: count_copies(queries, found, pool, roles, rule=name) for name in RULES},
        "detection_limit": detection_limit(len(queries), n_train, n_held_out, alpha),
        "pairs": closest_pairs(found, pool),
        "exposure": exposure(found, pool),
    }


TESTS = {
    "membership": "synthetic volumes are nearer to training subjects than to as many held-out ones",
    "copies": "synthetic volumes are closer to training subjects than different people are",
}
"""The two tests that a conclusion may rest on, in words."""


def p_values(measured: dict) -> dict[str, float]:
    """The p-value of each of `TESTS` in what `audit` returned."""
    return {"membership": measured["closer_to_training"]["p"], "copies": measured["copies"]["volumes"]["p"]}


def judge(results: Mapping[str, dict], alpha: float) -> dict:
    """What may be said: copying only when a test fires for the synthetic volumes, in a space whose controls are silent.

    Args:
        results: space -> ``synthetic`` and ``controls``, as `audit_spaces` makes them.
        alpha: level of each test (`alpha_per_test`).

    Returns:
        ``copying`` (bool), ``alpha``, ``alpha_per_test``, and ``text``, sentences for people.
    """
    copying, silent, text = False, True, []
    for space, measured in results.items():
        loud = [name for name, one in measured["controls"].items() if min(p_values(one).values()) < alpha]
        ending = "no control is: copying, or overfitting to these subjects"
        if loud:
            ending = f"but controls raise alarms, too ({', '.join(loud)}): no conclusion"
        synthetic = p_values(measured["synthetic"])
        for test in (test for test, p in synthetic.items() if p < alpha):
            copying, silent = copying or not loud, False
            text.append(f"{space}: {TESTS[test]} (p = {synthetic[test]:.4f}), {ending}")
        text += _remarks(space, measured["synthetic"], alpha)
    if silent:
        text.insert(0, "No sign of copying was found; that is not proof that there is none.")
    return {"copying": copying, "alpha": ALPHA, "alpha_per_test": alpha, "text": text}


def _remarks(space: str, synthetic: dict, alpha: float) -> list[str]:
    """What must be read with a space's figures: its detection limit, and Meehan's test where it seems to say more."""
    limit, volumes = synthetic["detection_limit"], synthetic["n"]["volumes"]
    if limit["share"] is None:
        lines = [f"{space}: with so few volumes or held-out subjects no number of copies would have been reported"]
    else:
        lines = [
            f"{space}: if {limit['share']:.1%} of volumes were recognisable copies of different subjects, that would "
            f"have been reported with {POWER:.0%} probability ({limit['copies_needed']} of {volumes} are needed)"
        ]
    score, p = synthetic["meehan"]["c_t"], synthetic["meehan"]["p"]
    if p is not None and p < alpha and min(p_values(synthetic).values()) >= alpha:
        lines.append(
            f"{space}: volumes are nearer to the training set than held-out scans are (C_T = {score:.1f}), but not "
            "nearer to it than to held-out subjects: what over-smooth or average volumes do"
        )
    return lines
