"""Divides a cohort into train.csv, val.csv and test.csv, by subject and group, balanced.

Reads an index (a table, see data_csvs/README.md), and its scans, so that copies of one scan under two names come into
one split; with --volumes also a tool's volumes of the hippocampus, to balance them. Writes the three tables, a picture
of how alike they are (balance.png) and how they were made (split.json, see cohort/splitting/record.py). Or k folds,
each in its own folder; or sites held out for test. Splits that exist and differ are not overwritten unless asked.

    python -m cohort.split --index data/demo/pickle_prep_demo.csv --out data/demo --val-percent 15 --test-percent 25
    python -m cohort.split --index data/demo/pickle_prep_demo.csv --out data_csvs/folds --folds 5
    python -m cohort.split --index data/demo/pickle_prep_demo.csv --out data_csvs/sites --holdout-site all
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd
from tqdm import tqdm

from cohort.anatomy.volume_tables import KnownVolumes, VolumeTable
from cohort.atlas import SIDES
from cohort.checking.checked import CACHE_DIR, find_copies
from cohort.listing.reading import Reading
from cohort.pictures import save
from cohort.preparation.quality import flags, looks
from cohort.splitting.balance import VOLUME, balance, balance_figure
from cohort.splitting.folds import folds, hold_out, partition, site_names
from cohort.splitting.record import RECORD, write_record
from cohort.splitting.ties import join_groups, read_copies
from cohort.tables import CLASS_NAMES, LABELS, read_table, sides_of, table_text, write_table
from runtime.cli import describe, run_script
from runtime.config import ScriptConfig
from runtime.errors import InputError
from runtime.files import ROOT


@dataclass(frozen=True)
class Config(Reading, KnownVolumes, ScriptConfig):
    index: Path
    """Table of all scans, or a BIDS participants.tsv."""
    out: Path = ROOT / "data_csvs"
    """Folder for train.csv, val.csv and test.csv, or for one folder per fold or site."""
    val_percent: float = 15.0
    """Share of the subjects for validation, in percent; with folds or held-out sites, of the subjects not in test."""
    test_percent: float = 25.0
    """Share of the subjects for test, in percent. Folds and held-out sites have their own."""
    folds: int = 0
    """Number of folds, fold_0 and so on, in which every subject is tested exactly once; 0 for a single split."""
    fold_validation: Literal["next", "share"] = "next"
    """Who validates in a fold: the next fold's test subjects, or a share (--val-percent) of those not in test."""
    holdout_site: tuple[str, ...] = ()
    """Sites that are the test split, all of their scans together; 'all' makes a folder per site, site_NAME."""
    allow_one_class: bool = False
    """Divide a cohort of patients only or controls only, for the VAE; hold out sites that have only one of them."""
    leave_out_shared: bool = False
    """Leave scans of other sites out where their subject or group (copies included) is at a held-out one, too."""
    groups: Path | None = None
    """groups.csv of cohort.check: these copies are kept in one split, and none are looked for."""
    structures: tuple[str, ...] = ("Hippocampus",)
    """With --volumes: structures whose volume, left and right together, is balanced within each class, too."""
    least: int = 0
    """Fewest subjects of either class in train and in test; with fewer, nothing is divided."""
    least_sides: int = 0
    """Sides of the epilepsy, TLE-L and TLE-R, that train has to name: 2 where a generator is to learn them, 1 where
    mirror images (VAE.save_latent --mirrored) make the other."""
    keep_flagged: bool = False
    """Take scans that cohort.prepare flagged (column qc), too. Without it they are named, and nothing is divided."""
    check: bool = True
    """Read all scans and keep copies of one another in one split, as cohort.check finds them."""
    cache_dir: Path = CACHE_DIR
    """Where what was found of each scan is kept; may be shared by processes and deleted at any time."""
    seed: int = 0
    """Another seed gives another, equally balanced split."""
    figure: bool = True
    """Draw balance.png beside the tables."""
    overwrite: bool = False
    """Replace splits that exist and differ. Results made with the old ones do not hold for the new ones."""


FEW = 5
"""Subjects of a class in a split below which a warning is printed."""


