"""Runs the install steps of docker/Dockerfile in an empty folder, without Docker, then the demo.

The steps are read from the Dockerfile itself; what only a builder can do (the base image, apt-get,
the user) is left out and named. The folders of the image are below the empty folder.
"""

import argparse
import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMAGE_FOLDERS = re.compile(r"(?<![\w.$}/-])/(opt|cache|data|runs)\b")
"""Absolute paths of the image, in any instruction."""


@dataclass(frozen=True)
class Instruction:
    """One instruction: its word in capitals, the rest with continued lines joined, its stage."""

    word: str
    rest: str
    stage: str


def instructions(text: str) -> list[Instruction]:
    """All instructions of a Dockerfile; those before the first FROM have the stage ''."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found, stage = [], ""
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        word, _, rest = line.strip().partition(" ")
        if word.upper() == "FROM":
            stage = rest.split()[-1]
        found.append(Instruction(word.upper(), " ".join(rest.split()), stage))
    return found


def default_build(text: str) -> list[Instruction]:
    """The instructions behind the last stage without build arguments, those of the base first."""
    found = instructions(text)
    defaults = dict(i.rest.split("=", 1) for i in found if i.word == "ARG" and not i.stage)
    bases = {i.stage: _filled(i.rest.split()[0], defaults) for i in found if i.word == "FROM"}
    chain, stage = [], found[-1].stage
    while stage in bases:
        chain.insert(0, stage)
        stage = bases[stage]
    return [i for stage in chain for i in found if i.stage == stage and i.word != "FROM"]


def travels(path: str, patterns: Sequence[str]) -> bool:
    """Whether a builder gets the file `path` under a .dockerignore; the last pattern decides."""
    kept = True
    parts = path.split("/")
    parents = ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]
    for line in patterns:
        pattern, keeps = line.lstrip("!").rstrip("/"), line.startswith("!")
        names = [*parents, *parts] if pattern.startswith("**/") else parents
        if any(fnmatch.fnmatchcase(name, pattern.removeprefix("**/")) for name in names):
            kept = keeps
    return kept


def ignore_patterns(root: Path = ROOT) -> list[str]:
    """The lines of .dockerignore that are patterns."""
    lines = (root / ".dockerignore").read_text().split("\n")
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


@dataclass
class Box:
    """What stands for the image: a folder, environment variables, a working folder."""

    folder: Path
    environ: dict[str, str] = field(default_factory=dict)
    cwd: Path = Path("/")
    entry: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)

    def here(self, text: str) -> str:
        """`text` with the folders of the image below `folder`."""
        return IMAGE_FOLDERS.sub(lambda match: f"{self.folder}{match[0]}", text)

    def run(self, command: Sequence[str]) -> int:
        """Exit status of a command in it; what it prints is shown."""
        print(f"\n$ {shlex.join(command)}".replace(str(self.folder), "BOX"), flush=True)
        return subprocess.run(command, env=self.environ, cwd=self.cwd).returncode

    def must(self, command: Sequence[str]) -> None:
        """As `run`; ends the check where the command fails."""
        if status := self.run(command):
            sys.exit(f"check_install: exit status {status}; the folder is {self.folder}")

    def do(self, step: Instruction) -> None:
        """Carry out one instruction as a builder would."""
        rest = self.here(step.rest)
        if step.word == "ENV":
            for name, value in (pair.split("=", 1) for pair in shlex.split(rest)):
                self.environ[name] = _filled(value, self.environ)
        elif step.word == "WORKDIR":
            self.cwd = Path(rest)
            self.cwd.mkdir(parents=True, exist_ok=True)
        elif step.word == "COPY" and not rest.startswith("--"):
            *sources, target = rest.split()
            for source in sources:
                self._copy(source, self.cwd / target, into=target.endswith("/"))
        elif step.word == "RUN" and not re.search(r"apt-get|--mount", rest):
            self.must(["bash", "-euo", "pipefail", "-c", rest])
        elif step.word == "ENTRYPOINT":
            self.entry = _exec_form(rest)
        elif step.word == "HEALTHCHECK":
            self.health = _exec_form(rest)
        elif step.word not in ("SHELL", "CMD", "ARG"):
            print(f"left out: {step.word} {step.rest[:76]}")

    def _copy(self, source: str, target: Path, into: bool) -> None:
        patterns = ignore_patterns()
        path = ROOT / source
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and travels(file.relative_to(ROOT).as_posix(), patterns):
                inside = file.name if path.is_file() and into else file.relative_to(path)
                to = target / inside
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, to)


def demo(box: Box, quick: bool) -> None:
    """The sample data set, a training and an evaluation by the image's entry point; nothing may be
    written beside the program, which belongs to root there."""
    before = _files(box.cwd)
    python = ["python", "-m", "pipelines.synthetic", box.here("/data/sample_data")]
    box.must([*python, *(["--clips", "48", "--eval-clips", "16"] if quick else [])])
    launch = [*box.entry, "--standalone", "--nproc-per-node=1"]
    options = ["--config", "configs/demo_rgb.yaml", box.here("data.root=/data/sample_data")]
    options += ["train.device=cpu", *(["train.epochs=1"] if quick else [])]
    box.must([*launch, "engine/train.py", *options])
    checkpoint = ["--checkpoint", "runs/demo_rgb/last.pt"]
    box.must([*launch, "engine/evaluate.py", *options, *checkpoint])
    if written := _files(box.cwd) - before:
        sys.exit(f"check_install: written where the image's user cannot: {sorted(written)[:5]}")


def check(box: Box, python: str, quick: bool) -> None:
    """Install, pins, demo, health."""
    (box.folder / "base").mkdir()
    # The base image's python3. A script, as an interpreter behind a link has another home.
    wrapper = box.folder / "base" / "python3"
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.quote(python)} "$@"\n')
    wrapper.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    box.environ = kept | {"PATH": f"{box.folder / 'base'}:{kept['PATH']}", "OMP_NUM_THREADS": "2"}
    for step in default_build((ROOT / "docker" / "Dockerfile").read_text()):
        box.do(step)
    box.must(["pip", "check"])
    demo(box, quick)
    print(f"\nhealth check: exit status {box.run(box.health)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--python", default="python3.12", help="stands for the base image's python3")
    add("--quick", action="store_true", help="one epoch of 48 clips instead of the demo's ten")
    add("--keep", action="store_true", help="leave the folder (7 GB) behind")
    given = parser.parse_args()
    python = shutil.which(given.python)
    if python is None:
        parser.error(f"{given.python}: not found; name another by --python")
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="rgbd_image_"))
    try:
        check(Box(folder), python, given.quick)
    finally:
        if not given.keep:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"check_install: all of it in {time.monotonic() - started:.0f} s")


def _filled(text: str, values: dict[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda match: values.get(match[1], ""), text)


def _exec_form(rest: str) -> list[str]:
    """The strings of `["a", "b"]`, behind options and CMD."""
    return re.findall(r'"([^"]*)"', rest[rest.index("[") :])


def _files(folder: Path) -> set[str]:
    """Paths below the folder, links not followed, without Python's bytecode."""
    return set(_below(folder))


def _below(folder: Path) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        yield from (os.path.join(parent, name) for name in files)


if __name__ == "__main__":
    main()
