"""Whether a trained model gives away who was in its training set: attacks with the model's own losses.

A score is larger for subjects that look trained on. Members and others should be people of the same sites, ages and
classes: any other difference between the two is read as membership.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import stats

from diffusion.checkpoint import LoadedDiffusion
from runtime import seeding
from runtime.device import Device
from runtime.errors import InputError

FALSE_POSITIVES = 0.01
"""Share of others that an attack may call members where its true positives are read off (Carlini et al. 2022)."""
LEAST = 8
"""Fewest subjects on either side."""
LEVELS = (0.1, 0.25, 0.4, 0.55, 0.7)
"""Places on the process's time, from clean to noise, at which losses are taken by default."""
DRAWS = 4
"""Noises per level."""

Losses = Callable[[int], np.ndarray]
"""Losses of one row of a table of subjects, (S draws, L levels)."""


def attack(members: np.ndarray, others: np.ndarray) -> dict:
    """How well scores tell members (M,) from others (N,).

    Returns:
        ``n`` of both; ``auc`` with ``low``, ``high`` (95 %) and one-sided ``p`` against 0.5, by DeLong's variance;
        ``tpr`` at `FALSE_POSITIVES` with its exact 95 % interval given the threshold; ``fpr`` there, with its own; and
        ``note`` on how little so few others can say.

    Raises:
        InputError: fewer than `LEAST` on a side, or scores that are not finite.

    Source: DeLong et al. 1988, by the definition of the placement values; Carlini et al. 2022
    (https://arxiv.org/abs/2112.03570), section IV, for true positives at few false ones.
    """
    members, others = np.asarray(members, np.float64), np.asarray(others, np.float64)
    M, N = len(members), len(others)
    if min(M, N) < LEAST:
        raise InputError(f"{M} members and {N} others: an attack is measured on at least {LEAST} of each")
    if not (np.isfinite(members).all() and np.isfinite(others).all()):
        raise InputError("membership scores that are not finite")
    auc, deviation = area(members, others)
    # No pair in the wrong order leaves no variance to estimate; the rule of three then bounds what was not seen.
    margin = 1.959964 * deviation if deviation > 0 else 3 / min(M, N)
    allowed = math.floor(FALSE_POSITIVES * N)
    threshold = np.sort(others)[::-1][allowed]
    hits, alarms = int(np.sum(members > threshold)), int(np.sum(others > threshold))
    note = f"threshold: {'the highest' if allowed == 0 else f'number {allowed + 1} from the top'} of {N} others' scores"
    if allowed == 0:
        note += f"; fewer than {round(1 / FALSE_POSITIVES)} others cannot show a rate of {FALSE_POSITIVES:.0%}"
    return {
        "n": {"members": M, "others": N},
        "auc": auc,
        "low": max(0.0, auc - margin),
        "high": min(1.0, auc + margin),
        "p": _p(auc, deviation, M, N),
        "tpr": _rate(hits, M),
        "fpr": _rate(alarms, N),
        "note": note,
    }


def _p(auc: float, deviation: float, M: int, N: int) -> float:
    """One-sided, by the normal approximation; for sides that do not overlap, the chance of just that order."""
    if deviation > 0:
        return float(stats.norm.sf((auc - 0.5) / deviation))
    return 1 / math.comb(M + N, M) if auc > 0.5 else 1.0


