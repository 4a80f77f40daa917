"""Does the loader's memory stay level? Resident memory over many batches, and its growth."""

import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.loader_cases import Case, Setting
from benchmarks.loader_sources import SOURCES

WARM_UP = 0.1
"""Share of the run in which memory may still find its level."""

SAMPLES = 400

Samples = Sequence[tuple[int, int]]
"""(batches so far, resident bytes)."""


def measure_memory(case: Case, setting: Setting, data: Path, num_batches: int) -> dict[str, Any]:
    """`num_batches` batches of one case: samples, growth in percent, seconds."""
    SOURCES[case.source].write(data, setting)
    batches = SOURCES[case.source].open(case, setting, data)
    started = time.perf_counter()
    samples = list(_watch(batches, num_batches))
    return {
        "name": case.name,
        "batches": num_batches,
        "seconds": time.perf_counter() - started,
        "growth_percent": growth(samples),
        "samples": samples,
    }


def _watch(batches: Iterator[Any], num_batches: int) -> Iterator[tuple[int, int]]:
    every = max(num_batches // SAMPLES, 1)
    for done, _ in enumerate(itertools.islice(batches, num_batches), start=1):
        if done % every == 0:
            yield done, _resident()


def growth(samples: Samples) -> float:
    """Percent by which the last tenth of the samples after the warm-up lies above the first tenth
    of them, by medians. Raises ValueError for fewer than two samples after the warm-up."""
    last_batch = samples[-1][0] if samples else 0
    level = [resident for batch, resident in samples if batch > WARM_UP * last_batch]
    if len(level) < 2:
        raise ValueError(f"{last_batch} batches are too few to see memory grow")
    tenth = max(len(level) // 10, 1)
    before, after = statistics.median(level[:tenth]), statistics.median(level[-tenth:])
    return 100 * (after - before) / before


def _resident() -> int:
    """Bytes of this process in memory now."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def as_text(curve: dict[str, Any]) -> str:
    """One line."""
    end = curve["samples"][-1][1] / 2**20
    return (
        f"{curve['name']}: {curve['batches']} batches in {curve['seconds']:.0f} s; "
        f"{end:.0f} MiB resident at the end, {curve['growth_percent']:+.2f} % since the warm-up"
    )


def plot(curve: dict[str, Any], path: str) -> None:
    """Writes the picture of it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    batches, resident = zip(*curve["samples"], strict=True)
    axes.plot(batches, [value / 2**20 for value in resident])
    axes.axvline(WARM_UP * curve["batches"], color="grey", linestyle=":")
    top = 1.2 * max(resident) / 2**20
    axes.set(xlabel="batches", ylabel="resident memory (MiB)", ylim=(0, top))
    axes.set_title(f"{curve['name']}: {curve['growth_percent']:+.2f} % after the warm-up")
    figure.savefig(path, dpi=120)
