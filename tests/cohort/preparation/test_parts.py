"""One list prepared in parts: as the whole, at once in one folder, and never two in one another's way."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from cohort.preparation import job
from cohort.prepare import main
from cohort.tables import read_table
from runtime.errors import InputError
from runtime.files import ROOT, locked
from tests.support.preparing import config, status, words
from tests.support.scans import template_scan, template_table


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return template_table(tmp_path)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Saves the start of processes, where no command is run."""
    monkeypatch.setattr(job, "start_process", lambda: ThreadPoolExecutor(1))


@pytest.mark.slow
def test_parts_give_what_the_whole_gives(table, capsys):
    (table.parent / "raw/P2.nii.gz").write_bytes(b"no scan")
    whole = config(table, out=table.parent / "whole", index=table.parent / "whole.csv")
    assert status(whole) == 1
    capsys.readouterr()
    parts = [config(table, part=f"{number}/3") for number in (1, 2, 3)]
    for part, failed in ((parts[2], 1), (parts[0], 0)):
        assert status(part) == failed
        assert "the one that ends last writes the index" in capsys.readouterr().out
        assert not part.index.exists()
        assert status(replace(part, keep_flagged=True)) == 0
    assert status(parts[1]) == 1  # for P2, which is of the last part
    assert "3 scans in" in (told := capsys.readouterr().out)
    assert "failed: P2" in told
    columns = [column for column in read_table(whole.index) if column != "file"]
    assert read_table(parts[1].index)[columns].equals(read_table(whole.index)[columns])
    for name in ("failures.csv", "qc.html"):
        assert (parts[1].out / name).read_text() == (whole.out / name).read_text()
    # Mended, its own part is enough; other settings are another preparation.
    template_scan(table.parent / "raw/P2.nii.gz", 2)
    assert status(parts[2]) == 0
    assert len(read_table(whole.index)) == 3
    assert len(read_table(parts[2].index)) == 4
    assert status(replace(parts[2], reset_affine="RAS")) in (0, 1)
    assert "other parts are not done" in capsys.readouterr().out


@pytest.mark.slow
def test_parts_run_at_once_in_one_folder(table):
    running = [
        subprocess.Popen([*words(config(table)), "--part", part], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for part in ("1/2", "2/2")
    ]
    told = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], told
    assert any("4 scans in" in text for text in told)
    assert len(read_table(config(table).index)) == 4


def test_parts_that_would_meet_are_refused(table):
    for text in ("0/2", "3/2", "2", "1/0", "a/b"):
        with pytest.raises(InputError, match=f"--part {text}: expected k/n"):
            main(config(table, part=text))
    out = config(table).out
    with locked(out), pytest.raises(InputError, match="another process"):
        main(config(table, part="1/2"))
    with locked(out, shared=True), pytest.raises(InputError, match="another process"):
        main(config(table))
    with locked(out / "parts" / "1_of_2"), pytest.raises(InputError, match="another process"):
        main(config(table, part="1/2"))
