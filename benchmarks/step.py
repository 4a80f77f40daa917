"""How fast is a training step? `python -m benchmarks.step [--network N] [--size 96] [--json OUT]`.

Synthetic batches, no loader. A step is forward, loss, backward, gradient clipping and update. In
one run it compares the network as the engine trains it ("chosen") with the same network written
down operation by operation in 3-D fp32 ("straightforward"); `--forms` names others, among them
what was tried and not kept (benchmarks/README.md). Each form runs in a process of its own, so that
its memory is its own. On a CPU the processes take turns, so that a busy machine slows all alike; on
a GPU one follows the other, so that each has all of the memory. A form that cannot be made is a row
that says why.
"""

import argparse
import dataclasses
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.ceilings import WALL_PRECISION, rates, wall
from benchmarks.forms import FORMS, PUBLISHED_FRAMES, Setting, Step, default_forms
from benchmarks.kernels import as_text as kernels_as_text
from benchmarks.kernels import profile_step
from benchmarks.records import record, summary, write
from benchmarks.settings import as_text as settings_as_text
from benchmarks.settings import settings
from benchmarks.traffic import setting_operations
from benchmarks.turns import READY, give_back_memory, in_brief, started, take_turns, wait_for

Entries = dict[str, dict[str, Any]]
"""What the record says of each form, by its name."""

TOGETHER = {"cpu": 1, "cuda": 4}
"""Steps between two waits for the device: launching the first kernels of a step is not hidden
behind anything where each step is waited for, as it is in training."""


def serve(form: str, setting: Setting, threads: int, with_profile: bool, pipe: Connection) -> None:
    """In a process of its own: READY, for each True that arrives seconds of a step and the loss of
    the last one, for the False at the end the rest of the form's entry. Or what was raised, and no
    more.

    `memory_bytes` is the most that was ever resident (CPU) or allocated (GPU) beyond what the
    process took before the network was made.
    """
    try:
        torch.set_num_threads(threads)
        on_gpu = setting.device == "cuda"
        before = 0 if on_gpu else _resident()
        step = FORMS[form](setting)
        pipe.send(READY)
        while pipe.recv():
            pipe.send(_sample(step, setting))
        most = torch.cuda.max_memory_allocated() if on_gpu else _resident() - before
        found: dict[str, Any] = {"memory_bytes": most, "settings": settings()}
        if with_profile:
            found["profile"] = profile_step(step, torch.device(setting.device))
        pipe.send(found)
    except EOFError:  # the benchmark was stopped
        return
    except Exception as error:  # shown here, told in brief; the other forms go on
        traceback.print_exc()
        pipe.send(in_brief(error))


def _sample(step: Step, setting: Setting) -> tuple[float, float]:
    wait_for(setting.device)
    began = time.perf_counter()
    for _ in range(setting.together):
        loss = step()
    wait_for(setting.device)
    return (time.perf_counter() - began) / setting.together, loss.item()


def measure(
    setting: Setting, forms: Sequence[str], threads: int, with_profile: bool = False
) -> Iterator[tuple[Entries, dict[str, str]]]:
    """Entries of the forms that ran side by side, and what stopped others of them. An entry has
    `seconds` of a step (median, quartiles, n), `clips_per_s`, `memory_bytes`, `settings`, with
    with_profile `profile`, and `first_loss`, by which forms can be seen to compute the same: that
    of the last step of the first sample."""
    groups = [[form] for form in forms] if setting.device == "cuda" else [list(forms)]
    for group in groups:
        with started(group, serve, setting, threads, with_profile) as children:
            answers, stopped = take_turns(children, setting.warmup + setting.steps)
        entries = {}
        for form, (*samples, rest) in answers.items():
            seconds = summary([seconds for seconds, _ in samples[setting.warmup :]])
            entries[form] = {
                "seconds": seconds,
                "clips_per_s": setting.batch / seconds["median"],
                "first_loss": samples[0][1],
                **rest,
            }
        yield entries, stopped


