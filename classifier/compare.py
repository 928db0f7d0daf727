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

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import tyro

from classifier.measures import bands, figures
from classifier.measures.comparison import Comparison, against_truth, compare_arms
from classifier.measures.metrics import MEASURES
from classifier.measures.nested_bootstrap import draws_of
from classifier.measures.resampling import cell_text
from classifier.measures.runs import ArmRuns, arms_of, single_runs
from runtime.cli import describe, run_script
from runtime.errors import InputError
from runtime.files import atomic_write, write_json


@dataclass(frozen=True)
class CompareConfig:
    """What to compare."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run folders of classifier.train; the first is the reference."""
    arms: Path | None = None
    """Instead of run folders: the folder of classifier.run_arms, with <arm>/seed<S>_fold<F> in it."""
    reference: str = "real"
    """With --arms: the arm that the others are held against."""
    split: Literal["test", "val"] = "test"
    """Held-out subjects to compare on."""
    pairs: Literal["reference", "all"] = "reference"
    """Compare every other run with the reference, or all pairs."""
    margin: float = 0.05
    """Largest difference of areas that does not matter, for the verdicts; to be stated before looking."""
    truth: Path | None = None
    """truth.csv of a simulated cohort: also holds every arm against a regression on the true volumes."""
    train_csv: tuple[Path, ...] = ()
    """With --truth: tables with the training scans of the runs."""
    resamples: int = 2000
    """Bootstrap resamples of subjects and seeds for the intervals."""
    seed: int = 0
    """Seed of the bootstrap."""
    out: Path | None = None
    """Write the comparison to this JSON file, and the tables beside it as CSV."""
    figures: Path | None = None
    """Write figures to this folder: roc_and_precision, reliability, confusion, auc_by_real, differences (PNG)."""
    dry_run: bool = False
    """Print the resolved configuration and stop."""


def main(config: CompareConfig) -> None:
    """Reads, tests, prints, writes, draws."""
    check(config)
    if config.arms is None:
        runs = single_runs(config.runs, config.split)
    else:
        runs = arms_of(config.arms, config.reference, config.split)
    draws = draws_of(runs, config.resamples, config.seed)
    found = compare_arms(runs, draws, pairs=config.pairs, margin=config.margin)
    truth = against_truth(runs, draws, found.auc, config.truth, config.train_csv) if config.truth else None
    print(*head_lines(runs, config), *row_lines(found), *test_lines(found), *truth_lines(truth), sep="\n")
    if config.out is not None:
        write(config, runs, found, truth)
    if config.figures is not None:
        config.figures.mkdir(parents=True, exist_ok=True)
        figures.roc_and_precision(config.figures / "roc_and_precision.png", bands.all_bands(runs, draws))
        figures.reliability(config.figures / "reliability.png", bands.reliabilities(runs), found.rows)
        figures.confusion(config.figures / "confusion.png", found.rows)
        figures.auc_by_real(config.figures / "auc_by_real.png", found.rows)
        figures.differences(config.figures / "differences.png", found.tests)


def check(config: CompareConfig) -> None:
    """Raises InputError where the flags contradict each other; lists all."""
    problems = []
    if config.arms is not None and config.runs:
        problems.append("give run folders or --arms, not both")
    if config.margin <= 0:
        problems.append(f"--margin {config.margin}: a difference of areas above 0")
    if config.resamples < 20:
        problems.append(f"--resamples {config.resamples}: at least 20")
    if (config.truth is None) != (not config.train_csv):
        problems.append("--truth and --train-csv go together: the regression is fitted to training subjects")
    if problems:
        raise InputError.of("the configuration contradicts itself", problems)


def head_lines(runs: ArmRuns, config: CompareConfig) -> list[str]:
    """What the numbers are about."""
    many = len(runs.seeds) > 1
    size = f"{runs.subjects} {config.split} subjects"
    size += f", {len(runs.folds)} folds" if len(runs.folds) > 1 else ""
    size += f", {len(runs.seeds)} training seeds" if many else ", one training seed"
    about = "subjects and training seeds" if many else "subjects; they say nothing about another training seed"
    lines = [f"{len(runs.arms)} runs: {size}; 95 % intervals over {about}"]
    return lines + [f"left out: {what}" for what in runs.left_out]


