"""Which network learns the sample data better, and faster? `python -m benchmarks.demos`.

Whole trainings of two demo configs on the same clips. For each seed the two train side by side,
each with half of the cores, so that a busy machine slows both alike. For their time per clip take
`--overrides train.epochs=3`: of whole trainings the longer one has the machine to itself at last.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.records import record, summary, write
from pipelines.cores import usable_cores

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ("demo_rgb", "demo_umdr_rgb")
KEPT = ("top1", "best_top1", "clips", "seconds", "clips_per_s", "data_wait", "device")


def train_side_by_side(
    configs: Sequence[str], seed: int, overrides: Sequence[str], folder: Path
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The `result.json` of each config, and what stopped other trainings, by CONFIG_SEED."""
    threads = max(usable_cores() // len(configs), 1)
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    runs = {}
    for config in configs:
        run = folder / f"{config}_{seed}"
        command = [
            sys.executable, str(ROOT / "engine" / "train.py"),
            "--config", str(ROOT / "configs" / f"{config}.yaml"), *overrides,
            f"train.seed={seed}", f"train.run_dir={run}", f"data.workers={threads}",
        ]  # fmt: skip
        with (folder / f"{config}_{seed}.log").open("w") as log:
            runs[config] = run, subprocess.Popen(command, env=env, stdout=log, stderr=log)
    results, stopped = {}, {}
    for config, (run, process) in runs.items():
        if status := process.wait():
            said = (folder / f"{run.name}.log").read_text().strip().splitlines()[-1:]
            stopped[run.name] = f"training failed (exit status {status}): {' '.join(said)}"
        else:
            results[config] = json.loads((run / "result.json").read_text())
    return results, stopped


def as_text(entries: dict[str, dict[str, Any]]) -> str:
    """A line for each config: accuracy, time per clip, and that against the first's. No line where
    nothing was measured."""
    if not entries:
        return "nothing was measured"
    first = next(iter(entries.values()))["ms_per_clip"]["median"]
    lines = [f"{'config':<20}{'top-1 of each seed':>28}{'ms per clip':>24}{'time':>8}"]
    for config, entry in entries.items():
        top1 = ", ".join(f"{run['top1']:.1%}" for run in entry["runs"])
        spread = entry["ms_per_clip"]
        time = f"{spread['median']:.2f} ({spread['q1']:.2f} to {spread['q3']:.2f})"
        lines.append(f"{config:<20}{top1:>28}{time:>24}{spread['median'] / first:>7.2f}x")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, print the table, write the JSON after each seed. Exit status 1 where a training
    failed: its seed is left out, as the others of it had more of the machine than they should."""
    options = command_line().parse_args(arguments)
    entries: dict[str, dict[str, Any]] = {}
    errors: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            results, stopped = train_side_by_side(
                options.configs, seed, options.overrides or (), Path(folder)
            )
            errors |= stopped
            if not stopped:
                _add(entries, seed, results)
            if options.json:
                result = record(
                    "whole trainings on the sample data, side by side", "benchmarks.demos",
                    torch.device("cpu"), entries=entries, errors=errors,
                )  # fmt: skip
                write(result, options.json)
    print(as_text(entries))
    for name, why in errors.items():
        print(f"error: {name}: {why}", file=sys.stderr)
    return 1 if errors else 0


def _add(entries: dict[str, dict[str, Any]], seed: int, results: dict[str, dict[str, Any]]) -> None:
    """Adds the runs of one seed, and sums up the times per clip so far."""
    for config, result in results.items():
        entry = entries.setdefault(config, {"runs": []})
        entry["runs"].append({"seed": seed, **{key: result[key] for key in KEPT}})
        times = [1000 * run["seconds"] / run["clips"] for run in entry["runs"]]
        entry["ms_per_clip"] = summary(times)


def command_line() -> argparse.ArgumentParser:
    """Seeds, configs, overrides for all, and where the JSON goes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demos", description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="one pair each")
    parser.add_argument(
        "--configs", nargs="+", default=CONFIGS, metavar="NAME", help="below configs/"
    )
    parser.add_argument(
        "--overrides", nargs="*", metavar="section.key=value", help="for all trainings"
    )
    parser.add_argument("--json", metavar="OUT", help="write the result there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
