"""How fast is a training step? `python -m benchmarks.step [--size 96] [--batch 1] [--json OUT]`.

Synthetic batches, no loader. A step is forward, loss, backward, gradient clipping and update. In
one run it compares the network as the engine trains it ("chosen") with the same network written
down operation by operation in 3-D fp32 ("straightforward"). Each form runs in a process of its own,
so that its memory is its own; the processes take turns, so that a busy machine slows all alike.
"""

import argparse
import dataclasses
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.records import record, summary, write
from benchmarks.straightforward import StraightforwardNetwork
from engine.distributed import Ranks, place
from engine.loop import Precision, TrainStep
from engine.losses import LossConfig
from engine.optim import OptimConfig, build_optimizer
from models.registry import build_model
from pipelines.batch import Batch

NUM_CLASSES = 60
EPOCH = 5
"""Late enough for every part of the loss to count."""


@dataclass(frozen=True)
class Setting:
    """What is trained on what."""

    size: int = 96
    batch: int = 1
    frames: int = 64
    width: int = 64
    dim: int = 512
    num_blocks: int = 6
    device: str = "cpu"
    warmup: int = 2
    steps: int = 9

    @property
    def branch_frames(self) -> tuple[int, ...]:
        """A quarter, a half and three quarters of the frames, as published."""
        return tuple(self.frames * share // 4 for share in (1, 2, 3))

    def options(self) -> dict[str, Any]:
        """Keyword arguments of either network."""
        return {
            "num_classes": NUM_CLASSES,
            "num_frames": self.frames,
            "branch_frames": self.branch_frames,
            "num_blocks": self.num_blocks,
            "width": self.width,
            "dim": self.dim,
        }


def chosen(setting: Setting, precision: str = "fp32") -> tuple[nn.Module, str]:
    """The network as engine/training.py places it, and its precision."""
    torch.manual_seed(0)
    model = build_model("decoupled", **setting.options())
    return place(model, Ranks(0, 0, 1).on(setting.device)), precision


def straightforward(setting: Setting, tf32: bool = False) -> tuple[nn.Module, str]:
    """The same weights in the literal 3-D network, fp32."""
    torch.manual_seed(0)
    source = build_model("decoupled", **setting.options())
    model = StraightforwardNetwork(**setting.options())
    model.load_state_dict(source.state_dict())
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    return model.to(setting.device), "fp32"


FORMS: dict[str, Callable[[Setting], tuple[nn.Module, str]]] = {
    "straightforward": straightforward,
    "chosen": chosen,
}
GPU_FORMS: dict[str, Callable[[Setting], tuple[nn.Module, str]]] = {
    **FORMS,
    "straightforward, TF32": lambda setting: straightforward(setting, tf32=True),
    "chosen, bf16": lambda setting: chosen(setting, "bf16"),
}


def make_step(form: str, setting: Setting) -> Callable[[], Tensor]:
    """One training step of a form on a batch of its own -> the loss."""
    model, precision_name = GPU_FORMS[form](setting)
    precision = Precision.choose(precision_name, torch.device(setting.device))
    optim = OptimConfig(lr=1e-3)
    if form.startswith("straightforward"):  # parameter by parameter, as torch did by default
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            model.parameters(), optim.lr, optim.momentum, weight_decay=optim.weight_decay,
            foreach=False,
        )  # fmt: skip
    else:
        optimizer = build_optimizer(model, optim)
    step = TrainStep(model.train(), optimizer, LossConfig(), optim.clip_norm, precision)
    batch = make_batch(setting, channels_last=form.startswith("chosen"))
    return lambda: step(batch, EPOCH, 0.07)["loss"]


def make_batch(setting: Setting, channels_last: bool) -> Batch:
    """Random pixels and motion maps in the layout that a form reads without a copy."""
    random = torch.Generator().manual_seed(1)
    shape = (setting.batch, setting.frames, setting.size, setting.size)
    pixels = torch.randint(0, 256, (*shape, 3), generator=random)
    clip = ((pixels - 127.5) / 128).permute(0, 4, 1, 2, 3)
    clip = clip if channels_last else clip.contiguous()
    motion = 2 * torch.rand(shape, generator=random)[:, None]
    indices = tuple(
        torch.stack([
            torch.randperm(setting.frames, generator=random)[:seen].sort().values
            for _ in range(setting.batch)
        ])
        for seen in setting.branch_frames
    )  # fmt: skip
    label = torch.arange(setting.batch) % NUM_CLASSES
    device = torch.device(setting.device)
    return Batch(
        clip.to(device), motion.to(device), label.to(device),
        tuple(index.to(device) for index in indices), label,
    )  # fmt: skip


