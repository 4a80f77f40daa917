"""What this machine can do, and what to mend: `python -m engine.doctor [--config FILE]`.

Looks, and tries out: packages, driver, GPUs, decoders by clips of each codec, all-reduces, limits
and disks. With the config of a run, also whether that run would go. Everything that could crash or
hang is tried in a process of its own. Exit status 0, or 1 if training would fail here.
"""

import argparse
import json
import os
import platform
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from engine.doctor_children import Outcome, Probe, Progress, run_probes
from engine.doctor_facts import Facts
from engine.doctor_gpu import (
    busy_row,
    driver_row,
    faults_row,
    gloo_row,
    gpu_rows,
    nccl_row,
    peers_row,
)
from engine.doctor_host import Disk, look_at_disk, read_host
from engine.doctor_media import CODECS, codec_rows, ffmpeg_row, jpeg_rows, lz4_row
from engine.doctor_place import find_place
from engine.doctor_rows import Row, as_json, as_text, training_fails
from engine.doctor_run import run_rows
from engine.doctor_software import (
    apex_row,
    compiler_row,
    cudnn_row,
    dali_rows,
    packages_row,
    python_row,
    tf32_row,
    torch_rows,
)
from engine.doctor_system import (
    disk_rows,
    locked_memory_row,
    memory_row,
    open_files_row,
    processors_row,
    shared_memory_row,
)

MOST_JOBS = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 if training would fail."""
    options = command_line().parse_args(arguments)
    facts = examine(options, show if sys.stderr.isatty() else lambda *state: None)
    rows = judge(facts)
    machine = f"{platform.node()}, {platform.system()} {platform.machine()}, {facts.place}"
    print(f"{machine}; training on: {facts.device}\n")
    print(as_text(rows, shutil.get_terminal_size((100, 0)).columns))
    failing = [row.name for row in rows if row.state == "fail"]
    print(f"\ntraining would fail: {', '.join(failing)}" if failing else "\ntraining would run")
    if options.json:
        text = json.dumps(as_json(rows, machine, facts.device), indent=1)
        try:
            Path(options.json).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            print(f"error: {options.json}: {error.strerror}", file=sys.stderr)
            return 1
    return 1 if training_fails(rows) else 0


def judge(facts: Facts) -> list[Row]:
    """All rows, in the order of the table."""
    return [
        python_row(sys.version_info[:3]), packages_row(facts), *torch_rows(facts),
        *dali_rows(facts), driver_row(facts), *gpu_rows(facts), cudnn_row(facts), tf32_row(facts),
        peers_row(facts), busy_row(facts), faults_row(facts), nccl_row(facts), gloo_row(facts),
        apex_row(facts), compiler_row(facts), ffmpeg_row(facts), *codec_rows(facts),
        *jpeg_rows(facts), lz4_row(facts), processors_row(facts), memory_row(facts),
        shared_memory_row(facts), open_files_row(facts), locked_memory_row(facts),
        *disk_rows(facts), *run_rows(facts),
    ]  # fmt: skip


def examine(options: argparse.Namespace, progress: Progress) -> Facts:
    """All facts: first the driver's, before anything here uses a GPU, then the rest."""
    facts = Facts(
        find_place(), read_host(), wanted=options.device, pip=pip_command(),
        config_path=shlex.join([options.config, *options.overrides]) if options.config else "",
    )  # fmt: skip
    jobs = min(max(facts.host.allowed, 2), MOST_JOBS)
    first = run_probes([Probe("driver"), Probe("nvidia-smi")], options.timeout, jobs, progress)
    quick, slow = probes(options, first["driver"].get("count", 0))
    skipped = {}
    if options.quick:
        skipped = {probe.name: Outcome(unchecked="not checked (--quick)") for probe in slow}
        slow = []
    outcomes = first | skipped | run_probes([*slow, *quick], options.timeout, jobs, progress)
    facts = replace(facts, outcomes=outcomes)
    facts = replace(facts, wanted=facts.config.get("wanted", options.device))
    return replace(facts, host=replace(facts.host, disks=disks(facts)))


def probes(options: argparse.Namespace, num_gpus: int) -> tuple[list[Probe], list[Probe]]:
    """What can be tried with so many GPUs: always, and only without `--quick`."""
    device = "cuda" if num_gpus else "cpu"
    quick = [Probe(name) for name in ("torch", "DALI", "packages", "Apex")]
    if options.config:
        quick.append(Probe("config", (options.config, str(options.ranks), *options.overrides)))
    slow = [Probe("all-reduce gloo", ("gloo", "2")), Probe("FFmpeg"), Probe("LZ4", (device,))]
    if num_gpus:
        slow += [Probe("all-reduce NCCL", ("nccl", str(num_gpus))), Probe("nvJPEG")]
    slow += [Probe(f"codec {codec}", (codec, device)) for codec in CODECS]
    return quick, slow


def disks(facts: Facts) -> dict[str, Disk]:
    """Where the run of the config writes, or where one would by default."""
    root = facts.config.get("root", "")
    cache = facts.config.get("cache_dir") or (os.path.join(root, ".rgbd_cache") if root else "")
    return {
        "run directory": look_at_disk(facts.config.get("run_dir", "runs")),
        "caches": look_at_disk(cache or os.environ.get("XDG_CACHE_HOME") or "~/.cache"),
        "temporary files": look_at_disk(os.environ.get("TMPDIR") or tempfile.gettempdir()),
    }


def pip_command() -> str:
    """Of the interpreter that runs the doctor, as it would be typed here."""
    python = Path(sys.executable)
    here = Path.cwd()
    return f"{python.relative_to(here) if here in python.parents else python} -m pip"


def show(done: int, total: int, names: Sequence[str]) -> None:
    """One line that is written over; gone when all is done."""
    width = shutil.get_terminal_size((80, 0)).columns - 1
    line = f"{done} of {total} looked at; now {', '.join(names)}" if names else ""
    print(f"\r{line[:width]:{width}}", end="\r", file=sys.stderr, flush=True)


def command_line() -> argparse.ArgumentParser:
    """[--config FILE [section.key=value ...]] [--device D] [--ranks N] [--quick] [--json FILE]"""
    parser = argparse.ArgumentParser(
        prog="python -m engine.doctor",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    add = parser.add_argument
    add("--config", metavar="FILE", help="YAML file of a run: also check whether that would go")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto",
        help="what training is meant to run on (default: a GPU where there is one); a config\n"
        "says it by train.device")  # fmt: skip
    add("--ranks", type=int, default=0, metavar="N",
        help="processes that will train, on all machines (default: one per GPU)")  # fmt: skip
    add("--quick", action="store_true", help="versions, limits and disks only: decode nothing")
    add("--timeout", type=float, default=120, metavar="S",
        help="seconds that one probe may take (default: %(default)s)")  # fmt: skip
    add("--json", metavar="FILE", help="write the rows there too")
    add(
        "overrides", nargs="*", metavar="section.key=value", help="replaces one value of the config"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
