"""Small results to read: what a VAE and classifiers of real scans leave, of a cohort that is not simulated."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.processes import run_here

SHORT = ("--steps", 4, "--warmup-steps", 1, "--save-every-steps", 2, "--val-every-steps", 2, "--log-every-steps", 1,
         "--threads", 1, "--precision", "float32")  # fmt: skip


@pytest.fixture(scope="session")
def home(cohort_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with data/tiny and runs/tiny: a VAE, its reconstructions, two classifiers of real scans, maps of one."""
    root = tmp_path_factory.mktemp("home")
    runs, data = root / "runs/tiny", root / "data/tiny"
    data.parent.mkdir()
    data.symlink_to(cohort_dir)
    train, val, test = (data / f"{split}.csv" for split in ("train", "val", "test"))
    tables, cache = ("--train-csv", train, "--val-csv", val), ("--cache-dir", root / "cache")
    run_here("VAE.train", "smoke", *SHORT, *tables, *cache, "--run-dir", runs / "vae")
    vae = runs / "vae/checkpoints/best.pt"
    run_here("VAE.infer", "--checkpoint", vae, "--csv", test, "--out", runs / "infer", *cache)
    fast = (*tables, "--test-csv", test, "--resamples", 50, "--volumes-weight", 0, "--volumes", "None", *cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("classifier.evaluation.PERMUTATIONS", 20)
        for name, words in (("classifier", ()), ("classifier_slow", ("--lr", 1e-5))):
            run_here("classifier.train", "smoke", *SHORT, *fast, "--run-dir", runs / name, *words)
    run_here(
        "classifier.generate_saliency_maps", "--checkpoint", runs / "classifier/checkpoints/best.pt", "--csv", test,
        "--out", runs / "saliency", "--methods", "saliency", "occlusion", "--resamples", 50, *cache,
        "--regions", "Left Hippocampus", "Right Hippocampus", "--threads", 1,
    )  # fmt: skip
    return root


@pytest.fixture
def part_of(home: Path, tmp_path: Path):
    """Makes a folder with some of the runs of `home` and nothing else but the tables."""

    def link(*names: str) -> Path:
        for name in ("data/tiny", *(f"runs/tiny/{name}" for name in names)):
            if not (tmp_path / name).exists():
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).symlink_to(home / name)
        return tmp_path

    return link
