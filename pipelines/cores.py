"""How many processors this process may use: fewer than the machine has, in a container or a job."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path


def usable_cores() -> int:
    """At least 1. What the affinity allows, and the control group's quota of processor time."""
    allowed = allowed_cores()
    return max(int(min(allowed, cpu_quota() or allowed)), 1)


def allowed_cores() -> int:
    """By the affinity, where the system has one."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Processors' worth of time, the least over the control group and those above it; None: no
    limit. `root` is for tests."""
    shares = []
    for folder in control_groups(root, "cpu"):
        allowed, _, period = text_of(folder / "cpu.max").strip().partition(" ")
        if not allowed:  # version 1 of control groups
            allowed = text_of(folder / "cpu.cfs_quota_us").strip()
            period = text_of(folder / "cpu.cfs_period_us").strip()
        if allowed.isdigit() and period.isdigit() and int(period):
            shares.append(int(allowed) / int(period))
    return min(shares, default=None)


def control_groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control group for a controller, and of those above it."""
    tree = root / "sys/fs/cgroup"
    for line in text_of(root / "proc/self/cgroup").splitlines():
        _, names, path = [*line.split(":", 2), "", ""][:3]
        if names and controller not in names.split(","):
            continue
        top = tree / controller if names else tree
        yield from _up_to(top, top / path.lstrip("/"))


def text_of(path: Path) -> str:
    """Empty where it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _up_to(top: Path, folder: Path) -> Iterable[Path]:
    """In a container the path may be the host's, which is not there: the top is."""
    while folder != top and top in folder.parents:
        yield folder
        folder = folder.parent
    yield top
