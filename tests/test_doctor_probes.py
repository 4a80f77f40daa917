"""What the probes find out, on this machine and on others that are made up."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from engine import doctor_probes
from engine.doctor_children import Outcome, Probe, run_probes
from forked import run_code


class Said(dict):
    """Takes facts as the pipe does."""

    def __call__(self, **facts) -> None:
        self.update(facts)


@pytest.fixture
def said() -> Said:
    return Said()


def probed(name: str, *arguments: str) -> Outcome:
    """In a process of its own, as the doctor does."""
    return run_probes([Probe(name, arguments)], 120.0, 1, lambda *state: None)[name]


MAIN = "import sys; from engine.doctor_probes import main; sys.exit(main(sys.argv[1:]))"


def forked(name: str, *arguments: str) -> tuple[int, dict]:
    """Exit status and facts of a probe whose process need not import torch anew."""
    done = run_code(MAIN, name, "1", *arguments)
    said = {}
    for line in done.stdout.splitlines():
        said |= json.loads(line)
    return done.returncode, said


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a shell script in front of the path."""

    def put(name: str, script: str) -> None:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return put


SMI = """case "$*" in
*--query-gpu=*) echo '0, NVIDIA H200, 580.65.06, 143771, 1, 0, Default'
                echo '1, NVIDIA H200, 580.65.06, 143771, 9, [N/A], Default' ;;
*--query-compute-apps=*) echo '4711, python, 30000' ;;
*) echo 'not known' >&2; exit 2 ;;
esac"""


def test_nvidia_smi(said, program):
    program("nvidia-smi", SMI)
    doctor_probes.probe_smi(said)
    assert [gpu["index"] for gpu in said["gpus"]] == ["0", "1"]
    assert said["gpus"][1]["driver_version"] == "580.65.06"
    assert said["gpus"][1]["ecc.errors.uncorrected.volatile.total"] == "[N/A]"
    assert said["processes"] == ["4711, python, 30000"]
    assert said["remapped"] is None  # an older program does not know the question


def test_nvidia_smi_that_fails(said, program):
    program("nvidia-smi", "echo 'Driver/library version mismatch'; exit 18")
    doctor_probes.probe_smi(said)
    assert said["error"] == "Driver/library version mismatch"


def test_nvidia_smi_that_is_not_there(said, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    doctor_probes.probe_smi(said)
    assert said["absent"] is True


def test_packages_one_by_one(said, monkeypatch, tmp_path):
    (tmp_path / "broken_package.py").write_text("raise ImportError('libGL.so.1: no such file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(doctor_probes, "MODULES", ("yaml", "broken_package", "no_such_package"))
    doctor_probes.probe_modules(said)
    assert said["broken"] == {
        "broken_package": "ImportError: libGL.so.1: no such file",
        "no_such_package": "ModuleNotFoundError: No module named 'no_such_package'",
    }


@pytest.mark.parametrize(
    ("error", "is_import_error"), [("ImportError('x')", True), ("TypeError('x')", False)]
)
def test_the_other_package_called_apex(said, monkeypatch, tmp_path, error, is_import_error):
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text(f"raise {error}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "apex", raising=False)
    doctor_probes.probe_apex(said)
    assert said["there"] is True and said["apex.optimizers"].endswith(": x")
    assert said["apex.optimizers is ImportError"] is is_import_error
    assert not any(key.startswith("apex.parallel") for key in said)  # nothing imports it


def test_an_all_reduce_of_two_processes():
    status, said = forked("all-reduce", "gloo", "2")
    assert status == 0 and said["done"] and "failed" not in said


def test_an_all_reduce_that_cannot_be(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no_such_interface")
    _, said = forked("all-reduce", "gloo", "2")
    assert set(said["failed"]) == {"0", "1"}
    assert "no_such_interface" in said["rank 0"]


def test_torch(said):
    doctor_probes.probe_torch(said)
    assert said["version"] == torch.__version__ and said["cpu"] is True
    assert said.get("available", False) == torch.cuda.is_available()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_driver(said):
    doctor_probes.probe_driver(said)
    assert "count" not in said or said["count"] == 0


@pytest.mark.gpu
def test_a_gpu():
    driver, found = probed("driver"), probed("torch")
    assert driver.get("init") == 0 and driver.get("count") == torch.cuda.device_count()
    assert found.get("gpu0")["off"] < 0.01
    assert not probed("all-reduce", "nccl", str(torch.cuda.device_count())).trouble


def test_an_unknown_probe_and_an_error_are_said():
    assert probed("no-such").problem == "KeyError: 'no-such'"
    status, said = forked("config", "no_such.yaml", "0")
    assert status == 1
    assert said["error"].startswith("ValueError: no_such.yaml: no such config file")
