"""The forms of one training step that benchmarks/step.py compares, each ready to run."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.alternatives import ALTERNATIVES, gathered_joined, gathered_pool
from benchmarks.straightforward import StraightforwardNetwork
from benchmarks.straightforward_umdr import StraightforwardUmdrNetwork
from engine.accumulation import Shares
from engine.averaging import WeightAverage
from engine.compilation import compile_training, is_wanted
from engine.cuda_graph import capture_training
from engine.distributed import Ranks, place
from engine.garbage import between_steps
from engine.loop import Precision, TrainStep
from engine.losses import LossConfig
from engine.optim import OptimConfig, build_optimizer
from engine.rehearsal import trial
from models.registry import build_model
from models.umdr import umdr_branch_frames
from pipelines.batch import Batch

NUM_CLASSES = 60
LOSS, OPTIM = LossConfig(), OptimConfig(lr=1e-3)
"""For every network alike: other weights and rates would take as long."""

EPOCH = LOSS.recoupling_delay
"""The first one in which every part of the loss counts."""

TEMPERATURE = 0.07

PUBLISHED_FRAMES = {"decoupled": 64, "umdr": 32}
"""Of the networks that can be measured."""

STRAIGHTFORWARD: dict[str, Callable[..., nn.Module]] = {
    "decoupled": StraightforwardNetwork,
    "umdr": StraightforwardUmdrNetwork,
}

Step = Callable[[], Tensor]
"""One training step on a batch of its own -> the loss."""


@dataclass(frozen=True)
class Setting:
    """What is trained on what."""

    network: str = "decoupled"
    size: int = 96
    batch: int = 1
    frames: int = PUBLISHED_FRAMES["decoupled"]
    width: int = 64
    dim: int = 512
    num_blocks: int = 6
    device: str = "cpu"
    warmup: int = 2
    steps: int = 9
    together: int = 1

    @property
    def branch_frames(self) -> tuple[int, ...]:
        """As published; of `decoupled` a quarter, a half and three quarters of the frames."""
        if self.network == "umdr":
            return umdr_branch_frames(self.frames)
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


def straightforward(setting: Setting, tf32: bool = False, precision: str = "fp32") -> Step:
    """The literal network, contiguous, its optimizer walking from parameter to parameter as torch's
    did by default. `tf32`: as torch leaves it to the engine's own forms, in convolutions only."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = tf32
    network = STRAIGHTFORWARD[setting.network](**setting.options())
    network.load_state_dict(engine_network(setting).state_dict())
    network = network.to(setting.device).train()
    optimizer = torch.optim.SGD(
        network.parameters(), OPTIM.lr, OPTIM.momentum, weight_decay=OPTIM.weight_decay,
        foreach=False,
    )  # fmt: skip
    return _step(network, optimizer, precision, make_batch(setting, channels_last=False))


