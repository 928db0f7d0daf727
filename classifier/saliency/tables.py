"""What a set of maps amounts to: rankings of regions, sides, agreement between methods and origins, as tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pandas as pd

from classifier.saliency.regions import Relevance, agreement, lateralisation, rank_regions
from cohort.atlas import Atlas
from runtime import seeding


@dataclass
class Maps:
    """What is kept of the maps of one method and origin; the maps themselves stay on disk."""

    relevance: Relevance
    sums: dict[str, np.ndarray] = field(default_factory=dict)
    """float64 (D, H, W), summed maps by group."""
    counts: dict[str, int] = field(default_factory=dict)
    """Maps by group."""
    errors: list[float] = field(default_factory=list)
    """How far each map is from complete, in logits; for the methods that promise it."""

    def add(self, map_: np.ndarray, groups: list[str], error: float | None) -> None:
        """Takes in one map (D, H, W) of a case in these groups."""
        for group in groups:
            self.sums[group] = self.sums.get(group, 0.0) + map_.astype(np.float64)
            self.counts[group] = self.counts.get(group, 0) + 1
        self.errors += [] if error is None else [error]


Found = dict[tuple[str, str], Maps]
"""Maps by (method, origin)."""


def ranking(found: Found, regions: Atlas, resamples: int, seed: int) -> pd.DataFrame:
    """`regions.rank_regions` of every method and origin."""
    return _join(found, lambda part: rank_regions(part, regions, seeding.rng(seed, "regions"), resamples))


def sides(found: Found, regions: Atlas, resamples: int, seed: int) -> pd.DataFrame:
    """`regions.lateralisation` of every method and origin."""
    return _join(found, lambda part: lateralisation(part, regions, seeding.rng(seed, "sides"), resamples))


def agreements(found: Found, resamples: int, seed: int) -> pd.DataFrame:
    """Rank correlations between origins (of one method) and between methods (of one origin), one row each."""
    rows = []
    for (name_a, a), (name_b, b) in combinations(found.items(), 2):
        same_method, same_origin = name_a[0] == name_b[0], name_a[1] == name_b[1]
        if same_method == same_origin:
            continue
        between = "origins" if same_method else "methods"
        for quantity, cell in agreement(a.relevance, b.relevance, seeding.rng(seed, "agreement"), resamples).items():
            rows.append((between, *name_a, *name_b, quantity, cell["value"], cell["low"], cell["high"]))
    columns = ("between", "method_a", "origin_a", "method_b", "origin_b", "quantity", "spearman", "low", "high")
    return pd.DataFrame(rows, columns=list(columns))


def group_counts(found: Found) -> pd.DataFrame:
    """How many volumes are behind each mean map: origin, group, volumes (the same for every method)."""
    counts = {origin: maps.counts for (_, origin), maps in found.items()}
    rows = [(origin, group, number) for origin, part in counts.items() for group, number in sorted(part.items())]
    return pd.DataFrame(rows, columns=["origin", "group", "volumes"])


def _join(found: Found, table_of: Callable[[Relevance], pd.DataFrame]) -> pd.DataFrame:
    """One table below the other, with the columns method and origin in front."""
    tables = {names: table_of(maps.relevance) for names, maps in found.items()}
    for (method, origin), table in tables.items():
        table.insert(0, "method", method)
        table.insert(1, "origin", origin)
    return pd.concat(tables.values(), ignore_index=True)
