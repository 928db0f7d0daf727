"""The report of part of a run: what is there, and a line for what is not."""

from __future__ import annotations

import ast
import builtins
import re
from pathlib import Path

import nbformat
import pytest

from notebooks import report
from notebooks.results import SECTIONS, Results
from runtime.errors import InputError
from runtime.files import write_json
from tests.support.processes import run_here

NOTEBOOK = nbformat.read(report.NOTEBOOK, as_version=4)


def made(root: Path) -> str:
    """The report of root/runs/tiny, by its command."""
    run_here("notebooks.report", "tiny", "--root", root)
    return (root / "runs/tiny/report.html").read_text()


def headings(html: str) -> list[str]:
    return [re.sub("<.*?>|¶", "", heading) for heading in re.findall("<h2.*?</h2>", html)]


def sections() -> dict[str, list[str]]:
    """Code of the notebook's cells by heading; those before the first one under the empty heading."""
    found: dict[str, list[str]] = {"": []}
    for cell in NOTEBOOK.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            found[cell.source.splitlines()[0].removeprefix("## ")] = []
        elif cell.cell_type == "code":
            lines = cell.source.splitlines()
            found[list(found)[-1]].append("\n".join(line for line in lines if not line.startswith("%")))
    return found


def test_the_table_of_sections_is_that_of_the_notebook() -> None:
    assert [title for title in sections() if title] == list(SECTIONS)
    headings = sum(cell.source.count("\n## ") for cell in NOTEBOOK.cells)
    assert headings == 0  # a heading begins a cell: what is left out ends there


@pytest.mark.parametrize("title", [title for title in SECTIONS if title != "In brief"])
def test_a_section_needs_no_other_that_may_be_left_out(title: str) -> None:
    found = sections()
    known, used = set(dir(builtins)), set()
    for part in ("", "In brief", title):
        for node in ast.walk(ast.parse("\n".join(found[part]))):
            if isinstance(node, ast.Name):
                (used if isinstance(node.ctx, ast.Load) and part == title else known).add(node.id)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                known |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    stored = {node.id for node in ast.walk(ast.parse("\n".join(found[title]))) if isinstance(node, ast.Name)
              and isinstance(node.ctx, ast.Store)}  # fmt: skip
    assert not used - known - stored


def test_what_is_missing_is_named_with_the_rule_that_makes_it(tmp_path: Path) -> None:
    results = Results("demo", tmp_path / "data/demo", tmp_path)
    for title, rule in (
        ("Cohort", "split"), ("Training", "vae"), ("Reconstructions by the VAE", "infer"), ("Anatomy", "evaluation"),
        ("Real next to synthetic", "synthetic"), ("Classifiers", "classifiers"), ("Where the classifier looks", "maps"),
        ("Arms over training seeds", "arms"),
    ):  # fmt: skip
        line = results.left_out(title)
        assert f"`.venv/bin/snakemake {rule} --configfile workflow/config/demo.yaml` makes them" in line
        assert "\n" not in line
    for title, target in (
        ("What another label changes", "counterfactuals"), ("Volumes that were asked for", "wanted-volumes"),
        ("Regions labelled by our own network", "labels"),
    ):  # fmt: skip
        assert f"`make {target}` makes" in results.left_out(title)
    assert "`runs/demo/infer/summary.json` and 1 more are not there" in results.left_out("Reconstructions by the VAE")
    own = Results("mine", tmp_path, tmp_path).left_out("Classifiers")
    assert "--configfile mine.yaml`" in own
    write_json(tmp_path / "runs/demo/diffusion/log.jsonl", {})
    assert not results.left_out("Training")  # of one stage is enough


def test_nothing_at_all_is_one_error(tmp_path: Path) -> None:
    done = run_here("notebooks.report", "dmeo", "--root", tmp_path, ok=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: nothing to report of 'dmeo'")
    assert "make demo" in done.stderr
    assert "--configfile dmeo.yaml" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_vae_alone_has_a_report_that_says_only_what_is_known(part_of) -> None:
    html = made(part_of("vae", "infer"))
    assert headings(html) == [
        "In brief", "Cohort", "Training", "Reconstructions by the VAE", "How this was made",
    ]  # fmt: skip
    assert "A VAE was trained on 6 HC, 6 TLE-L." in html
    assert re.search(r"The VAE reconstructs 8 unseen scans with a PSNR of \d+\.\d dB", html)
    opening = html[html.index("In brief") : html.index("Cohort<")]
    assert not re.search("AUC|classifier|diffusion|Frechet|private", opening)
    assert html.count(": left out. ") == len(SECTIONS) - 5
    assert "<strong>Classifiers</strong>: left out. <code>runs/tiny/classifier/results.json</code>" in html
    assert ".venv/bin/snakemake classifiers --configfile tiny.yaml" in html
    assert html.count("data:image/png") == 3  # scans, curves, reconstructions


@pytest.mark.slow
def test_classifiers_of_real_scans_alone_have_one_too_and_it_is_due_when_more_is_there(part_of, capsys) -> None:
    root = part_of("classifier", "saliency")
    html = made(root)
    assert headings(html) == [
        "In brief", "Cohort", "Training", "Classifiers", "Where the classifier looks", "How this was made",
    ]  # fmt: skip
    opening = html[html.index("In brief") : html.index("Cohort<")]
    assert re.search(
        r"The classifier (finds the disease|cannot be told from chance) in unseen scans, AUC [01]\.\d\d", opening
    )
    assert not re.search("VAE|synthetic|simulated", opening)
    assert "Measured on 4 HC and 4 TLE held-out scans" in html
    assert made(root) == html
    part_of("vae")
    assert "Reconstructions" not in headings(made(root))
    assert "A VAE and a classifier were trained" in made(root)


@pytest.mark.slow
def test_an_input_error_in_a_cell_ends_with_its_sentence(part_of) -> None:
    root = part_of("classifier")
    (root / "runs/other").mkdir()
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("from runtime.errors import InputError\nraise InputError('no such head')")]
    )
    with pytest.raises(InputError, match=r"^no such head$"):
        report.run_cells(notebook, {})
    shown = [output for output in notebook.cells[0].outputs if output.output_type == "error"]
    assert shown[0]["traceback"] == ["error: no such head"]
