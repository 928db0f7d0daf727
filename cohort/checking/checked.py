"""Scans examined and compared once: a cache of results keyed by content, and the check that training scripts run.

Any number of processes may share the cache: every entry is named by what it was computed from and written whole. It may
be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from tqdm import tqdm

from cohort.checking import duplicates, thumbnail
from cohort.checking import faults as scan_faults
from cohort.checking.faults import Examination, examine
from cohort.decoding import RefusedError, ending_of, refuse_absent
from cohort.scans import PIPELINE
from cohort.stacks import ScanStack
from runtime.errors import InputError
from runtime.files import ROOT, atomic_write, sha256, write_json

CACHE_DIR = ROOT / "data" / "cache" / "checked"


@dataclass(frozen=True)
class Examined:
    """A scan that can be read, and where its thumbnail lies."""

    examination: Examination
    entry: Path

    def thumbnail(self) -> np.ndarray:
        """uint8 `cohort.checking.thumbnail.SHAPE`."""
        with np.load(self.entry, allow_pickle=False) as stored:
            return stored["thumbnail"]


@dataclass(frozen=True)
class Match:
    """Two images, by their keys, that are one."""

    first: str
    second: str
    correlation: float
    """At 4 mm; see `cohort.checking.duplicates`."""
    mirrored: bool


def examine_all(files: Sequence[Path | str], cache_dir: Path = CACHE_DIR) -> list[Examined | InputError]:
    """Examines scans through the cache, in the order of `files`; for those that are refused, why.

    Raises:
        InputError: the cache cannot be written.
    """
    # Threads, not processes: hashing, inflating, filtering and interpolating all release the interpreter's lock.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        try:
            outcomes = pool.map(lambda file: _refusal_or_examined(Path(file), cache_dir), files)
            return list(tqdm(outcomes, desc="examining", unit="scan", total=len(files), delay=1))
        except OSError as error:  # reading was guarded, so this is the cache
            raise _no_cache(cache_dir, error) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _refusal_or_examined(path: Path, cache_dir: Path) -> Examined | InputError:
    try:
        return _examined(path, cache_dir)
    except InputError as refusal:
        return refusal


def _examined(path: Path, cache_dir: Path) -> Examined:
    try:
        # The ending is a part of the name: the same bytes under a false ending are refused, not found in the cache.
        ending = ending_of(path)
        refuse_absent(path)
        digest = sha256(path)
    except (RefusedError, OSError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    version = f"{scan_faults.VERSION}.{thumbnail.VERSION}"
    entry = cache_dir / "scans" / f"{digest[:32]}{ending}-{version}.npz"
    if (known := _stored(entry)) is None:
        known, picture = examine(path)
        with atomic_write(entry) as temporary, temporary.open("wb") as file:
            np.savez(file, thumbnail=picture, examination=np.array(json.dumps(known.to_dict())))
    return Examined(known, entry)


def _stored(entry: Path) -> Examination | None:
    """A cached examination; None where there is none, or a part of one."""
    try:
        with np.load(entry, allow_pickle=False) as stored:
            whole = stored["thumbnail"].shape == thumbnail.SHAPE
            return Examination.from_dict(json.loads(str(stored["examination"]))) if whole else None
    except (OSError, ValueError, EOFError, KeyError, TypeError, BadZipFile):
        return None


def _no_cache(cache_dir: Path, error: OSError) -> InputError:
    return InputError(f"{cache_dir}: the cache of checked scans cannot be written: {error.strerror or error}")


@dataclass(frozen=True)
class Matches:
    """The outcome of a search, and the correlations at 8 mm and at 4 mm that had to be exceeded in this cohort."""

    pairs: tuple[Match, ...]
    coarse_threshold: float
    fine_threshold: float


def search(
    keys: Sequence[str],
    groups: Sequence[str],
    thumbnail_of: Callable[[int], np.ndarray],
    cache_dir: Path = CACHE_DIR,
) -> Matches:
    """`cohort.checking.duplicates.find_pairs` through the cache.

    Args:
        keys: per row, a name for the image's content; rows that share one are compared as one image.
        groups: per row, whose scan it is.
        thumbnail_of: the thumbnail of a row.
        cache_dir: where results are kept, each under a hash of all keys and groups.

    Raises:
        InputError: the cache cannot be written.
    """
    order = sorted(range(len(keys)), key=lambda row: (keys[row], groups[row]))
    listed = [[keys[row], groups[row]] for row in order]
    version = [duplicates.VERSION, thumbnail.VERSION, PIPELINE]
    name = hashlib.sha256(json.dumps([version, listed]).encode()).hexdigest()[:32]
    entry = cache_dir / "searches" / f"{name}.json"
    if (known := _stored_search(entry)) is not None:
        return known
    rows = [row for place, row in enumerate(order) if place == 0 or keys[row] != keys[order[place - 1]]]
    found = duplicates.find_pairs(lambda place: thumbnail_of(rows[place]), [groups[row] for row in rows])
    pairs = tuple(
        Match(keys[rows[pair.first]], keys[rows[pair.second]], round(pair.correlation, 4), pair.mirrored)
        for pair in found.pairs
    )
    matches = Matches(pairs, round(found.coarse_threshold, 4), round(found.fine_threshold, 4))
    try:
        write_json(entry, asdict(matches))
    except OSError as error:
        raise _no_cache(cache_dir, error) from None
    return matches


def _stored_search(entry: Path) -> Matches | None:
    try:
        values = json.loads(entry.read_text(encoding="utf-8"))
        return Matches(**{**values, "pairs": tuple(Match(**pair) for pair in values["pairs"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


@dataclass(frozen=True)
class Copies:
    """Copies of scans under different groups, one line each, naming splits, subjects, files and the likeness."""

    across: tuple[str, ...]
    """Between two splits: a leak, which the caller says in its result."""
    within: tuple[str, ...]
    """Within one split: no leak, but one person counted twice."""


def refuse_duplicates(
    stacks: Mapping[str, ScanStack], *, allow_leak: bool = False, cache_dir: Path = CACHE_DIR
) -> Copies:
    """Refuses splits of which one holds a copy, or a mirrored or altered copy, of a scan of another.

    To be called by a script that trains, once its scans are loaded; the second time on the same scans it reads one
    small file. Rows marked as synthetic (a column `synthetic`) are left out: copies of training scans among them are
    what the audit of memorisation looks for.

    Args:
        stacks: the scans of each split, by its name, on one grid.
        allow_leak: go on in spite of copies across splits.
        cache_dir: where thumbnails and results are kept.

    Returns:
        The copies that were found; `across` is empty unless they were allowed.

    Raises:
        InputError: copies across splits that were not allowed; or the cache cannot be written.
    """
    frames = [_real_rows(stack).assign(split=name) for name, stack in stacks.items()]
    frame = pd.concat(frames, ignore_index=True)
    keys, groups = frame["key"].tolist(), frame["group"].tolist()

    def thumbnail_of(row: int) -> np.ndarray:
        stack, place = stacks[frame["split"].iloc[row]], int(frame["place"].iloc[row])
        entry = cache_dir / "thumbnails" / f"{stack.volumes.files[place].stem}-{thumbnail.VERSION}.npy"
        return _stack_thumbnail(stack, place, entry)

    try:
        matches = search(keys, groups, thumbnail_of, cache_dir)
    except OSError as error:
        raise _no_cache(cache_dir, error) from None
    across, within = [], []
    for first, second, match in paired_rows(keys, groups, matches.pairs):
        one, other = frame.iloc[first], frame.iloc[second]
        (within if one["split"] == other["split"] else across).append(
            f"{_words(one)} and {_words(other)}: {likeness(match)}"
        )
    if across and not allow_leak:
        raise InputError.of(
            "the splits share scans under different names; put them into one group and split again "
            "(python -m cohort.check writes groups.csv), or give --allow-leak",
            across,
        )
    return Copies(tuple(across), tuple(within))


def _real_rows(stack: ScanStack) -> pd.DataFrame:
    """Subject, group, file, key and place in the stack of the rows that are not synthetic."""
    frame = stack.frame[["subject", "group", "file"]].assign(key=stack.hashes, place=range(len(stack)))
    made = stack.frame.get("synthetic", pd.Series(False, index=stack.frame.index)).to_numpy(dtype=bool)
    return frame[~made]


def _words(row: pd.Series) -> str:
    return f"{row['split']}: {row['subject']} ({row['file']})"


def _stack_thumbnail(stack: ScanStack, place: int, entry: Path) -> np.ndarray:
    """The thumbnail of a loaded scan, through the cache."""
    try:
        picture = np.load(entry, allow_pickle=False)
        if picture.shape == thumbnail.SHAPE and picture.dtype == np.uint8:
            return picture
    except (OSError, ValueError, EOFError):
        pass  # absent or cut short: made below
    picture = thumbnail.thumbnail(np.asarray(stack.volumes[place]), stack.grid.affine)
    with atomic_write(entry) as temporary:
        np.save(temporary, picture, allow_pickle=False)
    return picture


def paired_rows(
    keys: Sequence[str], groups: Sequence[str], matches: Sequence[Match]
) -> list[tuple[int, int, Match | None]]:
    """All pairs of rows of different groups that are one image, in the order of the rows.

    Args:
        keys: per row, the name of its image.
        groups: per row, whose scan it is.
        matches: images that are one (`search`).

    Returns:
        (row, later row, match); no match where the two have the same key.
    """
    rows_of: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        rows_of.setdefault(key, []).append(row)
    same = [(one, other, None) for rows in rows_of.values() for one, other in combinations(rows, 2)]
    alike = [
        (*sorted((one, other)), match)
        for match in matches
        for one in rows_of.get(match.first, [])
        for other in rows_of.get(match.second, [])
    ]
    pairs = sorted([*same, *alike], key=lambda pair: pair[:2])
    return [pair for pair in pairs if groups[pair[0]] != groups[pair[1]]]


def likeness(match: Match | None) -> str:
    """How alike two rows are, in words."""
    if match is None:
        return "the same image"
    return f"correlation {match.correlation:.3f}{', left and right exchanged' if match.mirrored else ''}"
