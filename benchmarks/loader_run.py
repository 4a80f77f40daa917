"""Runs the loader benchmark's cases, each in a process of its own, in turns. Prints nothing and
knows no source: benchmarks/loader_sources.py does."""

import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import torch

from benchmarks.engines import engine_use
from benchmarks.loader_cases import Case, Setting
from benchmarks.loader_sources import SOURCES, keep_scans
from benchmarks.page_cache import drop, files_below, read_in, share_in_memory
from benchmarks.records import summary
from benchmarks.settings import settings
from benchmarks.turns import (
    READY,
    cpu_seconds,
    in_brief,
    processes,
    settle,
    started,
    take_turns,
    wait_for,
)
from pipelines.background import BACKGROUND

Entries = dict[str, dict[str, Any]]
"""What the record says of each case, by its name."""

SHORTEST = {"cpu": 0.3, "cuda": 0.8}
"""Seconds: windows of quick stages have more batches than `Setting.batches`. A GPU's driver says
how busy its engines were over a period of up to a second."""


@dataclass(frozen=True)
class Window:
    """One turn of one case."""

    clips: int
    seconds: float
    cpu_seconds: float
    """Of the case's processes, all threads."""

    caller_seconds_per_batch: float
    """Processor time of the thread that asks for batches and the one that makes them: on the GPU
    path all of Python but reading, and what DALI does between taking arrays and giving a batch."""

    gpu_bytes: int
    """How much more of the device's memory is taken than before."""

    engines: dict[str, float]
    """How busy each engine of the GPU was, 0 to 1."""

    left_memory: float | None
    """Share of the files that dropping really took out of memory; None: not asked or not known."""


def serve(case: Case, setting: Setting, data: Path, pipe: Connection) -> None:
    """In a process of its own: READY, a `Window` for each True that arrives, then the most memory
    in bytes that the case's processes had beyond what this one took before, and the `settings`. Or
    what was raised, and no more."""
    torch.set_num_threads(1)  # the loader has threads of its own
    cv2.setNumThreads(1)
    files = files_below(data / SOURCES[case.source].folder) if case.pages == "cold" else []
    before = _most_resident(os.getpid())
    try:
        batches: Iterator[Any] = SOURCES[case.source].open(case, setting, data)
        pipe.send(READY)
        while pipe.recv():
            pipe.send(_window(case, setting, batches, files))
        own, *workers = processes()
        memory = _most_resident(own) - before + sum(map(_private, workers))
        pipe.send((memory, settings()))
    except EOFError:  # the benchmark was stopped
        return
    except Exception as error:  # a peer may raise anything; all of it is shown, and told in brief
        traceback.print_exc()
        pipe.send(in_brief(error))


def _window(case: Case, setting: Setting, batches: Iterator[Any], files: Sequence[Path]) -> Window:
    """As many batches wait at its end as at its beginning, so that none is a gift."""
    taken = _taken(case.device)
    left = _dropped(files) if files else None
    for _ in range(setting.ahead):
        next(batches)
    most = setting.cold_batches if files else sys.maxsize
    wait_for(case.device)
    started, cpu, caller = time.perf_counter(), cpu_seconds(), _caller_seconds()
    done = 0
    while done < most and (
        done < setting.batches or time.perf_counter() - started < SHORTEST[case.device]
    ):
        next(batches)
        done += 1
    caller = _caller_seconds() - caller
    wait_for(case.device)
    seconds, cpu = time.perf_counter() - started, cpu_seconds() - cpu
    engines = engine_use() if case.device == "cuda" else {}
    settle()
    return Window(
        clips=done * setting.batch, seconds=seconds, cpu_seconds=cpu,
        caller_seconds_per_batch=caller / done, gpu_bytes=_taken(case.device) - taken,
        engines=engines, left_memory=left,
    )  # fmt: skip


def _dropped(files: Sequence[Path]) -> float | None:
    drop(files)
    still = share_in_memory(files)
    return None if still is None else 1 - still


def _caller_seconds() -> float:
    """Processor time so far of this thread and of those that run the loader ahead of it."""
    ahead = [t.ident for t in threading.enumerate() if t.name == BACKGROUND]
    clocks = [time.pthread_getcpuclockid(ident) for ident in ahead if ident is not None]
    return time.thread_time() + sum(map(time.clock_gettime, clocks))


def _most_resident(process: int) -> int:
    """Bytes: the most the process ever had in memory."""
    status = Path(f"/proc/{process}/status").read_text()
    (peak,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024


def _private(process: int) -> int:
    """Bytes that the process has now and shares with none: a forked one begins with its parent's,
    so that the most it ever had says little. Batches on their way between processes are in none."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def _taken(device: str) -> int:
    """Bytes of the device's memory in use by anyone: cases take turns."""
    if device != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info()
    return total - free


def measure(cases: Sequence[Case], setting: Setting, data: Path) -> tuple[Entries, dict[Case, str]]:
    """The entries of cases of one turn, and what stopped others of them. Raises ValueError where
    `setting` fits none."""
    if cases[0].pages == "cold" and setting.cold_batches < 1:
        least = (setting.ahead + 1) * setting.batch
        raise ValueError(f"--clips {setting.clips}: cold files need at least {least}, else some "
                         "are read twice")  # fmt: skip
    keep_scans(cases[0], setting, data)
    if cases[0].pages == "warm":
        for folder in {SOURCES[case.source].folder for case in cases}:
            read_in(files_below(data / folder))
    with started(cases, serve, setting, data) as children:
        answers, stopped = take_turns(children, setting.windows + 1)
    entries = {case.name: entry(case, windows, *last) for case, (*windows, last) in answers.items()}
    return entries, stopped


def entry(
    case: Case, windows: Sequence[Window], memory_bytes: int, used: dict[str, bool]
) -> dict[str, Any]:
    """What the record says of a case, measured with the settings `used`; the first window is its
    warm-up."""
    counted = windows[1:]
    seconds = summary([window.seconds / window.clips for window in counted])
    found = {
        "name": case.name,
        "clips_per_s": 1 / seconds["median"],
        "seconds": seconds,
        "cpu_seconds_per_clip": summary([w.cpu_seconds / w.clips for w in counted])["median"],
        "cores": sum(w.cpu_seconds for w in counted) / sum(w.seconds for w in counted),
        "memory_bytes": memory_bytes,
        "settings": used,
    }
    if case.device == "cuda":
        caller_ms = [1000 * window.caller_seconds_per_batch for window in counted]
        engines = [window.engines for window in counted]
        found["engines"] = {
            name: summary([shares[name] for shares in engines if name in shares])["median"]
            for name in engines[0]
        }
        found["gpu_memory_bytes"] = sum(window.gpu_bytes for window in windows)
        found["python_ms_per_batch"] = summary(caller_ms)["median"]
    if left := [window.left_memory for window in counted if window.left_memory is not None]:
        found["left_page_cache"] = summary(left)["median"]
    return found
