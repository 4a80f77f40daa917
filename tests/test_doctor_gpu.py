"""GPUs that work, GPUs that do not, and what mends them where."""

import pytest

from doctors import CARD, GIB, SMI, machine, named, only
from engine.doctor_children import Outcome
from engine.doctor_gpu import (
    busy_row,
    driver_row,
    faults_row,
    gloo_row,
    gpu_rows,
    nccl_row,
    peers_row,
)
from engine.doctor_rows import ABSENT, FAIL, OK, WARN


def test_driver():
    row = driver_row(machine(gpus=1))
    assert (row.state, row.found) == (OK, "580.65.06, runs CUDA up to 13.0")
    assert driver_row(machine()).state == ABSENT
    assert driver_row(machine(config={"wanted": "cuda"})).state == FAIL


@pytest.mark.parametrize(
    ("place", "mend"),
    [
        ("host", "sudo ubuntu-drivers install"),
        ("docker", "docker run --gpus all "),
        ("podman", "podman run --device nvidia.com/gpu=all"),
        ("apptainer", "apptainer exec --nv"),
        ("kubernetes", "kubectl set resources"),
    ],
)
def test_a_gpu_on_the_bus_without_a_driver_leaves_training_to_the_cpu(place, mend):
    row = driver_row(machine(place=place, host={"pci_gpus": 1}))
    assert row.state == WARN and row.mend.startswith(mend)
    wanted = machine(place=place, host={"pci_gpus": 1}, config={"wanted": "cuda"})
    assert driver_row(wanted).state == FAIL


def test_a_gpu_that_was_handed_over_and_does_not_start():
    nodes = {"gpu_nodes": ("nvidia0",)}
    for status, mend in (
        (803, "sudo reboot"), (802, "sudo systemctl start nvidia-fabricmanager"),
        (999, "sudo modprobe nvidia_uvm"), (34, "unset LD_LIBRARY_PATH"),
    ):  # fmt: skip
        row = driver_row(machine(host=nodes, driver={"libcuda": "", "init": status}))
        assert (row.state, row.mend) == (FAIL, mend) and str(status) in row.found
    hung = driver_row(machine(host=nodes, driver=Outcome({}, "no answer within 60 s")))
    assert (hung.state, hung.mend) == (FAIL, "sudo reboot")
    unknown = driver_row(machine(host=nodes, driver={"libcuda": "", "init": 3}))
    assert unknown.state == FAIL and "error 3" in unknown.found


def test_hidden_gpus():
    hidden = {"gpu_nodes": ("nvidia0",), "visible": ""}
    row = driver_row(machine(host=hidden, driver={"libcuda": "", "init": 100}))
    assert (row.state, row.mend) == (FAIL, "unset CUDA_VISIBLE_DEVICES")


def test_cards():
    row = only(gpu_rows(machine(gpus=1)))
    assert row.state == OK
    assert row.found == (
        "NVIDIA H200, compute capability 9.0, 130.0 GiB of 140.0 GiB free, bf16"
    )  # fmt: skip
    assert only(gpu_rows(machine())).state == ABSENT


@pytest.mark.parametrize(
    ("card", "state", "mend"),
    [
        ({"off": 0.6}, FAIL, "pip install --upgrade torch torchvision"),
        ({"off": float("nan")}, FAIL, "pip install --upgrade torch torchvision"),
        ({"error": "unspecified launch failure"}, FAIL, "sudo nvidia-smi --gpu-reset -i 1"),
        ({"error": "CUDA out of memory"}, WARN, "nvidia-smi"),
        ({"capability": [6, 1]}, FAIL, "pip install 'torch==2.7.*' 'torchvision==0.22.*'"),
        ({"capability": [8, 6]}, OK, ""),  # sm_80's kernels run on it
        ({"capability": [10, 0]}, OK, ""),  # compute_90 is compiled for it
    ],
)
def test_a_card_that_does_not_work(card, state, mend):
    row = named(gpu_rows(machine(gpus=2, torch={"gpu1": {**CARD, **card}})), "GPU 1")
    assert (row.state, row.mend) == (state, mend)


def test_a_card_newer_than_all_kernels():
    facts = machine(gpus=1, torch={"archs": ["sm_90"], "gpu0": {**CARD, "capability": [12, 0]}})
    assert "torch>=2.8" in only(gpu_rows(facts)).mend


