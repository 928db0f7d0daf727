"""Commands: presets, unknown flags, --dry-run, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

from runtime.cli import parse, run_module, run_script
from runtime.errors import InputError
from tests.support.processes import ROOT


@dataclass(frozen=True)
class Config:
    steps: int = 10
    """Optimiser steps."""
    dry_run: bool = False
    """Print the configuration and stop."""


PRESETS = {"smoke": Config(steps=1), "paper": Config(steps=100)}


def test_presets_come_first_and_flags_change_fields() -> None:
    assert parse(PRESETS, ["paper"]) == Config(steps=100)
    assert parse(PRESETS, ["smoke", "--steps", "7"]) == Config(steps=7)


@pytest.mark.parametrize("argv", [["paper", "--stepz", "3"], ["papr"], ["paper", "--steps", "many"], []])
def test_wrong_words_end_with_status_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(PRESETS, argv)
    assert caught.value.code == 2


@dataclass(frozen=True)
class Rates:
    decay: float = 0.5


@dataclass(frozen=True)
class Nested:
    lr: float | None = None
    shares: tuple[float, ...] = (0.1,)
    rates: Rates = Rates()


def test_numbers_that_are_not_finite_are_refused_by_the_names_of_their_flags() -> None:
    with pytest.raises(InputError) as refusal:
        parse(Nested, ["--lr", "nan", "--shares", "0.1", "inf", "--rates.decay", "-inf"])
    expected = "expected finite numbers (3):\n  - --lr nan\n  - --shares inf\n  - --rates.decay -inf"
    assert str(refusal.value) == expected
    assert parse(Nested, ["--lr", "1e30"]).lr == 1e30


def test_help_explains_fields(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(PRESETS, ["paper", "--help"])
    assert caught.value.code == 0
    assert "Optimiser steps." in capsys.readouterr().out


def test_help_of_a_script_with_presets_says_where_its_options_are(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parse(PRESETS, ["--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "The smoke preset (seconds, to try the command); its options and their values: smoke --help" in said


@dataclass(frozen=True)
class Wordy:
    share: float = 0.5
    """Of what there is, in
    percent."""


def test_an_explanation_of_several_lines_is_one_paragraph(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parse(Wordy, ["--help"])
    assert "Of what there is, in percent. (default: 0.5)" in capsys.readouterr().out
    assert parse(Wordy, ["--share", "0.25"]) == Wordy(0.25)


def test_help_is_headed_by_the_command_as_it_was_typed() -> None:
    for words, name in ((["-m", "cohort.split"], "python -m cohort.split"), (["cohort/split.py"], "cohort/split.py")):
        done = subprocess.run([sys.executable, *words, "--help"], cwd=ROOT, capture_output=True, text=True)
        assert f"{name} [-h]" in done.stdout.splitlines()[0]


def test_dry_run_prints_and_does_nothing(capsys: pytest.CaptureFixture) -> None:
    run_script(lambda config: pytest.fail("ran"), PRESETS, argv=["smoke", "--dry-run"])
    assert json.loads(capsys.readouterr().out) == {"steps": 1, "dry_run": True}


def test_a_warning_about_input_is_its_message_alone() -> None:
    """In a process of its own, since a test's warnings are caught."""
    program = (
        "import warnings; from dataclasses import dataclass; from runtime.cli import run_script; "
        "from runtime.errors import InputWarning\n"
        "@dataclass(frozen=True)\nclass Config:\n    dry_run: bool = False\n"
        "def main(config):\n    warnings.warn('t.csv: odd', InputWarning)\n    warnings.warn('a defect')\n"
        "run_script(main, Config, argv=[])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    first, second = done.stderr.splitlines()
    assert first == "warning: t.csv: odd"
    assert second.endswith("UserWarning: a defect")


def test_refused_input_is_a_message_and_status_2(capsys: pytest.CaptureFixture) -> None:
    def main(config: Config) -> None:
        raise InputError.of("table.csv: rows refused", ["row 2: no file", "row 5: no label"])

    with pytest.raises(SystemExit) as caught:
        run_script(main, Config, argv=[])
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: table.csv: rows refused (2):\n  - row 2: no file\n  - row 5: no label\n"


@pytest.mark.slow
def test_commands_that_need_no_network_start_without_torch() -> None:
    """It takes seconds to import; tests of the commands themselves see that what needs it still finds it."""
    program = (
        "import contextlib, runpy, sys\n"
        "for module in ('prepare', 'split', 'check', 'make_demo'):\n"
        "    sys.argv = [module, '--help']\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        runpy.run_module(f'cohort.{module}', run_name='__main__', alter_sys=True)\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)


@pytest.mark.parametrize("words", [("--help",), ("--index", "a.csv", "--dry-run")])
def test_a_reader_who_has_seen_enough_is_no_error(words: tuple[str, ...]) -> None:
    """As with `--help | head`, but sure to meet a closed pipe."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "cohort.split", *words], cwd=ROOT, stdout=pipe, stderr=subprocess.PIPE
        )
    assert (done.stderr, done.returncode) == (b"", 141)


def test_a_module_that_fails_ends_the_run() -> None:
    run_module("json.tool", "--help")
    with pytest.raises(InputError, match=r"python -m json\.tool ended with status"):
        run_module("json.tool", "--no-such-flag")
