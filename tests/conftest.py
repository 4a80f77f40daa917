"""Shared by the tests: a tiny data set of real files, a tiny run on it, and the GPU promise."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

from engine.run import RunDirectory
from pipelines.synthetic import write_dataset

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", autouse=True)
def give_back_memory() -> Iterator[None]:
    """The programs keep freed memory (engine/host_memory.py); one process that runs all of them
    would come to hold several gigabytes."""
    yield
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 training and 7 evaluation clips: neither 2 nor 3 ranks divide the lists."""
    out = tmp_path_factory.mktemp("data") / "sample"
    write_dataset(out, train_clips=23, eval_clips=7, frames=(10, 14), size=(64, 48),
                  depth_size=(64, 48), workers=1, progress=False)  # fmt: skip
    return out


@pytest.fixture
def tiny_config(dataset: Path, tmp_path: Path) -> dict:
    """A whole config of a run that takes a few seconds: 8 frames of 32 x 32, one block."""
    return {
        "data": {
            "root": str(dataset), "train_list": "train.txt", "eval_list": "eval.txt",
            "layout": "ntu", "num_classes": 8, "num_frames": 8, "branch_frames": [2, 4, 6],
            "resize": [48, 36], "crop": 32, "size": 32, "rotate": 0.5, "motion_window": 3,
            "cache_dir": str(tmp_path / "cache"),
        },
        "model": {"name": "decoupled", "width": 8, "dim": 64, "num_blocks": 1},
        "loss": {"recoupling_delay": 1},
        "optim": {"lr": 0.02, "warmup": 1},
        "train": {
            "run_dir": str(tmp_path / "run"), "epochs": 2, "global_batch": 6, "eval_batch": 3,
            "log_every": 1, "temperature": [0.5, 1.0], "temperature_epochs": 2, "device": "cpu",
        },
    }  # fmt: skip


@pytest.fixture
def start(tiny_config: dict, tmp_path: Path) -> Callable[..., subprocess.Popen]:
    """Starts engine/train.py on the tiny config with overrides; ranks=0: without torchrun."""
    path = tmp_path / "tiny.yaml"

    def start(
        *overrides: str, ranks: int = 0, script: str = "engine/train.py", env: dict | None = None,
        restarts: int = 0,
    ) -> subprocess.Popen:  # fmt: skip
        path.write_text(yaml.safe_dump(tiny_config))
        launcher = [sys.executable]
        if ranks:
            launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
            launcher += [f"--max-restarts={restarts}"]
        command = [*launcher, str(ROOT / script), "--config", str(path), *overrides]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        )  # fmt: skip

    return start


@pytest.fixture
def train(start: Callable[..., subprocess.Popen]) -> Callable[..., subprocess.CompletedProcess]:
    """As `start`, waiting for the end."""

    def train(*overrides: str, **options: object) -> subprocess.CompletedProcess:
        process = start(*overrides, **options)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return train


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run directory that this process has claimed."""
    run = RunDirectory(tmp_path / "run")
    run.claim()
    return run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu are skipped where there is no GPU, unless one was promised."""
    if torch.cuda.is_available() or os.environ.get("REQUIRE_CUDA") == "1":
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