def test_a_card_on_which_the_probe_ended():
    torch = {"available": True, "count": 2, "gpu0": CARD, "cpu": True}
    facts = machine(gpus=2, torch=Outcome(torch, "ended by SIGSEGV while arithmetic on GPU 1"))
    states = [(row.name, row.state) for row in gpu_rows(facts)]
    assert states == [("GPU 0", OK), ("GPU 1", FAIL)]


def test_peers():
    assert peers_row(machine()).state == ABSENT
    assert peers_row(machine(gpus=2)).found == "all 2 reach each other's memory"
    apart = peers_row(machine(gpus=2, torch={"apart": [[0, 1], [1, 0]]}))
    assert apart.state == OK and "between 0 and 1" in apart.found


def test_other_processes():
    assert busy_row(machine()).state == ABSENT
    assert busy_row(machine(gpus=1)).state == OK
    process = {"processes": ["4711, python, 30000"]}
    row = busy_row(machine(gpus=1, nvidia_smi=process))
    assert (row.state, row.mend) == (WARN, "kill 4711")
    unseen = {"gpus": [{**SMI, "memory.used": "70000"}]}
    assert busy_row(machine(gpus=1, nvidia_smi=unseen)).state == WARN
    forbidden = {"gpus": [{**SMI, "compute_mode": "Prohibited"}]}
    assert busy_row(machine(gpus=1, nvidia_smi=forbidden)).state == FAIL
    absent = busy_row(machine(gpus=1, nvidia_smi=Outcome({"absent": True})))
    assert (absent.state, absent.found) == (ABSENT, "not checked: nvidia-smi is not here")


def test_faults():
    row = faults_row(machine(gpus=1))
    assert row.state == OK and "Xid not checked" in row.found
    log = faults_row(machine(gpus=1, nvidia_smi={"xid": []}))
    assert (log.state, log.found) == (OK, "no memory error counted")
    for facts in (
        {"gpus": [{**SMI, "ecc.errors.uncorrected.volatile.total": "2"}]},
        {"remapped": ["1, 0"]},
        {"remapped": ["Yes, No"]},
        {"xid": ["[1.0] NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus."]},
    ):
        assert faults_row(machine(gpus=1, nvidia_smi=facts)).state == WARN
    without = {"gpus": [{**SMI, "ecc.errors.uncorrected.volatile.total": "[N/A]"}]}
    assert faults_row(machine(gpus=1, nvidia_smi=without)).state == OK


def test_nccl():
    assert nccl_row(machine()).state == ABSENT
    assert nccl_row(machine(gpus=2)).state == OK
    hang = Outcome({}, "no answer within 60 s while an all-reduce by nccl")
    row = nccl_row(machine(gpus=2, all_reduce_nccl=hang))
    assert (row.state, row.mend) == (FAIL, "export NCCL_P2P_DISABLE=1")
    little = {"shm": GIB // 16, "shm_free": GIB // 16}
    row = nccl_row(machine(gpus=2, place="docker", host=little, all_reduce_nccl=hang))
    assert (row.state, row.mend) == (FAIL, "docker run --shm-size=8g IMAGE")
    full = machine(gpus=2, all_reduce_nccl={"rank 0": "RuntimeError: CUDA out of memory"})
    assert nccl_row(full).state == WARN


def test_gloo():
    assert gloo_row(machine()).state == OK
    row = gloo_row(machine(all_reduce_gloo={"rank 1": "RuntimeError: no such interface"}))
    assert row.state == FAIL and row.found == "rank 1: RuntimeError: no such interface"
    assert row.mend.startswith("export GLOO_SOCKET_IFNAME=lo")
    assert gloo_row(machine(all_reduce_gloo={"failed": {"0": -11}})).state == FAIL
    alone = machine(all_reduce_gloo={"failed": {"0": -11}}, config={"ranks": 1})
    assert gloo_row(alone).state == WARN
    skipped = machine(all_reduce_gloo=Outcome(unchecked="not checked (--quick)"))
    assert (gloo_row(skipped).state, gloo_row(skipped).found) == (ABSENT, "not checked (--quick)")
