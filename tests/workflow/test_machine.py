from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from runtime.errors import InputError
from workflow import machine
from workflow.machine import (
    all_gpus,
    await_jobs,
    device_pools,
    devices_here,
    gpu_memory_mb,
    launcher,
    on_device,
    one_gpu,
    refuse_machine,
    slurm_name,
)


def test_a_machine_without_what_is_asked_for_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = {"gpus": 2, "nodes": 1}
    refuse_machine(settings, "local", here=2)
    with pytest.raises(InputError, match="gpus: 2 asked for, 1 there"):
        refuse_machine(settings, "local", here=1)
    with pytest.raises(InputError, match=r"nodes: 2 asked for, and this is one machine; .*profiles/slurm"):
        refuse_machine(settings | {"nodes": 2}, "local", here=2)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="Slurm is not here"):
        refuse_machine(settings, "slurm", here=0)
    (tmp_path / "sbatch").touch(mode=0o755)
    refuse_machine(settings, "slurm", here=0)
    with pytest.raises(InputError, match="gpus: auto counts those of this machine; say how many a node has"):
        refuse_machine(settings | {"gpus": "auto"}, "slurm", here=1)


def test_jobs_of_one_machine_share_the_memory_of_the_gpu_whose_turn_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert on_device([], 0) == on_device([], 4) == "python -m "
    assert on_device(["3", "1"], 2) == "CUDA_VISIBLE_DEVICES={resources.device} python -m "
    assert on_device(["3", "1"], 0) == "CUDA_VISIBLE_DEVICES= python -m "
    resources = one_gpu(["3", "1"], 2, 16000, int)
    assert resources.pop("gpu") == 1
    found = [{name: value(job) for name, value in resources.items()} for job in ("0", "1", "2")]
    first, second = {"gpu0_mem_mb": 16000, "gpu1_mem_mb": 0}, {"gpu0_mem_mb": 0, "gpu1_mem_mb": 16000}
    assert found == [first | {"device": "3"}, second | {"device": "1"}, first | {"device": "3"}]
    assert one_gpu([], 4, 16000, int) == {"gpu": 1}
    assert one_gpu(["3", "1"], 0, 16000, int) == {"gpu": 0}
    monkeypatch.setattr(machine, "gpu_memory_mb", lambda: [81559, 40960, 81559, 40960])
    assert device_pools(["3", "1"]) == {"gpu0_mem_mb": 40960, "gpu1_mem_mb": 40960}
    assert device_pools([]) == {}
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert on_device(["3", "1"], 2) == "python -m "


def test_a_training_starts_a_process_for_each_gpu_of_each_node() -> None:
    assert (launcher(1, 0), launcher(1, 1)) == ("python -m ", "python -m ")
    assert launcher(1, 0, ["0"]) == "CUDA_VISIBLE_DEVICES= python -m "
    assert "--nproc-per-node 4 --standalone -m " in launcher(1, 4)
    words = launcher(2, 4)
    assert words.startswith("srun python -m torch.distributed.run --nproc-per-node 4 --nnodes 2 ")
    assert "--standalone" not in words
    assert all_gpus(1, 4) == {"gpu": 4}
    assert all_gpus(2, 4) == {"nodes": 2, "tasks": 2, "mpi": "srun", "slurm_extra": "'--gpus-per-node=4'"}
    assert "--nproc-per-node 1 --nnodes 2" in launcher(2, 0)
    assert "slurm_extra" not in all_gpus(2, 0)


def test_hidden_gpus_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    for visible, found in (("", []), ("-1", []), ("0", ["0"]), ("3, 1", ["3", "1"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert devices_here() == found


def test_memory_of_gpus_is_the_drivers_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_memory_mb() == []
    driver = tmp_path / "nvidia-smi"
    driver.touch(mode=0o755)
    for text, found in (("echo 143771; echo 81559", [143771, 81559]), ("exit 9", [])):
        driver.write_text(f"#!/bin/sh\n{text}\n")
        assert gpu_memory_mb() == found
        assert devices_here() == ["0", "1"][: len(found)]


def test_jobs_that_a_killed_command_left_are_awaited(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """By a squeue that shows job 7 twice, and then no more; only those of the command before are asked for."""
    record, queue = tmp_path / "slurm_jobs.txt", tmp_path / "queue"
    squeue = tmp_path / "squeue"
    squeue.write_text(f'#!/bin/sh\necho "$3" >> {tmp_path}/asked; head -n 1 {queue}; sed -i 1d {queue}\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(machine, "POLL_S", 0.0)
    queue.write_text("7\n7\n\n")
    await_jobs(record, "first")
    assert (record.read_text(), queue.read_text()) == ("first", "7\n7\n\n")
    await_jobs(record, "second")
    assert (record.read_text(), queue.read_text()) == ("second", "")
    assert (tmp_path / "asked").read_text().split() == ["first"] * 3
    assert capsys.readouterr().out.count("waiting for Slurm jobs 7:") == 1
    squeue.write_text("#!/bin/sh\necho no answer >&2; exit 1\n")
    with pytest.raises(InputError, match="squeue: no answer"):
        await_jobs(record, "third")
    assert record.read_text() == "second"


def test_a_snakemake_that_hides_the_name_of_its_jobs_is_refused_by_its_version() -> None:
    executor = SimpleNamespace(run_uuid="a-b")
    assert slurm_name(SimpleNamespace(scheduler=SimpleNamespace(_executor=executor))) == "a-b"
    with pytest.raises(InputError, match=r"snakemake 9.* keep the name .*_executor.*; install the versions that requ"):
        slurm_name(SimpleNamespace(scheduler=SimpleNamespace(executor=executor)))