class Division(NamedTuple):
    """Three splits for one folder."""

    folder: Path
    splits: dict[str, pd.DataFrame]
    settings: dict[str, Any]
    """What split.json says about how they were made."""
    left_out: pd.DataFrame
    """Rows of the index that are in none of them."""


def main(config: Config) -> None:
    """Index, splits, tables, balance."""
    index, known = read_table(config.index, config), config.known_volumes()
    if not config.keep_flagged:
        refuse_flagged(config.index, index)
    if config.groups:  # copies: per row the set that it is in, empty for none
        copies = read_copies(config.groups, index["file"])
    else:
        copies = find_copies(index, config.cache_dir) if config.check else [""] * len(index)
    divisions = divide(with_volumes(join_groups(index, copies), known, config.structures), config)
    refuse_few(divisions, config.least)
    refuse_sides(divisions, config.least_sides)
    refuse_others(config, divisions)
    for division in tqdm(divisions, unit="split", disable=len(divisions) == 1):
        write(division, config, known)
    report(divisions, sum(name != "" for name in copies))
    if odd := int((looks(index) != "").sum()):
        print(f"{odd} scans that cohort.prepare found worth a look (column qc) are in this index")


def with_volumes(index: pd.DataFrame, known: VolumeTable | None, structures: Sequence[str]) -> pd.DataFrame:
    """The index with a column of ml for each structure, both sides together; NaN, and a warning, where unknown."""
    if known is None:
        return index
    regions = [f"{side} {structure}" for structure in structures for side in SIDES]
    ml = known.of(index, regions).reshape(len(index), -1, 2).sum(axis=2)
    known.warn(index, regions)
    return index.assign(**{VOLUME + structure: ml[:, place] for place, structure in enumerate(structures)})


def refuse_flagged(path: Path, index: pd.DataFrame) -> None:
    """Raises InputError that names the scans which cohort.prepare flagged."""
    rows = index.assign(why=flags(index)).query("why != ''")
    if len(rows):
        advice = "look at qc.html, then take their rows out or give --keep-flagged"
        odd = [f"{row.subject} ({row.file}): {row.why}" for row in rows.itertuples()]
        raise InputError.of(f"{path}: scans that cohort.prepare flagged; {advice}", odd)


def divide(index: pd.DataFrame, config: Config) -> list[Division]:
    """One division, or one per fold or held-out site."""
    if config.folds and config.holdout_site:
        raise InputError("--folds and --holdout-site: give one of the two")
    if config.holdout_site:
        return divide_by_site(index, config)
    seed, one_class = {"seed": config.seed}, {"allow_one_class": config.allow_one_class}
    if not config.folds:
        settings = {"val_percent": config.val_percent, "test_percent": config.test_percent, **seed}
        return [Division(config.out, partition(index, **settings, **one_class), settings, index[:0])]
    share = {"val_percent": None if config.fold_validation == "next" else config.val_percent}
    said = {"folds": config.folds, "fold_validation": config.fold_validation, **seed}
    said |= {} if config.fold_validation == "next" else share
    return [
        Division(config.out / f"fold_{fold}", splits, {"fold": fold, **said}, index[:0])
        for fold, splits in enumerate(folds(index, count=config.folds, **share, **seed, **one_class))
    ]


def divide_by_site(index: pd.DataFrame, config: Config) -> list[Division]:
    """One division for the sites of --holdout-site together, or one for each site of the table."""
    each = config.holdout_site == ("all",)
    wanted = [(site,) for site in site_names(index)] if each else [config.holdout_site]
    names = [re.sub(r"[^\w.-]", "_", f"site_{sites[0]}") if each else "" for sites in wanted]
    if twins := [site for (site, *_), name in zip(wanted, names, strict=True) if names.count(name) > 1]:
        raise InputError(f"sites {', '.join(map(repr, twins))} would share a folder; rename one in the index")
    fields = ("val_percent", "seed", "allow_one_class", "leave_out_shared")
    settings = {name: getattr(config, name) for name in fields}
    return [
        Division(config.out / name, splits, {"holdout_site": list(sites), **settings}, left_out)
        for sites, name, (splits, left_out) in zip(wanted, names, hold_out(index, wanted, **settings), strict=True)
    ]


