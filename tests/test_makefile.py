"""`make clean` takes what the demo and the smoke run made, and nothing that a user has made."""

import shutil
import subprocess
from pathlib import Path

from tests.support.processes import ROOT

OURS = (
    "data/demo/train.csv", "data/smoke/s1.nii.gz", "runs/demo/latents/l.pkl", "runs/smoke_paper/vae/config.json",
    "runs/smoke_flow/.done", "fid_results/demo.json", "fid_results/demo.md", "fid_results/demo_privacy.md",
    "fid_results/smoke_paper.json",
)  # fmt: skip
THEIRS = (
    "data_csvs/train.csv", "data_csvs/pickle_prep_mine.csv", "data/mine/scans/P1.nii.gz", "data/smokers/P1.nii.gz",
    "data/demography.csv", "runs/mine/vae/config.json", "runs/paper/vae/config.json", "runs/demonstration/notes.txt",
    "runs/smokers/vae/config.json", "latents/train/P1.pkl", "synthetic_data_pkls_HC/HC_000000.pkl", "mine.yaml",
    "fid_results/mine.json", "fid_results/README.md", "fid_results/demography.json", "fid_results/smokers.json",
)  # fmt: skip


def test_clean_leaves_what_a_user_has_made(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in OURS + THEIRS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"Makefile", *THEIRS}
