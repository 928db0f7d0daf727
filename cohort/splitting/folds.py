"""A cohort divided by subject and group: once, into k folds in which everyone is tested once, or by held-out sites."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from cohort.splitting.balance import place_rows
from cohort.splitting.ties import tied
from cohort.tables import CLASS_NAMES
from runtime.errors import InputError
from runtime.seeding import rng

SPLITS = ("train", "val", "test")
_TRAIN, _VAL, _TEST = range(len(SPLITS))
_NOWHERE = -1


def partition(
    frame: pd.DataFrame, *, val_percent: float, test_percent: float, seed: int, allow_one_class: bool = False
) -> dict[str, pd.DataFrame]:
    """Divides a table (`cohort.tables.read_table`) into training, validation and test subjects.

    The same seed and the same rows, in whatever order, give the same splits: "train", "val" and "test", each with its
    rows in the order of `frame`. Raises InputError for percentages (of the subjects) that are not above 0 with a sum
    below 100, and for a class that would be missing from a split, unless `allow_one_class` and the table has just one.
    """
    if not (val_percent > 0 and test_percent > 0 and val_percent + test_percent < 100):
        raise InputError(f"val-percent {val_percent:g} and test-percent {test_percent:g}: each above 0, sum below 100")
    shares = np.array([100 - val_percent - test_percent, val_percent, test_percent]) / 100
    classes = _classes(frame, allow_one_class)
    splits = _divided(frame, place_rows(frame, shares, rng(seed, "split")))
    _refuse_missing_class(splits, classes)
    return splits


def folds(
    frame: pd.DataFrame, *, count: int, val_percent: float | None, seed: int, allow_one_class: bool = False
) -> list[dict[str, pd.DataFrame]]:
    """Divides a table into `count` folds, each as of `partition`: every subject is in the test split of exactly one.

    `val_percent` is the share of the subjects outside the test split that validate; None takes the next fold's test
    subjects instead, which needs 3 folds. Raises InputError for impossible numbers, or a class that would be missing,
    unless `allow_one_class` and the table has just one.
    """
    if count < (3 if val_percent is None else 2):
        raise InputError(f"{count} folds: expected at least 3, or 2 with --fold-validation share")
    classes = _classes(frame, allow_one_class)
    homes = place_rows(frame, np.full(count, 1 / count), rng(seed, "folds", count))
    found = []
    for fold in range(count):
        if val_percent is None:
            places = np.select([homes == fold, homes == (fold + 1) % count], [_TEST, _VAL], default=_TRAIN)
        else:
            draw = rng(seed, "fold-validation", count, fold)
            places = _train_and_val(frame, homes != fold, homes == fold, val_percent, draw)
        found.append(_divided(frame, places))
    named = {f"fold {k} {name}": rows for k, splits in enumerate(found) for name, rows in splits.items()}
    _refuse_missing_class(named, classes)
    return found


def hold_out(
    frame: pd.DataFrame,
    wanted: Sequence[Sequence[str]],
    *,
    val_percent: float,
    seed: int,
    allow_one_class: bool = False,
    leave_out_shared: bool = False,
) -> list[tuple[dict[str, pd.DataFrame], pd.DataFrame]]:
    """All scans of some sites for test, the others divided into training and validation; once per set of sites.

    `wanted` are sets of sites that are tested together; every scan has a site, and `val_percent` of the other sites'
    subjects validate (above 0, below 100). `allow_one_class` accepts sites with patients only or controls only, on
    which no AUC can be computed. Subjects and groups (copies included) of a held-out site with scans at another one
    would be a leak: they are refused, or with `leave_out_shared` those other scans are left out of all splits.

    Returns for each set the splits, and the scans that were left out. InputError names what is refused of all sets.
    """
    classes = _classes(frame, allow_one_class)
    known, units = site_names(frame), tied(frame["subject"], frame["group"])
    problems, chosen = [], []
    for sites in wanted:
        there = frame["site"].isin(sites).to_numpy()
        shared = np.isin(units, units[there]) & ~there  # elsewhere, and tied to the site by a subject or a group
        chosen.append((there, shared))
        problems += [
            f"site {site} is not in the table, which has {', '.join(known)}" for site in sites if site not in known
        ]
        if not there.any():
            continue
        name, found = ", ".join(sites), frame.loc[there, "label"].unique()
        if not (~there & ~shared).any():
            problems.append(f"{name}: no scan of another site is left to train on")
        if len(found) < len(CLASS_NAMES) and not allow_one_class:
            problems.append(f"{name}: only {CLASS_NAMES[found[0]]}, nothing can be told apart; or --allow-one-class")
        if not leave_out_shared:
            problems += [
                f"{name}: subject {row.subject} (group {row.group}) has a scan at {row.site}; or --leave-out-shared"
                for row in frame[shared].itertuples()
            ]
    if problems:
        raise InputError.of("these sites cannot be held out", problems)
    found = []
    for sites, (there, shared) in zip(wanted, chosen, strict=True):
        draw = rng(seed, "holdout-site " + "\n".join(sorted(set(sites))))
        splits = _divided(frame, _train_and_val(frame, ~there & ~shared, there, val_percent, draw))
        _refuse_missing_class({name: splits[name] for name in ("train", "val")}, classes)
        found.append((splits, frame[shared].reset_index(drop=True)))
    return found


def site_names(frame: pd.DataFrame) -> list[str]:
    """The sites of a table, sorted; raises InputError where a scan has none, since it may come from any of them."""
    missing = [f"subject {row.subject}: {row.file}" for row in frame[frame["site"] == ""].itertuples()]
    if missing:
        raise InputError.of("scans without a site: no site can be held out; name it in the column site", missing)
    return sorted(set(frame["site"]))


def refuse_shared(splits: Mapping[str, pd.DataFrame]) -> None:
    """Raises InputError if a subject, a group or a file is in two of the tables; names each."""
    everything = pd.concat([frame.assign(split=name) for name, frame in splits.items()])
    problems = []
    for column in ("subject", "group", "file"):
        homes = everything.drop_duplicates([column, "split"])
        twice = homes[homes.duplicated(column, keep=False)].groupby(column)["split"]
        problems += [f"{column} {value} is in {' and '.join(names)}" for value, names in twice]
    if problems:
        raise InputError.of("the splits are not apart", problems)


def _divided(frame: pd.DataFrame, places: np.ndarray) -> dict[str, pd.DataFrame]:
    """The three splits of a table, checked to be apart; `places` (rows,) is an index into SPLITS, or _NOWHERE."""
    splits = {name: frame[places == number].reset_index(drop=True) for number, name in enumerate(SPLITS)}
    refuse_shared(splits)
    return splits


def _classes(frame: pd.DataFrame, allow_one_class: bool) -> list[int]:
    """The class codes that every split must have; InputError where a table has one class and that is not allowed."""
    found = sorted(set(frame["label"]))
    if len(found) < len(CLASS_NAMES) and not allow_one_class:
        names = ", ".join(CLASS_NAMES[code] for code in found)
        raise InputError(
            f"the table has only {names}: no classifier can be trained or tested on it; --allow-one-class divides it "
            "for the VAE (which has the same flag)"
        )
    return found if allow_one_class else list(range(len(CLASS_NAMES)))


def _refuse_missing_class(splits: Mapping[str, pd.DataFrame], classes: Sequence[int]) -> None:
    problems = [
        f"{name} would have no {CLASS_NAMES[code]}"
        for name, frame in splits.items()
        for code in np.setdiff1d(classes, frame["label"])
    ]
    if problems:
        raise InputError.of("too few subjects (or groups) of a class for so many splits", problems)


def _train_and_val(
    frame: pd.DataFrame, rest: np.ndarray, test: np.ndarray, val_percent: float, draw: np.random.Generator
) -> np.ndarray:
    """int (rows,): places, with the rows of `rest` divided between training and validation."""
    if not 0 < val_percent < 100:
        raise InputError(f"val-percent {val_percent:g}: expected above 0 and below 100")
    places = np.full(len(frame), _NOWHERE)
    places[test] = _TEST
    places[rest] = place_rows(frame[rest], [1 - val_percent / 100, val_percent / 100], draw)
    return places
