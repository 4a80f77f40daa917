"""benchmarks/run_gpu.sh: its plan, and what it leaves."""

import os
import signal
import subprocess
import tarfile
import time
from pathlib import Path

from benchmarks import loader
from benchmarks.forms import FORMS
from benchmarks.loader_sources import HARDWARE_SHARES, VIDEO_THREADS

ROOT = Path(__file__).resolve().parents[1]


def dry_run(*groups: str) -> str:
    script = ROOT / "benchmarks" / "run_gpu.sh"
    environment = {**os.environ, "DRY_RUN": "1", "OUT": "out"}
    done = subprocess.run(
        ["bash", script, *groups], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


GPU_GROUPS = ("tests", "step", "loader", "training", "rest")


def test_each_group_of_the_gpu_script_stays_under_nine_minutes_and_all_under_25():
    groups = dry_run().split("\n=== ")[1:]
    assert tuple(group.splitlines()[0] for group in groups) == GPU_GROUPS
    limits = [
        [int(part.split()[0]) for part in group.split("(at most ")[1:]]
        for group in [*groups, *dry_run("demo").split("\n=== ")[1:]]
    ]
    assert all(limits) and max(map(sum, limits)) < 540
    assert sum(map(sum, limits[: len(groups)])) < 25 * 60
    assert dry_run("loader", "tests").split("\n=== ")[2].startswith("tests")


def test_the_gpu_script_runs_every_gpu_test_and_names_real_cases_and_forms():
    printed = dry_run()
    assert printed.count("REQUIRE_CUDA=1") == printed.count("-m gpu") == 2
    first, rest = (line.split() for line in printed.splitlines() if "-m gpu" in line)
    files = {word for word in first if word.startswith("tests/")}
    assert files and all((ROOT / file).is_file() for file in files)
    ignored = {word.removeprefix("--ignore=") for word in rest if word.startswith("--ignore=")}
    assert ignored == files and "tests" in rest
    patterns = [
        pattern
        for part in printed.split("--only ")[1:]
        for pattern in part.splitlines()[0].split(" --")[0].split()
    ]
    cases, missing = loader.choose(("cpu", "cuda"), patterns, with_peers=False)
    assert cases and not missing and {case.device for case in cases} == {"cuda"}
    assert {*HARDWARE_SHARES, *VIDEO_THREADS} <= {case.source for case in cases}
    named = {
        name
        for part in printed.split("--forms ")[1:]
        for name in part.splitlines()[0].split(" --")[0].split()
    }
    assert len(named) > 5 and named <= FORMS.keys()


def test_the_gpu_script_leaves_one_whole_archive_of_what_came_before_it_was_stopped(tmp_path):
    """Of parts that fail, time out or succeed, and of one that is interrupted."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho asked for $2\ncase $2 in *step) exit 3;; *loader)\n"
                      "  touch waiting; exec sleep 300;; esac\n")  # fmt: skip
    python.chmod(0o755)
    script = tmp_path / "repository" / "benchmarks" / "run_gpu.sh"
    script.parent.mkdir(parents=True)
    script.write_text((ROOT / "benchmarks" / "run_gpu.sh").read_text())
    environment = {**os.environ, "PYTHON": str(python), "OUT": str(tmp_path / "out")}
    running = subprocess.Popen(
        ["bash", script, "training", "step", "loader"], env=environment,
        stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    while not (script.parents[1] / "waiting").exists():
        assert running.poll() is None
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGTERM)
    assert running.wait(60) == 143
    (archive,) = (tmp_path / "out").iterdir()
    assert archive.name == "gpu_training_step_loader.tar.gz"
    with tarfile.open(archive) as found:
        names = [Path(name).name for name in found.getnames()]
        parts = found.extractfile("results/parts.log").read().decode()
    assert sorted(names) == ["end_to_end.log", "loader.log", "parts.log", "results", "step.log"]
    assert "end_to_end: exit status 0" in parts and "step: exit status 3" in parts
