"""The benchmark on somebody's heads, by its command: from prepared scans with labels to reconstructions."""

from __future__ import annotations

from pathlib import Path

import pytest

from cohort.decoding import read_voxels
from cohort.grids import GRIDS
from cohort.preparation.qc_page import draw
from cohort.prepare import Job
from cohort.tables import read_table
from runtime.files import read_json, sha256, write_json
from tests.support.labelled import as_prepared, people
from tests.support.processes import script

GRID = GRIDS["smoke"]


def finished(table: Path, out: Path) -> Path:
    """`as_prepared`, so that cohort.prepare finds nothing left to do."""
    as_prepared(table, out, GRID)
    for row in read_table(table).itertuples():
        job = Job(row.subject, row.file, "", out, GRID, assume_mni=False)
        image = read_voxels(job.scan)[0]
        draw(job.picture, image, image > 0, GRID)
        more = {"source": row.file, "recipe": job.recipe(), "sha256": sha256(job.scan), "notes": []}
        write_json(job.record, read_json(job.record) | more)
    return out


@pytest.mark.slow
def test_tables_from_labels_and_of_the_pipeline(tmp_path: Path) -> None:
    table = people(tmp_path, count=24)
    finished(table, tmp_path / "work/prepared")
    words = ["--participants", table, "--work", tmp_path / "work", "--out", tmp_path / "found.json"]
    words += ["--preset", "smoke", "--parts", "anatomy", "autoencoder", "--vae-steps", 2]
    shown = script("benchmarks.real_cohort", *words).stdout
    found = read_json(tmp_path / "found.json")
    assert found["quality"][0] == {"measure": "scans", "well": 24, "flagged": 0, "failed": 0}
    # These heads are boxes: regions are cut, so that no centroid is where it should be, and the brain is most of a box.
    assert [row["N"] for row in found["placement"]] == [24] * 5
    assert [row["beyond, accepted"] for row in found["placement"][:3]] == [24] * 3
    assert [row["beyond, flagged"] for row in found["placement"][:3]] == [0] * 3
    assert "| Hippocampus | 24 |" in shown
    counts = [sum(row[label] for label in ("HC", "TLE-L", "TLE-R")) for row in found["subjects"]]
    assert sum(counts) == 24
    assert found["autoencoder"][0]["N"] == counts[2]
    assert {"prepare", "plant", "split", "VAE"} <= set(found["costs"])