def refuse_few(divisions: list[Division], least: int) -> None:
    """Raises InputError that names training and test splits with fewer subjects of a class than `least`."""
    few = []
    for division, name in product(divisions, ("train", "test")):
        people = division.splits[name].drop_duplicates("subject")["label"]
        counts = {label: int((people == code).sum()) for label, code in LABELS.items()}
        few += [f"{division.folder / name}.csv: {n} of class {label}" for label, n in counts.items() if n < least]
    if few:
        advice = "take other shares (--val-percent, --test-percent), or more people"
        raise InputError.of(f"fewer than {least} subjects of a class (--least); {advice}", few)


def refuse_sides(divisions: list[Division], least: int) -> None:
    """Raises InputError that names training splits in which fewer sides of the epilepsy than `least` are named."""
    named = {division.folder / "train.csv": sides_of(division.splits["train"]) for division in divisions}
    few = [f"{path}: {', '.join(sides) or 'none'}" for path, sides in named.items() if len(sides) < least]
    if few:
        advice = "name them, or ask for volumes of no side (of a workflow: volumes: {swap: 0} in its configuration)"
        raise InputError.of(f"diagnoses name fewer than {least} of TLE-L and TLE-R (--least-sides); {advice}", few)


def refuse_others(config: Config, divisions: list[Division]) -> None:
    """Raises InputError if folders of another division lie beside the new ones, or a table would change unasked."""
    made = {division.folder for division in divisions}
    others = {record.parent for kind in ("fold_*", "site_*") for record in config.out.glob(f"{kind}/{RECORD}")} - made
    if others and made != {config.out}:
        refusal = f"{config.out} holds folders of another division; remove them or take another --out"
        raise InputError.of(refusal, sorted(map(str, others)))
    problems = [
        f"{path} exists and would change"
        for path, rows in tables_of(divisions)
        if path.exists() and path.read_bytes() != table_text(rows, path.parent).encode()
    ]
    if problems and not config.overwrite:
        raise InputError.of("nothing was written; give --overwrite or another --out", problems)


def tables_of(divisions: list[Division]) -> list[tuple[Path, pd.DataFrame]]:
    """Every split's file and its rows, as they are written: without the volumes, which have a table of their own."""
    return [
        (division.folder / f"{name}.csv", rows.drop(columns=rows.filter(like=VOLUME).columns))
        for division in divisions
        for name, rows in division.splits.items()
    ]


def write(division: Division, config: Config, known: VolumeTable | None) -> None:
    """Writes the tables, then how they were made, then their picture."""
    for path, rows in tables_of([division]):
        write_table(path, rows)
    looked_for = "given" if config.groups else "looked for" if config.check else "not looked for"
    settings = {**division.settings, "copies": looked_for}
    settings |= {"volumes": known.digest(), "structures": list(config.structures)} if known else {}
    write_record(
        division.folder, division.splits, settings=settings, index=config.index,
        groups=config.groups, left_out=division.left_out,
    )  # fmt: skip
    if config.figure:
        save(balance_figure(division.splits), division.folder / "balance.png")


def report(divisions: list[Division], copies: int) -> None:
    """Prints the balance of the splits; of several divisions, that of their test splits. Then sizes and copies."""
    tests = {division.folder.name: division.splits["test"] for division in divisions}
    shown = tests if len(divisions) > 1 else divisions[0].splits
    with pd.option_context("display.width", 200, "display.max_colwidth", 60, "display.max_rows", None):
        print(balance(shown).to_string())
    for division in divisions:
        for name, frame in division.splits.items():
            subjects = frame.drop_duplicates("subject")["label"].value_counts()
            for label, count in subjects[subjects < FEW].items():
                few = f"{count} subject{'s'[: count != 1]} of class {CLASS_NAMES[label]}"
                print(f"WARNING: {division.folder / name}.csv has {few}; measured on so few, nothing is said")
        sizes = ", ".join(f"{name}.csv {len(frame)} scans" for name, frame in division.splits.items())
        left_out = f", {len(division.left_out)} scans left out" if len(division.left_out) else ""
        print(f"{sizes}{left_out} in {division.folder}")
    if copies:
        print(f"{copies} scans are copies of others and were kept together with them; cohort.check says which")


if __name__ == "__main__":
    run_script(main, Config, description=describe(__doc__))
