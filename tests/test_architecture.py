"""The layout keeps its promises: imports run one way, entry points start from anywhere."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "pipelines": {"pipelines"},
    "models": {"models"},
    "engine": {"engine", "pipelines", "models"},
    "benchmarks": {"benchmarks", "engine", "pipelines", "models"},
}
FILES = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]


def imported_packages(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add((node.module or "").split(".")[0])
    return names


def test_imports_run_one_way():
    against = {}
    for path in FILES:
        foreign = (imported_packages(path) & MAY_IMPORT.keys()) - MAY_IMPORT[package_of(path)]
        if foreign:
            against[str(path.relative_to(ROOT))] = foreign
    assert not against


def package_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def test_a_module_opens_with_a_docstring_and_stays_short():
    long, bare = [], []
    for path in FILES:
        text = path.read_text()
        if len(text.splitlines()) > 350:
            long.append(str(path.relative_to(ROOT)))
        if text.strip() and not ast.get_docstring(ast.parse(text)):
            bare.append(str(path.relative_to(ROOT)))
    assert (long, bare) == ([], [])


def test_no_module_of_the_engine_shadows_the_standard_library():
    """`torchrun engine/train.py` puts engine/ on the path while Python starts."""
    names = {path.stem for path in (ROOT / "engine").glob("*.py")} - {"__init__"}
    assert not names & sys.stdlib_module_names


@pytest.mark.parametrize(
    "script",
    [
        f"engine/{name}.py"
        for name in ("train", "evaluate", "convert", "predict", "fuse_scores", "export")
    ],
)
def test_entry_points_start_from_any_working_directory(script, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / script, "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: {script} ")
    assert script == "engine/fuse_scores.py" or "section.key=value" in done.stdout
