"""What do more ranks gain? `python -m benchmarks.scaling [--ranks 1 2 4] [--json FILE]`.

The engine's own step (gradients averaged over ranks, batch statistics of the global batch) on 1 to
N ranks, gloo on CPUs, NCCL on GPUs. Weak: every rank has `--batch` clips. Strong: the global batch
is that of the most ranks, whatever their number. Efficiency is the rate over that of one rank times
their number. One rank is a plain process without a group, as a run without torchrun. Numbers of
ranks take turns, so that a busy machine slows all alike.
"""

import argparse
import dataclasses
import itertools
import multiprocessing
import os
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks import loader_cases
from benchmarks.forms import NUM_CLASSES
from benchmarks.loader_run import Entries
from benchmarks.loader_sources import SOURCES
from benchmarks.networks import SHAPES, Network, Step, training_step
from benchmarks.records import record, summary, write
from benchmarks.settings import rows, settings
from benchmarks.turns import READY, give_back_memory, in_brief, started, take_turns, wait_for
from engine.distributed import Ranks, session
from pipelines.batch import Batch

SHAPE = {"cpu": "small", "cuda": "published"}
WEAK, STRONG = "weak", "strong"


@dataclass(frozen=True)
class Group:
    """So many ranks, each with so many clips per step."""

    ranks: int
    share: int

    @property
    def batch(self) -> int:
        """Clips of a step over all ranks."""
        return self.ranks * self.share


@dataclass(frozen=True)
class Setting:
    """What all groups share."""

    device: str
    network: Network
    compiled: str
    loader: bool
    """Batches from the loader, frame folders, instead of one that is kept."""

    threads: int
    """Of each rank, on CPUs."""

    warmup: int = 2
    steps: int = 5
    windows: int = 5