def _resident() -> int:
    """Bytes: the most this process ever had in memory. Not getrusage's figure, in which a child
    begins with what its parent had."""
    status = Path("/proc/self/status").read_text()
    (peak,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024


def as_text(entries: Entries, errors: dict[str, str], least_seconds: float) -> str:
    """A row per form: speed against the first that was measured, and as a share of the wall's,
    which takes `least_seconds` for a step."""
    lines = [
        f"{'form':<32}{'step':>10}{'quartiles':>18}{'clips/s':>9}{'speed':>8}{'of wall':>9}"
        f"{'memory':>11}  arithmetic"
    ]
    for form, entry in entries.items():
        spread = entry["seconds"]
        first = next(iter(entries.values()))["seconds"]["median"]
        quartiles = f"{spread['q1']:.4f} to {spread['q3']:.4f}"
        share = f"{least_seconds / spread['median']:.0%}"
        memory = f"{entry['memory_bytes'] / 2**30:.2f} GiB"
        lines.append(
            f"{form:<32}{spread['median']:>8.4f} s{quartiles:>18}{entry['clips_per_s']:>9.2f}"
            f"{first / spread['median']:>7.2f}x{share:>9}{memory:>11}  "
            f"{settings_as_text(entry['settings'])}"
        )
    lines += [f"{form:<32}not measured: {why}" for form, why in errors.items()]
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
    """Measure, print the table, write the JSON. Exit status 1 where a form was not measured."""
    options = command_line().parse_args(arguments)
    setting = chosen_setting(options)
    threads = options.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    # Forms of several gigabytes more or less: memory in pieces that fit none of them is wasted.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    device = torch.device(setting.device)
    found = rates(device)
    give_back_memory(setting.device)
    least = wall(setting_operations(setting, WALL_PRECISION[setting.device]), found)
    about = {"setting": dataclasses.asdict(setting), "threads": threads}
    about |= {"ceilings": found, "wall": least}
    entries: Entries = {}
    errors: dict[str, str] = {}
    forms = options.forms or default_forms(setting.device)
    for group, stopped in measure(setting, forms, threads, options.profile):
        entries |= group
        errors |= stopped
        for form in group if options.profile else ():
            print(kernels_as_text(form, entries[form]["profile"]) + "\n")
            entries[form]["profile"] = dataclasses.asdict(entries[form]["profile"])
        print(as_text(entries, errors, least["least_seconds"]), flush=True)
        if options.json:  # after each: a run that is stopped keeps what it has
            what, module = "training step, synthetic batches", "benchmarks.step"
            result = record(what, module, device, **about, entries=entries, errors=errors)
            write(result, options.json)
    print(as_sentence(least, found))
    return 1 if errors else 0


def chosen_setting(options: argparse.Namespace) -> Setting:
    """What the command line says, and what it leaves to the network and the device."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    device = device if options.device == "auto" else options.device
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Setting)}
    given["device"] = device
    given["frames"] = options.frames or PUBLISHED_FRAMES[options.network]
    given["together"] = options.together or TOGETHER[device]
    return Setting(**given)


def command_line() -> argparse.ArgumentParser:
    """Options are those of `Setting`, and where the JSON goes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__)
    helps = {
        "size": "height and width of a frame", "batch": "clips",
        "width": "channels of the first convolution", "dim": "width of a token",
        "num_blocks": "transformer blocks per branch",
        "warmup": "measurements before those that count",
        "steps": "measurements that count, of each form",
    }  # fmt: skip
    parser.add_argument(
        "--network", choices=PUBLISHED_FRAMES, default=Setting.network, help=f"({Setting.network})"
    )
    parser.add_argument("--frames", type=int, default=0, help="frames per clip (as published)")
    parser.add_argument(
        "--together", type=int, default=0,
        help="steps of a measurement, between two waits for the device "
        f"(CPU {TOGETHER['cpu']}, GPU {TOGETHER['cuda']})",
    )  # fmt: skip
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
