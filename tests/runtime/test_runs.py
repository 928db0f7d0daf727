"""Run folders: lock, configuration, log, interrupts."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from runtime.device import Device
from runtime.errors import InputError
from runtime.runs import due, open_run

CPU = Device(torch.device("cpu"), torch.float32)


@dataclass(frozen=True)
class Config:
    lr: float = 0.1
    steps: int = 10
    batch_size: int = 4
    threads: int | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class Model:
    width: int = 4
    levels: tuple[int, ...] = ()


@dataclass(frozen=True)
class LaterConfig(Config):
    model: Model = field(default_factory=Model)
    init: str | None = None


def test_due() -> None:
    assert [step for step in range(1, 11) if due(step, 4, 10)] == [4, 8, 10]
    assert not any(due(step, 0) for step in range(1, 5))


def test_log_is_json_lines_and_forgets_steps_after_a_resume(tmp_path: Path) -> None:
    with open_run(tmp_path, Config(), stage="s", device=CPU) as run:
        run.continue_from(0)
        for step in (10, 20, 30):
            run.log(step, {"loss/train": torch.tensor(1 / step, dtype=torch.float64)})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # killed in the middle of a line
    with open_run(tmp_path, Config(), stage="s", device=CPU) as run:
        run.continue_from(20)
        run.log(30, {"loss/train": 7.0})
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(record["step"], record["loss/train"]) for record in records] == [(10, 0.1), (20, 0.05), (30, 7.0)]
    assert list(tmp_path.glob("events.out.tfevents*"))


def test_another_configuration_is_refused_with_both_values(tmp_path: Path) -> None:
    with open_run(tmp_path, Config(), stage="s", device=CPU) as run:
        touch(run.checkpoint("last"))
    with open_run(tmp_path, Config(threads=1), stage="s", device=CPU):
        pass
    with (
        pytest.raises(InputError, match=r"lr: the run has 0\.1, this command 0\.2"),
        open_run(tmp_path, Config(lr=0.2), stage="s", device=CPU),
    ):
        pass


def test_a_run_of_an_older_version_had_the_defaults_of_fields_it_did_not_know(tmp_path: Path) -> None:
    with open_run(tmp_path, LaterConfig(), stage="s", device=CPU) as run:
        touch(run.checkpoint("last"))
    written = json.loads((tmp_path / "config.json").read_text())
    del written["init"], written["model"]["levels"]
    (tmp_path / "config.json").write_text(json.dumps(written))
    with (
        pytest.raises(InputError, match=r"'levels': \[\]}, this command .*'levels': \[2\]"),
        open_run(tmp_path, LaterConfig(model=Model(levels=(2,))), stage="s", device=CPU),
    ):
        pass
    with open_run(tmp_path, LaterConfig(), stage="s", device=CPU):
        assert json.loads((tmp_path / "config.json").read_text())["model"] == {"width": 4, "levels": []}


def touch(path: Path) -> None:
    path.parent.mkdir()
    path.touch()


@dataclass(frozen=True)
class Reader(Config):
    latents: Path = Path("latents")


def test_a_path_may_be_typed_in_another_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a preset from the root, and by a person from the folder that one is in."""
    monkeypatch.chdir(tmp_path)
    with open_run(tmp_path, Reader(latents=tmp_path / "latents"), stage="s", device=CPU) as run:
        touch(run.checkpoint("last"))
    with open_run(tmp_path, Reader(), stage="s", device=CPU):
        pass
    with (
        pytest.raises(InputError, match="latents: the run has 'latents', this command 'other'"),
        open_run(tmp_path, Reader(latents=Path("other")), stage="s", device=CPU),
    ):
        pass


def test_a_configuration_by_which_nothing_was_learned_gives_way(tmp_path: Path) -> None:
    for lr in (0.1, 0.2):
        with open_run(tmp_path, Config(lr=lr), stage="s", device=CPU):
            pass
    assert json.loads((tmp_path / "config.json").read_text())["lr"] == 0.2


def test_steps_may_grow_and_not_shrink(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_run(tmp_path, Config(), stage="s", device=CPU) as run:
        touch(run.checkpoint("last"))
    with open_run(tmp_path, Config(steps=20), stage="s", device=CPU):
        assert "10 steps become 20" in capsys.readouterr().out
    with (
        pytest.raises(InputError, match="steps: the run has 20, this command 10"),
        open_run(tmp_path, Config(), stage="s", device=CPU),
    ):
        pass


def test_a_batch_that_does_not_divide_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with (
        pytest.raises(InputError, match="--batch-size 4 does not divide over 3 processes"),
        open_run(tmp_path / "run", Config(), stage="s", device=CPU),
    ):
        pass
    assert not (tmp_path / "run").exists()


def test_a_file_system_without_locks_is_worth_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("runtime.files.fcntl.flock", flock)
    with pytest.warns(UserWarning, match="no locks"), open_run(tmp_path, Config(), stage="s", device=CPU):
        pass


def test_a_second_process_is_refused_and_a_dead_one_is_not_waited_for(tmp_path: Path) -> None:
    program = (
        "import sys, time, torch\n"
        "from pathlib import Path\n"
        "from tests.runtime.test_runs import CPU, Config\n"
        "from runtime.runs import open_run\n"
        "with open_run(Path(sys.argv[1]), Config(), stage='s', device=CPU):\n"
        "    print('open', flush=True)\n"
        "    time.sleep(60)\n"
    )
    root = Path(__file__).resolve().parents[2]
    other = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, cwd=root)
    assert other.stdout.readline() == b"open\n"
    with pytest.raises(InputError, match="another process"), open_run(tmp_path, Config(), stage="s", device=CPU):
        pass
    other.kill()
    other.wait()
    with open_run(tmp_path, Config(), stage="s", device=CPU):
        pass


def test_an_interrupt_lets_the_step_finish(tmp_path: Path) -> None:
    finished = []
    with open_run(tmp_path, Config(), stage="s", device=CPU) as run:
        run.continue_from(0)

        def loop() -> None:
            for step in run.progress(0, 10, "test"):
                if step == 3:
                    os.kill(os.getpid(), signal.SIGINT)
                finished.append((step, run.interrupted))

        with pytest.raises(KeyboardInterrupt):
            loop()
    assert finished == [(1, False), (2, False), (3, True)]
