"""The latent contract: write then read, older files, and folders that do not belong together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime.errors import InputError
from runtime.pickles import save_pickle
from VAE.latents import (
    Latent,
    compute_statistics,
    read_latent,
    read_split,
    read_statistics,
    write_latent,
    write_statistics,
)

GRID = {"name": "smoke"}


def latent(subject: str = "sub-1", vae: str = "v1", size: int = 2, side: str = "R") -> Latent:
    random = np.random.default_rng(len(subject))
    mu, logvar = random.standard_normal((2, 4, size, 3, 2)).astype(np.float32)
    return Latent(mu, logvar, 1, subject, vae, GRID, side)


def test_round_trip(tmp_path: Path) -> None:
    write_latent(tmp_path / "a.pkl", latent())
    back = read_latent(tmp_path / "a.pkl")
    np.testing.assert_array_equal(back.mu, latent().mu)
    np.testing.assert_array_equal(back.logvar, latent().logvar)
    assert (back.label, back.subject, back.vae, back.grid, back.side) == (1, "sub-1", "v1", GRID, "R")


def test_older_files_with_three_fields_are_read(tmp_path: Path) -> None:
    save_pickle(tmp_path / "old.pkl", {"mu": latent().mu, "logvar": latent().logvar, "label": 0})
    assert (read_latent(tmp_path / "old.pkl").subject, read_latent(tmp_path / "old.pkl").side) == ("old", "")


def test_older_mirror_images_are_known_by_their_name_and_newer_ones_say_it(tmp_path: Path) -> None:
    save_pickle(tmp_path / "a_mirrored.pkl", {"mu": latent().mu, "logvar": latent().logvar, "label": 0})
    assert read_latent(tmp_path / "a_mirrored.pkl").mirrored
    write_latent(tmp_path / "b_mirrored.pkl", latent("b_mirrored"))  # a subject of that name
    assert not read_latent(tmp_path / "b_mirrored.pkl").mirrored


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([1, 2], "not a latent"),
        ({"mu": np.ones((4, 2, 2, 2), np.float32), "label": 0}, "not a latent"),
        ({"mu": np.ones((2, 2)), "logvar": np.ones((2, 2)), "label": 0}, "equal shapes"),
        ({"mu": np.full((4, 2, 2, 2), np.nan), "logvar": np.ones((4, 2, 2, 2)), "label": 0}, "not finite"),
        ({"mu": np.ones((4, 2, 2, 2)), "logvar": np.ones((4, 2, 2, 2)), "label": "HC"}, "label 'HC', expected"),
        ({"mu": np.ones((4, 2, 2, 2)), "logvar": np.ones((4, 2, 2, 2)), "label": 0, "format": 9}, "format 9"),
        ({"mu": np.ones((4, 2, 2, 2)), "logvar": np.ones((4, 2, 2, 2)), "label": 1, "side": "B"}, "side 'B', expected"),
        ({"mu": np.ones((4, 2, 2, 2)), "logvar": np.ones((4, 2, 2, 2)), "label": 0, "side": "L"}, "side 'L', expected"),
    ],
)
def test_malformed_latents_are_named(tmp_path: Path, record: object, message: str) -> None:
    save_pickle(tmp_path / "bad.pkl", record)
    with pytest.raises(InputError, match=rf"bad\.pkl: .*{message}"):
        read_latent(tmp_path / "bad.pkl")


def test_two_vaes_or_shapes_in_one_folder_are_refused(tmp_path: Path) -> None:
    write_latent(tmp_path / "train/a.pkl", latent("a"))
    write_latent(tmp_path / "train/b.pkl", latent("b", vae="v2", size=3))
    with pytest.raises(InputError, match="2 different VAE checkpoints") as caught:
        read_split(tmp_path, "train")
    assert "2 different shapes" in str(caught.value)
    with pytest.raises(InputError, match="no latents"):
        read_split(tmp_path, "val")


def test_what_a_killed_writer_left_is_passed_over(tmp_path: Path) -> None:
    write_latent(tmp_path / "train/a.pkl", latent("a"))
    (tmp_path / "train/.tmp-x1.pkl").write_bytes(b"half a pickle")
    assert [one.subject for one in read_split(tmp_path, "train")] == ["a"]


def test_statistics_round_trip_and_missing_fields(tmp_path: Path) -> None:
    statistics = compute_statistics([latent("a"), latent("bb")], split="train", ledger=["00"])
    write_statistics(tmp_path, statistics)
    assert read_statistics(tmp_path) == statistics
    (tmp_path / "statistics.json").write_text('{"mean": [1.0], "std": [1.0]}')
    with pytest.raises(InputError, match=r"statistics\.json"):
        read_statistics(tmp_path)
