"""Canaries: training subjects that are repeated on purpose, so that the audit can be seen to find what it should find.

Repetition is what drives memorization. Subjects repeated often must be found (power); of subjects that occur once no
more than the stated false alarms are found, unless the generator gives them away, too (Carlini et al. 2019, "The Secret
Sharer", https://arxiv.org/abs/1802.08232, for the idea of planted secrets and their rank).
"""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from cohort.tables import CLASS_NAMES
from runtime import seeding
from runtime.errors import InputError
from runtime.files import write_json
from VAE.latents import (
    compute_statistics,
    list_latents,
    read_latent,
    read_split,
    read_statistics,
    write_latent,
    write_statistics,
)

REPEATS = (1, 4, 16)
"""How often canaries occur in training; 1 is what everybody does, and the control."""
PLAN = "plan.json"
FOUND = 0.05
"""A canary is found at this p or below: so often are subjects found who were not memorized."""


def plan_canaries(
    subjects: Sequence[str], labels: Sequence[int], *, each: int, seed: int, repeats: Sequence[int] = REPEATS
) -> dict[str, int]:
    """Training subject -> occurrences, `each` for every number of `repeats` in their order; classes in turn.

    A subject may have several scans. InputError for too few subjects, or numbers that are none.
    """
    classes = dict(zip(subjects, labels, strict=True))
    count = each * len(repeats)
    if each < 1 or min(repeats, default=0) < 1:
        raise InputError(f"{each} canaries for each of {tuple(repeats)} occurrences: expected 1 or more everywhere")
    if count > len(classes) // 2:
        raise InputError(f"{count} canaries of {len(classes)} training subjects: at most half of them")
    queues = []
    for code in range(len(CLASS_NAMES)):
        own = sorted(name for name, label in classes.items() if label == code)
        queues.append([own[i] for i in seeding.rng(seed, "canaries", code).permutation(len(own))])
    chosen: list[str] = []
    while len(chosen) < count:
        chosen += [queue.pop() for queue in queues if queue]
    return dict(zip(chosen[:count], np.repeat(repeats, each).tolist(), strict=True))


def write_canaries(latents: Path, out: Path, plan: dict[str, int]) -> int:
    """Copies a folder of latents, with the canaries of ``train`` repeated under new names and the statistics renewed.

    The new folder appears whole, with the plan in PLAN, or not at all. Returns how many latents it has to train on.

    Raises:
        InputError: planned subjects have no latents there, or the folder exists.
    """
    found = {path: read_latent(path) for path in list_latents(latents / "train")}
    missing = sorted(set(plan) - {latent.subject for latent in found.values()})
    if missing:
        raise InputError.of(f"{latents / 'train'}: no latents of planned canaries", missing)
    if out.exists():
        raise InputError(f"{out}: exists; repeated latents go into a folder of their own")
    partial = out.with_name(f".{out.name}-partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a stopped run left
    shutil.copytree(latents, partial)
    for path, latent in found.items():
        for repeat in range(1, plan.get(latent.subject, 1)):
            write_latent(partial / "train" / f"{path.stem}_canary{repeat}.pkl", latent)
    train = read_split(partial, "train")
    ledger = read_statistics(latents).ledger
    write_statistics(partial, compute_statistics(train, split="train", ledger=ledger))
    write_json(partial / PLAN, plan)
    partial.replace(out)
    return len(train)


def can_find(held_out: int) -> bool:
    """Whether with so many held-out subjects a p can be `FOUND` or less."""
    return 1 / (held_out + 1) <= FOUND


def require_held_out(count: int) -> None:
    """Raises InputError unless so many held-out subjects `can_find` anybody."""
    if not can_find(count):
        raise InputError(f"{count} held-out subjects: a canary can only be found with {round(1 / FOUND) - 1} or more")


def read_canaries(plan: dict[str, int], exposure: dict[str, dict[str, float]]) -> dict:
    """What `nearest.exposure` says about each canary, of whom all are among the training subjects.

    Returns:
        ``canaries``: one dict each of ``subject``, ``occurrences``, ``exposure``, ``rank`` (1: the most exposed of all
        training subjects), ``p`` (share of held-out subjects as exposed, the canary counted among them), ``found``;
        ``by_occurrences``: number of canaries, number ``found``, median ``rank`` and ``exposure``; ``alarms``: of the
        training subjects that were not repeated, see `alarms_of`; ``held_out_subjects``.
    """
    training, held_out = exposure["training"], np.sort(list(exposure["held_out"].values()))
    require_held_out(len(held_out))
    ranked = np.sort(list(training.values()))

    def p(value: float) -> float:
        return float((1 + np.searchsorted(held_out, value, side="right")) / (len(held_out) + 1))

    canaries = pd.DataFrame({"subject": list(plan), "occurrences": list(plan.values())})
    canaries["exposure"] = [training[name] for name in plan]
    canaries["rank"] = 1 + np.searchsorted(ranked, canaries["exposure"], side="left")
    canaries["p"] = [p(value) for value in canaries["exposure"]]
    canaries["found"] = canaries["p"] <= FOUND
    by_occurrences = {
        str(count): {
            "n": len(rows),
            "found": int(rows["found"].sum()),
            "median_rank": float(rows["rank"].median()),
            "median_exposure": float(rows["exposure"].median()),
        }
        for count, rows in canaries.groupby("occurrences")
    }
    usual = [p(value) <= FOUND for name, value in training.items() if plan.get(name, 1) == 1]
    return {
        "canaries": canaries.to_dict("records"),
        "by_occurrences": by_occurrences,
        "alarms": alarms_of(sum(usual), len(usual), len(held_out)),
        "held_out_subjects": len(held_out),
    }


def alarms_of(found: int, subjects: int, held_out: int) -> dict[str, float] | None:
    """How many training subjects are found, beside how many would be if nobody were given away; None for no subjects.

    Without a leak training and held-out subjects are exchangeable. So the share of people beyond the threshold, the
    k-th most exposed of n held-out subjects (k is `FOUND` (n + 1), rounded down), has the distribution
    Beta(k, n + 1 - k), and the number found is beta-binomial. That is wide where few are held out: of 172 subjects, 45
    others let 0 to 12 % be found.

    Returns:
        ``share``; ``expected``, ``low`` and ``high`` (95 %) of the share without a leak; ``p`` of one so large.
    """
    if not subjects:
        return None
    k = math.floor(FOUND * (held_out + 1) + 1e-9)
    chance = stats.betabinom(subjects, k, held_out + 1 - k)
    low, high = chance.ppf((0.025, 0.975)) / subjects
    return {
        "share": found / subjects,
        "expected": k / (held_out + 1),
        "low": float(low),
        "high": float(high),
        "p": float(chance.sf(found - 1)),
    }
