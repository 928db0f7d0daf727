"""Region labels and volumes beside synthetic volumes, so that these can train a segmentation.

In the folder of a class: <LABEL>_<seed>_dseg.nii.gz, dseg.tsv (which code is which region) and volumes.csv, which
`--volumes` reads. In a BIDS derivative: sub-..._desc-regions_dseg.nii.gz, and desc-regions_dseg.tsv for all of them.
"""

from pathlib import Path

import pandas as pd
from tqdm import tqdm

from cohort.labelling.reading import Reader, write_label_map, write_label_names
from cohort.scans import normalise
from cohort.tables import write_csv
from cohort.volumes import read_volume, volume_name
from diffusion.export import bids_derivative
from diffusion.synthetic_folder import Wanted
from runtime.errors import InputError

TABLE, NAMES = "volumes.csv", "dseg.tsv"


def label_volumes(folder: Path, wanted: list[Wanted], reader: Reader, bids: Path | None) -> list[str]:
    """Labels the volumes of a folder that have no row or no labels yet; the names of those that have failed."""
    rows = {row["subject"]: row for row in read_rows(folder, reader.hash)}
    for item in tqdm(wanted, desc="labelling", unit="volume", delay=2):
        path = folder / volume_name(item.label, item.seed)
        targets = [path.with_name(f"{path.stem}_dseg.nii.gz")]
        targets += [] if bids is None else [bids_derivative.labels_path(bids, item)]
        if path.stem in rows and all(target.exists() for target in targets):
            continue
        labels = reader.read(normalise(read_volume(path).image))
        for target in targets:
            write_label_map(target, reader.label_map(labels), reader.grid)
        rows[path.stem] = {"subject": path.stem, **reader.row(labels), "network": reader.hash}
    write_csv(folder / TABLE, pd.DataFrame([rows[name] for name in sorted(rows)]))
    write_label_names(folder / NAMES)
    if bids is not None:
        write_label_names(bids / f"{bids_derivative.LABELS}.tsv")
    return [name for name, row in rows.items() if int(row["failed"])]


def read_rows(folder: Path, network: str) -> list[dict[str, object]]:
    """The rows of the table that a folder has already; InputError where they are by another network, or it is none."""
    table = folder / TABLE
    if not table.exists():
        return []
    try:
        rows = pd.read_csv(table, dtype={"subject": str, "network": str}).to_dict("records")
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(f"{table}: no table of volumes ({error}); delete it first") from None
    if others := {str(row.get("network")) for row in rows} - {network}:
        raise InputError(f"{table}: volumes by the network {', '.join(sorted(others))}, not {network}; delete it first")
    return rows
