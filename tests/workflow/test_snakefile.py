"""The workflow through its command, in a folder of its own: what it would do, what it refuses, and that it goes on."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml

from cohort.grids import EXPECTED
from cohort.tables import read_table
from runtime.files import ROOT, locked
from tests.support.processes import environment, last_step
from tests.support.scans import template_table
from workflow.options import refusal
from workflow.settings import SCHEMA

pytestmark = pytest.mark.slow  # Snakemake starts in two seconds

TINY = {
    "name": "tiny", "grid": "smoke", "simulate": True, "run": ["vae"],
    "options": {
        "cohort.make_demo": "--subjects 12",
        "cohort.split": "--val-percent 25 --test-percent 25 --no-figure",
        "VAE.train": "--steps 30 --save-every-steps 1 --val-every-steps 30 --log-every-steps 1",
    },
}  # fmt: skip


def command(folder: Path, config: dict | str, *words: str) -> list[str]:
    """Snakemake in a folder, with a configuration or one of those that are shipped."""
    path = ROOT / "workflow/config" / f"{config}.yaml"
    if isinstance(config, dict):
        path = folder / "mine.yaml"
        path.write_text(yaml.safe_dump(config))
    where = ["--snakefile", str(ROOT / "workflow/Snakefile"), "--directory", str(folder)]
    return [sys.executable, "-m", "snakemake", *where, "--configfile", str(path), "--cores", "1", *words]


def run(folder: Path, config: dict | str, *words: str, ok: bool = True) -> str:
    """What it printed, ended."""
    done = subprocess.run(
        command(folder, config, *words), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=300,
    )  # fmt: skip
    assert (done.returncode == 0) == ok, done.stdout
    assert "Traceback" not in done.stdout, done.stdout
    return done.stdout


def block(output: str, rule: str) -> str:
    """What is printed of one job of a rule: its input, its command."""
    return output.split(f"rule {rule}:\n", 1)[1].split("\n\n", 1)[0]


def counts(output: str) -> dict[str, int]:
    """Jobs by rule, of a dry run."""
    table = output.split("Job stats:", 1)[1].split("\n\n", 1)[0]
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}


def test_a_dry_run_lists_what_the_smoke_pipeline_needs(tmp_path: Path) -> None:
    output = run(tmp_path, "smoke", "--dry-run")
    once = ("cohort", "split", "vae", "infer", "latents", "diffusion", "evaluation", "classifiers", "maps", "report")
    assert counts(output) == dict.fromkeys((*once, "all"), 1) | {"synthetic": 3, "classifier": 3, "total": 17}
    assert "python -m VAE.train smoke --grid smoke --train-csv data/smoke/train.csv" in output
    assert "reason: Missing output files: runs/smoke/vae/.done" in output
    assert not list(tmp_path.glob("[!.]*"))


def test_studies_that_are_there_are_shown_and_arms_awaited_where_wanted(tmp_path: Path) -> None:
    studies = [
        f"runs/smoke/{name}.json" for name in ("arms_study", "controls/controls", "validate_saliency/validation")
    ]
    for path in map(tmp_path.joinpath, studies):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    shown = block(run(tmp_path, "smoke", "--dry-run"), "report")
    assert all(study in shown for study in studies)
    assert "runs/smoke/arms/.done" not in shown
    smoke = yaml.safe_load((ROOT / "workflow/config/smoke.yaml").read_text())
    shown = block(run(tmp_path, smoke | {"run": ["report", "arms"]}, "--dry-run"), "report")
    assert "runs/smoke/arms/.done" in shown
    assert "arms_study" not in shown


def test_cores_of_a_job_are_those_asked_for_whatever_is_here(tmp_path: Path) -> None:
    """As where a login node has few."""
    cores = len(os.sched_getaffinity(0)) + 5
    output = run(tmp_path, TINY, "--dry-run", "--cores", "999", "--max-threads", str(cores))
    assert f"threads: {cores}\n" in block(output, "vae")


@pytest.mark.parametrize("target", ["arms", "memorisation", "small-cohorts", "recipes", "smoke-studies"])
def test_rules_that_the_makefile_names_are_found(tmp_path: Path, target: str) -> None:
    """`--configfile` takes every word behind it for a file."""
    lines = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (line,) = [line.split() for line in lines.splitlines() if "bin/snakemake" in line]
    assert line[1] in {"arms", "latents", "split", "diffusion"}
    words = [str(ROOT / word) if word.endswith(".yaml") else word for word in line[1:]]
    where = ["--snakefile", str(ROOT / "workflow/Snakefile"), "--directory", str(tmp_path), "--cores", "1"]
    command = [sys.executable, "-m", "snakemake", *words, *where, "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert line[1] in counts(done.stdout + done.stderr)


def test_own_data_go_from_raw_heads_to_report_and_arms(tmp_path: Path) -> None:
    bids = tmp_path / "my heads"
    (bids / "sub-1/anat").mkdir(parents=True)
    (bids / "participants.tsv").write_text("participant_id\tdiagnosis\nsub-1\tHC\n")
    config = yaml.safe_load((ROOT / "workflow/config/mine.example.yaml").read_text())
    config |= {"participants": str(bids), "grid": "demo", "arms": {"seeds": [0, 1], "folds": 3}}
    config["options"] = {"cohort.prepare": "--label-column x", "VAE.train": "--steps 7"}
    config |= {"parts": 3, "accept_flagged": True}
    output = run(tmp_path, config, "--dry-run")
    found = counts(output)
    assert found["part"] == 3
    assert {found[rule] for rule in ("cohort", "check", "split", "vae", "diffusion", "maps", "arms", "report")} == {1}
    assert found["classifier"] == 3 + 5 * 2 * 3
    commands = [line.removeprefix("Shell command: ").split() for line in output.splitlines() if "python -m " in line]
    by_module = {words[words.index("-m") + 1]: " ".join(words) for words in commands}
    prepare = [" ".join(words) for words in commands if "cohort.prepare" in words]
    for part in (f"--participants '{bids}'", "--grid demo", "--keep-flagged --label-column x"):
        assert [part in line for line in prepare] == [True] * 4
    assert [f"--part {part}/3;" in " ".join(prepare) for part in (1, 2, 3)] == [True] * 3
    assert "--part " not in by_module["cohort.prepare"]  # the last of them, which awaits the parts
    assert "data/mine/parts/2_of_3/.done" in block(output, "cohort")
    assert "--keep-flagged" in by_module["cohort.check"]
    assert "--keep-flagged --least 4" in by_module["cohort.split"]
    for part in ("VAE.train demo", "--train-csv data/mine/train.csv", "--run-dir runs/mine/vae", "--steps 7"):
        assert part in by_module["VAE.train"]
    assert "--latents runs/mine/latents" in by_module["diffusion.train"]
    assert "truth.csv" not in output  # that is the simulation's
    arms = [words for words in commands if "runs/mine/arms/synthetic/seed1_fold2" in words]
    own = "--volumes None --volumes-weight 0 --real 0 --synth-count 200 --seed 1 --folds 3 --fold 2;"
    assert own in " ".join(arms[0])
    config |= {"known_volumes": str(tmp_path), "run": ["classifiers", "evaluation"]}
    known = run(tmp_path, config, "--dry-run")
    assert known.count(f"--volumes {tmp_path}") == 3 + 1 + 1  # classifiers, their comparison, evaluation
    assert "--volumes-weight 0" not in known


def test_a_report_is_one_of_what_else_is_wanted(tmp_path: Path) -> None:
    found = counts(run(tmp_path, TINY | {"run": ["report", "vae"]}, "--dry-run"))
    assert set(found) == {"cohort", "split", "vae", "report", "all", "total"}
    found = counts(run(tmp_path, TINY | {"run": ["maps"]}, "report", "--dry-run"))
    assert {"maps", "report"} <= set(found)
    assert "evaluation" not in found


def test_bad_input_ends_with_one_message_before_anything_runs(tmp_path: Path) -> None:
    output = run(tmp_path, TINY | {"grid": "papre"}, ok=False)
    assert output.splitlines()[-1] == f"  - grid papre: {EXPECTED}"
    output = run(tmp_path, TINY | {"gpus": 64}, ok=False)
    assert "error: gpus: 64 asked for" in output.splitlines()[-1]
    wrong = {"VAE.train": "--setps 30", "cohort.split": "--val-percent many"}
    output = run(tmp_path, TINY | {"options": wrong}, ok=False)
    title, *lines = output.splitlines()[-3:]
    assert title == "error: options: refused by their scripts (2):"
    assert lines[0] == "  - VAE.train: --setps 30: Unrecognized options: --setps, 30"
    assert lines[1].startswith("  - cohort.split: --val-percent many: Error parsing --val-percent: ")
    (tmp_path / "runs/tiny").mkdir(parents=True)
    (tmp_path / "runs/tiny/workflow.json").write_text('{"participants": "bids", "grid": "smoke", "presets": {}}')
    output = run(tmp_path, TINY, ok=False)
    assert "error: runs/tiny: holds another run; choose another name" in output
    (tmp_path / "runs/tiny/workflow.json").unlink()
    with locked(tmp_path / "runs/tiny"):
        output = run(tmp_path, TINY, ok=False)
    assert "another process is running in this folder" in output.splitlines()[-1]
    assert not (tmp_path / "data").exists()


def test_gpus_are_shared_by_memory_and_a_training_has_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a driver that names two."""
    driver = tmp_path / "bin/nvidia-smi"
    driver.parent.mkdir()
    driver.write_text("#!/bin/sh\necho 40000; echo 40000\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(driver.parent), prepend=os.pathsep)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    config = TINY | {"run": ["classifiers"], "gpu_mem_mb": 30000}
    output = run(tmp_path, config, "--dry-run")
    assert "python -m torch.distributed.run --nproc-per-node 2 --standalone -m VAE.train" in block(output, "vae")
    assert re.search(r"resources: .*gpu=2\b", block(output, "vae"))
    for rule, script in {"latents": "VAE.save_latent", "synthetic": "diffusion.save_synth"}.items():
        assert f"-m torch.distributed.run --nproc-per-node 2 --standalone -m {script}" in block(output, rule)
        assert re.search(r"resources: .*gpu=2\b", block(output, rule))
    jobs = [job.split("\n\n", 1)[0] for job in output.split("rule classifier:\n")[1:]]
    shares = {"3": "gpu0_mem_mb=30000, gpu1_mem_mb=0", "1": "gpu0_mem_mb=0, gpu1_mem_mb=30000"}
    found = [re.search(r"CUDA_VISIBLE_DEVICES=(\d) python -m classifier.train", job)[1] for job in jobs]
    assert sorted(found) == ["1", "3", "3"]
    assert all(f"gpu=1, device={device}, {shares[device]}" in job for device, job in zip(found, jobs, strict=True))
    output = run(tmp_path, config | {"gpus": 0}, "--dry-run")
    hidden = output.count("Shell command: CUDA_VISIBLE_DEVICES= python -m ")
    assert hidden == 8  # VAE, latents, diffusion model, volumes of two classes, three classifiers


def test_a_cluster_gets_jobs_of_whole_nodes_and_is_refused_where_it_is_not(tmp_path: Path) -> None:
    slurm = ("--workflow-profile", str(ROOT / "workflow/profiles/slurm"))
    config = TINY | {"gpus": 4, "nodes": 2, "run": ["synthetic"]}
    output = run(tmp_path, config, "--dry-run", *slurm)
    for rule in ("vae", "latents", "diffusion", "synthetic"):
        job = block(output, rule)
        assert re.search(r"resources: .*nodes=2, tasks=2, mpi=srun, slurm_extra='--gpus-per-node=4'", job), rule
        assert "srun python -m torch.distributed.run --nproc-per-node 4 --nnodes 2 " in job, rule
    if shutil.which("sbatch") is None:
        assert "error: Slurm is not here (no sbatch)" in run(tmp_path, config, *slurm, ok=False).splitlines()[-1]
        assert not (tmp_path / "data").exists()


def test_words_of_every_script_can_be_tried() -> None:
    """With what it insists on besides."""
    settings = {"grid": "demo", "presets": {}}
    schema = yaml.safe_load(SCHEMA.read_text())
    scripts = schema["properties"]["options"]["propertyNames"]["enum"]
    assert {script: refusal(settings | {"options": {script: ""}}, script) for script in scripts} == dict.fromkeys(
        scripts, ""
    )


def test_a_scan_that_fails_stops_the_workflow_until_it_is_accepted(tmp_path: Path) -> None:
    table = template_table(tmp_path)
    (tmp_path / "raw/P2.nii.gz").write_bytes(b"no scan")
    config = {"name": "own", "grid": "smoke", "participants": str(table), "run": ["cohort"], "parts": 2}
    config["options"] = {"cohort.prepare": "--assume-mni"}
    output = run(tmp_path, config, ok=False)
    assert "failed: P2: " in output
    assert "once you have looked, accept_flagged: true goes on" in output.splitlines()
    assert not list((tmp_path / "data/own/parts").glob("1_of_2/.done"))  # P0 and P2
    assert "accept_flagged" not in run(tmp_path, config | {"accept_flagged": True})
    assert read_table(tmp_path / "data/own/pickle_prep_own.csv")["subject"].tolist() == ["P0", "P1", "P3"]


def stamps(paths: Iterable[Path]) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in paths}


