"""Makes the report of one preset's results: executes visualize.ipynb on them and writes one HTML file.

    python -m notebooks.report demo

The file needs nothing beside it and nothing from a network. It begins with a hash of all that the notebook reads; while
that has not changed the command has nothing to do. The notebook itself is not written to.
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
from nbconvert import HTMLExporter

from runtime.cli import describe, run_script
from runtime.config import ScriptConfig
from runtime.errors import InputError
from runtime.files import ROOT, atomic_write, read_json, sha256

NOTEBOOK, STYLE = ROOT / "notebooks" / "visualize.ipynb", ROOT / "notebooks" / "report.css"
CELL_TIMEOUT_S = 600
# nilearn's viewer, quoted into a frame, asks a server for its icon: the only thing that would come from a network.
FAVICON = re.compile(r"&lt;link rel=&quot;icon&quot;.*?&gt;", re.DOTALL)


@dataclass(frozen=True)
class ReportConfig(ScriptConfig):
    preset: tyro.conf.Positional[str]
    """Name of the preset: its results are in runs/PRESET and fid_results/PRESET.json."""
    tables: Path | None = None
    """Folder of train.csv, val.csv and test.csv; by default data/PRESET."""
    out: Path | None = None
    """The report; by default runs/PRESET/report.html."""


def main(config: ReportConfig) -> None:
    tables = config.tables or ROOT / "data" / config.preset
    out = config.out or ROOT / "runs" / config.preset / "report.html"
    mark = f"<!-- inputs {fingerprint(inputs(config.preset, tables))} -->"
    if out.is_file() and mark in out.read_text(encoding="utf-8", errors="replace")[:500]:
        print(f"{out}: done already, for the same results")
        return
    parameters = {"REPORT_PRESET": config.preset, "REPORT_TABLES": str(tables.resolve())}
    html = page(execute(NOTEBOOK, parameters), mark)
    with atomic_write(out) as temporary:
        temporary.write_text(html, encoding="utf-8")
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


def inputs(preset: str, tables: Path, root: Path = ROOT) -> list[Path]:
    """All files that the report depends on, in runs, fid_results and data of `root` and in the folder of the tables.

    Raises InputError where results are missing, with the command that makes each.
    """
    runs, results = root / "runs" / preset, root / "fid_results"
    arms = [runs / name for name in ("classifier", "classifier_real_synthetic", "classifier_synthetic")]
    log = ("config.json", "environment.json", "log.jsonl")
    needed = {
        "cohort.split": [tables / f"{name}.csv" for name in ("train", "val", "test")],
        "VAE.train": [runs / "vae" / name for name in log],
        "VAE.infer": [runs / "infer" / name for name in ("summary.json", "worst_and_best.png")],
        "diffusion.train": [runs / "diffusion" / name for name in log],
        "evaluation.evaluate_synth": [
            results / f"{preset}{end}"
            for end in (".json", "_fid.png", "_sharpness.png", "_nearest.png", "_effects.png")
        ],
        "classifier.train": [arm / name for arm in arms for name in (*log, "predictions.csv", "results.json")],
        "classifier.compare": [
            *(runs / f"{name}.csv" for name in ("arms", "arms_tests")),
            *(runs / "comparison" / f"{name}.png" for name in ("reliability", "confusion")),
        ],
        "classifier.generate_saliency_maps": [
            runs / "saliency" / name for name in ("maps.json", "region_ranking.csv")
        ],
    }  # fmt: skip
    refuse_missing(needed)
    config = read_json(arms[0] / "config.json")
    manifests = [root / config[name] / "manifest.csv" for name in ("synth_hc", "synth_tle")]
    refuse_missing({"diffusion.save_synth": manifests})
    optional = [
        runs / "synthetic_swap/manifest.csv",
        *(root / "data" / preset / name for name in ("settings.json", "truth.json", "truth.csv")),
        *(results / f"{preset}{end}" for end in ("_steps.json", "_closest.png")),
        runs / "arms_truth.csv",
        *(runs / name for name in ("arms_study.json", "arms_study_tests.csv", "controls/controls.json")),
        *(runs / name / "validation.json" for name in ("validate_saliency", "validate_saliency_doses")),
    ]
    return [*(path for paths in needed.values() for path in paths), *manifests, *filter(Path.exists, optional)]


def refuse_missing(needed: dict[str, list[Path]]) -> None:
    """`needed` holds files by the module that makes them."""
    missing = [
        f"{path}, made by `python -m {module}`"
        for module, paths in needed.items()
        for path in paths
        if not path.is_file()
    ]
    if missing:
        raise InputError.of("results are missing (`make demo` makes all of them)", missing)


def fingerprint(files: list[Path]) -> str:
    """Hash of the results and of the code that shows them, 64 hexadecimal digits."""
    shown_by = (ROOT / name for name in ("cohort/pictures.py", "notebooks/tables.py", "notebooks/opening.py"))
    code = [NOTEBOOK, STYLE, Path(__file__), *shown_by]
    return hashlib.sha256("".join(map(sha256, [*files, *code])).encode()).hexdigest()


def execute(path: Path, parameters: dict[str, str]) -> nbformat.NotebookNode:
    """Runs a notebook in this very Python, whatever kernels are installed, and returns it with its outputs.

    `parameters` are environment variables that its first cell reads. The file stays as it is.
    """
    notebook = nbformat.read(path, as_version=4)
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
        client.execute(env=environment, cleanup_kc=True)
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
