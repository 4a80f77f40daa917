"""What every benchmark writes: samples with their spread, and what they were measured on."""

import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from engine.run import commit, device_name


def summary(samples: Sequence[float]) -> dict[str, float]:
    """`median`, quartiles `q1` and `q3`, and the number `n` of at least one sample."""
    if len(samples) == 1:
        q1 = median = q3 = samples[0]
    else:
        q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
    return {"median": median, "q1": q1, "q3": q3, "n": len(samples)}


def record(what: str, module: str, device: torch.device, **contents: Any) -> dict[str, Any]:
    """`contents` behind the command, commit, machine and versions of this process.

    `module` is what `python -m` ran.
    """
    return {
        "what": what,
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "commit": commit(),
        "machine": machine(device),
        "versions": versions(),
        **contents,
    }


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores this process may use, and the device measured."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "device": device_name(device),
    }


def versions() -> dict[str, str | None]:
    """Of Python and of what computes."""
    found: dict[str, str | None] = {"python": platform.python_version(), "torch": torch.__version__}
    if torch.cuda.is_available():
        found |= {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
    return found


def write(result: dict[str, Any], path: str | Path) -> None:
    """As indented JSON."""
    Path(path).write_text(json.dumps(result, indent=1) + "\n")


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
