"""How many clips a second does the loader make? `python -m benchmarks.loader [--json FILE]`.

Every source on every device of this machine: RGB, depth and both, with and without motion maps,
files in the page cache and not. Each is also measured cut off after its stages: what a stage costs
is the difference to the one before it, and the parts add up to the whole. On rendered clips and
without a network (that is benchmarks/step.py). Each case has a process of its own; those worth
comparing take turns, so that a busy machine slows all alike.
"""

import argparse
import dataclasses
import itertools
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import loader_table, memory_curve, python_work
from benchmarks.loader_cases import WHATS, Case, Setting, all_cases
from benchmarks.loader_run import Entries, measure
from benchmarks.loader_sources import SOURCES
from benchmarks.records import record, write


def choose(
    devices: Sequence[str], patterns: Sequence[str], with_peers: bool
) -> tuple[list[Case], dict[str, str]]:
    """Cases to measure, and by name why others cannot be. Raises ValueError for a pattern that
    fits none."""
    names = [name for name, source in SOURCES.items() if with_peers or not source.is_peer]
    known = {name: (SOURCES[name].whats, SOURCES[name].uptos) for name in names}
    for pattern in patterns:
        if not any(all_cases(("cpu", "cuda"), known, [pattern])):
            raise ValueError(
                f"--only {pattern}: fits no case; a name is DEVICE/SOURCE/WHAT/UPTO/PAGES, such "
                "as cpu/frames/rgb/motion/warm"
            )
    cases, missing = [], {}
    for case in all_cases(("cpu", "cuda"), known, patterns):
        source = SOURCES[case.source]
        if source.missing:
            missing[case.name] = source.missing
        elif case.device in source.devices:
            if case.device in devices:
                cases.append(case)
            else:
                missing[case.name] = "not measured"
    return cases, missing


def measure_all(
    cases: Sequence[Case], setting: Setting, data: Path, missing: dict[str, str], errors: list[str]
) -> Iterator[Entries]:
    """Entries by name, those of one turn after the other. What stops a case or a turn goes to
    `errors`, of a peer to `missing`, and does not end the others."""
    for write_data in {SOURCES[case.source].write for case in cases}:
        write_data(data, setting)
    for _, turn in itertools.groupby(cases, key=lambda case: case.turn):
        try:
            entries, stopped = measure(list(turn), setting, data)
        except ValueError as error:
            errors.append(str(error))
            continue
        for case, why in stopped.items():
            if SOURCES[case.source].is_peer:
                missing[case.name] = why
            else:
                errors.append(f"{case.name}: {why}")
        yield entries


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the JSON. Exit status 1 where something failed."""
    options = command_line().parse_args(arguments)
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Setting)}
    setting = Setting(**given)
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(options.data or temporary)
        try:
            data.mkdir(parents=True, exist_ok=True)
            run = memory if options.memory_curve else speed
            return run(options, setting, data)
        except (OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1


def speed(options: argparse.Namespace, setting: Setting, data: Path) -> int:
    """The cases, and what Python does for a batch. The JSON is written after each turn: a run that
    is stopped keeps what it has."""
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    cases, missing = choose(devices, options.only, options.peers)
    entries: Entries = {}
    errors: list[str] = []
    whats = [what for what in WHATS if any(case.what == what for case in cases)]
    work = {what: python_work.python_work(setting, what) for what in whats}
    contents = {"entries": entries, "missing": missing, "python_ms": work, "errors": errors}
    for found in measure_all(cases, setting, data, missing, errors):
        entries |= found
        _keep(options, setting, "loader, rendered clips", **contents)
    print(loader_table.as_text(entries, missing))
    for what in whats:
        print(f"\n{python_work.as_text(work[what], what, setting)}")
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else 0


def memory(options: argparse.Namespace, setting: Setting, data: Path) -> int:
    """Resident memory of one case over many batches."""
    case = Case("cuda" if torch.cuda.is_available() else "cpu", "frames", "rgb", "motion", "warm")
    curve = memory_curve.measure_memory(case, setting, data, options.memory_curve)
    print(memory_curve.as_text(curve))
    if options.plot:
        memory_curve.plot(curve, options.plot)
    _keep(options, setting, "resident memory of the loader", curve=curve)
    return 0


def _keep(options: argparse.Namespace, setting: Setting, what: str, **contents: Any) -> None:
    if options.json:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        about = dataclasses.asdict(setting)
        write(record(what, "benchmarks.loader", device, setting=about, **contents), options.json)


def size_of(text: str) -> tuple[int, int]:
    """`320x240` -> width, height."""
    width, height = (int(side) for side in text.split("x"))
    return width, height


def command_line() -> argparse.ArgumentParser:
    """Options are those of `Setting`, what to measure and where results go."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__)
    helps = {
        "clips": "clips to render", "size": "height and width of a frame handed over",
        "frames": "frames per clip handed over", "batch": "clips per batch",
        "workers": "threads of the loader, processes of a peer",
        "prefetch": "batches prepared ahead", "windows": "measurements of each case that count",
        "batches": "batches per measurement, at least", "seed": "of clips and draws",
    }  # fmt: skip
    for name, text in helps.items():
        default = getattr(Setting, name)
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} ({default})")
    for name in ("rgb", "depth"):
        default = getattr(Setting, f"{name}_size")
        parser.add_argument(
            f"--{name}-size", type=size_of, metavar="WxH", default=default,
            help=f"of the {name} files ({default[0]}x{default[1]})",
        )  # fmt: skip
    parser.add_argument(
        "--only", nargs="+", default=["*"], metavar="PATTERN",
        help="cases by DEVICE/SOURCE/WHAT/UPTO/PAGES, such as 'cpu/*/rgb/*' (all)",
    )  # fmt: skip
    parser.add_argument("--peers", action="store_true", help="other loaders, too")
    parser.add_argument("--data", metavar="DIR", help="where the clips are kept (not kept)")
    parser.add_argument("--json", metavar="FILE", help="write entries, machine, versions, commit")
    parser.add_argument(
        "--memory-curve", type=int, metavar="N", default=0,
        help="instead of speed, resident memory over N batches",
    )  # fmt: skip
    parser.add_argument("--plot", metavar="FILE.png", help="with --memory-curve: its picture")
    return parser


if __name__ == "__main__":
    sys.exit(main())
