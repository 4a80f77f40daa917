"""Limits of the system, against what training takes."""

import pytest

from doctors import GIB, machine, named, only
from engine.doctor_host import Disk
from engine.doctor_rows import FAIL, OK, WARN
from engine.doctor_system import (
    disk_rows,
    locked_memory_row,
    memory_row,
    open_files_row,
    processors_row,
    shared_memory_row,
)


def test_processors_that_the_container_was_not_given():
    assert processors_row(machine()).state == OK
    row = processors_row(machine(host={"quota": 2.5}))
    assert (row.state, row.found) == (OK, "2.5 of 8 (control group or affinity)")
    assert processors_row(machine(host={"allowed": 4})).found.startswith("4 of 8 ")
    assert processors_row(machine(host={"quota": 2.5}, config={"workers": 2})).state == OK
    row = processors_row(machine(host={"quota": 2.5}, config={"workers": 3}))
    assert row.state == WARN and "3 loader threads" in row.found
    assert row.mend == "python engine/train.py --config c.yaml data.workers=0"


def test_memory():
    assert memory_row(machine()).found == "64.0 GiB, 60.0 GiB free"
    row = memory_row(machine(place="docker", host={"memory_limit": 2 * GIB}))
    assert row.state == WARN and row.mend == "docker run --memory=64g IMAGE"
    assert row.found == "2.0 GiB by the control group, 2.0 GiB free"


def test_memory_of_a_step_on_the_cpu():
    assert memory_row(machine(config={})).state == OK
    row = memory_row(machine(config={"ranks": 8, "memory_bytes": 12 * GIB, "clips": 6}))
    assert row.state == FAIL and "96.0 GiB needed by 8 ranks" in row.found
    # 64 GiB over 8 ranks, a tenth of it spare: 6 clips x 7.2 of 12 GiB.
    assert row.mend == (
        "torchrun --nproc_per_node=8 engine/train.py --config c.yaml train.micro_batch=3"
    )


def test_memory_of_the_frames_that_are_kept():
    cache = {"cache": "host", "cache_gb": 50.0, "ranks": 4}
    row = memory_row(machine(gpus=4, config={**cache, "device": "cuda"}))
    assert row.state == FAIL and row.mend.endswith("data.cache=none")
    # Of 32 ranks on several machines, 4 are here.
    many = {**cache, "ranks": 32, "cache_gb": 10.0, "device": "cuda"}
    assert memory_row(machine(gpus=4, config=many)).state == OK


def test_shared_memory_matters_between_gpus():
    little = {"shm": GIB // 16, "shm_free": GIB // 16}
    assert shared_memory_row(machine(gpus=2)).state == OK
    assert shared_memory_row(machine(gpus=1, host=little)).state == OK
    assert shared_memory_row(machine(gpus=2, host=little)).state == WARN
    assert shared_memory_row(machine(gpus=2, host={"shm": None})).found == "no /dev/shm"
    for place, mend in (("podman", "podman run --shm-size"), ("kubernetes", "kubectl edit"),
                        ("apptainer", "sudo mount -o remount")):  # fmt: skip
        row = shared_memory_row(machine(gpus=2, host=little, place=place))
        assert row.mend.startswith(mend)


@pytest.mark.parametrize(
    ("limits", "shards", "state", "mend"),
    [
        ((65536, 65536), 0, OK, ""),
        ((-1, -1), 5000, OK, ""),
        ((512, -1), 0, WARN, "ulimit -n 65536"),
        ((512, 4096), 0, WARN, "ulimit -n 4096"),
        ((512, 512), 0, WARN, "docker run --ulimit nofile=65536:65536 IMAGE"),
        ((1024, 100000), 600, FAIL, "ulimit -n 65536"),
        ((1024, 100000), 500, OK, ""),
        ((1024, -1), 80000, FAIL, "ulimit -n 80512"),
    ],
)
def test_open_files(limits, shards, state, mend):
    config = {"config": {"shards": shards}} if shards else {}
    row = open_files_row(machine(place="docker", host={"open_files": limits}, **config))
    assert (row.state, row.mend) == (state, mend)


def test_locked_memory_matters_to_infiniband():
    limited = {"locked_memory": 2**23}
    assert locked_memory_row(machine(host=limited)).state == OK
    assert locked_memory_row(machine(host={"infiniband": True})).state == OK
    row = locked_memory_row(machine(host={**limited, "infiniband": True}, place="docker"))
    assert (row.state, row.mend) == (WARN, "docker run --ulimit memlock=-1 IMAGE")


def test_disks():
    def row(name: str, free: int, problem: str = "", **said):
        disk = Disk("/d", free, 100 * GIB, problem)
        return only(disk_rows(machine(host={"disks": {name: disk}}, **said)))

    assert row("run directory", 2 * GIB).state == OK
    assert row("run directory", GIB // 2).state == WARN
    denied = row("run directory", 2 * GIB, "Read-only file system")
    assert denied.state == FAIL and denied.found == "/d: Read-only file system"
    assert row("caches", 2 * GIB, "Permission denied").state == WARN  # kept in memory then
    tmp = row("temporary files", 2 * GIB, "No space left on device")
    assert (tmp.state, tmp.mend) == (FAIL, "export TMPDIR=/LARGER/DISK")
    # Checkpoints of 1 GiB: two at the very least, six in all.
    assert row("run directory", 7 * GIB, config={}).state == OK
    assert row("run directory", 5 * GIB, config={}).state == WARN
    full = row("run directory", GIB, config={})
    assert full.state == FAIL and full.mend.endswith("--config c.yaml train.run_dir=/LARGER/DISK")


def test_names_of_disks_are_those_of_the_table():
    disk = Disk("/d", GIB, GIB)
    rows = disk_rows(machine(host={"disks": {"caches": disk}}))
    assert named(rows, "disk: caches").state == OK
