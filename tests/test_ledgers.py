"""Whatever makes an artefact: the subjects that it saw are in the artefact's ledger, and in those of all later ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from classifier.checkpoint import load_classifier
from cohort.ledger import ledger_of, unseen
from cohort.tables import read_table
from diffusion.checkpoint import load_diffusion
from runtime.files import read_json
from tests.support.processes import run_here
from VAE.checkpoint import load_vae

BRIEF = ("--steps", 2, "--warmup-steps", 1, "--val-every-steps", 2, "--save-every-steps", 2, "--batch-size", 2)


def seen(cohort: Path, *splits: str) -> set[str]:
    """What a ledger has to hold after these tables."""
    return {entry for split in splits for entry in ledger_of(read_table(cohort / f"{split}.csv"))}


@pytest.mark.slow
def test_all_subjects_are_known_to_the_last_artefact(cohort_dir: Path, tmp_path: Path) -> None:
    tables = {name: cohort_dir / f"{name}.csv" for name in ("train", "val", "test")}
    splits = ("--train-csv", tables["train"], "--val-csv", tables["val"])
    vae = tmp_path / "vae/checkpoints/best.pt"
    run_here("VAE.train", "smoke", *splits, "--run-dir", tmp_path / "vae", *BRIEF)
    assert set(load_vae(vae).ledger) == seen(cohort_dir, "train", "val")

    for out, names in (("first", ("test", "val")), ("second", ("train", "val"))):
        csv = [tables[name] for name in names]
        run_here("VAE.save_latent", "--checkpoint", vae, "--csv", *csv, "--out", tmp_path / out)
        assert set(read_json(tmp_path / out / "val/ledger.json")["ledger"]) == seen(cohort_dir, "train", "val")

    known = ("--latents", tmp_path / "first", "--train-split", "test", "--run-dir", tmp_path / "earlier")
    run_here("diffusion.train", "smoke", *known, *BRIEF)
    earlier, later = (tmp_path / name / "checkpoints/best.pt" for name in ("earlier", "later"))
    words = ("--latents", tmp_path / "second", "--init", earlier, "--run-dir", tmp_path / "later")
    run_here("diffusion.train", "smoke", *words, *BRIEF)
    everybody = seen(cohort_dir, "train", "val", "test")
    assert set(load_diffusion(earlier).ledger) == everybody
    assert set(load_diffusion(later).ledger) == everybody

    for label in ("HC", "TLE"):
        out = ("--label", label, "--out", tmp_path / label, "--count", 2, "--steps", 2)
        run_here("diffusion.save_synth", "--vae", vae, "--diffusion", later, *out)
        assert set(read_json(tmp_path / label / "ledger.json")["ledger"]) == everybody

    made = ("--synth-hc", tmp_path / "HC", "--synth-tle", tmp_path / "TLE", "--synth-percent", 100, "--real", 2)
    words = ("smoke", *splits, "--test-csv", tables["test"], *made, "--run-dir", tmp_path / "classifier")
    refused = run_here("classifier.train", *words, ok=False)
    assert refused.returncode != 0
    assert "test00" in refused.stderr
    run_here("classifier.train", *words, "--allow-leak", "--steps", 2, "--warmup-steps", 1, "--val-every-steps", 2)
    assert set(load_classifier(tmp_path / "classifier/checkpoints/best.pt").ledger) == everybody


def test_held_out_latents_of_older_programs_count_by_their_subjects(
    cohort_dir: Path, random_vae: Path, tmp_path: Path
) -> None:
    csv = [cohort_dir / f"{name}.csv" for name in ("train", "val")]
    run_here("VAE.save_latent", "--checkpoint", random_vae, "--csv", *csv, "--out", tmp_path / "latents")
    (tmp_path / "latents/val/ledger.json").unlink()
    run_here("diffusion.train", "smoke", "--latents", tmp_path / "latents", "--run-dir", tmp_path / "run", *BRIEF)
    loaded = load_diffusion(tmp_path / "run/checkpoints/best.pt")
    val = read_table(cohort_dir / "val.csv")
    assert not unseen(val, loaded.ledger)
    assert unseen(read_table(cohort_dir / "test.csv"), loaded.ledger) == [f"test{k:02d}" for k in range(8)]
