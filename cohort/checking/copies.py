"""Which scans of a table are one image under different names: the search of cohort.check, for a table to be split."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd

from cohort.checking.checked import CACHE_DIR, Examined, examine_all, paired_rows, search
from cohort.checking.duplicates import join
from runtime.errors import InputError


def find_copies(frame: pd.DataFrame, cache_dir: Path = CACHE_DIR) -> list[str]:
    """Reads every scan and compares each with every other one, through the cache.

    Args:
        frame: a table; scans of one `group` are expected to be alike and are not compared.
        cache_dir: where results are kept; may be shared by processes.

    Returns:
        Per row, the name of a set of copies (equal, mirrored, re-sampled or otherwise altered); empty for none. The
        sets do not depend on the order of the rows.

    Raises:
        InputError: scans that cannot be read, each with its reason; or the cache cannot be written.
    """
    results = examine_all(frame["file"].tolist(), cache_dir)
    unreadable = [str(result) for result in results if isinstance(result, InputError)]
    if unreadable:
        raise InputError.of("scans that cannot be read; cohort.check reports all that is wrong with them", unreadable)
    scans: list[Examined] = results
    images, groups = [scan.examination.image for scan in scans], frame["group"].tolist()
    matches = search(images, groups, lambda row: scans[row].thumbnail(), cache_dir)
    roots = join(len(scans), [pair[:2] for pair in paired_rows(images, groups, matches.pairs)])
    sizes = Counter(roots.tolist())
    names = frame["subject"].groupby(roots).transform("min")
    return [f"copies of {name}" if sizes[root] > 1 else "" for name, root in zip(names, roots.tolist(), strict=True)]
