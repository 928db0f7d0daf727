"""Splits beyond the single one: k folds in which everyone is tested once, and sites that are held out for test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cohort.splitting.balancing import place_rows
from cohort.splitting.partition import SPLITS, by_place, refuse_missing_class, refuse_shared
from cohort.splitting.ties import tied
from cohort.tables import CLASS_NAMES
from runtime.errors import InputError
from runtime.seeding import rng

_TRAIN, _VAL, _TEST = range(len(SPLITS))
_NOWHERE = -1


def folds(frame: pd.DataFrame, *, count: int, val_percent: float | None, seed: int) -> list[dict[str, pd.DataFrame]]:
    """Divides a table into k folds by subject and group: every subject is in the test split of exactly one of them.

    Args:
        frame: a table (`cohort.tables.read_table`).
        count: number of folds, 2 or more.
        val_percent: share of the subjects outside the test split that validate; None takes the next fold's test
            subjects instead, which needs 3 folds or more.
        seed: the same seed and the same rows, in whatever order, give the same folds.

    Returns:
        Per fold "train", "val" and "test", each with its rows in the order of `frame`.

    Raises:
        InputError: impossible numbers, or a class that would be missing from a split; names fold and split.
    """
    if count < (3 if val_percent is None else 2):
        least = "3, or 2 with validation subjects taken from the training share"
        raise InputError(f"{count} folds: expected at least {least}")
    _check_val_percent(val_percent)
    homes = place_rows(frame, np.full(count, 1 / count), rng(seed, "folds", count))
    found = []
    for fold in range(count):
        if val_percent is None:
            following = (fold + 1) % count
            places = np.select([homes == fold, homes == following], [_TEST, _VAL], default=_TRAIN)
        else:
            draw = rng(seed, "fold-validation", count, fold)
            places = _train_and_val(frame, homes != fold, homes == fold, val_percent, draw)
        found.append(by_place(frame, places))
    refuse_missing_class({f"fold {fold} {name}": rows for fold, one in enumerate(found) for name, rows in one.items()})
    for splits in found:
        refuse_shared(splits)
    return found


def site_names(frame: pd.DataFrame) -> list[str]:
    """The sites of a table, sorted; raises InputError where a scan has none, since it may come from any of them."""
    missing = [f"subject {row.subject}: {row.file}" for row in frame[frame["site"] == ""].itertuples()]
    if missing:
        raise InputError.of("scans without a site: no site can be held out; name it in the column site", missing)
    return sorted(set(frame["site"]))


def hold_out(
    frame: pd.DataFrame,
    sites: Sequence[str],
    *,
    val_percent: float,
    seed: int,
    allow_one_class: bool = False,
    leave_out_shared: bool = False,
) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """All scans of some sites for test, the others divided into training and validation.

    Args:
        frame: a table in which every scan has a site.
        sites: names of the sites that are tested together.
        val_percent: share of the other sites' subjects that validate, above 0, below 100.
        seed: the same seed and the same rows, in whatever order, give the same splits.
        allow_one_class: accept sites with patients only or controls only, on which no AUC can be computed.
        leave_out_shared: subjects and groups (copies included) at a held-out site that have scans at another one too:
            leave those other scans out of all splits. Otherwise they are refused, because they would be a leak.

    Returns:
        The splits, and the scans that were left out.

    Raises:
        InputError: an unknown site, none left to train on, one class or shared subjects where that was not allowed, or
            a class missing from training or validation.
    """
    _check_val_percent(val_percent)
    faults = site_faults(frame, sites, allow_one_class=allow_one_class, leave_out_shared=leave_out_shared)
    if faults:
        raise InputError.of(f"{', '.join(sites)} cannot be held out", faults)
    there, shared = _held_out_rows(frame, sites)
    draw = rng(seed, "holdout-site " + "\n".join(sorted(set(sites))))
    splits = by_place(frame, _train_and_val(frame, ~there & ~shared, there, val_percent, draw))
    refuse_missing_class({name: splits[name] for name in ("train", "val")})
    refuse_shared(splits)
    return splits, frame[shared].reset_index(drop=True)


def site_faults(
    frame: pd.DataFrame, sites: Sequence[str], *, allow_one_class: bool = False, leave_out_shared: bool = False
) -> list[str]:
    """Why sites cannot be held out together, one line per reason; empty if they can."""
    known = site_names(frame)
    strangers = [
        f"site {site} is not in the table, which has {', '.join(known)}" for site in sites if site not in known
    ]
    if strangers:
        return strangers
    name = ", ".join(sites)
    there, shared = _held_out_rows(frame, sites)
    found = []
    if not (~there & ~shared).any():
        found.append(f"{name}: no scan of another site is left to train on")
    classes = sorted(set(frame.loc[there, "label"]))
    if len(classes) < len(CLASS_NAMES) and not allow_one_class:
        found.append(f"{name}: only {CLASS_NAMES[classes[0]]}, so nothing can be told apart; or --allow-one-class")
    if not leave_out_shared:
        found += [
            f"{name}: subject {row.subject} (group {row.group}) has a scan at {row.site} that is tied to them; "
            "or --leave-out-shared"
            for row in frame[shared].itertuples()
        ]
    return found


def _held_out_rows(frame: pd.DataFrame, sites: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """bool (rows,) twice: scans of the sites, and scans elsewhere that a subject or a group ties to them."""
    there = frame["site"].isin(sites).to_numpy()
    units = tied(frame["subject"], frame["group"])
    return there, np.isin(units, units[there]) & ~there


def _train_and_val(
    frame: pd.DataFrame, rest: np.ndarray, test: np.ndarray, val_percent: float, draw: np.random.Generator
) -> np.ndarray:
    """int (rows,): places, with the rows of `rest` divided between training and validation."""
    places = np.full(len(frame), _NOWHERE)
    places[test] = _TEST
    places[rest] = place_rows(frame[rest], [1 - val_percent / 100, val_percent / 100], draw)
    return places


def _check_val_percent(val_percent: float | None) -> None:
    if val_percent is not None and not 0 < val_percent < 100:
        raise InputError(f"val-percent {val_percent:g}: expected above 0 and below 100")
