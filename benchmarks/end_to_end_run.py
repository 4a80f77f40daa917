"""Runs the end-to-end benchmark's cases: the loader alone, the step alone, and training. Prints
nothing."""

import itertools
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks import loader_cases
from benchmarks.engines import engine_use
from benchmarks.loader_cases import Setting
from benchmarks.loader_run import SHORTEST, Entries
from benchmarks.loader_sources import SOURCES, keep_scans
from benchmarks.networks import Network, Step, training_step
from benchmarks.page_cache import files_below, read_in
from benchmarks.records import summary
from benchmarks.settings import settings
from benchmarks.turns import (
    READY,
    cpu_seconds,
    give_back_memory,
    in_brief,
    settle,
    started,
    take_turns,
    wait_for,
)
from engine.distributed import Ranks
from engine.timing import StepClock
from pipelines.batch import Batch

LOADER, STEP, BOTH = "loader", "step", "both"


@dataclass(frozen=True)
class Case:
    """One network, and what is done of its training."""

    device: str
    network: Network
    part: str
    source: str
    """Of the clips; the step alone takes one batch from it."""

    @property
    def name(self) -> str:
        parts = (self.part,) if self.part == STEP else (self.source, self.part)
        return "/".join((self.device, self.network.name, *parts))

    def setting(self, disk: Setting) -> Setting:
        """That of the clips on disk, with the network's batches."""
        network = self.network
        return replace(disk, frames=network.frames, size=network.size, batch=network.batch)

    @property
    def loading(self) -> loader_cases.Case:
        """The loader benchmark's case that makes such batches."""
        upto = "motion" if self.network.takes_maps else "view"
        return loader_cases.Case(self.device, self.source, "rgb", upto, "warm")


def cases(device: str, network: Network, sources: Sequence[str]) -> list[Case]:
    """Those of one network: the step, and each source with and without it."""
    parts = [(BOTH, source) for source in sources] + [(LOADER, source) for source in sources]
    return [Case(device, network, *pair) for pair in [(STEP, sources[0]), *parts]]


def alive_together(cases: Sequence[Case]) -> list[list[Case]]:
    """The cases of one network in groups whose processes are alive at the same time.

    On a CPU all are, and take turns. On a GPU each is alone: a compiled CVPR'22 step on 16 clips
    takes about 30 GB, more while it is compiled, and what DALI once took (3 GB for small frames, 15
    to 25 GB for 1080p videos) stays its own until the process ends. With three sources there would
    be three of each beside the step.
    """
    return [[case] for case in cases] if cases[0].device == "cuda" else [list(cases)]


@dataclass(frozen=True)
class Window:
    """One turn of one case."""

    clips: int
    seconds: float
    parts: dict[str, float]
    """Seconds of each part of the steps, by engine/timing.py: on a GPU, on its own time line."""

    cpu_seconds: float
    engines: dict[str, float]
    """How busy each engine of the GPU was, 0 to 1."""


def serve(case: Case, disk: Setting, data: Path, compiled: str, pipe: Connection) -> None:
    """In a process of its own: READY, a `Window` for each True that arrives, then the `settings`.
    Or what was raised, and no more. Threads are left as a run has them."""
    try:
        setting = case.setting(disk)
        clock = StepClock(torch.device(case.device))
        batches: Iterator[Batch] = SOURCES[case.source].open(case.loading, setting, data)
        step = None
        if case.part != LOADER:
            first = next(batches)
            ranks = Ranks(0, 0, 1).on(case.device)
            step = training_step(case.network, ranks, first, compiled, clock)
        if case.part == STEP:
            batches.close()  # type: ignore[attr-defined]
            batches = itertools.repeat(first)
        give_back_memory(case.device)
        pipe.send(READY)
        while pipe.recv():
            pipe.send(_window(case.device, setting, batches, step, clock))
        pipe.send(settings())
    except EOFError:  # the benchmark was stopped
        return
    except Exception as error:  # shown here, told in brief; the other cases go on
        traceback.print_exc()
        pipe.send(in_brief(error))


def _window(
    device: str, setting: Setting, batches: Iterator[Batch], step: Step | None, clock: StepClock
) -> Window:
    """As training goes on: what was made ahead while others had their turn is thrown away, and as
    many steps are not counted, behind which as much is ahead as the step leaves time for."""
    for _ in range(setting.ahead):
        next(batches)
    for _ in range(setting.ahead if step else 0):
        step(next(batches))  # type: ignore[misc]
    wait_for(device)
    clock.read()  # what was before does not count
    began, cpu, done = time.perf_counter(), cpu_seconds(), 0
    for batch in clock.watch(batches):
        if step:
            step(batch)
        done += 1
        if done >= setting.batches and time.perf_counter() - began >= SHORTEST[device]:
            break
    wait_for(device)
    seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    parts, engines = clock.read(), engine_use() if device == "cuda" else {}
    settle()
    give_back_memory(device)
    return Window(done * setting.batch, seconds, parts, cpu, engines)


def measure(
    found: Sequence[Case], disk: Setting, data: Path, compiled: str
) -> Iterator[tuple[Entries, dict[str, str]]]:
    """Yields the entries of one network's cases, and what stopped others of them, group by
    group."""
    for source in {case.source for case in found}:
        SOURCES[source].write(data, disk)
        read_in(files_below(data / SOURCES[source].folder))
    keep_scans(found[0].loading, found[0].setting(disk), data)
    for alive in alive_together(found):
        with started(alive, serve, disk, data, compiled, one_by_one=True) as children:
            answers, stopped = take_turns(children, disk.windows + 1)
        entries = {
            case.name: entry(case, windows, used) for case, (*windows, used) in answers.items()
        }
        yield entries, {case.name: why for case, why in stopped.items()}


def entry(case: Case, windows: Sequence[Window], used: dict[str, bool]) -> dict[str, Any]:
    """What the record says of a case, measured with the settings `used`; the first window is its
    warm-up."""
    counted = windows[1:]
    seconds = summary([window.seconds / window.clips for window in counted])
    found: dict[str, Any] = {
        "clips": f"{case.network.frames}x{case.network.size}x{case.network.size}",
        "batch": case.network.batch,
        "clips_per_s": 1 / seconds["median"],
        "seconds": seconds,
        "cores": sum(w.cpu_seconds for w in counted) / sum(w.seconds for w in counted),
        "settings": used,
    }
    if case.part == BOTH:
        waited = sum(window.parts["data"] for window in counted)
        found["data_wait"] = waited / sum(sum(window.parts.values()) for window in counted)
    if case.device == "cuda":
        shares = [window.engines for window in counted]
        found["engines"] = {
            name: summary([share[name] for share in shares if name in share])["median"]
            for name in shares[0]
        }
    return found
