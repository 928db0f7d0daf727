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


def tables_of(found: dict[tuple[str, str], Maps], regions: Atlas, resamples: int, seed: int) -> dict[str, pd.DataFrame]:
    """The tables of maps by (method, origin): `region_ranking`, `lateralisation`, `agreement` and `groups`.

    Agreement is between origins (of one method) and between methods (of one origin); groups are the volumes behind each
    mean map, the same for every method.
    """

    def joined(table_of: Callable, purpose: str) -> pd.DataFrame:
        tables = {pair: table_of(maps.relevance, regions, seeding.rng(seed, purpose), resamples)
                  for pair, maps in found.items()}  # fmt: skip
        return pd.concat(tables, names=["method", "origin", "row"]).reset_index(["method", "origin"])

    agreements = []
    for ((method_a, origin_a), a), ((method_b, origin_b), b) in combinations(found.items(), 2):
        if (method_a == method_b) == (origin_a == origin_b):
            continue
        between = "origins" if method_a == method_b else "methods"
        cells = agreement(a.relevance, b.relevance, seeding.rng(seed, "agreement"), resamples)
        agreements += [
            (between, method_a, origin_a, method_b, origin_b, quantity, *cell.values())
            for quantity, cell in cells.items()
        ]
    columns = ("between", "method_a", "origin_a", "method_b", "origin_b", "quantity", "spearman", "low", "high")
    counts = {origin: maps.counts for (_, origin), maps in found.items()}
    groups = [(origin, group, number) for origin, part in counts.items() for group, number in sorted(part.items())]
    return {
        "region_ranking": joined(rank_regions, "regions"),
        "lateralisation": joined(lateralisation, "sides"),
        "agreement": pd.DataFrame(agreements, columns=list(columns)),
        "groups": pd.DataFrame(groups, columns=["origin", "group", "volumes"]),
    }
