"""How fast is a training step? `python -m benchmarks.step [--network N] [--size 96] [--json OUT]`.

Synthetic batches, no loader. A step is forward, loss, backward, gradient clipping and update. In
one run it compares the network as the engine trains it ("chosen") with the same network written
down operation by operation in 3-D fp32 ("straightforward"); `--forms` names others, among them
what was tried and not kept (benchmarks/README.md). Each form runs in a process of its own,
so that its memory is its own; the processes take turns, so that a busy machine slows all alike.
"""

import argparse
import dataclasses
import multiprocessing
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.ceilings import WALL_PRECISION, rates, wall
from benchmarks.forms import FORMS, PUBLISHED_FRAMES, Setting, default_forms
from benchmarks.kernels import as_text as kernels_as_text
from benchmarks.kernels import profile_step
from benchmarks.records import record, summary, write
from benchmarks.traffic import setting_operations


def serve(form: str, setting: Setting, threads: int, pipe: Connection) -> None:
    """In a process of its own: for each "step" that arrives a step and its time, for "memory" its
    most, for "profile" a `Profile`; then "end".

    Memory is the most that was ever resident (CPU) or allocated (GPU), in bytes, beyond what the
    process took before the network was made.
    """
    torch.set_num_threads(threads)
    on_gpu = setting.device == "cuda"
    before = 0 if on_gpu else _resident()
    step = FORMS[form](setting)
    pipe.send("ready")
    while (asked := pipe.recv()) != "end":
        if asked == "step":
            started = time.perf_counter()
            loss = step().item()  # waits for the device
            pipe.send((time.perf_counter() - started, loss))
        elif asked == "memory":
            pipe.send(torch.cuda.max_memory_allocated() if on_gpu else _resident() - before)
        else:
            pipe.send(profile_step(step, torch.device(setting.device)))


def measure(
    setting: Setting, forms: Sequence[str], threads: int, with_profile: bool = False
) -> dict[str, dict[str, Any]]:
    """Per form: `seconds` of a step (median, quartiles, n), `clips_per_s`, `memory_bytes`,
    `first_loss`, by which the forms can be seen to compute the same, and with_profile `profile`."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for form in forms:
        pipes[form], theirs = context.Pipe()
        context.Process(target=serve, args=(form, setting, threads, theirs), daemon=True).start()
        theirs.close()
    for form, pipe in pipes.items():
        try:
            pipe.recv()
        except EOFError:
            raise ValueError(f"{form}: could not be set up; its process said why above") from None
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    losses: dict[str, float] = {}
    for turn in range(setting.warmup + setting.steps):
        for form, pipe in pipes.items():
            pipe.send("step")
            elapsed, loss = pipe.recv()
            losses.setdefault(form, loss)
            if turn >= setting.warmup:
                seconds[form].append(elapsed)
    entries = {}
    for form, pipe in pipes.items():
        pipe.send("memory")
        spread = summary(seconds[form])
        entries[form] = {
            "seconds": spread,
            "clips_per_s": setting.batch / spread["median"],
            "memory_bytes": pipe.recv(),
            "first_loss": losses[form],
        }
        if with_profile:
            pipe.send("profile")
            entries[form]["profile"] = pipe.recv()
        pipe.send("end")
    return entries


def _resident() -> int:
    """Bytes: the most this process ever had in memory. Not getrusage's figure, in which a child
    begins with what its parent had."""
    status = Path("/proc/self/status").read_text()
    (peak,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024


def as_text(entries: dict[str, dict[str, Any]], least_seconds: float) -> str:
    """The entries as a table: speed against the first, and as a share of the wall's, which takes
    `least_seconds` for a step."""
    first = next(iter(entries.values()))
    lines = [
        f"{'form':<24}{'step':>10}{'quartiles':>18}{'clips/s':>9}{'speed':>7}{'of wall':>9}"
        f"{'memory':>11}"
    ]
    for form, entry in entries.items():
        spread = entry["seconds"]
        quartiles = f"{spread['q1']:.3f} to {spread['q3']:.3f}"
        ratio = first["seconds"]["median"] / spread["median"]
        share = f"{least_seconds / spread['median']:.0%}"
        memory = f"{entry['memory_bytes'] / 2**30:.2f} GiB"
        lines.append(
            f"{form:<24}{spread['median']:>8.3f} s{quartiles:>18}{entry['clips_per_s']:>9.2f}"
            f"{ratio:>6.2f}x{share:>9}{memory:>11}"
        )
    return "\n".join(lines)


def as_sentence(least: dict[str, float], found: dict[str, float]) -> str:
    """What the wall is made of."""
    rate = found.get("matmul_bf16_tflop_per_s", found["matmul_tflop_per_s"])
    return (
        f"a step is {least['tflop']:.3g} TFLOP and moves {least['gb']:.3g} GB, "
        f"{least['merged_gb']:.3g} GB where element-wise operations are part of others; at "
        f"{rate:.3g} TFLOP/s and {found['copy_gb_per_s']:.3g} GB/s, measured now, that takes "
        f"{least['least_seconds']:.3g} s: the wall"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the JSON."""
    options = command_line().parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    device = device if options.device == "auto" else options.device
    given = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(Setting)
        if field.name != "device"
    }
    given["frames"] = options.frames or PUBLISHED_FRAMES[options.network]
    setting = Setting(**given, device=device)
    forms = options.forms or default_forms(device)
    threads = options.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    found = rates(torch.device(device))
    least = wall(setting_operations(setting, WALL_PRECISION[device]), found)
    try:
        entries = measure(setting, forms, threads, options.profile)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(as_text(entries, least["least_seconds"]))
    print(as_sentence(least, found))
    for form, entry in entries.items():
        if options.profile:
            print("\n" + kernels_as_text(form, entry["profile"]))
            entry["profile"] = dataclasses.asdict(entry["profile"])
    if options.json:
        about = {"setting": dataclasses.asdict(setting), "threads": threads}
        about |= {"ceilings": found, "wall": least}
        result = record(
            "training step, synthetic batches", "benchmarks.step", torch.device(device),
            **about, entries=entries,
        )  # fmt: skip
        write(result, options.json)
        print(f"written: {options.json}")
    return 0


def command_line() -> argparse.ArgumentParser:
    """Options are those of `Setting`, and where the JSON goes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    helps = {
        "size": "height and width of a frame", "batch": "clips",
        "width": "channels of the first convolution", "dim": "width of a token",
        "num_blocks": "transformer blocks per branch", "warmup": "steps before those that count",
        "steps": "steps that count, of each form",
    }  # fmt: skip
    parser.add_argument(
        "--network", choices=PUBLISHED_FRAMES, default=Setting.network, help=f"({Setting.network})"
    )
    parser.add_argument("--frames", type=int, default=0, help="frames per clip (as published)")
    for name, text in helps.items():
        default = getattr(Setting, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=default, help=f"{text} ({default})"
        )
    parser.add_argument(
        "--forms", nargs="+", choices=FORMS, metavar="FORM",
        help=f"which to compare, the first being the measure: {', '.join(FORMS)}",
    )  # fmt: skip
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=0, help="of each process (torch's choice)")
    parser.add_argument("--profile", action="store_true", help="show each form's longest kernels")
    parser.add_argument("--json", metavar="OUT", help="write samples, machine, versions, commit")
    return parser


if __name__ == "__main__":
    sys.exit(main())
