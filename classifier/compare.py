"""Compares classifier runs, or arms of runs over seeds and folds, on the same held-out subjects.

    python -m classifier.compare runs/demo/real runs/demo/real_and_synthetic --out runs/demo/comparison.json
    python -m classifier.compare --arms runs/demo/arms --reference real --out runs/demo/arms.json --figures runs/demo

Reads predictions.csv and results.json of each run; prints a table, and with --out writes it as JSON and CSV. The first
run, or the arm named by --reference, is what the others are held against. The measures of an arm are means over its
folds and training seeds; their intervals come from one bootstrap that resamples subjects and, within, seeds, with the
same draws in all arms. Areas are compared by that bootstrap (the primary test) and by DeLong's test of seed-averaged
probabilities (other subjects, the same networks), right and wrong answers by McNemar's exact test; Holm corrects each
test over the comparisons. The verdict holds the 90 % interval of the difference of areas against --margin.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import tyro

from classifier.measures import figures
from classifier.measures.comparison import Comparison, against_volumes, compare_arms
from classifier.measures.metrics import MEASURES
from classifier.measures.resampling import cell_text, draws_of
from classifier.measures.runs import ArmRuns, arms_of, single_runs
from cohort.anatomy.volume_tables import KnownVolumes
from cohort.tables import write_csv
from runtime.cli import describe, run_script
from runtime.config import ScriptConfig
from runtime.errors import InputError
from runtime.files import write_json


@dataclass(frozen=True)
class CompareConfig(KnownVolumes, ScriptConfig):
    """What to compare."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run folders of classifier.train; the first is the reference."""
    arms: Path | None = None
    """Instead of run folders: the folder of classifier.run_arms, with <arm>/seed<S>_fold<F> in it."""
    reference: str = "real"
    """With --arms: the arm that the others are held against."""
    margin: float = 0.05
    """Largest difference of areas that does not matter, for the verdicts; to be stated before looking."""
    train_csv: tuple[Path, ...] = ()
    """With --volumes, which also hold every arm against a regression on them: the tables of the training scans."""
    resamples: int = 2000
    """Bootstrap resamples of subjects and seeds for the intervals."""
    seed: int = 0
    """Seed of the bootstrap."""
    out: Path | None = None
    """Write the comparison to this JSON file, and the tables beside it as CSV."""
    figures: Path | None = None
    """Write figures to this folder: roc, reliability, confusion, differences (PNG)."""


def main(config: CompareConfig) -> None:
    """Reads, tests, prints, writes, draws."""
    _check(config)
    known = config.known_volumes()
    runs = single_runs(config.runs) if config.arms is None else arms_of(config.arms, config.reference)
    draws = draws_of(runs, config.resamples, config.seed)
    found = compare_arms(runs, draws, margin=config.margin)
    volumes = against_volumes(runs, draws, found.areas, known, config.train_csv) if known else None
    print(*_head_lines(runs), *_row_lines(found), sep="\n")
    for test in found.tests:
        print(TEST_TEXT.format(**{**test, "leak": test["leak"] * "  LEAK ALLOWED"}))
    if volumes:
        print(*_volumes_lines(volumes), sep="\n")
    if config.out is not None:
        _write(config, runs, found, volumes)
    if config.figures is not None:
        config.figures.mkdir(parents=True, exist_ok=True)
        figures.roc(config.figures / "roc.png", figures.roc_bands(runs, draws), found.rows)
        figures.reliability(config.figures / "reliability.png", figures.reliabilities(runs), found.rows)
        figures.confusion(config.figures / "confusion.png", found.rows)
        figures.differences(config.figures / "differences.png", found.tests)


def _check(config: CompareConfig) -> None:
    faults = {
        "give run folders or --arms, not both": config.arms and config.runs,
        f"--margin {config.margin}: a difference of areas above 0": config.margin <= 0,
        f"--resamples {config.resamples}: at least 20": config.resamples < 20,
        "--volumes and --train-csv go together": (config.volumes is None) != (not config.train_csv),
    }
    if problems := [text for text, found in faults.items() if found]:
        raise InputError.of("the configuration contradicts itself", problems)