def groups(ranks: Sequence[int], share: int) -> dict[str, Group]:
    """By `weak/RANKS` and `strong/RANKS`; one may stand under both. Raises ValueError where ranks
    cannot share the global batch equally."""
    whole = share * max(ranks)
    for number in ranks:
        if number < 1 or whole % number:
            raise ValueError(f"--ranks {number}: cannot share {whole} clips equally")
    weak = {f"{WEAK}/{number}": Group(number, share) for number in ranks}
    return weak | {f"{STRONG}/{number}": Group(number, whole // number) for number in ranks}


def serve(group: Group, setting: Setting, data: Path, pipe: Connection) -> None:
    """Rank 0 of a group, which starts the others: READY, the seconds of `steps` steps for each True
    that arrives, then the `settings`. Or what was raised, and no more."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    for rank in range(1, group.ranks):
        arguments = (rank, group, setting, data, port, None)
        context.Process(target=_rank, args=arguments, daemon=False).start()
    try:
        _rank(0, group, setting, data, port, pipe)
    except EOFError:  # the benchmark was stopped
        os._exit(1)  # without waiting for ranks that wait for this one
    except Exception as error:  # shown here, told in brief; the other groups go on
        traceback.print_exc()
        pipe.send(in_brief(error))
        os._exit(1)


def _rank(
    rank: int, group: Group, setting: Setting, data: Path, port: int, pipe: Connection | None
) -> None:
    """One rank from its start to the end of its group; rank 0 has the pipe."""
    os.environ["LOCAL_WORLD_SIZE"] = str(group.ranks)
    if group.ranks > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(group.ranks),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    with session() as ranks:
        ranks = ranks.on(setting.device)
        if setting.device == "cpu":
            torch.set_num_threads(setting.threads)
        network = dataclasses.replace(setting.network, batch=group.share)
        batches = _loaded(network, setting, data) if setting.loader else _kept(network, ranks)
        first = next(batches)
        step = training_step(network, ranks, first, setting.compiled)
        give_back_memory(setting.device)
        if pipe is not None:
            pipe.send(READY)
        while ranks.from_main(lambda: pipe is None or pipe.recv()):
            seconds = _window(step, batches, setting, ranks)
            if pipe is not None:
                pipe.send(seconds)
        if pipe is not None:
            pipe.send(settings())


def _kept(network: Network, ranks: Ranks) -> Iterator[Batch]:
    """The same random batch again and again, another one on every rank."""
    random = torch.Generator().manual_seed(ranks.rank)
    shape = (network.batch, network.frames, network.size, network.size)
    clip = torch.randint(0, 256, (*shape, 3), generator=random).sub(127.5).div(128)
    motion = 2 * torch.rand(shape, generator=random)[:, None]
    label = torch.randint(0, NUM_CLASSES, (network.batch,), generator=random)
    branches = [
        torch.arange(frames).expand(network.batch, -1).to(ranks.device)
        for frames in network.options().get("branch_frames", ())
    ]
    batch = Batch(
        clip.permute(0, 4, 1, 2, 3).to(ranks.device),
        motion.to(ranks.device) if network.takes_maps else None,
        label.to(ranks.device), tuple(branches), label,
    )  # fmt: skip
    return itertools.repeat(batch)


def _loaded(network: Network, setting: Setting, data: Path) -> Iterator[Batch]:
    """From frame folders, by as many threads as the rank has."""
    upto = "motion" if network.takes_maps else "view"
    case = loader_cases.Case(setting.device, "frames", "rgb", upto, "warm")
    loading = loader_cases.Setting(
        frames=network.frames, size=network.size, batch=network.batch, workers=setting.threads
    )
    return SOURCES["frames"].open(case, loading, data)


def _window(step: Step, batches: Iterator[Batch], setting: Setting, ranks: Ranks) -> float:
    """Seconds of the slowest rank for `steps` steps that all begin together."""
    for _ in range(setting.warmup):
        step(next(batches))
    wait_for(setting.device)
    ranks.gather(None)
    began = time.perf_counter()
    for _ in range(setting.steps):
        step(next(batches))
    wait_for(setting.device)
    seconds = max(ranks.gather(time.perf_counter() - began))
    give_back_memory(setting.device)  # several groups share the GPUs'
    return seconds


def measure(
    by_name: dict[str, Group], setting: Setting, data: Path
) -> tuple[Entries, dict[str, str]]:
    """The entries by `weak/RANKS` and `strong/RANKS`, and what stopped others."""
    different = list(dict.fromkeys(by_name.values()))
    with started(different, serve, setting, data, one_by_one=True) as children:
        answers, stopped = take_turns(children, setting.windows + 1)
    seconds = {
        group: summary([window / (setting.steps * group.batch) for window in windows[1:]])
        for group, (*windows, _) in answers.items()
    }
    entries: Entries = {}
    for name, group in by_name.items():
        if group in seconds:
            entries[name] = {
                "ranks": group.ranks, "global_batch": group.batch,
                "clips_per_s": 1 / seconds[group]["median"], "seconds": seconds[group],
                "settings": answers[group][-1],
            }  # fmt: skip
    for name, figure in efficiencies(entries).items():
        entries[name]["efficiency"] = figure
    errors = {name: stopped[group] for name, group in by_name.items() if group in stopped}
    return entries, errors


def efficiencies(entries: Entries) -> dict[str, float]:
    """By name: the rate over that of one rank of the same kind times the number of ranks; where one
    rank was measured."""
    found = {}
    for name, entry in entries.items():
        alone = entries.get(f"{name.partition('/')[0]}/1")
        if alone is not None:
            found[name] = entry["clips_per_s"] / (entry["ranks"] * alone["clips_per_s"])
    return found


def as_text(entries: Entries) -> str:
    """A line per kind and number of ranks."""
    lines = [f"{'scaling':<10}{'ranks':>6}{'global batch':>14}{'clips/s':>10}{'quartiles':>20}"
             f"{'efficiency':>12}"]  # fmt: skip
    for name, entry in entries.items():
        spread = entry["seconds"]
        quartiles = f"{1 / spread['q3']:.2f} to {1 / spread['q1']:.2f}"
        efficiency = f"{entry['efficiency']:.1%}" if "efficiency" in entry else ""
        lines.append(
            f"{name.partition('/')[0]:<10}{entry['ranks']:>6}{entry['global_batch']:>14}"
            f"{entry['clips_per_s']:>10.2f}{quartiles:>20}{efficiency:>12}"
        )
    lines += rows(entries)
    return "\n".join(lines)


def default_ranks(most: int) -> list[int]:
    """1, 2, 4, ... and `most` where that is a power of two, else as far as they go."""
    return [2**power for power in range(most.bit_length())]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the JSON. Exit status 1 where something failed."""
    options = command_line().parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    device = device if options.device == "auto" else options.device
    cores = len(os.sched_getaffinity(0))
    most = torch.cuda.device_count() if device == "cuda" else cores
    ranks = sorted(set(options.ranks or default_ranks(most)))
    given = {key: getattr(options, key) for key in ("frames", "size", "batch")}
    network = dataclasses.replace(
        SHAPES[SHAPE[device]][options.network], **{key: n for key, n in given.items() if n}
    )
    setting = Setting(
        device, network, options.compile, options.loader,
        options.threads or max(cores // ranks[-1], 1), options.warmup, options.steps,
        options.windows,
    )  # fmt: skip
    try:
        return run(groups(ranks, network.batch), setting, options)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run(by_name: dict[str, Group], setting: Setting, options: argparse.Namespace) -> int:
    """The groups on clips of their own or of `--data`."""
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(options.data or temporary)
        data.mkdir(parents=True, exist_ok=True)
        if setting.loader:
            clips = loader_cases.Setting(frames=options.frames or loader_cases.Setting.frames)
            SOURCES["frames"].write(data, clips)
        entries, errors = measure(by_name, setting, data)
    print(as_text(entries))
    for name, why in errors.items():
        print(f"error: {name}: {why}", file=sys.stderr)
    if options.json:
        contents: dict[str, Any] = {
            "setting": dataclasses.asdict(setting), "threads": setting.threads,
            "entries": entries, "errors": errors,
        }  # fmt: skip
        device = torch.device(setting.device)
        what = "training step on several ranks"
        write(record(what, "benchmarks.scaling", device, **contents), options.json)
    return 1 if errors else 0


def command_line() -> argparse.ArgumentParser:
    """What to train on how many ranks, and where results go."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    add = parser.add_argument
    add("--ranks", nargs="+", type=int, metavar="N", help="numbers of ranks (1, 2, 4, ... up to "
        "the GPUs or cores there are)")  # fmt: skip
    add("--network", choices=SHAPES["published"], default="decoupled", help="(decoupled)")
    for name, text in (("frames", "of a clip"), ("size", "of a frame"), ("batch", "of a rank")):
        add(f"--{name}", type=int, default=0, metavar="N", help=f"{text}, instead of its own")
    for name in ("warmup", "steps", "windows"):
        add(f"--{name}", type=int, default=getattr(Setting, name), metavar="N",
            help=f"of each group ({getattr(Setting, name)})")  # fmt: skip
    add("--loader", action="store_true", help="batches from frame folders, not one that is kept")
    add("--threads", type=int, default=0, help="of each rank on CPUs (cores over most ranks)")
    add("--compile", choices=("auto", "on", "off"), default="auto", help="as train.compile")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--data", metavar="DIR", help="with --loader: where the clips are kept (not kept)")
    add("--json", metavar="FILE", help="write entries, machine, versions, commit")
    return parser


if __name__ == "__main__":
    sys.exit(main())
