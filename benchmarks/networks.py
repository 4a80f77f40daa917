"""The networks that benchmarks/end_to_end.py and scaling.py train, at the size of their published
recipes or small enough for a CPU, in the engine's own step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.forms import EPOCH, LOSS, NUM_CLASSES, OPTIM, TEMPERATURE
from engine.compilation import compile_training, is_wanted
from engine.distributed import Ranks, place
from engine.loop import Precision, TrainStep
from engine.optim import build_optimizer
from engine.rehearsal import trial
from engine.timing import StepClock
from models.registry import build_model
from pipelines.batch import Batch

Step = Callable[[Batch], Tensor]
"""One training step -> the loss, not waited for."""


@dataclass(frozen=True)
class Network:
    """A network and the batches it is measured on."""

    name: str
    frames: int
    size: int
    batch: int
    """Clips per rank and step."""

    @property
    def takes_maps(self) -> bool:
        """Whether the loader makes motion maps for it."""
        return self.name == "decoupled"

    def options(self) -> dict[str, Any]:
        """Keyword arguments of its builder."""
        if self.name == "umdr":
            return {"num_frames": self.frames}
        if self.name != "decoupled":
            return {"num_frames": self.frames, "size": self.size}
        quarters = tuple(self.frames * share // 4 for share in (1, 2, 3))
        return {"num_frames": self.frames, "branch_frames": quarters}


def _by_name(*networks: Network) -> dict[str, Network]:
    return {network.name: network for network in networks}


SHAPES = {
    "published": _by_name(
        Network("decoupled", 64, 224, 16),
        Network("umdr", 32, 224, 16),
        Network("r3d_18", 16, 112, 64),
        Network("mvit_v2_s", 16, 224, 16),
        Network("swin3d_t", 32, 224, 16),
    ),
    "small": _by_name(
        Network("decoupled", 16, 64, 2),
        Network("umdr", 16, 64, 2),
        Network("r3d_18", 16, 64, 2),
        Network("mvit_v2_s", 16, 64, 2),
        Network("swin3d_t", 16, 64, 2),
    ),
}
"""The networks whole, on the clips of their recipes and on small ones, by name."""


def training_step(
    network: Network, ranks: Ranks, batch: Batch, compiled: str, clock: StepClock | None = None
) -> Step:
    """The step as engine/training.py builds it, its parts marked on `clock`; `batch` has the shapes
    of all that will come.

    Raises ValueError where `compiled` (as train.compile) wants a compiled step and there is none:
    training would go on uncompiled, a benchmark would measure that under the wrong name.
    """
    precision = Precision.choose("auto", ranks.device)
    torch.manual_seed(0)
    model = build_model(network.name, num_classes=NUM_CLASSES, **network.options())
    model = place(model, ranks, precision.weights).train()
    if is_wanted(compiled, ranks.device):
        problem = compile_training(model, ranks, lambda: trial(model, batch, LOSS, precision))
        if problem is not None:
            raise ValueError(
                f"the step cannot be compiled ({problem}); --compile off measures it uncompiled"
            )
    optimizer = build_optimizer(model, OPTIM)
    step = TrainStep(model, optimizer, LOSS, OPTIM.clip_norm, precision, clock=clock)
    return lambda batch: step(batch, EPOCH, TEMPERATURE)["loss"]