def engine(
    setting: Setting,
    precision: str = "fp32",
    compiled: str = "auto",
    change: Callable[[nn.Module], None] | None = None,
    *,
    graphed: bool = False,
    fused: str = "auto",
    micro_batches: int = 1,
    ema: float = 0.0,
) -> Step:
    """The step as engine/training.py builds it; `change` does something to the placed network."""
    ranks = Ranks(0, 0, 1).on(setting.device)
    chosen = Precision.choose(precision, ranks.device)
    model = place(engine_network(setting), ranks, chosen.weights).train()
    if change is not None:
        change(model)
    batch = make_batch(setting, channels_last=True)
    shares = Shares(setting.batch, 1, -(-setting.batch // micro_batches))
    average = WeightAverage(model, ema) if ema else None
    part = shares.split(batch)[0]
    for is_on, prepare in (
        (is_wanted(compiled, ranks.device), compile_training), (graphed, capture_training)
    ):  # fmt: skip
        problem = None
        if is_on:
            problem = prepare(model, ranks, lambda: trial(model, part, LOSS, chosen))
        if problem is not None:  # another form would be measured than the one that was asked for
            raise ValueError(f"this form cannot be made here: {problem}")
    optimizer = build_optimizer(model, replace(OPTIM, fused=fused))
    return _step(model, optimizer, precision, batch, shares, average)


def measured_algorithms(setting: Setting, **options: Any) -> Step:
    """cuDNN tries its algorithms for each convolution's shapes and keeps the fastest."""
    torch.backends.cudnn.benchmark = True
    return engine(setting, **options)


def collected_apart(setting: Setting) -> Step:
    """Python collects garbage before every hundredth step and at no other time."""
    step = engine(setting, "auto")
    turns = between_steps(itertools.repeat(None), 100)

    def run() -> Tensor:
        next(turns)
        return step()

    return run


def fresh_memory(setting: Setting) -> Step:
    """On the CPU: freed memory goes back to the system after every use."""
    with mock.patch("engine.distributed.keep_freed_memory"):
        return engine(setting)


FORMS: dict[str, Callable[[Setting], Step]] = {
    "straightforward": straightforward,
    "straightforward_tf32": partial(straightforward, tf32=True),
    "straightforward_bf16": partial(straightforward, tf32=True, precision="bf16"),
    "chosen": engine,
    "chosen_bf16": partial(engine, precision="bf16"),
    "chosen_fp16": partial(engine, precision="fp16"),
    "uncompiled": partial(engine, compiled="off"),
    "uncompiled_bf16": partial(engine, precision="bf16", compiled="off"),
    "compiled": partial(engine, compiled="on"),
    "gathered_pool_bf16": partial(engine, precision="bf16", change=gathered_pool),
    "uncompiled_gathered_pool_bf16": partial(
        engine, precision="bf16", compiled="off", change=gathered_pool
    ),
    "gathered_joined_bf16": partial(engine, precision="bf16", change=gathered_joined),
    "uncompiled_gathered_joined_bf16": partial(
        engine, precision="bf16", compiled="off", change=gathered_joined
    ),
    "cudnn_benchmark_bf16": partial(measured_algorithms, precision="bf16"),
    "uncompiled_cudnn_benchmark_bf16": partial(
        measured_algorithms, precision="bf16", compiled="off"
    ),
    "graphed": partial(engine, precision="auto", compiled="off", graphed=True),
    "compiled_graphed": partial(engine, precision="auto", graphed=True),
    "torch_sgd": partial(engine, precision="auto", fused="torch"),
    "apex_sgd": partial(engine, precision="auto", fused="apex"),
    "averaged": partial(engine, precision="auto", ema=0.999),
    "accumulated": partial(engine, precision="auto", micro_batches=2),
    "collected_apart": collected_apart,
    "fresh_memory": fresh_memory,
    **{
        name: partial(engine, precision="auto", change=change)
        for name, change in ALTERNATIVES.items()
    },
}
"""By name; the changes of benchmarks/alternatives.py among them."""


def default_forms(device: str) -> list[str]:
    """What README's table shows. On a GPU `chosen` in fp32 has TF32 in its convolutions, and what
    it is measured against has it too."""
    if device == "cuda":
        return ["straightforward_tf32", "chosen", "chosen_bf16", "uncompiled_bf16",
                "straightforward_bf16", "straightforward"]  # fmt: skip
    return ["straightforward", "chosen"]


def engine_network(setting: Setting) -> nn.Module:
    """The same weights at every call."""
    torch.manual_seed(0)
    return build_model(setting.network, **setting.options())


def make_batch(setting: Setting, channels_last: bool, device: torch.device | None = None) -> Batch:
    """Random pixels in the layout that a form reads without a copy, and motion maps for a network
    that takes them."""
    device = device or torch.device(setting.device)
    random = torch.Generator().manual_seed(1)
    shape = (setting.batch, setting.frames, setting.size, setting.size)
    pixels = torch.randint(0, 256, (*shape, 3), generator=random)
    clip = ((pixels - 127.5) / 128).permute(0, 4, 1, 2, 3)
    clip = clip if channels_last else clip.contiguous()
    motion = None
    if setting.network == "decoupled":
        motion = 2 * torch.rand(shape, generator=random)[:, None].to(device)

    def drawn(seen: int) -> Tensor:  # a frame twice only where there are fewer than a branch sees
        rounds = -(-seen // setting.frames)
        orders = [torch.randperm(setting.frames, generator=random) for _ in range(rounds)]
        return torch.cat(orders)[:seen].sort().values

    indices = tuple(
        torch.stack([drawn(seen) for _ in range(setting.batch)]).to(device)
        for seen in setting.branch_frames
    )
    label = torch.arange(setting.batch) % NUM_CLASSES
    return Batch(clip.to(device), motion, label.to(device), indices, label)


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: str,
    batch: Batch,
    shares: Shares | None = None,
    average: WeightAverage | None = None,
) -> Step:
    chosen = Precision.choose(precision, batch.clip.device)  # type: ignore[union-attr]
    step = TrainStep(model, optimizer, LOSS, OPTIM.clip_norm, chosen, shares=shares)

    def run() -> Tensor:
        loss = step(batch, EPOCH, TEMPERATURE)["loss"]
        if average is not None:
            average.update(EPOCH)
        return loss

    return run
