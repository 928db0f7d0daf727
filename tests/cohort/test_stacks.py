"""The scans of a table: a cache that changes nothing, refusals all at once, and batches on a device."""

import dataclasses
import multiprocessing
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch

from cohort.grids import GRIDS
from cohort.scans import load_scan
from cohort.stacks import Volumes, load_scans
from runtime.device import Device
from runtime.errors import InputError
from tests.support.scans import brain, save

GRID = GRIDS["smoke"]


def cohort(folder, count=4):
    rows = []
    for number in range(count):
        path = save(folder / f"s{number}.nii.gz", brain(seed=number))
        rows.append({"subject": f"s{number}", "file": str(path), "label": number % 2})
    return pd.DataFrame(rows)


def test_cache_equals_load_scan_bit_for_bit_cold_and_warm(tmp_path):
    frame = cohort(tmp_path)
    expected = [load_scan(file, GRID) for file in frame["file"]]
    for _ in range(2):
        stack = load_scans(frame, GRID, cache_dir=tmp_path / "cache")
        assert all(np.array_equal(a, b) for a, b in zip(stack.volumes, expected, strict=True))
    assert np.array_equal(stack.volumes[:], np.stack(expected))
    assert stack.volumes[:].flags.writeable
    assert isinstance(stack.volumes[-1], np.memmap)
    assert not stack.volumes[np.int64(0)].flags.writeable
    assert np.array_equal(stack.volumes[[3, 1]], stack.volumes[:][[3, 1]])
    assert stack.volumes.shape == (4, *GRID.shape)
    assert stack.labels.tolist() == [0, 1, 0, 1]
    assert len(set(stack.hashes)) == 4


def test_cache_is_not_decoded_twice_and_follows_content_not_names(tmp_path):
    frame = cohort(tmp_path)
    cache = tmp_path / "cache"
    load_scans(frame, GRID, cache_dir=cache)
    times = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    twin = tmp_path / "twin.nii.gz"
    twin.write_bytes((tmp_path / "s0.nii.gz").read_bytes())
    frame.loc[0, "file"] = str(twin)
    stack = load_scans(frame, GRID, cache_dir=cache)
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == times
    save(tmp_path / "s1.nii.gz", brain(seed=99))
    again = load_scans(frame, GRID, cache_dir=cache)
    assert not np.array_equal(again.volumes[1], stack.volumes[1])
    narrower = dataclasses.replace(GRID, name="narrower", shape=(18, 22, 18))
    assert load_scans(frame, narrower, cache_dir=cache).volumes[0].shape == (18, 22, 18)


def test_damaged_cache_is_made_anew_and_a_false_ending_is_no_hit(tmp_path):
    frame = cohort(tmp_path, 2)
    cache = tmp_path / "cache"
    expected = load_scans(frame, GRID, cache_dir=cache).volumes[:]
    for path in cache.iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    assert np.array_equal(load_scans(frame, GRID, cache_dir=cache).volumes[:], expected)
    (tmp_path / "s0.nii.gz").rename(tmp_path / "s0.nii")
    frame.loc[0, "file"] = str(tmp_path / "s0.nii")
    with pytest.raises(InputError, match=r"named \.nii but compressed"):
        load_scans(frame, GRID, cache_dir=cache)


def test_two_processes_share_a_cache(tmp_path):
    frame = cohort(tmp_path, 12)

    def load(sums):
        sums.put(load_scans(frame, GRID, cache_dir=tmp_path / "cache").volumes[:].sum(dtype=np.float64))

    fork = multiprocessing.get_context("fork")  # starts at once, with all modules loaded
    sums = fork.Queue()
    both = [fork.Process(target=load, args=(sums,)) for _ in range(2)]
    for process in both:
        process.start()
    expected = load_scans(frame, GRID, cache_dir=tmp_path / "own").volumes[:].sum(dtype=np.float64)
    assert [sums.get(timeout=120) for _ in both] == [expected] * 2
    assert len(list((tmp_path / "cache").iterdir())) == 12


