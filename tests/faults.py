"""Faults at random moments of tiny training runs, and how the runs ended: the table of the README.

    python tests/faults.py --json benchmarks/results/faults_cpu.json    # 8 faults, 20 moments each
    python tests/faults.py --only kill_one full_disk --moments 3

Every run has to end as the one that nothing befell: weights, momentum and log lines, bit for bit.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm

import runs
from benchmarks.records import record, write
from fault_kinds import KINDS, LIMIT_S, Late, Trial


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), metavar="FAULT",
                        help="of: " + ", ".join(KINDS))  # fmt: skip
    parser.add_argument("--moments", type=int, default=20, help="trials of each fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every trial, and the machine")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        bench = Bench(Path(folder))
        wanted = [(name, number) for name in options.only for number in range(options.moments)]
        with ThreadPoolExecutor(options.jobs) as pool:
            outcomes = list(tqdm(
                pool.map(partial(bench.outcome, seed=options.seed), *zip(*wanted, strict=True)),
                "trials", len(wanted), unit="trial",
            ))  # fmt: skip
    print(table(outcomes))
    for outcome in outcomes:
        if not outcome["as_expected"]:
            print(
                f"\n{outcome['fault']} {outcome['number']}: {outcome['problem']}", file=sys.stderr
            )
    if options.json:
        result = record("faults", "faults", torch.device("cpu"), trials=outcomes)
        write(
            result | {"command": "python tests/faults.py " + " ".join(sys.argv[1:])}, options.json
        )
    return int(not all(outcome["as_expected"] for outcome in outcomes))


class Bench:
    """A data set, and runs that nothing befalls, to compare with."""

    def __init__(self, folder: Path, rank_counts: Sequence[int] = (0, 2)) -> None:
        self.folder = folder
        self.dataset = runs.write_tiny_dataset(folder / "sample")
        self.whole = {ranks: self._whole(ranks) for ranks in rank_counts}

    def trial(self, name: str, ranks: int, draw: random.Random) -> Trial:
        folder = self.folder / name
        folder.mkdir()
        config = folder / "tiny.yaml"
        config.write_text(yaml.safe_dump(runs.tiny_config(self.dataset, folder)))
        return Trial(config, ranks, draw)

    def outcome(self, fault: str, number: int, seed: int = 0) -> dict[str, Any]:
        """Of one trial; one whose fault struck too late is drawn again."""
        for attempt in range(10):
            name = f"{fault}_{number}_{attempt}"
            trial = self.trial(name, KINDS[fault].ranks, random.Random(f"{seed} {name}"))
            began = time.monotonic()
            problem, hung = "", False
            try:
                KINDS[fault].inject(trial)
                self.compare(trial)
            except Late:
                continue
            except subprocess.TimeoutExpired:
                problem, hung = f"no end within {LIMIT_S} s", True
            except Exception:
                problem = traceback.format_exc()
            finally:
                trial.clean_up()
                shutil.rmtree(trial.config.parent)
            return {
                "fault": fault, "number": number, "hung": hung,
                "notes": list(map(self.without_folders, trial.notes)),
                "as_expected": not problem, "problem": self.without_folders(problem),
                "seconds": round(time.monotonic() - began, 1),
            }  # fmt: skip
        raise RuntimeError(f"{fault}: ten times in a row the run was over before its fault")

    def without_folders(self, text: str) -> str:
        """Results are published: no path of this machine in them."""
        return text.replace(f"{self.folder}/", "").replace(f"{runs.ROOT}/", "")

    def compare(self, trial: Trial) -> None:
        """Raises AssertionError unless the run ended as the one that nothing befell."""
        whole = self.whole[trial.ranks]
        runs.assert_bit_equal(runs.final_state(trial.run), runs.final_state(whole.run))
        for kind in ("train", "eval", "epoch"):
            seen, expected = (
                [runs.without_times(line) for line in runs.lines_of(run, kind)]
                for run in (trial.run, whole.run)
            )
            assert seen == expected, f"other log lines of {kind}: {seen} instead of {expected}"

    def _whole(self, ranks: int) -> Trial:
        trial = self.trial(f"whole_{ranks}", ranks, random.Random(0))
        trial.start(torchrun=False)
        trial.end(0)
        return trial


def table(outcomes: Sequence[dict[str, Any]]) -> str:
    """Markdown, a line per fault."""
    lines = ["| fault | what has to follow | seen | hangs |", "|---|---|---|---|"]
    for name, kind in KINDS.items():
        of_kind = [outcome for outcome in outcomes if outcome["fault"] == name]
        if of_kind:
            good = sum(outcome["as_expected"] for outcome in of_kind)
            hangs = sum(outcome["hung"] for outcome in of_kind)
            lines.append(f"| {kind.fault} | {kind.expected} | {good} of {len(of_kind)} | {hangs} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
