"""Train a recogniser: `torchrun engine/train.py --config configs/X.yaml [section.key=value ...]`.

The same command again resumes the run in its run directory; `--dry-run` shows what it would do.
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: find the project's packages from any working directory
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Sequence

from engine.config import load
from engine.distributed import Ranks, run_entry
from engine.dry_run import dry_run
from engine.metrics import as_text
from engine.signals import StopRequest, stop_requests
from engine.training import Training


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 after one line that says what to mend, or, where a signal stopped the
    run (engine/signals.py), 75: the same command goes on, or 130: Ctrl-C."""
    options = command_line().parse_args(arguments)
    with stop_requests() as stop:
        return run_entry(lambda ranks: train(options, ranks, stop), stop)


def train(options: argparse.Namespace, ranks: Ranks, stop: StopRequest) -> None:
    """config -> clips, network, optimizer -> epochs -> result."""
    config = ranks.agree(lambda: load(options.config, options.overrides))
    ranks.watchdog.timeout = config.train.timeout_s
    ranks = ranks.agree(lambda: ranks.on(config.train.device, config.train.deterministic))
    if options.dry_run:
        return dry_run(config, ranks)
    training = Training(config, ranks, stop)
    training.fit()
    if ranks.is_main:
        print(as_text(training.scores))
        print(f"curves, confusion matrix, checkpoints, result.json: {training.run.path}")


def command_line() -> argparse.ArgumentParser:
    """--config FILE [--dry-run] [section.key=value ...]"""
    parser = argparse.ArgumentParser(
        prog="engine/train.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file of the run")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check config and data, print schedule, clip counts and a memory estimate,\n"
        "write one augmented batch as contact_sheet.png; train nothing",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="replaces one value of the file, such as optim.lr=0.02",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