def test_numbers_are_measured_once_and_named_for_people_meanwhile(tmp_path, monkeypatch):
    stack, said, measured = load_scans(cohort(tmp_path), GRID, cache_dir=tmp_path / "cache"), [], []
    monkeypatch.setattr("cohort.stacks.tqdm", lambda rows, *, desc, **_: said.append(desc) or rows)

    def measure(volume):
        measured.append(volume.sum())
        return [volume.max(), 2.0]

    first = stack.measured("top_key1", measure, what="brightest voxels")
    assert first.shape == (4, 2)
    assert np.array_equal(stack.measured("top_key1", measure, what="brightest voxels"), first)
    assert len(measured) == 4
    assert said == ["measuring brightest voxels"] * 2


def test_all_bad_scans_in_one_error(tmp_path):
    frame = cohort(tmp_path, 5)
    for number in (1, 3):
        (tmp_path / f"s{number}.nii.gz").write_bytes(b"")
    (tmp_path / "s4.nii.gz").unlink()
    with pytest.raises(InputError) as error:
        load_scans(frame, GRID, cache_dir=tmp_path / "cache")
    message = str(error.value)
    assert "scans were refused (3)" in message
    assert [f"s{number}.nii.gz" in message for number in range(5)] == [False, True, False, True, True]


def test_skip_bad_writes_a_quarantine_and_has_a_limit(tmp_path):
    one = cohort(tmp_path, 1)
    rows = pd.concat([one] * 50, ignore_index=True)
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(b"")
    rows.loc[7, ["subject", "file"]] = ["ill", str(bad)]
    quarantine = tmp_path / "q.csv"
    stack = load_scans(rows, GRID, cache_dir=tmp_path / "cache", skip_bad=quarantine)
    assert len(stack) == len(stack.frame) == 49
    assert "ill" not in set(stack.frame["subject"])
    listed = pd.read_csv(quarantine)
    assert listed["subject"].tolist() == ["ill"]
    assert "empty (0 bytes)" in listed["reason"][0]
    quarantine.unlink()
    rows.loc[8, "file"] = str(bad)
    with pytest.raises(InputError, match="more than the 2% of 50"):
        load_scans(rows, GRID, cache_dir=tmp_path / "cache", skip_bad=quarantine)
    assert not quarantine.exists()


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match="cache cannot be written"):
        load_scans(cohort(tmp_path, 1), GRID, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("resident", [True, False])
def test_batches_are_the_scans_whether_resident_or_not(tmp_path, monkeypatch, resident):
    stack = load_scans(cohort(tmp_path), GRID, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(Volumes, "_fits", lambda _: resident)
    volumes = Volumes(stack, Device(torch.device("cpu"), torch.float32))
    batch = volumes.batch(torch.tensor([3, 1]))
    assert np.array_equal(batch[:, 0].numpy(), stack.volumes[[3, 1]])
    assert batch.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.slow
@pytest.mark.parametrize("resident", [True, False])
def test_thousands_of_scans_are_never_all_in_the_memory_of_the_host(tmp_path, monkeypatch, resident):
    """3,000 scans, 115 MB. On a CPU the resident copy is on the host too, but nothing as large is beside it."""
    few = load_scans(cohort(tmp_path), GRID, cache_dir=tmp_path / "cache")
    many = few.take(np.arange(3000) % 4)
    monkeypatch.setattr(Volumes, "_fits", lambda _: resident)
    tracemalloc.start()  # of numpy's arrays, not of torch's
    volumes = Volumes(many, Device(torch.device("cpu"), torch.float32))
    batch = volumes.batch(torch.tensor([2999, 0]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(batch[:, 0].numpy(), few.volumes[[3, 0]])
    assert peak < 0.1 * 4 * np.prod(many.volumes.shape)


def test_some_of_the_scans(tmp_path):
    stack = load_scans(cohort(tmp_path), GRID, cache_dir=tmp_path / "cache")
    some = stack.take(np.array([2, 0]))
    assert some.frame["subject"].tolist() == [stack.frame["subject"][row] for row in (2, 0)]
    assert some.hashes == (stack.hashes[2], stack.hashes[0])
    assert np.array_equal(some.volumes[1], stack.volumes[0])