def area(members: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """Area under the ROC curve and its standard deviation (DeLong)."""
    wins = np.searchsorted(np.sort(others), members, side="left") / len(others)
    ties = (np.searchsorted(np.sort(others), members, side="right") / len(others) - wins) / 2
    of_members = wins + ties
    below = np.searchsorted(np.sort(members), others, side="right")
    through = np.searchsorted(np.sort(members), others, side="left")
    of_others = 1 - (below + through) / (2 * len(members))
    variance = of_members.var(ddof=1) / len(members) + of_others.var(ddof=1) / len(others)
    return float(of_members.mean()), math.sqrt(variance)


def _rate(count: int, n: int) -> dict[str, float]:
    exact = stats.binomtest(count, n).proportion_ci(method="exact")
    return {"value": count / n, "low": float(exact.low), "high": float(exact.high)}


def loss_attack(
    losses: Losses, members: Sequence[int], others: Sequence[int], levels: Sequence[float], *, seed: int
) -> dict:
    """Membership from a diffusion model's losses: trained subjects are denoised better.

    Which noise level tells most is not known beforehand, and the best of several would flatter. So subjects of both
    sides are halved; the level is chosen on one half, where the others' losses also fix mean and spread of the score,
    and judged on the other, and the other way round.

    Args:
        losses: called once for each row.
        members, others: rows of subjects trained on, and not.
        levels: the columns of what `losses` returns, as places on the process's time.
        seed: of the halves.

    Returns:
        as `attack`, and ``chosen`` (a level for each half), ``levels`` (level -> area over all subjects, for
        information: the largest of them is not a result) and ``draws``.

    Source: Carlini et al. 2023 (https://arxiv.org/abs/2301.13188), section 5, for the loss at middling noise levels.
    """
    if min(len(members), len(others)) < 2 * LEAST:
        raise InputError(f"{len(members)} members and {len(others)} others: halves need at least {2 * LEAST} of each")
    sides = [np.stack([losses(row) for row in rows]) for rows in (members, others)]  # (n, S, L)
    if sides[0].shape[2] != len(levels):
        raise InputError(f"losses {sides[0].shape} (subjects, draws, levels) for {len(levels)} levels")
    scores = [-side.mean(axis=1) for side in sides]  # (n, L)
    halves = [
        seeding.rng(seed, f"membership halves of {name}").permutation(len(side)) % 2
        for name, side in zip(("members", "others"), scores, strict=True)
    ]
    judged, chosen = [np.empty(len(side)) for side in scores], []
    for half in (0, 1):
        known = [side[part != half] for side, part in zip(scores, halves, strict=True)]
        best = int(np.argmax([area(*(side[:, level] for side in known))[0] for level in range(len(levels))]))
        chosen.append(float(levels[best]))
        mean, spread = known[1][:, best].mean(), known[1][:, best].std(ddof=1)
        for side, part, out in zip(scores, halves, judged, strict=True):
            out[part == half] = (side[part == half, best] - mean) / max(spread, 1e-12)
    areas = {f"{level:g}": area(scores[0][:, k], scores[1][:, k])[0] for k, level in enumerate(levels)}
    return {**attack(*judged), "chosen": chosen, "levels": areas, "draws": int(sides[0].shape[1])}


@torch.no_grad()
def dit_losses(
    diffusion: LoadedDiffusion, mu: np.ndarray, logvar: np.ndarray, labels: np.ndarray, device: Device, *,
    seed: int, covariates: torch.Tensor | None = None, levels: Sequence[float] = LEVELS, draws: int = DRAWS,
) -> Losses:  # fmt: skip
    """The losses of a diffusion model, for `loss_attack`.

    All subjects get the same noises, so that these do not add to the differences between subjects.

    Args:
        diffusion: a checkpoint; its network is moved to `device`.
        mu, logvar: raw posteriors (N, C, d, h, w).
        labels: classes (N,).
        device: where the network runs.
        seed: of the noises.
        covariates: standardised (N, K), NaN where not told; by default none is told.
        levels: places in [0, 1) on the process's time (`Process.spread_times`).
        draws: noises at each level.

    Returns:
        a function of the row, which gives float64 (draws, levels).
    """
    model, process, space = device.module(diffusion.model), diffusion.process, diffusion.space
    count, shape = draws * len(levels), mu.shape[1:]
    draw = seeding.generator(seed, "membership noise")
    posterior, eps = (device.tensor(torch.randn((count, *shape), generator=draw)) for _ in range(2))
    t = process.spread_times(torch.tensor(list(levels), dtype=torch.float32).repeat(draws)).to(device.kind)

    @torch.no_grad()
    def losses(row: int) -> np.ndarray:
        mean, spread = (device.tensor(torch.from_numpy(np.asarray(part[row : row + 1]))) for part in (mu, logvar))
        z = space.enter(mean + torch.exp(0.5 * spread) * posterior)
        y = torch.full((count,), int(labels[row]), device=device.kind)
        told = None if covariates is None else covariates[row].to(device.kind).expand(count, -1)
        with device.autocast():
            prediction = model(process.noised(z, eps, t), t, y, told)
        return process.loss(prediction, z, eps, t).double().cpu().numpy().reshape(draws, len(levels))

    return losses


def reconstruction_attack(member_errors: np.ndarray, other_errors: np.ndarray) -> dict:
    """Membership from an autoencoder's reconstruction errors (M,) and (N,): trained subjects come back better."""
    return attack(-np.asarray(member_errors), -np.asarray(other_errors))


def reconstruction_errors(volumes: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
    """Mean squared error of each volume (N,) over the voxels where it is not background; both (N, D, H, W)."""
    inside = volumes > 0
    squared = np.where(inside, (volumes - reconstructions) ** 2, 0.0).sum(axis=(1, 2, 3), dtype=np.float64)
    return squared / np.maximum(inside.sum(axis=(1, 2, 3)), 1)


def exposure_attack(exposure: dict[str, dict[str, float]]) -> dict:
    """Membership from synthetic volumes alone: whether they come nearer to trained subjects than to held-out ones.

    Args:
        exposure: ``training`` and ``held_out``, subject -> ratio, from `evaluation.privacy.closeness.exposure`.

    Source: the black-box attack of Chen et al. 2020 (GAN-Leaks, https://arxiv.org/abs/1909.03935), section 4.2, with
    the calibration of each subject's distance by real neighbours.
    """
    training, held_out = (np.array(list(exposure[side].values())) for side in ("training", "held_out"))
    return attack(-training, -held_out)
