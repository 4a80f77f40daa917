"""Recognise clips with a trained network: `python engine/predict.py --checkpoint P CLIP...`.

CLIP is a video or a folder of one clip's frames: images, or 16-bit depth PNG for a network trained
on them; for an RGB-D network two of these, RGB,DEPTH. The config is that of the checkpoint.
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: find the project's packages from any working directory
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.command import exit_status
from engine.config import Config
from engine.distributed import Ranks, place
from engine.explain import Explanation, Recording
from engine.explanation_figure import PICTURES, draw
from engine.given_clips import clip_requests
from engine.loop import Precision, predict
from engine.trained import Trained, open_trained
from pipelines.batch import Batch
from pipelines.cores import usable_cores
from pipelines.loader import Loader

TOP = 5
OVERRIDE = re.compile(r"(data|model|loss|optim|train)\.[\w.]+=")


@dataclass(frozen=True)
class Recognised:
    """What the network makes of one clip."""

    clip: str
    logits: Tensor
    """(K,) as evaluated: the head that top-1 is computed from, divided by the temperature."""

    explanations: list[Explanation]
    """One per modality, of the most probable class; empty where none was asked for."""

    def top(self, classes: Sequence[str]) -> list[dict[str, Any]]:
        """The TOP most probable classes: `label`, `name`, `probability`."""
        best = self.logits.softmax(0).topk(min(TOP, len(classes)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [{"label": k, "name": classes[k], "probability": p} for k, p in pairs]


def recognise(
    trained: Trained, clips: Sequence[str], device: str = "auto", explain: bool = False
) -> Iterator[Recognised]:
    """The clips in order, by the data path and arithmetic of evaluation.

    Raises ValueError naming a folder or file that is no clip for this network.
    """
    config = trained.config
    ranks = Ranks(0, 0, 1).on(device)
    precision = Precision.choose(config.train.precision, ranks.device)
    # Without gradients for the weights, only what is recorded for an explanation costs memory.
    network = place(trained.network, ranks, precision.weights).requires_grad_(False)
    recording = Recording(network, config.data.modality, config.data.size) if explain else None
    for batch in _batches(clips, config, ranks.device):
        with recording or nullcontext():
            output = predict(network, batch, trained.temperature, precision)
        logits = output.heads()[0].float()
        explanations: list[list[Explanation]] = [[]] * len(logits)
        if recording is not None:
            explanations = recording.explanations(batch, output, logits.argmax(1))
        for i, index in enumerate(batch.index.tolist()):
            yield Recognised(clips[index], logits[i].detach().cpu(), explanations[i])


def _batches(clips: Sequence[str], config: Config, device: torch.device) -> Iterator[Batch]:
    """The clips in order, at most `train.eval_batch` at a time."""
    requests = clip_requests(clips, config.data)
    size = min(config.train.eval_batch, len(requests))
    threads = config.data.workers or usable_cores()
    # Pixels are exact in every type, so float32 serves every precision.
    loader = Loader(config.data, device, torch.float32, size, threads)
    return loader.batches(requests[i : i + size] for i in range(0, len(requests), size))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 after one line that says what to mend."""
    options = command_line().parse_intermixed_args(arguments)
    return exit_status(lambda: _predict(options))


def _predict(options: argparse.Namespace) -> None:
    overrides = [text for text in options.clips if OVERRIDE.match(text)]
    clips = [text for text in options.clips if not OVERRIDE.match(text)]
    if not clips:
        raise ValueError("no clip was named; give videos or folders of frames")
    pictures = picture_paths(options.explain, len(clips)) if options.explain else []
    trained = open_trained(options.checkpoint, options.config, overrides, options.raw)
    entries = []
    for i, result in enumerate(recognise(trained, clips, options.device, bool(pictures))):
        entry: dict[str, Any] = {"clip": result.clip, "top": result.top(trained.classes)}
        if pictures:
            draw(result.explanations, entry["top"], result.clip, pictures[i])
            entry["explanation"] = str(pictures[i])
        entries.append(entry)
        if not options.json:
            print(as_text(entry), flush=True)
    if options.json:
        about = {"checkpoint": options.checkpoint, "temperature": trained.temperature}
        print(json.dumps({**about, "clips": entries}, indent=1))
    else:
        print(f"softmax of logits divided by {trained.temperature:g}, as in evaluation")


def as_text(entry: dict[str, Any]) -> str:
    """A clip and its most probable classes, one per line."""
    lines = [entry["clip"]]
    lines += [f"  {best['probability']:7.2%}  {best['name']}" for best in entry["top"]]
    if "explanation" in entry:
        lines.append(f"  drawn: {entry['explanation']}")
    return "\n".join(lines)


def picture_paths(out: str, count: int) -> list[Path]:
    """`out` for one clip; numbered from 1 before its suffix for several. Raises ValueError."""
    path = Path(out)
    if path.suffix not in PICTURES:
        raise ValueError(f"{out}: pictures end in {' or '.join(PICTURES)}")
    if not path.parent.is_dir():
        raise ValueError(f"{out}: there is no folder {path.parent}; make it first")
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}_{i}{path.suffix}") for i in range(1, count + 1)]


def command_line() -> argparse.ArgumentParser:
    """--checkpoint FILE [options] CLIP [CLIP ...] [section.key=value ...]"""
    parser = argparse.ArgumentParser(
        prog="engine/predict.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("clips", nargs="+", metavar="CLIP", help="video or folder of frames, or section.key=value, "
        "which replaces a value of the config")  # fmt: skip
    add("--checkpoint", required=True, metavar="FILE", help="such as runs/X/last.pt")
    add("--config", metavar="FILE", help="YAML file instead of the config kept in the checkpoint")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: auto")
    add("--raw", action="store_true", help="take the weights of the last step, not their running "
        "average (train.ema),\nwhere the checkpoint has both")  # fmt: skip
    add("--json", action="store_true", help="print JSON instead of text")
    add("--explain", metavar="OUT.png|OUT.gif", help="draw what the network looked at: class "
        "activation over the frames,\nattention of each branch, recoupling weights; several clips "
        "are numbered OUT_1.png, ...;\na .gif goes through all frames")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
