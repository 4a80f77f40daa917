"""Which kernels hold a step: their time by torch's profiler, and the gaps between them."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

LONGEST_NAME = 90
"""Letters of a kernel's name that are kept: templates go on for thousands."""


@dataclass(frozen=True)
class Kernel:
    """One kernel of a GPU, or on a CPU one operation without those that it calls."""

    name: str
    calls: float
    """Per step."""

    ms: float
    """Of all its calls in a step."""


@dataclass(frozen=True)
class Profile:
    """Where a step's time is."""

    step_ms: float
    """By the clock, the profiler's own work included: longer than it takes without one."""

    busy_ms: float
    """Of it in kernels, one after the other; the rest are gaps between them."""

    kernels: tuple[Kernel, ...]
    """The longest first."""


def profile_step(step: Callable[[], object], device: torch.device, steps: int = 3) -> Profile:
    """Of a step that has been warmed up."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]
    _finish(device)
    with profile(activities=activities) as profiler:
        began = time.perf_counter()
        for _ in range(steps):
            step()
        _finish(device)
        seconds = time.perf_counter() - began
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    found = []
    for event in profiler.key_averages():
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if event.device_type == kind and microseconds:
            name = event.key[:LONGEST_NAME]
            found.append(Kernel(name, event.count / steps, microseconds / 1e3 / steps))
    found.sort(key=lambda kernel: -kernel.ms)
    busy = sum(kernel.ms for kernel in found)
    return Profile(1e3 * seconds / steps, busy, tuple(found))


def as_text(name: str, found: Profile, longest: int = 20) -> str:
    """The `longest` kernels with their share of the step."""
    gaps = max(0.0, 1 - found.busy_ms / found.step_ms)
    lines = [f"{name}: {found.step_ms:.2f} ms a step under the profiler, gaps {gaps:.0%}"]
    for kernel in found.kernels[:longest]:
        share = kernel.ms / found.step_ms
        lines.append(f"{kernel.ms:>9.3f} ms{share:>6.1%}{kernel.calls:>8.0f} x  {kernel.name}")
    return "\n".join(lines)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
