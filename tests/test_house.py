"""The structure that README promises: who may import whom, which names there are, what is kept out of git."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
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
MOST_MODULES = 14
"""Of a folder: more do not fit into a reader's head."""
MOST_LINES = 360
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}


def modules() -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(path: Path, roots: tuple[str, ...] = FOLDERS) -> set[str]:
    """Dotted names of this project's modules that a file imports, with imported names appended."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in roots}


def is_script(path: Path) -> bool:
    return '__name__ == "__main__"' in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    allowed = ALLOWED[path.relative_to(ROOT).parts[0]]
    forbidden = {
        name for name in imports(path) if not any(name == start or name.startswith(f"{start}.") for start in allowed)
    }
    assert not forbidden


def test_nothing_imports_a_script() -> None:
    scripts = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules() if is_script(path)}
    assert len(scripts) >= 10
    for path in modules():
        found = {name for name in imports(path) if name in scripts or name.rpartition(".")[0] in scripts}
        assert not found, f"{path} imports {found}"


def test_tests_import_no_benchmark_and_benchmarks_of_tests_only_what_both_share() -> None:
    for folder, other in (("tests", "benchmarks"), ("benchmarks", "tests")):
        for path in (ROOT / folder).rglob("*.py"):
            found = imports(path, roots=(other,))
            assert not {name for name in found if not name.startswith("tests.support.")}, path


def test_no_module_has_a_name_for_everything() -> None:
    assert not [path for path in modules() if path.stem in FORBIDDEN_NAMES]


def test_rooms_hold_few_modules_and_modules_are_short() -> None:
    rooms = {path.parent for path in modules()}
    crowded = {str(room.relative_to(ROOT)): count for room in rooms if (count := sizes(room)) > MOST_MODULES}
    assert not crowded
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules()}
    assert not {name: length for name, length in lengths.items() if length > MOST_LINES}
    assert len((ROOT / "workflow/Snakefile").read_text().splitlines()) < 300


def sizes(room: Path) -> int:
    """Modules of a folder besides __init__.py."""
    return len([path for path in room.glob("*.py") if path.name != "__init__.py"])


def test_no_module_hides_one_of_the_standard_library() -> None:
    """A script that runs as a file has its own folder first on sys.path: `import statistics` must not find ours."""
    for folder in FOLDERS:
        names = {path.stem for path in (ROOT / folder).glob("*")} & set(sys.stdlib_module_names)
        assert not names, f"{folder}: {names}"


def test_architecture_names_files_that_exist() -> None:
    for page in ("README.md", "CONTRIBUTING.md", "docs/architecture.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        listed = set(re.findall(r"`((?:[a-zA-Z_]+/)+[a-z_]+\.(?:py|md|ipynb))`", text))
        assert not [name for name in listed if not (ROOT / name).exists()], page


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is_for(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not text or path.name == "__init__.py" or ast.get_docstring(ast.parse(text))


def test_only_the_restricted_reader_reads_pickles() -> None:
    readers = {path for path in modules() for name in ("pickle.load", "Unpickler") if name in path.read_text()}
    assert {path.name for path in readers} <= {"pickles.py"}
    assert not [path for path in modules() if "weights_only=False" in path.read_text()]


@pytest.mark.slow
def test_every_script_explains_itself_from_any_folder(tmp_path: Path) -> None:
    """`--help` as a module from the root and as a file from elsewhere."""
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


def test_every_field_of_a_configuration_has_an_explanation() -> None:
    """In a docstring or a comment behind it: what --help says."""
    bare = []
    for path in modules():
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
                for field, after in zip(node.body, [*node.body[1:], None], strict=True):
                    documented = isinstance(after, ast.Expr) or "  # " in lines[field.end_lineno - 1]
                    if isinstance(field, ast.AnnAssign) and not documented:
                        bare.append(f"{path.relative_to(ROOT)}: {node.name}.{field.target.id}")
    assert not bare
