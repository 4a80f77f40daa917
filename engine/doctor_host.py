"""What this system's own files say: processors, memory, limits, disks, and marks of a GPU. Starts
nothing, imports nothing of the project's needs."""

import os
import re
import resource
import shutil
import sysconfig
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.cores import allowed_cores, control_groups, cpu_quota, text_of

NVIDIA = "0x10de"
"""NVIDIA's number on the PCI bus."""

DISPLAY = ("0x0300", "0x0302")
"""PCI classes of GPUs: with a display, and without."""


@dataclass(frozen=True)
class Disk:
    """Where something is written."""

    path: str
    free: int
    total: int
    problem: str = ""
    """Why nothing can be written there."""


@dataclass(frozen=True)
class Host:
    """Facts of the system; sizes in bytes, None where there is no limit or nothing is known."""

    processors: int = 1
    """Of the machine."""

    allowed: int = 1
    """That this process may be put on."""

    quota: float | None = None
    """Processors' worth of time that the control group grants."""

    memory: int | None = None
    memory_available: int | None = None
    memory_limit: int | None = None
    """Of the control group."""

    shm: int | None = None
    shm_free: int = 0
    open_files: tuple[int, int] = (1024, 1024)
    """Soft and hard limit; -1 for none."""

    locked_memory: int = -1
    infiniband: bool = False
    gpu_nodes: tuple[str, ...] = ()
    """/dev/nvidia0 and so on: GPUs that were handed to this system."""

    pci_gpus: int = 0
    """NVIDIA GPUs on the bus, which a container sees even where it may not use them."""

    kernel_driver: str = ""
    """Version of the NVIDIA module in the kernel."""

    visible: str | None = None
    """CUDA_VISIBLE_DEVICES."""

    compiler: bool = False
    """Whether there is a C compiler, and Python's headers for it."""

    disks: dict[str, Disk] = field(default_factory=dict)
    """By what is written there."""


def read_host(root: Path = Path("/")) -> Host:
    """`root` is for tests."""
    memory = _meminfo(root)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    nodes = sorted(path.name for path in (root / "dev").glob("nvidia[0-9]*"))
    shm = _disk_usage(root / "dev/shm")
    return Host(
        processors=os.cpu_count() or 1,
        allowed=allowed_cores(),
        quota=cpu_quota(root),
        memory=memory.get("MemTotal"),
        memory_available=memory.get("MemAvailable"),
        memory_limit=_memory_limit(root),
        shm=shm and shm.total,
        shm_free=shm.free if shm else 0,
        open_files=(soft, hard),
        locked_memory=resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        infiniband=any((root / "sys/class/infiniband").glob("*")),
        gpu_nodes=tuple(nodes),
        pci_gpus=sum(_is_gpu(device) for device in (root / "sys/bus/pci/devices").glob("*")),
        kernel_driver=_kernel_driver(text_of(root / "proc/driver/nvidia/version")),
        compiler=_has_compiler(),
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
    )


def look_at_disk(path: str | Path) -> Disk:
    """Free bytes where `path` is or will be, and whether a file can be made there: tried out, as
    permissions alone do not tell of quotas and read-only disks."""
    wanted = Path(path).expanduser().absolute()
    here = next((p for p in (wanted, *wanted.parents) if p.exists()), Path("/"))
    problem = ""
    try:
        with tempfile.NamedTemporaryFile(dir=here, prefix=".doctor") as file:
            file.write(bytes(4096))
            file.flush()
    except OSError as error:
        problem = error.strerror or str(error)
    usage = _disk_usage(here)
    return Disk(str(wanted), usage.free if usage else 0, usage.total if usage else 0, problem)


def _disk_usage(path: Path) -> "shutil._ntuple_diskusage | None":
    try:
        return shutil.disk_usage(path)
    except OSError:
        return None


def _meminfo(root: Path) -> dict[str, int]:
    rows = re.findall(r"^(\w+):\s+(\d+) kB", text_of(root / "proc/meminfo"), re.MULTILINE)
    return {name: 1024 * int(size) for name, size in rows}


def _kernel_driver(text: str) -> str:
    found = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", text)
    return found[1] if found else ""


def _is_gpu(device: Path) -> bool:
    kind = text_of(device / "class").strip()
    return text_of(device / "vendor").strip() == NVIDIA and kind.startswith(DISPLAY)


def _has_compiler() -> bool:
    programs = [os.environ.get("CC", ""), "cc", "gcc", "clang"]
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return header.exists() and any(shutil.which(program) for program in programs if program)


def _memory_limit(root: Path) -> int | None:
    """The least over the group and those above it."""
    texts = [
        text_of(folder / name).strip()
        for folder in control_groups(root, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
    ]
    # Version 1 of control groups writes a huge number for none, version 2 `max`.
    return min((int(t) for t in texts if t.isdigit() and int(t) < 2**60), default=None)
