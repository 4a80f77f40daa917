"""Does training wait for its clips? `python -m benchmarks.end_to_end [--json FILE]`.

In one run, per network and source of clips: the loader alone, the training step alone on one of
its batches, both together as the engine trains, and the stall: the share of its time that training
takes beyond the step. For CVPR'22's and UMDR's networks and torchvision's, on rendered clips.
Each case has a process of its own. On a CPU those of a network take turns, so that a busy machine
slows all alike; on a GPU, whose memory they would share, one is alive at a time.
"""

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import end_to_end_table
from benchmarks.ceilings import WALL_PRECISION, rates, wall
from benchmarks.end_to_end_run import cases, measure
from benchmarks.loader import size_of
from benchmarks.loader_cases import Setting
from benchmarks.loader_run import Entries
from benchmarks.loader_sources import SOURCES
from benchmarks.networks import SHAPES, Network
from benchmarks.records import record, write
from benchmarks.traffic import network_operations
from benchmarks.turns import give_back_memory

SHAPE = {"cpu": "small", "cuda": "published"}
OWN_SOURCES = tuple(name for name, source in SOURCES.items() if not source.is_peer)
DEFAULT_SOURCES = ("frames", "videos", "pack")
OF_DISK = ("clips", "workers", "prefetch", "windows", "batches", "seed")
DEFAULTS = {"clips": 32, "windows": 3}
"""Where they are other than the loader benchmark's."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the JSON. Exit status 1 where something failed."""
    options = command_line().parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    device = device if options.device == "auto" else options.device
    given = {name: getattr(options, name) for name in (*OF_DISK, "rgb_size", "depth_size")}
    disk = Setting(**given, frames=options.frames or Setting.frames)
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(options.data or temporary)
        try:
            data.mkdir(parents=True, exist_ok=True)
            return run(options, device, disk, data)
        except (OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1


def run(options: argparse.Namespace, device: str, disk: Setting, data: Path) -> int:
    """Measures one network after the other. The JSON is written after each group of cases: a run
    that is stopped keeps what it has."""
    chosen = networks(options, device)
    for source in options.sources:
        if device not in SOURCES[source].devices:
            raise ValueError(f"--sources {source}: is not for {device}")
    entries: Entries = {}
    errors: dict[str, str] = {}
    walls: dict[str, dict[str, float]] = {}
    found_rates = rates(torch.device(device))
    give_back_memory(device)
    setting = {
        "disk": dataclasses.asdict(disk),
        "networks": [dataclasses.asdict(network) for network in chosen],
        "compile": options.compile,
    }
    for network in chosen:
        operations = network_operations(network, WALL_PRECISION[device])
        walls[network.name] = {
            name: figure / network.batch for name, figure in wall(operations, found_rates).items()
        }
        planned = cases(device, network, options.sources)
        for found, stopped in measure(planned, disk, data, options.compile):
            entries |= found
            errors |= stopped
            if options.json:
                about = {"setting": setting, "ceilings": found_rates, "walls": walls}
                write(_result(device, entries, errors, about), options.json)
    print(end_to_end_table.as_text(entries, walls))
    for name, why in errors.items():
        print(f"error: {name}: {why}", file=sys.stderr)
    return 1 if errors else 0


def _result(
    device: str, entries: Entries, errors: dict[str, str], about: dict[str, Any]
) -> dict[str, Any]:
    """The contents of the JSON."""
    return record(
        "training end to end, rendered clips", "benchmarks.end_to_end", torch.device(device),
        **about, threads=torch.get_num_threads(), entries=entries, errors=errors,
        stalls=end_to_end_table.stalls(entries), published=end_to_end_table.published(),
    )  # fmt: skip


def networks(options: argparse.Namespace, device: str) -> list[Network]:
    """Those asked for, with what the command line says of their batches."""
    shape = SHAPE[device] if options.shape == "auto" else options.shape
    given = {key: getattr(options, key) for key in ("frames", "size", "batch")}
    changes = {key: value for key, value in given.items() if value}
    return [dataclasses.replace(SHAPES[shape][name], **changes) for name in options.networks]


def command_line() -> argparse.ArgumentParser:
    """What to measure, on which clips, and where results go."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.end_to_end", description=__doc__)
    add = parser.add_argument
    names = list(SHAPES["published"])
    add("--networks", nargs="+", choices=names, default=names, metavar="NAME",
        help=f"of {', '.join(names)} (all)")  # fmt: skip
    add("--sources", nargs="+", choices=OWN_SOURCES, default=DEFAULT_SOURCES, metavar="NAME",
        help=f"of {', '.join(OWN_SOURCES)} ({' '.join(DEFAULT_SOURCES)})")  # fmt: skip
    add("--shape", choices=("auto", *SHAPES), default="auto",
        help="clips and batches as published or small (published on a GPU)")  # fmt: skip
    for name in ("frames", "size", "batch"):
        add(f"--{name}", type=int, default=0, metavar="N", help=f"instead of the shape's {name}")
    for name in OF_DISK:
        default = DEFAULTS.get(name, getattr(Setting, name))
        add(f"--{name}", type=int, default=default, metavar="N", help=f"see loader.py ({default})")
    for name in ("rgb", "depth"):
        default = getattr(Setting, f"{name}_size")
        add(f"--{name}-size", type=size_of, default=default, metavar="WxH",
            help=f"of the {name} files ({default[0]}x{default[1]})")  # fmt: skip
    add("--compile", choices=("auto", "on", "off"), default="auto", help="as train.compile")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--data", metavar="DIR", help="where the clips are kept (not kept)")
    add("--json", metavar="FILE", help="write entries, machine, versions, commit")
    return parser


if __name__ == "__main__":
    sys.exit(main())
