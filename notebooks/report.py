"""Makes the report of one preset's results: executes visualize.ipynb on them and writes one HTML file.

    python -m notebooks.report demo

Sections whose files are not there are left out, with a line that says what makes them (`notebooks.results`). The file
needs nothing beside it and nothing from a network. It begins with a hash of all that the notebook reads; while that has
not changed the command has nothing to do. The notebook itself is not written to.
"""

import hashlib
import os
import re
import sys
import tempfile
from dataclasses import dataclass
from html import escape
from pathlib import Path

import nbformat
import tyro
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter

from notebooks.results import Results
from runtime.cli import describe, run_script
from runtime.config import ScriptConfig
from runtime.errors import InputError
from runtime.files import ROOT, atomic_write, sha256

NOTEBOOK, STYLE = ROOT / "notebooks" / "visualize.ipynb", ROOT / "notebooks" / "report.css"
CELL_TIMEOUT_S = 600
# nilearn's viewer, quoted into a frame, asks a server for its icon: the only thing that would come from a network.
FAVICON = re.compile(r"&lt;link rel=&quot;icon&quot;.*?&gt;", re.DOTALL)


@dataclass(frozen=True)
class ReportConfig(ScriptConfig):
    preset: tyro.conf.Positional[str]
    """Name of the preset, or of a workflow's configuration: results are in runs/NAME and fid_results/NAME.json."""
    tables: Path | None = None
    """Folder of train.csv, val.csv and test.csv; by default data/NAME."""
    root: Path = ROOT
    """Holds runs, data and fid_results."""
    out: Path | None = None
    """The report; by default runs/NAME/report.html."""


def main(config: ReportConfig) -> None:
    root = config.root.resolve()
    results = Results(config.preset, config.tables or root / "data" / config.preset, root)
    results.refuse_nothing()
    out = config.out or results.path("{runs}/report.html")
    mark = f"<!-- inputs {fingerprint(results.files())} -->"
    if out.is_file() and mark in out.read_text(encoding="utf-8", errors="replace")[:500]:
        print(f"{out}: done already, for the same results")
        return
    tables = str(results.tables.resolve())
    parameters = {"REPORT_PRESET": config.preset, "REPORT_ROOT": str(root), "REPORT_TABLES": tables}
    notebook = without_missing(nbformat.read(NOTEBOOK, as_version=4), results)
    html = page(run_cells(notebook, parameters), mark)
    with atomic_write(out) as temporary:
        temporary.write_text(html, encoding="utf-8")
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


def fingerprint(files: list[Path]) -> str:
    """Hash of the results, of their names, and of the code that shows them, 64 hexadecimal digits."""
    modules = ("opening", "report", "results", "run_folders", "saliency", "tables")
    code = [NOTEBOOK, STYLE, ROOT / "cohort/pictures.py", *(NOTEBOOK.with_name(f"{name}.py") for name in modules)]
    return hashlib.sha256("".join(f"{path} {sha256(path)}\n" for path in [*files, *code]).encode()).hexdigest()


def without_missing(notebook: nbformat.NotebookNode, results: Results) -> nbformat.NotebookNode:
    """The notebook with one line in the place of each section that lacks files; sections begin with ``## title``."""
    cells, line = [], ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            line = results.left_out(cell.source.splitlines()[0].removeprefix("## "))
            cells += [nbformat.v4.new_markdown_cell(line)] if line else []
        cells += [] if line else [cell]
    return nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)


def execute(path: Path, parameters: dict[str, str]) -> nbformat.NotebookNode:
    """`run_cells` of a notebook's file, which stays as it is."""
    return run_cells(nbformat.read(path, as_version=4), parameters)


def run_cells(notebook: nbformat.NotebookNode, parameters: dict[str, str]) -> nbformat.NotebookNode:
    """Runs a notebook in this very Python, whatever kernels are installed, and returns it with its outputs.

    `parameters` are environment variables that its first cell reads. InputError where a cell ends with one.
    """
    # Without folders to search, "python3" is the interpreter that runs this, and no user's kernel of the same name.
    specifications = KernelSpecManager(kernel_dirs=[])
    # A backend without inline pictures, as servers set it, would leave the report without figures.
    environment = {**os.environ, **parameters, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    with tempfile.TemporaryDirectory() as folder:  # sockets are files here: no open port, and a path short enough
        kernel = AsyncKernelManager(
            kernel_name="python3", kernel_spec_manager=specifications, transport="ipc",
            connection_file=f"{folder}/k.json",
        )  # fmt: skip
        resources = {"metadata": {"path": str(ROOT)}}
        client = NotebookClient(notebook, km=kernel, timeout=CELL_TIMEOUT_S, resources=resources)
        try:
            client.execute(env=environment, cleanup_kc=True)
        except CellExecutionError as error:
            if error.ename != InputError.__name__:
                raise
            raise InputError(error.evalue) from None
    return notebook


def page(notebook: nbformat.NotebookNode, mark: str) -> str:
    """The notebook's text and outputs as one HTML page; what cells wrote to standard error goes to ours instead."""
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        for output in [output for output in outputs if output.get("name") == "stderr"]:
            print(output["text"], file=sys.stderr, end="")
            outputs.remove(output)
        for output in outputs:
            if "text/html" in output.get("data", {}):
                output["data"]["text/html"] = FAVICON.sub("", output["data"]["text/html"])
    bare = dict.fromkeys(("exclude_input", "exclude_input_prompt", "exclude_output_prompt"), True)
    body, _ = HTMLExporter(template_name="basic", **bare).from_notebook_node(notebook)
    title = next(cell.source for cell in notebook.cells if cell.cell_type == "markdown").splitlines()[0].lstrip("# ")
    return (
        f'<!DOCTYPE html>\n{mark}\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
        f"<style>\n{STYLE.read_text(encoding='utf-8')}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


if __name__ == "__main__":
    run_script(main, ReportConfig, description=describe(__doc__))
