"""The layout keeps its promises: imports run one way, entry points start from anywhere."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

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


HELP_OF_EACH = """
import json, os, runpy, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
for name in ("torch", "nvidia.dali", "cv2", "av", "lz4.block", "matplotlib.figure"):
    __import__(name)  # once, from site-packages
assert not {"engine", "models", "pipelines"} & sys.modules.keys()
ended = {}
for script in sys.argv[1:]:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(write, 1), os.dup2(write, 2), os.close(write)
        sys.path[0], sys.argv = os.path.dirname(script), [script, "--help"]
        runpy.run_path(script, run_name="__main__")
        sys.exit()
    os.close(write)
    with open(read) as said:
        text = said.read()
    ended[script] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text
print(json.dumps(ended))
"""
"""Scripts with what a new interpreter has them begin with, forked from one that has imported what
they import of others."""


def started(folder: Path, *command: str | Path) -> str:
    """What is printed by a new interpreter in a folder, which is told of no package of ours."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_entry_points_start_from_any_working_directory(tmp_path):
    names = ("evaluate", "convert", "predict", "fuse_scores", "export")
    scripts = {f"engine/{name}.py": str(ROOT / "engine" / f"{name}.py") for name in names}
    ended = json.loads(started(tmp_path, "-c", HELP_OF_EACH, *scripts.values()))
    said = {script: ended[path] for script, path in scripts.items()}
    said["engine/train.py"] = 0, started(tmp_path, ROOT / "engine/train.py", "--help")
    for script, (status, text) in said.items():
        assert status == 0, text
        assert text.startswith(f"usage: {script} ")
        assert script == "engine/fuse_scores.py" or "section.key=value" in text
