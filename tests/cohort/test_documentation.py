"""Every command and link of the pages about data."""

import json
import re
import runpy
import shlex
import sys

from runtime.files import ROOT


def commands_of(page):
    """The commands of a page's indented blocks, lines that end in a backslash joined."""
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.startswith("    python -m cohort.")]


def test_every_command_of_the_documentation_is_understood(monkeypatch, capsys):
    commands = commands_of("docs/your_own_data.md") + commands_of("data_csvs/README.md")
    assert {command.split()[2] for command in commands} == {
        "cohort.prepare",
        "cohort.check",
        "cohort.split",
        "cohort.plant",
        "cohort.labelling.measure",
        "cohort.labelling.train",
    }
    for command in commands:
        _, _, module, *arguments = shlex.split(command)
        monkeypatch.setattr(sys, "argv", [module, *arguments, "--dry-run"])
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        resolved = json.loads(capsys.readouterr().out)
        assert resolved["dry_run"] is True


def test_pages_link_to_files_that_are_there():
    for page in ("docs/your_own_data.md", "data_csvs/README.md"):
        links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8"))
        assert links
        for link in links:
            assert (ROOT / page).parent.joinpath(link).exists(), f"{page}: {link}"
