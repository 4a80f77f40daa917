"""Write a trained network for use elsewhere: `python engine/export.py --checkpoint P OUT.onnx`.

OUT.pt2 is a `torch.export` program, OUT.onnx ONNX: normalised clips (and motion maps) to scores,
for any number of clips, by the rule of evaluation and divided by its temperature. The file is run
beside the network before it is put in place, and the largest difference is printed.
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: find the project's packages from any working directory
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engine.command import exit_status
from engine.trained import Trained, open_trained

FORMATS = (".pt2", ".onnx")
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TRACED_CLIPS, CHECKED_CLIPS = 2, 3
"""The check takes another number, so that a batch size that was not kept open shows."""

TOLERANCE = 1e-3
"""Largest difference of logits, relative to the largest logit: float32 rounds to about 1e-5, and a
near-tie of the k-NN attention that falls the other way costs about 1e-4."""


class Scores(nn.Module):
    """clip (B, 3, T, H, W), motion (B, 1, T, H, W) or None -> logits (B, K) of the head that top-1
    is computed from."""

    def __init__(self, network: nn.Module, temperature: float):
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, clip: Tensor, motion: Tensor | None = None) -> Tensor:
        """See the class."""
        return self.network(clip, motion, temperature=self.temperature).heads()[0]


class PairedScores(Scores):
    """As Scores, of an RGB and a depth clip."""

    def forward(  # type: ignore[override]
        self,
        rgb: Tensor,
        depth: Tensor,
        motion_rgb: Tensor | None = None,
        motion_depth: Tensor | None = None,
    ) -> Tensor:
        """See the class."""
        motion = (motion_rgb, motion_depth)
        return self.network((rgb, depth), motion, temperature=self.temperature).heads()[0]


def export(trained: Trained, out: Path) -> dict[str, Any]:
    """Write the network to `out`, a `torch.export` program or ONNX by its suffix, once it has been
    seen to do what the network does.

    Returns `difference`, the largest of the logits, `largest`, the largest logit, and `clips`, both
    of random ones. Raises ValueError where the format is unknown, a package is missing or the
    difference above TOLERANCE.
    """
    write, run = _format(out)
    scores, inputs = example(trained, TRACED_CLIPS)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        path = Path(folder) / out.name
        write(scores, inputs, description(trained, inputs), path)
        _, inputs = example(trained, CHECKED_CLIPS)
        expected = scores(**inputs)
        difference = float((run(path, inputs) - expected).abs().max())
        largest = float(expected.abs().max())
        if not difference <= TOLERANCE * largest:
            raise ValueError(
                f"{out}: not written: its logits differ from the network's by {difference:.2g} of "
                f"{largest:.2g}; try the other format or another torch"
            )
        os.replace(path, out)
    return {"clips": CHECKED_CLIPS, "difference": difference, "largest": largest}


def example(trained: Trained, clips: int) -> tuple[Scores, dict[str, Tensor]]:
    """The network as a function of named tensors, and random ones of their shape."""
    data = trained.config.data
    frames = (clips, 1, data.num_frames, data.size, data.size)
    draw = torch.Generator().manual_seed(clips)

    def clip() -> Tensor:
        return torch.rand((clips, 3, *frames[2:]), generator=draw) * 2 - 1

    def motion() -> Tensor:
        return torch.rand(frames, generator=draw) * 2

    if data.modality == "rgbd":
        inputs = {"rgb": clip(), "depth": clip()}
        maps = {"motion_rgb": motion(), "motion_depth": motion()}
        scores: Scores = PairedScores(trained.network, trained.temperature)
    else:
        inputs, maps = {"clip": clip()}, {"motion": motion()}
        scores = Scores(trained.network, trained.temperature)
    return scores.eval(), inputs | (maps if data.motion_window else {})


def description(trained: Trained, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """What the file itself says of its use: inputs, output, temperature, classes."""
    data = trained.config.data
    return {
        "inputs": {name: ["B", *tensor.shape[1:]] for name, tensor in inputs.items()},
        "output": f"logits (B, {data.num_classes}), divided by temperature {trained.temperature:g}",
        "pixels": "(v - 127.5) / 128, R G B",
        "motion_window": data.motion_window,
        "temperature": trained.temperature,
        "classes": trained.classes,
    }


Write = Callable[[Scores, dict[str, Tensor], dict[str, Any], Path], None]
Run = Callable[[Path, dict[str, Tensor]], Tensor]


def _format(out: Path) -> tuple[Write, Run]:
    """How to write and how to run a file of this name."""
    if out.suffix not in FORMATS:
        raise ValueError(f"{out}: the name must end in {' or '.join(FORMATS)}")
    if not out.parent.is_dir():
        raise ValueError(f"{out}: there is no folder {out.parent}; make it first")
    if out.suffix == ".pt2":
        return _write_program, _run_program
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"{out}: ONNX needs {', '.join(missing)}; install it: pip install -e '.[export]'"
        )
    return _write_onnx, _run_onnx


def _program(scores: Scores, inputs: dict[str, Tensor]) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    shapes = {name: {0: batch} for name in inputs}
    return torch.export.export(scores, tuple(inputs.values()), dynamic_shapes=shapes)


def _write_program(
    scores: Scores, inputs: dict[str, Tensor], about: dict[str, Any], path: Path
) -> None:
    extra = {"about.json": json.dumps(about, indent=1)}
    torch.export.save(_program(scores, inputs), path, extra_files=extra)


def _run_program(path: Path, inputs: dict[str, Tensor]) -> Tensor:
    return torch.export.load(path).module()(*inputs.values())


def _write_onnx(
    scores: Scores, inputs: dict[str, Tensor], about: dict[str, Any], path: Path
) -> None:
    program = torch.onnx.export(
        _program(scores, inputs), input_names=list(inputs), output_names=["logits"], dynamo=True,
        verbose=False,
    )  # fmt: skip
    assert program is not None
    for key, value in about.items():
        program.model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    program.save(path, external_data=False)


def _run_onnx(path: Path, inputs: dict[str, Tensor]) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {name: value.numpy() for name, value in inputs.items()})
    return torch.from_numpy(logits)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 after one line that says what to mend."""
    options = command_line().parse_intermixed_args(arguments)
    return exit_status(lambda: _export(options))


def _export(options: argparse.Namespace) -> None:
    trained = open_trained(options.checkpoint, options.config, options.overrides, options.raw)
    parity = export(trained, Path(options.out))
    print(
        f"{options.out}: logits of {parity['clips']} random clips differ from the network's by at "
        f"most {parity['difference']:.2g} (largest logit {parity['largest']:.3g}); divided by the "
        f"temperature {trained.temperature:g}"
    )


def command_line() -> argparse.ArgumentParser:
    """--checkpoint FILE [--config FILE] [--raw] OUT [section.key=value ...]"""
    parser = argparse.ArgumentParser(
        prog="engine/export.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="such as last.pt")
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file instead of the config kept in the checkpoint"
    )
    parser.add_argument(
        "--raw", action="store_true", help="take the weights of the last step, not their running "
        "average (train.ema), where the checkpoint has both",
    )  # fmt: skip
    parser.add_argument("out", metavar="OUT", help="file to write, .pt2 or .onnx")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="replaces a value of the config"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
