"""The two ways to lay a real head on the template and find its brain, beside one another and beside the head's labels.

    python -m benchmarks.brain_masks --participants heads.csv

`cohort.prepare` takes a brain by deepbet first, and the whole head with the template's brain carried back where the
first fails; here both are done for every head. Heads need region labels (a column `labels`, codes of
Neuromorphometrics). Only figures over heads are kept: the result names nobody.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.real_cohort import CODES, JUDGED, against_labels, labels_of, span
from benchmarks.timing import expect, print_table
from cohort.grids import GRIDS
from cohort.preparation.participants import list_scans
from cohort.preparation.steps import by_brain, by_head, read_scan, working_copy
from cohort.scans import fill_holes
from cohort.simulation.volunteers import usable, with_volumes
from runtime.cli import describe, run_script
from runtime.config import ScriptConfig
from runtime.device import pick_device
from runtime.errors import InputError
from runtime.files import ROOT, write_json
from runtime.runs import environment

GRID = GRIDS["2mm"]
"""The grid whose field of view a scan must reach; neither way depends on it otherwise."""
WAYS = {"brain first": by_brain, "whole head": by_head}
"""What cohort.preparation.steps does, in the order in which it does it."""
BEYOND = "beyond the labels, ml"
SECONDS = "processor time, s"


@dataclass(frozen=True)
class MasksConfig(ScriptConfig):
    participants: Path
    """Table of heads with region labels."""
    out: Path = ROOT / "benchmarks/brain_masks.json"
    """The JSON file of the figures."""


def main(config: MasksConfig) -> None:
    """Every head both ways; a head that a way refuses counts as refused by it."""
    people = list_scans(config.participants).there()
    labelled, unusable = usable(with_volumes(people, config.participants.parent, CODES))
    expect(minutes=len(labelled) * 0.45)
    found: dict[str, list[list[float]]] = {name: [] for name in WAYS}
    refused = dict.fromkeys(WAYS, 0)
    for person in tqdm(list(labelled.itertuples()), desc="heads", unit="head"):
        for name, one in both_ways(person).items():
            if one is None:
                refused[name] += 1
            else:
                found[name].append(one)
    rows = table(found)
    heads = {"heads": len(people), "labels not usable": len(unusable), "refused": refused}
    write_json(config.out, {"environment": environment(pick_device()), **heads, "table": rows})
    print(heads)
    print_table(rows)


def both_ways(person: Any) -> dict[str, list[float] | None]:
    """The measures JUDGED, BEYOND and SECONDS of one head, by the name of the way; None where a way has no result."""
    scan, _ = read_scan(person.file, GRID)
    labels, affine = labels_of(person)
    outside, ml = ~fill_holes(labels > 0), abs(np.linalg.det(affine[:3, :3])) / 1000
    measured: dict[str, list[float] | None] = {}
    for name, way in WAYS.items():
        begun = time.process_time()
        try:
            space = way(working_copy(scan), None)
        except InputError:
            measured[name] = None
            continue
        seconds = time.process_time() - begun
        brain = space.brain.onto(affine, labels.shape) > 0.5
        beyond = float((brain & outside).sum() * ml)
        measured[name] = [*against_labels(space.matrix, brain, labels, affine), beyond, seconds]
    return measured


def table(found: dict[str, list[list[float]]]) -> list[dict[str, object]]:
    """A row for each measure: what is wanted, and for each way the median, the range and how many heads are beyond."""
    rows: list[dict[str, object]] = []
    for place, title in enumerate((*JUDGED, BEYOND, SECONDS)):
        low, high = JUDGED.get(title, (-np.inf, np.inf))
        row: dict[str, object] = {"measure": title, "wanted": f"{low:g} to {high:g}" if title in JUDGED else "-"}
        for name, heads in found.items():
            values = np.array([head[place] for head in heads])
            row[name], row[f"{name}, beyond"] = span(values), int(((values < low) | (values > high)).sum())
        rows.append(row)
    return rows


if __name__ == "__main__":
    run_script(main, MasksConfig, description=describe(__doc__))
