"""Whether a trained model gives away who was in its training set: attacks with the model's own losses.

A score is larger for subjects that look trained on. Members and others should be people of the same sites, ages and
classes: any other difference between the two is read as membership.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import stats

from diffusion.checkpoint import LoadedDiffusion
from evaluation.privacy.copying import exact_interval
from runtime import seeding
from runtime.device import Device
from runtime.errors import InputError

FALSE_POSITIVES = 0.01
"""Share of others that an attack may call members where its true positives are read off (Carlini et al. 2022)."""
LEAST = 8
"""Fewest subjects on either side."""
LEVELS = (0.1, 0.25, 0.4, 0.55, 0.7)
"""Places on the process's time, from clean to noise, at which losses are taken (`Process.spread_times`)."""
DRAWS = 2
"""Noises per level. All subjects get the same ones, so that few are enough: with the demo's generator 6 % of a score's
variance at the highest level, and under 1 % up to 0.4, are what other noises would change."""

Known = tuple[np.ndarray, np.ndarray]
"""Raw posterior means (N, C, d, h, w), and classes (N,)."""


def attack(members: np.ndarray, others: np.ndarray) -> dict:
    """How well scores tell members (M,) from others (N,).

    Returns:
        ``n`` of both; ``auc`` with ``low``, ``high`` (95 %) and one-sided ``p`` against 0.5, by DeLong's variance;
        ``tpr`` at `FALSE_POSITIVES` with its exact 95 % interval given the threshold; ``fpr`` there, with its own; and
        ``note`` on how little so few others can say.

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
    if deviation > 0:
        margin, p = 1.959964 * deviation, float(stats.norm.sf((auc - 0.5) / deviation))
    else:
        # Sides that do not overlap leave no variance to estimate: the rule of three bounds what was not seen, and p is
        # the chance of just that order.
        margin, p = 3 / min(M, N), 1 / math.comb(M + N, M) if auc > 0.5 else 1.0
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
        "p": p,
        "tpr": {"value": hits / M, **exact_interval(hits, M)},
        "fpr": {"value": alarms / N, **exact_interval(alarms, N)},
        "note": note,
    }


def area(members: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """Area under the ROC curve and its standard deviation (DeLong)."""
    M, N = len(members), len(others)
    ranks = stats.rankdata(np.concatenate([members, others]))
    below_members = (ranks[:M] - stats.rankdata(members)) / N  # share of others below each member, ties half
    above_others = 1 - (ranks[M:] - stats.rankdata(others)) / M
    variance = below_members.var(ddof=1) / M + above_others.var(ddof=1) / N
    return float(below_members.mean()), math.sqrt(variance)


def loss_attack(members: np.ndarray, others: np.ndarray, levels: Sequence[float], *, seed: int) -> dict:
    """Membership from a diffusion model's losses: trained subjects are denoised better.

    Which noise level tells most is not known beforehand, and the best of several would flatter. So subjects of both
    sides are halved; the level is chosen on one half, where the others' losses also fix mean and spread of the score,
    and the score is taken on the other half, and the other way round.

    Args:
        members, others: losses (M, draws, L) of subjects trained on, and (N, draws, L) of others.
        levels: (L,) places on the process's time.

    Returns:
        as `attack`, and ``chosen`` (a level for each half), ``levels`` (level -> area over all subjects, for
        information: the largest of them is not a result) and ``draws``.

    Source: Carlini et al. 2023 (https://arxiv.org/abs/2301.13188), section 5, for the loss at middling noise levels.
    """
    raw = [-side.mean(axis=1) for side in (members, others)]  # (n, L)
    halves = [
        seeding.rng(seed, f"membership halves of {name}").permutation(len(side)) % 2
        for name, side in zip(("members", "others"), raw, strict=True)
    ]
    scores, chosen = [np.empty(len(side)) for side in raw], []
    for half in (0, 1):
        known = [side[part != half] for side, part in zip(raw, halves, strict=True)]
        best = int(np.argmax([area(*(side[:, level] for side in known))[0] for level in range(len(levels))]))
        chosen.append(float(levels[best]))
        mean, spread = known[1][:, best].mean(), known[1][:, best].std(ddof=1)
        for side, part, out in zip(raw, halves, scores, strict=True):
            out[part == half] = (side[part == half, best] - mean) / max(spread, 1e-12)
    areas = {f"{level:g}": area(raw[0][:, k], raw[1][:, k])[0] for k, level in enumerate(levels)}
    return {**attack(*scores), "chosen": chosen, "levels": areas, "draws": members.shape[1]}


@torch.no_grad()
def dit_losses(
    diffusion: LoadedDiffusion, mu: np.ndarray, labels: np.ndarray, device: Device, *, seed: int
) -> np.ndarray:
    """The losses of a diffusion model, float64 (N, DRAWS, LEVELS), for `loss_attack`.

    Of posterior means (N, C, d, h, w), also for a model that learned from draws: their noise says nothing about a
    subject. All get the same noises, so that these do not add to the differences between subjects. Covariates and sides
    are unknown to the model.
    """
    model, process, space = device.module(diffusion.model), diffusion.process, diffusion.space
    count, shape = DRAWS * len(LEVELS), mu.shape[1:]
    draw = seeding.generator(seed, "membership noise")
    eps = device.tensor(torch.randn((count, *shape), generator=draw))
    t = process.spread_times(torch.tensor(LEVELS, dtype=torch.float32).repeat(DRAWS)).to(device.kind)
    losses = np.empty((len(mu), DRAWS, len(LEVELS)))
    for row, label in enumerate(labels):
        z = space.enter(device.tensor(torch.from_numpy(np.asarray(mu[row])).expand(count, *shape)))
        y = torch.full((count,), int(label), device=device.kind)
        with device.autocast():
            prediction = model(process.noised(z, eps, t), t, y, None)
        losses[row] = process.loss(prediction, z, eps, t).double().cpu().numpy().reshape(DRAWS, len(LEVELS))
    return losses


def dit_attack(diffusion: LoadedDiffusion, members: Known, others: Known, device: Device, *, seed: int) -> dict | str:
    """`loss_attack` on a diffusion model, or why there is none; see `dit_losses` for what it takes of both sides."""
    M, N = len(members[0]), len(others[0])
    if min(M, N) < 2 * LEAST:
        return f"skipped: {M} members and {N} others, {2 * LEAST} of each are needed"
    both = (np.concatenate(parts) for parts in zip(members, others, strict=True))
    losses = dit_losses(diffusion, *both, device, seed=seed)
    return loss_attack(losses[:M], losses[M:], LEVELS, seed=seed)


def exposure_attack(exposure: dict[str, dict[str, float]]) -> dict:
    """Membership from synthetic volumes alone: whether `nearest.exposure` is larger for trained than for held-out ones.

    Source: the black-box attack of Chen et al. 2020 (GAN-Leaks, https://arxiv.org/abs/1909.03935), section 4.2, with
    the calibration of each subject's distance by real neighbours.
    """
    training, held_out = (np.array(list(exposure[side].values())) for side in ("training", "held_out"))
    return attack(-training, -held_out)
