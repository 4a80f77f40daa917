"""Packages that fit and packages that do not, and the command that mends it."""

import inspect

import pytest
import torch
from torch.overrides import TorchFunctionMode

from doctors import machine, named
from engine.doctor_children import Outcome
from engine.doctor_rows import ABSENT, FAIL, OK, WARN, Row
from engine.doctor_software import (
    TWO_D,
    apex_row,
    compiler_row,
    cudnn_row,
    dali_rows,
    packages_row,
    python_row,
    tf32_row,
    torch_rows,
)
from models.registry import MODELS, build_model

CRASH = Outcome({"doing": "importing torch"}, "ended by SIGSEGV while importing torch")


def smi(driver: str) -> dict:
    return {"gpus": [{"index": "0", "driver_version": driver}]}


@pytest.mark.parametrize(
    ("version", "state"),
    [((3, 9, 1), FAIL), ((3, 10, 0), OK), ((3, 12, 9), OK), ((3, 13, 0), FAIL)],
)
def test_python(version, state):
    assert python_row(version).state == state


def test_packages():
    assert packages_row(machine()).state == OK
    row = packages_row(machine(packages={"broken": {
        "PIL.Image": "ModuleNotFoundError: No module named 'PIL'",
        "cv2": "ImportError: libGL.so.1: cannot open shared object file",
    }}))  # fmt: skip
    assert row.state == FAIL
    assert row.found == (
        "not installed: PIL.Image; cv2: ImportError: libGL.so.1: cannot open shared object file"
    )
    assert row.mend == "pip install --force-reinstall opencv-python-headless pillow"


def test_a_package_that_crashes_is_named():
    broken = Outcome({"doing": "importing cv2", "broken": {}}, "ended by SIGSEGV")
    row = packages_row(machine(packages=broken))
    assert (row.state, row.found) == (FAIL, "cv2: ended by SIGSEGV")


def test_a_torchvision_of_another_torch_is_mended_together_with_it():
    error = "RuntimeError: operator torchvision::nms does not exist"
    row = packages_row(machine(packages={"broken": {"torchvision": error}}))
    assert row.state == FAIL and row.mend.endswith("--force-reinstall torch torchvision")


@pytest.mark.parametrize(
    ("torch", "state"),
    [
        ({}, OK),
        (CRASH, FAIL),
        (Outcome({"version": "2.15.0", "cuda": "13.2", "cpu": True}, "ended by SIGSEGV"), FAIL),
        (Outcome({}, unchecked="not checked: No module named 'torch'"), FAIL),
        ({"version": "2.5.1"}, FAIL),
        ({"cpu": False}, FAIL),
        ({"cuda": None}, OK),  # without a GPU a CPU build will do
    ],
)
def test_torch(torch, state):
    assert named(torch_rows(machine(torch=torch)), "torch").state == state


def test_a_build_without_cuda_beside_a_gpu():
    row = named(torch_rows(machine(gpus=1, torch={"cuda": None})), "torch")
    assert row.state == FAIL and row.mend.endswith("torch torchvision --force-reinstall")


@pytest.mark.parametrize(
    ("driver", "cuda", "state", "mend"),
    [
        ("580.65.06", "13.2", OK, ""),
        ("570.86.10", "13.2", FAIL, "pip install 'torch==2.10.*' 'torchvision==0.25.*'"),
        ("525.60.13", "12.8", OK, ""),
        ("470.82.01", "12.8", FAIL, "sudo ubuntu-drivers install"),
    ],
)
def test_torch_and_driver(driver, cuda, state, mend):
    facts = machine(gpus=1, nvidia_smi=smi(driver), torch={"cuda": cuda})
    row = named(torch_rows(facts), "torch and driver")
    assert (row.state, row.mend) == (state, mend)
    assert driver in row.found


def test_a_gpu_that_the_driver_hands_out_and_torch_does_not_see():
    facts = machine(gpus=1, torch={"available": False, "count": 0})
    assert named(torch_rows(facts), "torch and driver").state == FAIL
    assert named(torch_rows(machine()), "torch and driver").state == ABSENT