def test_a_killed_workflow_goes_on_and_a_finished_one_rests(tmp_path: Path) -> None:
    """SIGKILL to all of its processes in the middle of a training, as from a machine that goes down."""
    process = subprocess.Popen(
        command(tmp_path, TINY), cwd=ROOT, env=environment(), start_new_session=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    run_dir = tmp_path / "runs/tiny/vae"
    deadline = time.monotonic() + 250
    while last_step(run_dir) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (run_dir / ".done").exists()
    scans = stamps((tmp_path / "data/tiny/scans").iterdir())
    output = run(tmp_path, TINY)
    assert re.search(r"continuing at step [1-9]", output)
    assert "make_demo" not in output
    assert last_step(run_dir) == 30
    assert stamps(scans) == scans

    kept = stamps([run_dir / "checkpoints/best.pt"])
    (tmp_path / "data/tiny/.split").touch()  # nothing but a newer date
    assert "Nothing to be done" in run(tmp_path, TINY)
    (tmp_path / "data/tiny/.split").write_text("divided again")  # the training is looked at, and stays as it is
    assert "rule vae" in run(tmp_path, TINY)
    assert stamps(kept) == kept
    longer = TINY | {"options": TINY["options"] | {"VAE.train": "--steps 31"}}
    assert "Params have changed" in run(tmp_path, longer, "--dry-run")
