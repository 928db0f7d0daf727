"""The short run of VAE.train that tests of the stage's scripts share."""

from pathlib import Path

COMMON = ("--steps", 12, "--save-every-steps", 3, "--val-every-steps", 6, "--log-every-steps", 1, "--threads", 1,
          "--precision", "float32", "--augment.rotate-degrees", 5, "--augment.gamma", 0.1, "--augment.flip", 0.5,
          "--loss.perceptual", 0.1, "--loss.perceptual-slices", 3)  # fmt: skip


def tables(cohort_dir: Path, run_dir: Path) -> tuple:
    return (
        "--train-csv", cohort_dir / "train.csv", "--val-csv", cohort_dir / "val.csv",
        "--cache-dir", cohort_dir / "cache", "--run-dir", run_dir,
    )  # fmt: skip