def row_lines(found: Comparison) -> list[str]:
    """The measures of every arm, and the baselines of the reference."""
    lines = []
    for row in found.rows:
        trained = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in row["counts"].items() if number)
        lines.append(f"{row['run']}  (trained on {trained}){'  LEAK ALLOWED' if row['leak'] else ''}")
        texts = {name: cell_text(row["metrics"][name]) for name in MEASURES}
        texts["auc, LeDell interval"] = f"{cell_text(row['fold_averaged_auc'])}  (subjects only)"
        if row["folds"] > 1:
            after = f"{row['pooled_auc_after_ranking']:.3f} after ranking within folds"
            texts["auc, folds pooled"] = f"{row['pooled_auc']:.3f}, {after}"
        if row["seeds"] > 1:
            texts["auc by training seed"] = ", ".join(f"{value:.3f}" for value in row["auc_by_seed"].values())
        lines += [f"    {name:24s}{text}" for name, text in texts.items()]
    reference = found.rows[0]
    if reference["baselines"]:
        lines.append(f"baselines beside {reference['run']}, AUC:")
    return lines + [f"    {name:24s}{cell_text(auc)}" for name, auc in reference["baselines"].items()]


TEST_TEXT = """\
{b} minus {a}: AUC {auc_difference:+.3f} [{auc_difference_low:+.3f}, {auc_difference_high:+.3f}], p {bootstrap_p:.3g} \
(Holm {bootstrap_p_holm:.3g}); at a margin of {margin:g}: {verdict} (90 % interval [{auc_difference_low90:+.3f}, \
{auc_difference_high90:+.3f}]){leak}
    DeLong, probabilities averaged over seeds: {delong_difference:+.3f} [{delong_low:+.3f}, {delong_high:+.3f}], \
p {delong_p:.3g} (Holm {delong_p_holm:.3g}){degenerate}
    right answers {accuracy_difference:+.3f} [{accuracy_difference_low:+.3f}, {accuracy_difference_high:+.3f}], right \
only in one {only_b_right} : {only_a_right}, McNemar p {mcnemar_p:.3g} (Holm {mcnemar_p_holm:.3g})"""


def test_lines(found: Comparison) -> list[str]:
    """The differences between arms."""
    return [
        TEST_TEXT.format(
            **{**test, "leak": "  LEAK ALLOWED" if test["leak"] else ""},
            degenerate=", no variance" if test["delong_degenerate"] else "",
        )
        for test in found.tests
    ]


def truth_lines(truth: dict[str, Any] | None) -> list[str]:
    """Every arm against the regression on true volumes."""
    if truth is None:
        return []
    lines = [f"regression on the true volumes of all changed regions: AUC {cell_text(truth['auc'])}"]
    for row in truth["arms"]:
        what = "ABOVE IT BY MORE THAN CHANCE: a shortcut?" if row["above"] else "not above it by more than chance"
        text = "    {run} minus it: {difference:+.3f} [{low:+.3f}, {high:+.3f}], p {p:.3g}; "
        lines.append(text.format(**row) + what)
    return lines


def write(config: CompareConfig, runs: ArmRuns, found: Comparison, truth: dict[str, Any] | None) -> None:
    """Writes the JSON file, and the tables beside it."""
    path = config.out
    write_json(
        path,
        {
            "split": config.split, "resamples": config.resamples, "reference": next(iter(runs.arms)),
            "margin": config.margin, "seeds": runs.seeds, "folds": runs.folds, "subjects": runs.subjects,
            "left_out": runs.left_out, "runs": found.rows, "tests": found.tests, "truth": truth,
        },
    )  # fmt: skip
    tables = {"": [flat(row) for row in found.rows], "_tests": found.tests, "_truth": truth and truth["arms"]}
    for name, rows in tables.items():
        if rows is None:
            continue
        with atomic_write(path.with_name(f"{path.stem}{name}.csv")) as temporary:
            pd.DataFrame(rows).to_csv(temporary, index=False)


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the table with one value per column."""
    cells = {**row["metrics"], "fold_averaged_auc": row["fold_averaged_auc"]}
    values = {f"{name}_{part}": value for name, found in cells.items() for part, value in found.items()}
    seeds = {f"auc_seed{seed}": value for seed, value in row["auc_by_seed"].items()}
    values |= {f"baseline_{name}_auc": auc["value"] for name, auc in row["baselines"].items()}
    plain = {name: value for name, value in row.items() if not isinstance(value, dict)}
    return {**plain, **row["counts"], **row["confusion"], **values, **seeds}


if __name__ == "__main__":
    run_script(main, CompareConfig, description=describe(__doc__))