@pytest.mark.parametrize(
    ("cudnn", "version", "state"),
    [
        (90700, "2.7.1", OK), (90800, "2.8.0", WARN), (91002, "2.10.0+cu128", WARN),
        (91100, "2.11.0", OK), (92600, "2.15.0", OK), (92600, "2.9.0+cu128", WARN),
        (92600, "2.9.1", OK),
    ],
)  # fmt: skip
def test_cudnn_releases_that_are_wrong_or_slow(cudnn, version, state):
    row = cudnn_row(machine(gpus=1, torch={"cudnn": cudnn, "version": version}))
    assert row.state == state
    if state == WARN:
        assert "this network calls none" in row.why


def test_cudnn_for_a_network_of_3d_convolutions_and_an_older_driver():
    facts = machine(gpus=1, torch={"cudnn": 91002, "version": "2.10.0"}, nvidia_smi=smi("550.1"),
                    config={"model": "r3d_18", "device": "cuda"})  # fmt: skip
    row = cudnn_row(facts)
    assert "r3d_18 calls it" in row.why
    assert row.mend == "pip install 'torch==2.7.*' 'torchvision==0.22.*'"


class Called(TorchFunctionMode):
    """Remembers the names of torch's functions that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, function, types, arguments=(), options=None):
        self.names.add(getattr(function, "__name__", ""))
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("name", MODELS)
def test_the_networks_that_call_no_conv3d(name):
    if "size" in (accepted := inspect.signature(MODELS[name]).parameters):
        options = {"num_frames": 16, "size": accepted["size"].default}
    else:
        options = {"num_frames": 8, "branch_frames": (3,), "width": 4, "dim": 64, "num_blocks": 3}
    with torch.device("meta"):
        network = build_model(name, num_classes=3, **options)
        clip = torch.empty(2, 3, options["num_frames"], *[options.get("size", 32)] * 2)
    called = Called()
    with called:
        network((clip, clip) if name.endswith("_fusion") else clip)
    assert called.names & {"conv2d", "conv3d"} == {"conv2d" if name in TWO_D else "conv3d"}


def test_cudnn_elsewhere():
    assert cudnn_row(machine()) == Row(
        "cuDNN", ABSENT, "9.26.0 came with torch; without a GPU it is not used"
    )
    row = cudnn_row(machine(gpus=1, torch={"cudnn_error": "found 9.1, compiled with 9.26"}))
    assert row.state == FAIL and row.mend == "unset LD_LIBRARY_PATH"


def test_tf32_says_what_fp32_means():
    assert tf32_row(machine()).state == ABSENT
    row = tf32_row(machine(gpus=1))
    assert row.state == OK and row.found.startswith("convolutions on, matrix products off")


def test_dali():
    assert named(dali_rows(machine()), "DALI").state == OK
    both = {"nvidia-dali-cuda120": "2.4.0", "nvidia-dali-cuda130": "2.4.0"}
    row = named(dali_rows(machine(dali={"packages": both})), "DALI")
    assert row.state == FAIL
    assert row.mend == (
        "pip uninstall -y nvidia-dali-cuda120 nvidia-dali-cuda130 && "
        "pip install --upgrade nvidia-dali-cuda120"
    )
    for broken in (
        Outcome({}, "ended by SIGSEGV"), {"version": "1.49.0"}, {"cpu": "pixels are off"},
        Outcome({}, unchecked="not checked: No module named 'nvidia'"),
    ):  # fmt: skip
        row = named(dali_rows(machine(dali=broken)), "DALI")
        assert row.state == FAIL and row.mend.startswith("pip install --upgrade nvidia-dali")


def test_a_driver_of_unknown_version_is_judged_by_its_cuda():
    nameless = {"gpus": [{"index": "0"}]}
    for cuda, state in ((13000, OK), (12040, FAIL)):
        facts = machine(gpus=1, nvidia_smi=nameless, driver={"cuda_version": cuda})
        assert named(torch_rows(facts), "torch and driver").state == state


def test_what_was_only_slow_is_given_more_time():
    slow = Outcome({"doing": "importing cv2"}, "no answer within 120 s while importing cv2")
    again = "python -m engine.doctor --timeout 600"
    assert packages_row(machine(packages=slow)).mend == again
    assert named(torch_rows(machine(torch=slow)), "torch").mend == again
    assert named(dali_rows(machine(dali=slow)), "DALI").mend == again


def test_a_driver_that_crashes_is_not_mended_by_another_dali():
    crash = Outcome({}, "ended by SIGSEGV while asking libcuda for GPUs")
    row = named(dali_rows(machine(driver=crash, dali=crash)), "DALI")
    assert (row.state, row.mend) == (FAIL, "sudo reboot")


@pytest.mark.parametrize(
    ("package", "driver", "state", "mend"),
    [
        ("nvidia-dali-cuda120", "525.60.13", OK, ""),
        ("nvidia-dali-cuda120", "470.82.01", FAIL, "sudo ubuntu-drivers install"),
        ("nvidia-dali-cuda130", "580.65.06", OK, ""),
        ("nvidia-dali-cuda130", "570.86.10", FAIL,
         "pip uninstall -y nvidia-dali-cuda130 && pip install nvidia-dali-cuda120"),
    ],
)  # fmt: skip
def test_dali_and_driver(package, driver, state, mend):
    facts = machine(gpus=1, dali={"packages": {package: "2.4.0"}}, nvidia_smi=smi(driver))
    row = named(dali_rows(facts), "DALI and driver")
    assert (row.state, row.mend) == (state, mend)


def test_apex():
    assert apex_row(machine()).state == ABSENT
    real = {"there": True, "apex.optimizers": "", "amp_C": ""}
    assert apex_row(machine(gpus=1, apex=real)).state == OK
    error = {"there": True, "apex.optimizers": "ModuleNotFoundError: No module named 'x'"}
    impostor = apex_row(machine(gpus=1, apex={**error, "apex.optimizers is ImportError": True}))
    assert (impostor.state, impostor.mend) == (WARN, "pip uninstall -y apex")
    worse = apex_row(machine(gpus=1, apex={**error, "apex.optimizers is ImportError": False}))
    assert worse.state == FAIL


def test_apex_without_its_kernels_stops_fused_sgd_alone():
    apex = {"there": True, "apex.optimizers": "", "amp_C": "ImportError: no amp_C"}
    assert apex_row(machine(gpus=1, apex=apex)).state == FAIL
    adamw = machine(gpus=1, apex=apex, config={"optimizer": "adamw", "device": "cuda"})
    assert apex_row(adamw).state == WARN
    assert apex_row(machine(apex=apex)).state == WARN  # on the CPU nobody asks for it


def test_a_compiler_is_needed_where_torch_compiles():
    without = {"compiler": False}
    assert compiler_row(machine(host=without)).state == ABSENT
    assert compiler_row(machine(gpus=1, host=without)).state == WARN
    assert compiler_row(machine(gpus=1)).state == OK
    off = {"compile": "off", "device": "cuda"}
    assert compiler_row(machine(gpus=1, host=without, config=off)).state == ABSENT
    assert compiler_row(machine(host=without, config={"compile": "on"})).state == WARN


def test_a_compiler_is_needed_where_the_pools_are_our_own():
    without = {"compiler": False}
    wanted = {"compile": "off", "deterministic": True}
    on_gpu = compiler_row(machine(gpus=1, host=without, config={**wanted, "device": "cuda"}))
    assert on_gpu.state == FAIL and "train.deterministic" in on_gpu.why
    assert compiler_row(machine(host=without, config={**wanted, "device": "cpu"})).state == ABSENT


def test_facts_of_the_gpu_are_no_failure_where_training_is_on_the_cpu():
    facts = machine(gpus=1, nvidia_smi=smi("550.1"), config={"wanted": "cpu"})
    assert named(torch_rows(facts), "torch and driver").state == WARN