def serve(form: str, setting: Setting, threads: int, pipe: Connection) -> None:
    """In a process of its own: a step and its time for each True that arrives, memory at the end.

    Memory is the most that was ever resident (CPU) or allocated (GPU), in bytes, beyond what the
    process took before the network was made.
    """
    torch.set_num_threads(threads)
    on_gpu = setting.device == "cuda"
    before = 0 if on_gpu else _resident()
    step = make_step(form, setting)
    pipe.send("ready")
    while pipe.recv():
        started = time.perf_counter()
        loss = step().item()  # waits for the device
        pipe.send((time.perf_counter() - started, loss))
    pipe.send(torch.cuda.max_memory_allocated() if on_gpu else _resident() - before)


def measure(setting: Setting, forms: Sequence[str], threads: int) -> dict[str, dict[str, Any]]:
    """Per form: `seconds` of a step (median, quartiles, n), `clips_per_s`, `memory_bytes`, and
    `first_loss`, by which the forms can be seen to compute the same."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for form in forms:
        pipes[form], theirs = context.Pipe()
        context.Process(target=serve, args=(form, setting, threads, theirs), daemon=True).start()
        theirs.close()
    for pipe in pipes.values():
        pipe.recv()
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    losses: dict[str, float] = {}
    for turn in range(setting.warmup + setting.steps):
        for form, pipe in pipes.items():
            pipe.send(True)
            elapsed, loss = pipe.recv()
            losses.setdefault(form, loss)
            if turn >= setting.warmup:
                seconds[form].append(elapsed)
    entries = {}
    for form, pipe in pipes.items():
        pipe.send(False)
        spread = summary(seconds[form])
        entries[form] = {
            "seconds": spread,
            "clips_per_s": setting.batch / spread["median"],
            "memory_bytes": pipe.recv(),
            "first_loss": losses[form],
        }
    return entries


def _resident() -> int:
    """Bytes: the most this process ever had in memory. Not getrusage's figure, in which a child
    begins with what its parent had."""
    status = Path("/proc/self/status").read_text()
    (peak,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024


def as_text(entries: dict[str, dict[str, Any]]) -> str:
    """The entries as a table, ratios against the first."""
    first = next(iter(entries.values()))
    lines = [f"{'form':<24}{'step':>10}{'quartiles':>18}{'clips/s':>9}{'speed':>7}{'memory':>10}"]
    for form, entry in entries.items():
        spread = entry["seconds"]
        quartiles = f"{spread['q1']:.3f} to {spread['q3']:.3f}"
        ratio = first["seconds"]["median"] / spread["median"]
        memory = f"{entry['memory_bytes'] / 2**30:.2f} GiB"
        lines.append(
            f"{form:<24}{spread['median']:>8.3f} s{quartiles:>18}{entry['clips_per_s']:>9.2f}"
            f"{ratio:>6.2f}x{memory:>10}"
        )
    return "\n".join(lines)


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
    setting = Setting(**given, device=device)
    forms = list(GPU_FORMS if device == "cuda" else FORMS)
    entries = measure(setting, forms, options.threads or torch.get_num_threads())
    print(as_text(entries))
    if options.json:
        about = {"setting": dataclasses.asdict(setting), "threads": options.threads}
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
        "size": "height and width of a frame", "batch": "clips", "frames": "frames per clip",
        "width": "channels of the first convolution", "dim": "width of a token",
        "num_blocks": "transformer blocks per branch", "warmup": "steps before those that count",
        "steps": "steps that count, of each form",
    }  # fmt: skip
    for name, text in helps.items():
        default = getattr(Setting, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=default, help=f"{text} ({default})"
        )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=0, help="of each process (torch's choice)")
    parser.add_argument("--json", metavar="OUT", help="write samples, machine, versions, commit")
    return parser


if __name__ == "__main__":
    sys.exit(main())