def _head_lines(runs: ArmRuns) -> list[str]:
    seeds, folds = len(runs.seeds), len(runs.folds)
    about = "subjects and training seeds" if seeds > 1 else "subjects; they say nothing about another training seed"
    size = f"{runs.subjects} test subjects, folds {folds}, training seeds {seeds}"
    head = f"{len(runs.arms)} runs: {size}; 95 % intervals over {about}"
    return [head, *(f"left out: {what}" for what in runs.left_out)]


def _row_lines(found: Comparison) -> list[str]:
    """The measures of every arm, and the baselines of the reference."""
    lines = []
    for row in found.rows:
        trained = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in row["counts"].items() if number)
        lines.append(f"{row['run']}  (trained on {trained}){row['leak'] * '  LEAK ALLOWED'}")
        texts = {name: cell_text(row["metrics"][name]) for name in MEASURES}
        texts["auc by training seed"] = ", ".join(f"{value:.3f}" for value in row["auc_by_seed"].values())
        texts |= {name.replace("_", " "): cell_text(found) for name, found in row["parts"].items()}
        lines += [f"    {name:24s}{text}" for name, text in texts.items()]
    lines.append(f"baselines beside {found.rows[0]['run']}, AUC:")
    lines += [f"    {name:24s}{auc:.3f}" for name, auc in found.rows[0]["baselines"].items()]
    if index := found.rows[0]["asymmetry_index"]:
        lines.append(f"asymmetry index of the hippocampi beside {found.rows[0]['run']}:")
    return lines + [f"    {name.replace('_', ' '):24s}{value:.3f}" for name, value in index.items()]


TEST_TEXT = """\
{b} minus {a}: AUC {auc_difference:+.3f} [{auc_difference_low:+.3f}, {auc_difference_high:+.3f}], p {bootstrap_p:.3g} \
(Holm {bootstrap_p_holm:.3g}); at a margin of {margin:g}: {verdict} (90 % interval [{auc_difference_low90:+.3f}, \
{auc_difference_high90:+.3f}]){leak}
    DeLong, probabilities averaged over seeds: {delong_difference:+.3f} [{delong_low:+.3f}, {delong_high:+.3f}], \
p {delong_p:.3g} (Holm {delong_p_holm:.3g})
    right only in one {only_b_right} : {only_a_right}, McNemar p {mcnemar_p:.3g} (Holm {mcnemar_p_holm:.3g})"""


def _volumes_lines(volumes: dict[str, Any]) -> list[str]:
    lines = [f"regression on {len(volumes['regions'])} volumes ({volumes['tool']}): AUC {cell_text(volumes['auc'])}"]
    for row in volumes["arms"]:
        what = "ABOVE IT BY MORE THAN CHANCE: a shortcut?" if row["above"] else "not above it by more than chance"
        text = "    {run} minus it: {difference:+.3f} [{low:+.3f}, {high:+.3f}], p {p:.3g}; {what}"
        lines.append(text.format(**row, what=what))
    return lines


def _write(config: CompareConfig, runs: ArmRuns, found: Comparison, volumes: dict[str, Any] | None) -> None:
    about = {"resamples": config.resamples, "reference": next(iter(runs.arms)), "margin": config.margin}
    about |= {name: getattr(runs, name) for name in ("seeds", "folds", "subjects", "left_out")}
    write_json(config.out, {**about, "runs": found.rows, "tests": found.tests, "volumes": volumes})
    tables = {"": [flat(row) for row in found.rows], "_tests": found.tests, "_volumes": volumes and volumes["arms"]}
    for name, rows in tables.items():
        if rows is not None:
            write_csv(config.out.with_name(f"{config.out.stem}{name}.csv"), pd.DataFrame(rows))


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the table with one value per column."""
    cells = row["metrics"] | row["parts"]
    values = {f"{name}_{part}": value for name, cell in cells.items() for part, value in cell.items()}
    values |= {f"auc_seed{seed}": value for seed, value in row["auc_by_seed"].items()}
    values |= {f"baseline_{name}_auc": value for name, value in row["baselines"].items()}
    values |= {f"baseline_asymmetry_index_{name}": value for name, value in row["asymmetry_index"].items()}
    return {"run": row["run"], "leak": row["leak"], **row["counts"], **row["confusion"], **values}


if __name__ == "__main__":
    run_script(main, CompareConfig, description=describe(__doc__))
