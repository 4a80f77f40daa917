"""Evaluate a checkpoint: `torchrun engine/evaluate.py --config C --checkpoint P`.

Every clip of the evaluation list is counted exactly once, on any number of ranks.
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: find the project's packages from any working directory
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from engine import checkpoint
from engine.clips import Clips, class_names, open_clips
from engine.config import Config, load, model_options
from engine.distributed import Ranks, place, run_entry, unwrap
from engine.loop import Precision, predict
from engine.metrics import Scores, as_text
from engine.optim import temperature_at
from engine.report import confusion
from engine.scores import ScoreKeeper
from models.registry import build_model
from pipelines.batch import Batch


@torch.no_grad()
def evaluate(
    model: nn.Module,
    clips: Clips,
    config: Config,
    ranks: Ranks,
    precision: Precision,
    epoch: int,
    keeper: ScoreKeeper | None = None,
    through: Callable[[Iterator[Batch]], Iterator[Batch]] = iter,
) -> dict[str, Any]:
    """Scores of the whole evaluation list (engine/metrics.py, Scores.table), equal on all ranks.

    `model` is the network itself, outside of DistributedDataParallel: ranks may have different
    numbers of batches. The logits are divided by the temperature of `epoch`. `keeper` takes those
    of every clip; batches come `through` what watches over them.
    """
    train = config.train
    temperature = temperature_at(epoch, *train.temperature, train.temperature_epochs)
    scores = Scores(head_names(model), config.data.num_classes, ranks.device)
    was_training = model.training
    model.eval()
    for batch in through(clips.eval_batches()):
        logits = [head.float() for head in predict(model, batch, temperature, precision).heads()]
        loss = F.cross_entropy(logits[0], batch.label, reduction="sum")
        scores.add(logits, batch.label, loss)
        if keeper is not None:
            keeper.add(batch.index, logits)
    model.train(was_training)
    for sums in scores.tensors():
        ranks.sum(sums)
    return scores.table()


def head_names(model: nn.Module) -> tuple[str, ...]:
    """What the network calls the tensors of `ModelOutput.heads`; the first is its prediction."""
    return cast("tuple[str, ...]", model.head_names)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 after one line that says what to mend."""
    options = command_line().parse_args(arguments)
    return run_entry(lambda ranks: _evaluate_checkpoint(options, ranks))


def _evaluate_checkpoint(options: argparse.Namespace, ranks: Ranks) -> None:
    config = ranks.agree(lambda: load(options.config, options.overrides))
    ranks = ranks.agree(lambda: ranks.on(config.train.device))
    path = Path(options.checkpoint)
    state = ranks.agree(lambda: checkpoint.load(path))
    precision = Precision.choose(config.train.precision, ranks.device)
    clips = ranks.agree(lambda: open_clips(config, ranks, precision))
    model = build_model(config.model.name, **model_options(config))
    ranks.agree(lambda: checkpoint.load_model(model, state, path, averaged=not options.raw))
    network = unwrap(place(model, ranks, precision.weights))
    epoch = max(state["progress"]["epoch"] - 1, 0)  # `progress` counts finished epochs
    keeper = ScoreKeeper()
    table = evaluate(network, clips, config, ranks, precision, epoch, keeper)
    scores = keeper.gather(ranks, clips.evaluation.index, head_names(network))
    if ranks.is_main:
        out = Path(options.out or path.parent)
        out.mkdir(parents=True, exist_ok=True)
        (out / "evaluation.json").write_text(json.dumps(table, indent=1) + "\n")
        scores.save(out / "scores.npz")
        confusion(table["confusion"], class_names(config.data), out / "confusion.png")
        print(as_text(table))
        print(f"written to {out}: evaluation.json, scores.npz, confusion.png")


def command_line() -> argparse.ArgumentParser:
    """--config FILE --checkpoint FILE [--out FOLDER] [--raw] [section.key=value ...]"""
    parser = argparse.ArgumentParser(prog="engine/evaluate.py", description=__doc__)
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file of the run")
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="such as best.pt")
    parser.add_argument(
        "--out", metavar="FOLDER", help="where evaluation.json, scores.npz and confusion.png go "
        "(default: beside the checkpoint)",
    )  # fmt: skip
    parser.add_argument(
        "--raw", action="store_true", help="take the weights of the last step, not their running "
        "average (train.ema), where the checkpoint has both",
    )  # fmt: skip
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser


if __name__ == "__main__":
    sys.exit(main())
