"""The structure that README promises: who may import whom, which names there are, what is kept out of git."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("runtime", "cohort", "VAE", "diffusion", "evaluation", "classifier")
ALLOWED = {
    "runtime": {"runtime"},
    "cohort": {"runtime", "cohort"},
    "VAE": {"runtime", "cohort", "VAE"},
    "diffusion": {"runtime", "cohort", "diffusion", "VAE.latents", "VAE.checkpoint"},
    "evaluation": {
        "runtime",
        "cohort",
        "evaluation",
        "VAE.latents",
        "VAE.checkpoint",
        "diffusion.checkpoint",
        "diffusion.synthetic_folder",
    },
    "classifier": {"runtime", "cohort", "classifier"},
}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}


def modules() -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    """Dotted names of this project's modules that a file imports, with imported names appended."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in FOLDERS}


def is_script(path: Path) -> bool:
    return '__name__ == "__main__"' in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    allowed = ALLOWED[path.relative_to(ROOT).parts[0]]
    strangers = {
        name for name in imports(path) if not any(name == one or name.startswith(f"{one}.") for one in allowed)
    }
    assert not strangers


def test_nothing_imports_a_script() -> None:
    scripts = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules() if is_script(path)}
    assert len(scripts) >= 10
    for path in modules():
        found = {name for name in imports(path) if name in scripts or name.rpartition(".")[0] in scripts}
        assert not found, f"{path} imports {found}"


def test_tests_and_benchmarks_import_nothing_of_each_other() -> None:
    for folder, other in (("benchmarks", "tests"), ("tests", "benchmarks")):
        for path in (ROOT / folder).rglob("*.py"):
            names = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
            assert not [name for name in names if name and name.split(".")[0] == other], path


def test_no_drawer_has_a_name_for_everything() -> None:
    assert not [path for path in modules() if path.stem in FORBIDDEN_NAMES]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is_for(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not text or path.name == "__init__.py" or ast.get_docstring(ast.parse(text))


def test_only_the_restricted_reader_reads_pickles() -> None:
    readers = {path for path in modules() for name in ("pickle.load", "Unpickler") if name in path.read_text()}
    assert {path.name for path in readers} <= {"pickles.py"}
    assert not [path for path in modules() if "weights_only=False" in path.read_text()]


def test_every_script_explains_itself_from_any_folder(tmp_path: Path) -> None:
    """`--help` as a module from the root and as a file from elsewhere."""
    import sys

    for words, folder in (
        (("-m", "diffusion.save_synth", "--help"), ROOT),
        ((str(ROOT / "VAE/train.py"), "paper", "--help"), tmp_path),
        ((str(ROOT / "cohort/split.py"), "--help"), ROOT / "cohort"),
    ):
        done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "--dry-run" in done.stdout


def test_git_holds_no_data_and_no_large_file() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert not [
        path for path in files if path.suffixes[-2:] == [".nii", ".gz"] or path.suffix in (".pkl", ".pt", ".nii")
    ]
    assert not [path for path in files if path.exists() and path.stat().st_size > 1_000_000]
