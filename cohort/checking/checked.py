"""Scans examined and compared once: a cache of results keyed by content, and the searches for copies that use it.

Any number of processes may share the cache: every entry is named by what it was computed from and written whole. It may
be deleted at any time.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cohort.checking import duplicates
from cohort.checking import faults as scan_faults
from cohort.checking.duplicates import Pair, Search
from cohort.checking.faults import Examination, examine
from cohort.decoding import ending_and_hash, of_each
from cohort.scans import PIPELINE
from runtime.errors import InputError
from runtime.files import ROOT, atomic_write

CACHE_DIR = ROOT / "data" / "cache" / "checked"


class Examined(NamedTuple):
    """A scan that can be read, and where its thumbnail lies."""

    examination: Examination
    entry: Path

    def thumbnail(self) -> np.ndarray:
        with np.load(self.entry, allow_pickle=False) as stored:
            return stored["thumbnail"]


def examine_all(files: Sequence[str], cache_dir: Path = CACHE_DIR) -> list[Examined | InputError]:
    """Examines scans through the cache, in the order of `files`; for those that are refused, why."""
    return of_each(files, lambda path: _examined(path, cache_dir), cache_dir, "examining")


def _examined(path: Path, cache_dir: Path) -> Examined:
    ending, digest = ending_and_hash(path)
    version = f"{scan_faults.VERSION}.{duplicates.THUMBNAIL_VERSION}"
    entry = cache_dir / "scans" / f"{digest[:32]}{ending}-{version}.npz"
    if (known := _stored(entry)) is None:
        known, picture = examine(path)
        with atomic_write(entry) as temporary, temporary.open("wb") as file:
            np.savez(file, thumbnail=picture, examination=np.array(json.dumps(asdict(known))))
    return Examined(known, entry)


def _stored(entry: Path) -> Examination | None:
    """A cached examination; None where there is none, or a part of one."""
    try:
        with np.load(entry, allow_pickle=False) as stored:
            whole = stored["thumbnail"].shape == duplicates.SHAPE
            return Examination(**json.loads(str(stored["examination"]))) if whole else None
    except (OSError, ValueError, EOFError, KeyError, TypeError, BadZipFile):
        return None


def search(
    keys: Sequence[str], groups: Sequence[str], thumbnail_of: Callable[[int], np.ndarray], cache_dir: Path
) -> Search:
    """All pairs of rows of different groups that are one image (`find_pairs`, through the cache), in order.

    Rows that share a key (a name for the image's content) are one image without being compared. Results are kept under
    a hash of all keys and groups.
    """
    found = _compared(keys, groups, thumbnail_of, cache_dir)
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        rows_of[key].append(row)
    pairs = [Pair(*rows, None, False) for same in rows_of.values() for rows in combinations(same, 2)]
    pairs += [
        Pair(min(first, second), max(first, second), correlation, mirrored)
        for key, other_key, correlation, mirrored in found["pairs"]
        for first in rows_of[key]
        for second in rows_of[other_key]
    ]
    pairs = sorted((pair for pair in pairs if groups[pair.first] != groups[pair.second]), key=lambda pair: pair[:2])
    return Search(tuple(pairs), found["coarse_threshold"], found["fine_threshold"])


def _compared(
    keys: Sequence[str], groups: Sequence[str], thumbnail_of: Callable[[int], np.ndarray], cache_dir: Path
) -> dict:
    """`find_pairs` of the distinct images, by their keys: `pairs` [key, key, correlation, mirrored] and thresholds."""
    order = sorted(range(len(keys)), key=lambda row: (keys[row], groups[row]))
    listed = [[keys[row], groups[row]] for row in order]
    version = [duplicates.VERSION, duplicates.THUMBNAIL_VERSION, PIPELINE]
    name = hashlib.sha256(json.dumps([version, listed]).encode()).hexdigest()[:32]
    entry = cache_dir / "searches" / f"{name}.json"
    try:
        return json.loads(entry.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        pass  # absent or cut short: made below
    rows = [row for place, row in enumerate(order) if place == 0 or keys[row] != keys[order[place - 1]]]
    pairs, coarse, fine = duplicates.find_pairs(lambda place: thumbnail_of(rows[place]), [groups[row] for row in rows])
    result = {
        "pairs": [[keys[rows[pair[0]]], keys[rows[pair[1]]], round(pair[2], 4), pair[3]] for pair in pairs],
        "coarse_threshold": round(coarse, 4),
        "fine_threshold": round(fine, 4),
    }
    try:
        with atomic_write(entry) as temporary:
            temporary.write_text(json.dumps(result), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{cache_dir}: the cache cannot be written: {error.strerror or error}") from None
    return result


def _copies(frame: pd.DataFrame, cache_dir: Path) -> tuple[Pair, ...]:
    """The pairs of a table's scans, read as they are in their files; InputError that lists what cannot be read."""
    scans = examine_all(frame["file"].tolist(), cache_dir)
    unreadable = [str(result) for result in scans if isinstance(result, InputError)]
    if unreadable:
        raise InputError.of("scans that cannot be read; cohort.check reports all that is wrong with them", unreadable)
    images = [scan.examination.image for scan in scans]
    return search(images, frame["group"].tolist(), lambda row: scans[row].thumbnail(), cache_dir).pairs


def find_copies(frame: pd.DataFrame, cache_dir: Path = CACHE_DIR) -> list[str]:
    """Reads every scan of a table to be split and compares each with every other one of another `group`.

    Returns:
        Per row, the name of a set of copies (equal, mirrored, re-sampled or otherwise altered); empty for none. The
        sets do not depend on the order of the rows.
    """
    names = name_sets(frame["subject"].tolist(), _copies(frame, cache_dir))
    return [f"copies of {name}" if name else "" for name in names]


def name_sets(names: Sequence[str], pairs: Sequence[Pair]) -> list[str]:
    """Per row, the smallest name in the set that pairs join it to; empty where it is in no pair."""
    ends = np.array([pair[:2] for pair in pairs], dtype=int).reshape(-1, 2)
    edges = coo_array((np.ones(len(ends)), ends.T), shape=(len(names), len(names)))
    rows = pd.Series(names, dtype=object).groupby(connected_components(edges, directed=False)[1])
    return rows.transform("min").where(rows.transform("size") > 1, "").tolist()


class Copies(NamedTuple):
    """Copies of scans under different groups, one line each, naming splits, subjects, files and the likeness."""

    across: tuple[str, ...]
    """Between two splits: a leak, which the caller says in its result."""
    within: tuple[str, ...]
    """Within one split: no leak, but one person counted twice."""


def refuse_duplicates(
    frames: Mapping[str, pd.DataFrame], *, allow_leak: bool = False, cache_dir: Path = CACHE_DIR
) -> Copies:
    """Refuses splits of which one holds a copy, or a mirrored or altered copy, of a scan of another.

    Rows marked as synthetic (a column `synthetic`) are left out: copies of training scans among them are what the audit
    of memorisation looks for. `frames` are the splits' tables, by name; with `allow_leak` the copies are only returned.
    """
    frame = pd.concat([frame.assign(split=name) for name, frame in frames.items()], ignore_index=True)
    if "synthetic" in frame:
        frame = frame[~frame["synthetic"].eq(True)].reset_index(drop=True)
    texts = (frame["split"] + ": " + frame["subject"] + " (" + frame["file"] + ")").tolist()
    across, within = [], []
    for pair in _copies(frame, cache_dir):
        same_split = frame["split"].iloc[pair.first] == frame["split"].iloc[pair.second]
        text = f"{texts[pair.first]} and {texts[pair.second]}: {pair.likeness}"
        (within if same_split else across).append(text)
    if across and not allow_leak:
        raise InputError.of(
            "the splits share scans under different names; put them into one group and split again "
            "(python -m cohort.check writes groups.csv), or give --allow-leak",
            across,
        )
    return Copies(tuple(across), tuple(within))
