"""Notebooks are readers: short, without definitions or stored outputs; the report is one file, made when it is due."""

from __future__ import annotations

import ast
import importlib
import os
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from cohort.splitting.record import write_record
from cohort.tables import read_table, write_table
from notebooks import report
from notebooks.results import Results
from runtime.files import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAX_CODE_CELLS, MAX_CODE_LINES = 22, 15


def code_of(path: Path) -> list[str]:
    """Each code cell as plain Python, IPython's own commands left out."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    return ["\n".join(line for line in cell.source.splitlines() if not line.startswith("%")) for cell in cells]


def small_notebook(*sources: str) -> nbformat.NotebookNode:
    text = nbformat.v4.new_markdown_cell("# A & B")
    return nbformat.v4.new_notebook(cells=[text, *(nbformat.v4.new_code_cell(source) for source in sources)])


def test_the_notebooks_are_there():
    assert {path.stem for path in NOTEBOOKS} == {
        "compare_runs", "data_split", "explore_saliency", "explore_volumes", "visualize", "your_scan",
    }  # fmt: skip


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_holds_no_outputs(self, path):
        for cell in nbformat.read(path, as_version=4).cells:
            assert not cell.get("outputs")
            assert cell.get("execution_count") is None

    def test_is_short(self, path):
        cells = code_of(path)
        assert len(cells) <= MAX_CODE_CELLS
        assert max(sum(bool(line.strip()) for line in cell.splitlines()) for cell in cells) <= MAX_CODE_LINES

    def test_defines_nothing(self, path):
        for cell in code_of(path):
            nodes = list(ast.walk(ast.parse(cell)))
            assert not [
                node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            ]

    def test_what_it_imports_is_there(self, path):
        for cell in code_of(path):
            for node in ast.walk(ast.parse(cell)):
                if isinstance(node, ast.ImportFrom):
                    module = importlib.import_module(node.module)
                    for alias in node.names:
                        assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")

    def test_first_cell_names_the_command(self, path):
        first = nbformat.read(path, as_version=4).cells[0]
        assert first.cell_type == "markdown"
        assert "`make demo`" in first.source

    def test_every_figure_is_explained(self, path):
        cells = nbformat.read(path, as_version=4).cells
        for cell, following in zip(cells, [*cells[1:], None], strict=True):
            if cell.cell_type == "code" and re.search(r"subplots|sheet\(|_figure\(|Image\(R|plotting\.", cell.source):
                assert following.source.startswith("**How to read it.**")


@pytest.mark.slow
def test_data_split_executes(cohort_dir, tmp_path):
    tables = {name: pd.read_csv(cohort_dir / f"{name}.csv") for name in ("train", "val", "test")}
    for name, table in tables.items():
        table["file"] = [str(cohort_dir / file) for file in table["file"]]
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    pd.concat(tables.values()).to_csv(tmp_path / "pickle_prep_tiny.csv", index=False)
    before = sorted(tmp_path.iterdir())
    parameters = {"REPORT_PRESET": "tiny", "REPORT_TABLES": str(tmp_path)}
    done = report.execute(ROOT / "notebooks" / "data_split.ipynb", parameters)
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    assert "has no split.json" in "".join(output.get("text", "") for output in outputs)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_data_split_says_how_recorded_tables_were_made(cohort_dir, tmp_path):
    tables = {name: read_table(cohort_dir / f"{name}.csv") for name in ("train", "val", "test")}
    write_table(tmp_path / "pickle_prep_tiny.csv", pd.concat(tables.values(), ignore_index=True))
    for name, table in tables.items():
        write_table(tmp_path / f"{name}.csv", table)
    index = tmp_path / "pickle_prep_tiny.csv"
    write_record(tmp_path, tables, settings={"seed": 7}, index=index, groups=None, left_out=tables["test"][:0])
    parameters = {"REPORT_PRESET": "tiny", "REPORT_TABLES": str(tmp_path)}
    done = report.execute(ROOT / "notebooks" / "data_split.ipynb", parameters)
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    printed = "".join(output.get("text", "") for output in outputs)
    assert "made by cohort.split from pickle_prep_tiny.csv with seed 7; unchanged since" in printed


def test_execution_shows_figures_whatever_the_backend(tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    path = tmp_path / "one.ipynb"
    source = "import os\nimport matplotlib.pyplot as plt\nprint(os.environ['NAME'])\nplt.plot([0, 1]);"
    nbformat.write(small_notebook(source), path)
    content = path.read_bytes()
    outputs = report.execute(path, {"NAME": "given"}).cells[1].outputs
    assert outputs[0]["text"] == "given\n"
    assert "image/png" in outputs[-1]["data"]
    assert path.read_bytes() == content
    assert "NAME" not in os.environ


def test_page_stands_alone_and_hides_code(capsys):
    notebook = small_notebook("secret = 1")
    frame = (
        "<iframe srcdoc='&lt;link rel=&quot;icon&quot;\n href=&quot;https://example.org/i.ico&quot; /&gt;&lt;p&gt;'>"
    )
    notebook.cells[1].outputs = [
        nbformat.v4.new_output("stream", name="stderr", text="a warning"),
        nbformat.v4.new_output("display_data", data={"text/html": frame}),
    ]
    html = report.page(notebook, "<!-- mark -->")
    assert "secret" not in html
    assert "a warning" not in html
    assert capsys.readouterr().err == "a warning"
    assert "<title>A &amp; B</title>" in html
    assert "https://" not in html
    assert "&lt;p&gt;" in html


def test_report_is_made_when_due(tmp_path, monkeypatch, capsys):
    result, out = tmp_path / "result.json", tmp_path / "report.html"
    result.write_text("1")
    monkeypatch.setattr(Results, "files", lambda self: [result])
    monkeypatch.setattr(Results, "left_out", lambda self, title: "")
    runs = []
    monkeypatch.setattr(report, "run_cells", lambda notebook, parameters: runs.append(parameters) or small_notebook())
    config = report.ReportConfig(preset="demo", tables=tmp_path, out=out)
    report.main(config)
    first = out.read_bytes()
    report.main(config)
    assert len(runs) == 1
    assert out.read_bytes() == first
    assert "done already" in capsys.readouterr().out
    result.write_text("2")
    report.main(config)
    assert len(runs) == 2
    assert out.read_bytes() != first
