"""Shared by the tests: a tiny data set of real files, a tiny run on it, and the GPU promise."""

import environment  # isort: skip  # before torch, which reads its part of it once

import ctypes
import multiprocessing
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, settings

import forked
import nvdecs
import runs
from benchmarks import turns
from engine.run import RunDirectory
from pipelines import nvdec

settings.register_profile(
    "suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")
"""However busy the machine: the same examples, and none that took too long."""


@pytest.fixture(scope="module", autouse=True)
def give_back_memory() -> Iterator[None]:
    """The programs keep freed memory (engine/host_memory.py); one process that runs all of them
    would come to hold several gigabytes."""
    yield
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@pytest.fixture(scope="module", autouse=True)
def stay_an_ordinary_process() -> Iterator[None]:
    """A library that makes this process a real-time one would hold up all others from here on."""
    before = os.sched_getscheduler(0)
    yield
    assert os.sched_getscheduler(0) == before


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.write_tiny_dataset(tmp_path_factory.mktemp("data") / "sample")


@pytest.fixture
def tiny_config(dataset: Path, tmp_path: Path) -> dict:
    return runs.tiny_config(dataset, tmp_path)


@pytest.fixture
def start(tiny_config: dict, tmp_path: Path) -> Callable[..., subprocess.Popen]:
    """`runs.launch` on the tiny config as the test has changed it."""
    path = tmp_path / "tiny.yaml"

    def start(*overrides: str, **options: Any) -> subprocess.Popen:
        path.write_text(yaml.safe_dump(tiny_config))
        return runs.launch(path, *overrides, **options)

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
def forked_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark's cases are forked from a process that has imported torch, as programs are
    (tests/forked.py): not for what a case reads from the environment."""
    context = SimpleNamespace(
        get_context=lambda method: forked.CONTEXT, active_children=multiprocessing.active_children
    )
    monkeypatch.setattr(turns, "multiprocessing", context)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where a network computes; on a GPU with all bits of float32."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    yield torch.device(request.param)
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run directory that this process has claimed."""
    run = RunDirectory(tmp_path / "run")
    run.claim()
    return run


@pytest.fixture
def nothing_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is known of any NVDEC: a cache folder of the test's own, no answer in memory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    nvdec.decoders.cache_clear()
    yield
    nvdec.decoders.cache_clear()


@pytest.fixture
def put_gpu(nothing_known: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Puts a GPU of tests/nvdecs.py into this machine; the list grows by each question asked."""
    asked: list[int] = []

    def put(name: str, version: str = "580.65.06") -> list[int]:
        def ask_child(command):
            asked.append(int(command[-1]))
            return nvdecs.answer(name)

        key = f"{nvdecs.GPUS[name][0]}; driver {version}"
        monkeypatch.setattr(nvdec, "gpu_and_driver", lambda device_id: key)
        monkeypatch.setattr(nvdec, "_ask_child", ask_child)
        nvdec.decoders.cache_clear()
        return asked

    return put


def pytest_unconfigure() -> None:
    environment.clear()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu are skipped where there is no GPU, unless one was promised."""
    if torch.cuda.is_available() or os.environ.get("REQUIRE_CUDA") == "1":
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says how many tests were skipped for want of a decoder, so that none passes unseen."""
    reports = terminalreporter.stats.get("skipped", [])
    reasons = [report.longrepr[2] for report in reports if isinstance(report.longrepr, tuple)]
    for line in nvdecs.skip_counts(reasons):
        terminalreporter.write_line(line, yellow=True)
