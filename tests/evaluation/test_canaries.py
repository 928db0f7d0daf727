"""Canaries: the plan, the repeated latents, what is called found, and the whole of it once at the smallest size."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from cohort.grids import GRIDS
from evaluation import canaries
from evaluation.privacy.canary_plan import (
    FOUND,
    alarms_of,
    plan_canaries,
    read_canaries,
    require_held_out,
    write_canaries,
)
from evaluation.privacy.nearest import Pool, Reals, exposure, neighbours
from runtime.checkpoints import checkpoint_hash
from runtime.errors import InputError
from runtime.files import read_json
from tests.support.checkpoints import LATENT
from tests.support.processes import run_here, script
from VAE.latents import (
    Latent,
    compute_statistics,
    list_latents,
    read_split,
    read_statistics,
    write_latent,
    write_statistics,
)

SUBJECTS = [f"s{index:02d}" for index in range(16)]
LABELS = [index % 2 for index in range(16)]


def test_scans_in_place_of_volumes_are_a_control() -> None:
    exposure = {"training": {"a": 0.1, "b": 2.0}, "held_out": {f"h{k}": 1.0 for k in range(19)}}
    assert canaries.control_alarms({"controls": {"held_out": {"exposure": exposure}}})["share"] == 0.5
    exposure["held_out"].popitem()
    assert canaries.control_alarms({"controls": {"held_out": {"exposure": exposure}}}) is None
    assert canaries.control_alarms({"controls": {}}) is None


def write_latents(folder: Path, vae: str, counts: dict[str, int]) -> Path:
    """Subjects with smooth random latents of the smoke grid, classes in turn."""
    for split, count in counts.items():
        for index in range(count):
            draw = np.random.default_rng([index, len(split)])
            mu = np.repeat(draw.normal(size=(4, 1, 12, 10)), 10, axis=1) + 0.3 * draw.normal(size=LATENT)
            name = f"{split}{index:02d}"
            latent = Latent(
                mu.astype(np.float32), np.full(LATENT, -6, np.float32), index % 2, name, vae, GRIDS["smoke"].to_dict()
            )
            write_latent(folder / split / f"{name}.pkl", latent)
    statistics = compute_statistics(read_split(folder, "train"), split="train", ledger=["c" * 16])
    write_statistics(folder, statistics)
    return folder


def test_a_plan_takes_the_classes_in_turn_and_nobody_twice() -> None:
    plan = plan_canaries(SUBJECTS, LABELS, each=2, seed=0, repeats=(1, 4, 16))
    assert list(plan.values()) == [1, 1, 4, 4, 16, 16]
    assert [int(name[1:]) % 2 for name in plan] == [0, 1] * 3
    assert plan == plan_canaries(SUBJECTS[::-1], LABELS[::-1], each=2, seed=0, repeats=(1, 4, 16))
    assert plan != plan_canaries(SUBJECTS, LABELS, each=2, seed=1, repeats=(1, 4, 16))


@pytest.mark.parametrize(("each", "repeats"), [(3, (1, 4, 16)), (0, (1,)), (1, (0, 4)), (1, ())])
def test_impossible_plans_are_refused(each: int, repeats: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="canaries"):
        plan_canaries(SUBJECTS, LABELS, each=each, seed=0, repeats=repeats)


def test_repeated_latents_are_copies_and_the_rest_stays(tmp_path: Path) -> None:
    folder = write_latents(tmp_path / "latents", "a" * 16, {"train": 8, "val": 4})
    assert write_canaries(folder, tmp_path / "planted", {"train03": 4, "train04": 1}) == 8 + 3
    planted = read_split(tmp_path / "planted", "train")
    same = [latent for latent in planted if latent.subject == "train03"]
    assert len(same) == 4
    assert all(np.array_equal(latent.mu, same[0].mu) for latent in same)
    assert len({latent.mu.tobytes() for latent in planted}) == 8
    assert read_statistics(tmp_path / "planted").ledger == ["c" * 16]
    assert len(list_latents(tmp_path / "planted/val")) == 4
    with pytest.raises(InputError, match="exists"):
        write_canaries(folder, tmp_path / "planted", {"train03": 4})
    with pytest.raises(InputError, match="nobody"):
        write_canaries(folder, tmp_path / "other", {"nobody": 4})
    assert not (tmp_path / "other").exists()


def test_found_means_more_exposed_than_all_but_one_in_twenty_held_out_subjects() -> None:
    held_out = {f"h{index}": 1 + index / 100 for index in range(39)}
    training = {"often": 0.2, "between": 1.005, "seldom": 1.2, "usual": 1.1}
    result = read_canaries({"often": 16, "between": 4, "seldom": 1}, {"training": training, "held_out": held_out})
    rows = {row["subject"]: row for row in result["canaries"]}
    assert rows["often"]["p"] == 1 / 40
    assert rows["often"]["rank"] == 1
    assert rows["often"]["found"]
    assert rows["between"]["p"] == 2 / 40 <= FOUND
    assert rows["between"]["found"]
    assert rows["seldom"]["p"] == 22 / 40
    assert not rows["seldom"]["found"]
    assert result["alarms"]["share"] == 0.0
    assert result["by_occurrences"]["16"]["found"] == 1


def test_fresh_draws_are_found_at_the_stated_rate_and_in_the_stated_range() -> None:
    draw = np.random.default_rng(0)
    alarms = []
    for _ in range(200):
        exposure = {side: dict(enumerate(draw.normal(size=60))) for side in ("training", "held_out")}
        alarms.append(read_canaries({}, exposure)["alarms"])
    shares = np.array([found["share"] for found in alarms])
    # of 61 equally likely places the first three are found: 3/61; four standard errors either side (seen: sd 0.035)
    assert alarms[0]["expected"] == pytest.approx(3 / 61)
    assert abs(shares.mean() - 3 / 61) < 4 * shares.std() / np.sqrt(len(alarms))
    inside = np.mean([found["low"] <= found["share"] <= found["high"] for found in alarms])
    assert inside >= 0.95 - 4 * np.sqrt(0.95 * 0.05 / len(alarms))
    assert np.mean([found["p"] <= 0.05 for found in alarms]) <= 0.05 + 4 * np.sqrt(0.95 * 0.05 / len(alarms))


def test_the_range_without_a_leak_is_that_of_all_orders_of_subjects() -> None:
    held_out, subjects = 19, 3  # found: those before the first held-out subject
    orders = [np.isin(np.arange(22), chosen) for chosen in combinations(range(22), subjects)]
    counts = np.array([trained.argmin() for trained in orders])
    for found in range(subjects + 1):
        assert alarms_of(found, subjects, held_out)["p"] == pytest.approx(np.mean(counts >= found))
    assert alarms_of(0, subjects, held_out)["expected"] == pytest.approx(counts.mean() / subjects) == 1 / 20
    assert alarms_of(0, 0, held_out) is None


@pytest.mark.slow
def test_alarms_stay_at_the_stated_rate_unless_the_generator_leaks() -> None:
    """Through distances, 40 cohorts: volumes of people in neither set, as smooth as averages, and mixtures of pairs of
    training subjects. The last lie nearer to training subjects than to others, and alarms and their p-value say so."""
    spectrum = 1 / np.sqrt(np.arange(1, 31))

    def alarms(generator: str, seed: int) -> dict[str, float]:
        draw = np.random.default_rng(seed)
        train, held_out, fresh = (draw.normal(size=(n, 30)) * spectrum for n in (80, 99, 80))
        pairs = train[draw.integers(80, size=(2, 80))]
        made = {"new people": fresh, "smooth": 0.5 * fresh, "mixtures": pairs.sum(axis=0) / np.sqrt(2)}[generator]
        sides = (
            Reals(x, np.array([f"{name}{k}" for k in range(len(x))])) for name, x in (("t", train), ("h", held_out))
        )
        pool = Pool.of(*sides)
        return read_canaries({}, exposure(neighbours(made, pool.reals), pool))["alarms"]

    for generator in ("new people", "smooth"):
        found = [alarms(generator, seed) for seed in range(40)]
        assert 0.03 <= np.mean([row["share"] for row in found]) <= 0.07
        assert np.mean([row["p"] <= 0.05 for row in found]) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 40)
    found = [alarms("mixtures", seed) for seed in range(40)]
    assert np.mean([row["share"] for row in found]) > 0.1
    assert np.mean([row["p"] <= 0.05 for row in found]) > 0.5


def test_too_few_held_out_subjects_are_refused_before_anything_is_trained(random_vae: Path, tmp_path: Path) -> None:
    require_held_out(19)
    with pytest.raises(InputError, match="18 held-out subjects"):
        require_held_out(18)
    folder = write_latents(tmp_path / "latents", checkpoint_hash(random_vae), {"train": 8, "val": 6})
    config = replace(canaries.PRESETS["smoke"], latents=folder, vae=random_vae, run_dir=tmp_path / "run")
    with pytest.raises(InputError, match="6 held-out subjects"):
        canaries.main(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_plants_trains_samples_and_reads_what_the_audit_says(
    random_vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """With its stages in this process; then the same settings again start the same stages, which continue."""
    folder = write_latents(tmp_path / "latents", checkpoint_hash(random_vae), {"train": 12, "val": 20})
    config = replace(
        canaries.PRESETS["smoke"], latents=folder, vae=random_vae, run_dir=tmp_path / "run", steps=4, repeats=(1, 16),
        count=4, threads=1,
    )  # fmt: skip
    monkeypatch.setattr(canaries, "run_module", run_here)
    canaries.main(config)
    shown = capsys.readouterr().out
    result = read_json(tmp_path / "run/canaries.json")
    assert result["n"] == {"training": 12, "held_out": 20, "synthetic": 8}
    assert sorted(result["plan"].values()) == [1, 16]
    assert len(list_latents(tmp_path / "run/latents/train")) == 12 + 15
    assert set(result["canaries"]) == {"voxels", "encoder", "latents"}
    for space, found in result["canaries"].items():
        assert found["control_alarms"] is None  # of 20 held-out subjects half are searched: too few
        assert {row["occurrences"] for row in found["canaries"]} == {1, 16}
        assert f"{space:10}" in shown
    files = (tmp_path / "run/diffusion/checkpoints/best.pt", tmp_path / "run/canaries.json")
    before = [path.read_bytes() for path in files]
    stages = []
    monkeypatch.setattr(canaries, "run_module", lambda module, *_: stages.append(module))
    canaries.main(config)
    assert stages == ["diffusion.train", "diffusion.save_synth", "diffusion.save_synth"]
    assert [path.read_bytes() for path in files] == before
    with pytest.raises(InputError, match="other canaries"):
        canaries.main(replace(config, seed=5))


@pytest.mark.slow
def test_the_command_takes_a_preset_and_flags(tmp_path: Path) -> None:
    done = script("evaluation.canaries", "smoke", "--latents", tmp_path, "--repeats", 1, 16, "--dry-run")
    assert str(tmp_path) in done.stdout
