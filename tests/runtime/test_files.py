"""Atomic files: whole or absent, whatever happens while writing."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cohort.decoding import read_voxels
from cohort.listing.delimited import read_delimited
from runtime.checkpoints import load_checkpoint, load_tensors, save_checkpoint
from runtime.errors import InputError
from runtime.files import atomic_write, read_json, sha256, write_json
from runtime.pickles import load_pickle
from tests.support.processes import small_disk


def test_json_comes_back_and_leaves_no_temporary(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [1, 2.5, "é"]})
    assert read_json(tmp_path / "a.json") == {"x": [1, 2.5, "é"]}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_not_a_number_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", float("nan"))
    assert read_json(tmp_path / "a.json") == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failure_inside_the_block_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail_half_way() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_half_way()
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_who_is_reading_the_old_file_reads_it_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old" * 10_000)
    with path.open() as reader:
        assert reader.read(3) == "old"
        with atomic_write(path) as temporary:
            temporary.write_text("new")
        assert reader.read() == "old" * 9_999
    assert path.read_text() == "new"


def test_suffixes_are_kept_for_readers_that_go_by_name(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.nii.gz") as temporary:
        assert temporary.name.endswith(".nii.gz")
        temporary.write_bytes(b"x")


def test_missing_and_broken_json_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json"):
        read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InputError, match=r"bad\.json"):
        read_json(tmp_path / "bad.json")


def test_sha256_of_known_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a").startswith("ba7816bf8f01cfea")


def write_without_pause(path: Path) -> None:
    for step in itertools.count(1):
        save_checkpoint(path, "test", {"step": step, "x": torch.full((200_000,), float(step))})


@pytest.mark.slow
def test_kill_at_random_instants_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """A process that writes checkpoints without pause is killed 6 times; each time the file reads back whole.

    The process is a new one: a fork of this one would inherit locks of threads that it does not have.
    """
    path = tmp_path / "last.pt"
    for round_ in range(6):
        process = multiprocessing.get_context("spawn").Process(target=write_without_pause, args=(path,))
        before = path.stat().st_mtime_ns if path.exists() else 0
        process.start()
        deadline = time.monotonic() + 60
        while not (path.exists() and path.stat().st_mtime_ns > before) and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.006 * round_)
        process.kill()
        process.join()
        record = load_checkpoint(path, "test")
        assert (record["x"] == record["step"]).all()


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", megabytes=1) as disk:
        save_checkpoint(disk / "last.pt", "test", {"x": torch.ones(1000)})
        with pytest.raises(InputError, match=r"last\.pt: could not be written .*the previous checkpoint is intact"):
            save_checkpoint(disk / "last.pt", "test", {"x": torch.ones(1_000_000)})
        assert len(load_checkpoint(disk / "last.pt", "test")["x"]) == 1000
        assert sorted(os.listdir(disk)) == ["last.pt"]


@pytest.mark.parametrize("read", [load_tensors, load_pickle, read_json, read_delimited, read_voxels])
@pytest.mark.parametrize("text", ["/annex/objects/MD5E-s1--a.nii.gz\n", "../../.git/annex/objects/0F/1a/x/x"])
def test_a_pointer_of_git_annex_is_called_by_its_name(
    tmp_path: Path, text: str, read: Callable[[Path], object]
) -> None:
    path = tmp_path / "in_place_of_a_file.nii.gz"
    path.write_text(text)
    with pytest.raises(InputError, match=r"in_place_of_a_file.nii.gz: a pointer of git-annex.*git annex get"):
        read(path)


@pytest.mark.parametrize("read", [load_tensors, load_pickle, read_json, read_delimited, read_voxels])
def test_a_pointer_of_git_lfs_is_called_by_its_name(tmp_path: Path, read: Callable[[Path], object]) -> None:
    path = tmp_path / "in_place_of_a_file.nii.gz"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 132735\n")
    with pytest.raises(InputError, match=r"in_place_of_a_file.nii.gz: a pointer of git-lfs.*git lfs pull"):
        read(path)
