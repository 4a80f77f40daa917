"""Convert a checkpoint: `python -m engine.convert IN OUT`.

A published one (`model`, `optimizer`, `epoch`, `bestacc`) becomes one of this program, one of this
program a published one; which of the two IN is, is seen in it. Converted there and back, a
published file holds what it held, entry for entry and bit for bit. One of UMDR's fusion holds only
what completes two networks, and is joined with them: --rgb FILE --depth FILE.
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: find the project's packages from any working directory
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from engine import checkpoint
from engine.completion import is_part, joined
from engine.config import as_dict, load, model_options
from engine.distributed import run_entry
from engine.published_checkpoint import is_published, to_published
from models.registry import build_model


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 after one line that says what to mend."""
    options = command_line().parse_intermixed_args(arguments)
    return run_entry(lambda ranks: ranks.from_main(lambda: convert(options)))


def convert(options: argparse.Namespace) -> None:
    """Read IN, write OUT in the other form, say what it was. Raises ValueError naming the file."""
    source, target = Path(options.source), Path(options.target)
    if target.exists() and target.samefile(source):
        raise ValueError(f"{target}: is IN itself; give OUT another name")
    content = checkpoint.read(source)
    state = checkpoint.in_our_form(content, source)
    halves = {key: getattr(options, key) for key in ("rgb", "depth")}
    if is_part(state):
        state = _joined(state, halves, source)
    elif any(halves.values()):
        raise ValueError(f"{source}: is whole, so --rgb and --depth have nothing to add")
    if is_published(content):
        if options.config:
            state["config"] = _full_config(options, state)
        checkpoint.save(target, state)
        print(f"{source}, published: {described(state)}\nwritten in our form: {target}")
        return
    if options.config:
        raise ValueError(f"{source}: is not a published file, so --config has nothing to add")
    try:
        checkpoint.write(target, to_published(state))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    print(f"{source}: {described(state)}\nwritten in the published form: {target}")


def _joined(state: dict[str, Any], halves: dict[str, str | None], source: Path) -> dict[str, Any]:
    """The whole checkpoint of a published fusion and the files of both networks."""
    if None in halves.values():
        raise ValueError(
            f"{source}: holds only what completes two networks; name them: --rgb FILE --depth FILE"
        )
    networks = {key: checkpoint.load(Path(path)) for key, path in halves.items() if path}
    try:
        return joined(state, **networks)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def described(state: dict[str, Any]) -> str:
    """What a checkpoint in our form holds, for people."""
    data, model, progress = state["config"]["data"], state["config"]["model"], state["progress"]
    parts = [
        f"{model['name']} network",
        f"{data['num_classes']} classes",
        f"branches of {', '.join(map(str, data['branch_frames']))} frames",
        f"{progress['epoch']} epochs",
    ]
    if progress["best_top1"] >= 0:
        parts.append(f"best top-1 {progress['best_top1']:.2%}")
    if "optimizer" not in state:
        parts.append("no optimizer state: good for train.init_from, not to go on from")
    if "ema" in state:
        parts.append("without the running average of its weights (ema), which has no place there")
    unused = list(state.get("published", {}).get("unused", ()))
    lines = [", ".join(parts)]
    if unused:
        lines.append(f"{len(unused)} of its entries were never used and are kept only for the way")
        lines[-1] += f" back: {unused[0]} to {unused[-1]}"
    return "\n".join(lines)


def _full_config(options: argparse.Namespace, state: dict[str, Any]) -> dict[str, Any]:
    """The config of the command line, after a look whether the checkpoint is of its network."""
    config = load(options.config, options.overrides)
    with torch.device("meta"):
        network = build_model(config.model.name, **model_options(config))
    if detail := checkpoint.difference(network.state_dict(), state["model"]):
        raise ValueError(f"{options.source}: is not of the network of {options.config}: {detail}")
    tree = as_dict(config)
    if state["config"]["model"].get("published_reshape"):  # a trait of the weights
        tree["model"]["published_reshape"] = True
    return tree


def command_line() -> argparse.ArgumentParser:
    """IN OUT [--rgb FILE --depth FILE] [--config FILE [section.key=value ...]]"""
    parser = argparse.ArgumentParser(
        prog="engine/convert.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("source", metavar="IN", help="such as model_best.pth.tar or last.pt")
    parser.add_argument("target", metavar="OUT", help="is replaced where it exists")
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="the config of a published checkpoint, to be held by OUT as by a run's own\n"
        "checkpoints, so that engine/predict.py needs nothing else",
    )
    for key in ("rgb", "depth"):
        parser.add_argument(
            f"--{key}",
            metavar="FILE",
            help=f"the {key} network of a published UMDR fusion, published or not",
        )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser


if __name__ == "__main__":
    sys.exit(main())
