"""What the system's files say, in trees made for it."""

import os
from pathlib import Path

from engine.doctor_host import look_at_disk, read_host


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_limits_of_version_2_are_those_of_the_tightest_group(tmp_path):
    root = write(tmp_path, {
        "proc/self/cgroup": "0::/job/step\n",
        "sys/fs/cgroup/cpu.max": "max 100000\n",
        "sys/fs/cgroup/job/cpu.max": "250000 100000\n",
        "sys/fs/cgroup/job/step/cpu.max": "max 100000\n",
        "sys/fs/cgroup/job/memory.max": "8589934592\n",
        "sys/fs/cgroup/job/step/memory.max": "max\n",
    })  # fmt: skip
    host = read_host(root)
    assert (host.quota, host.memory_limit) == (2.5, 2**33)


def test_limits_of_version_1(tmp_path):
    root = write(tmp_path, {
        "proc/self/cgroup": "4:memory:/docker/ab\n3:cpu,cpuacct:/docker/ab\n",
        # In the container the host's path is not there: the top is the container's own.
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "4294967296\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    })  # fmt: skip
    host = read_host(root)
    assert (host.quota, host.memory_limit) == (1.5, 2**32)


def test_no_limits(tmp_path):
    root = write(tmp_path, {
        "proc/self/cgroup": "4:memory:/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
    })  # fmt: skip
    host = read_host(root)
    assert (host.quota, host.memory_limit) == (None, None)


def test_gpus_on_the_bus_and_those_handed_over(tmp_path):
    root = write(tmp_path, {
        "sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n",
        "sys/bus/pci/devices/0000:01:00.0/class": "0x030200\n",
        "sys/bus/pci/devices/0000:01:00.1/vendor": "0x10de\n",
        "sys/bus/pci/devices/0000:01:00.1/class": "0x040300\n",  # the same card's sound
        "sys/bus/pci/devices/0000:02:00.0/vendor": "0x8086\n",
        "sys/bus/pci/devices/0000:02:00.0/class": "0x030000\n",
        "dev/nvidia0": "", "dev/nvidia11": "", "dev/nvidiactl": "", "dev/nvidia-uvm": "",
        "proc/driver/nvidia/version": (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release\n"
            "GCC version:  gcc version 12.3.0\n"
        ),
        "proc/meminfo": "MemTotal:       16 kB\nMemAvailable:    8 kB\nHugePages_Total: 0\n",
        "sys/class/infiniband/mlx5_0": "",
    })  # fmt: skip
    host = read_host(root)
    assert (host.pci_gpus, host.gpu_nodes) == (1, ("nvidia0", "nvidia11"))
    assert host.kernel_driver == "580.65.06"
    assert (host.memory, host.memory_available) == (16384, 8192)
    assert host.infiniband and host.shm is None


def test_this_system():
    host = read_host()
    assert host.processors >= host.allowed >= 1 and host.memory and host.memory > 2**28


def test_a_disk_is_that_of_the_nearest_folder(tmp_path):
    disk = look_at_disk(tmp_path / "not" / "yet")
    assert disk.path == str(tmp_path / "not" / "yet")
    assert disk.total >= disk.free > 0 and not disk.problem
    assert os.listdir(tmp_path) == []  # nothing is left there


def test_a_disk_that_takes_no_file(tmp_path):
    (tmp_path / "file").write_text("")
    assert look_at_disk(tmp_path / "file" / "below").problem == "Not a directory"
    assert look_at_disk("/proc/here").problem
