"""The only forward pass, and the only training step: forward, backward, update."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from engine.accumulation import Shares
from engine.losses import LossConfig, training_loss
from engine.skipping import Statistics, StepScaler, begin_momentum, trouble
from engine.timing import LastGradient, StepClock
from models.output import ModelOutput
from pipelines.batch import Batch


@dataclass(frozen=True)
class Precision:
    """In which types the network holds its weights and does its arithmetic."""

    weights: torch.dtype
    compute: torch.dtype
    device_type: str

    @property
    def needs_scaler(self) -> bool:
        """float16 gradients underflow without a loss scale."""
        return self.compute == torch.float16

    def autocast(self) -> AbstractContextManager:
        """Mixed precision where weights and arithmetic differ."""
        return torch.autocast(self.device_type, self.compute, enabled=self.compute != self.weights)

    @classmethod
    def choose(cls, name: str, device: torch.device) -> "Precision":
        """`auto`: bf16 on GPUs that have it, fp16 on those that do not, fp32 on the CPU."""
        if name == "auto":
            if device.type != "cuda":
                name = "fp32"
            else:
                name = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        compute = {
            "fp64": torch.float64, "fp32": torch.float32,
            "bf16": torch.bfloat16, "fp16": torch.float16,
        }[name]  # fmt: skip
        weights = torch.float64 if name == "fp64" else torch.float32
        return cls(weights, compute, device.type)


def predict(
    model: nn.Module, batch: Batch, temperature: float, precision: Precision
) -> ModelOutput:
    """One forward pass. Pixels are multiples of 1/256 below 1, exact in every 16-bit type."""
    clip = _cast(batch.clip, precision.compute)
    motion = None if batch.motion is None else _cast(batch.motion, precision.weights)
    with precision.autocast():
        return model(
            clip, motion=motion, branch_indices=batch.branch_indices, temperature=temperature
        )


def _cast(videos: Tensor | tuple[Tensor, ...], dtype: torch.dtype) -> Any:
    """One modality's tensor, or a tuple of several, in `dtype`."""
    if isinstance(videos, Tensor):
        return videos.to(dtype)
    return tuple(video.to(dtype) for video in videos)


def main_label(batch: Batch) -> Tensor:
    """(B,) int64: the label of each clip; of a mixed one, the class with the largest share."""
    return batch.label if batch.target is None else torch.stack(batch.target).mean(0).argmax(1)


class TrainStep:
    """Forward, loss, backward, clip, update: never waits for the device."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: LossConfig,
        clip_norm: float,
        precision: Precision,
        *,
        shares: Shares | None = None,
        skip: bool = False,
        clock: StepClock | None = None,
    ):
        """`shares`: in which micro batches; None: all at once, as many clips on every rank. `skip`:
        no update from gradients that are not finite. The parts of each step are marked on `clock`.
        """
        self.model = model
        self.optimizer = optimizer
        self.loss = loss
        self.clip_norm = clip_norm
        self.precision = precision
        self.shares = shares
        self.device = next(model.parameters()).device
        self.clock = clock or StepClock(self.device)
        self.scaler = StepScaler(precision.device_type, moving=precision.needs_scaler, skip=skip)
        self.statistics = Statistics(model)
        self.trouble = torch.zeros((), device=self.device)
        """NaN where the last step's gradients were not finite and yet in its update, else 0."""

        self._last_gradient = None
        if dist.is_initialized() and dist.get_world_size() > 1:
            self._last_gradient = LastGradient(model.parameters(), self.clock)
        if self.scaler.is_enabled():
            begin_momentum(optimizer)

    def __call__(self, batch: Batch, epoch: int, temperature: float) -> dict[str, Tensor]:
        """One update -> device scalars `loss`, its parts, and `top1`, means over the batch."""
        with self.clock.part("forward"):
            self.optimizer.zero_grad(set_to_none=True)  # first: their memory is for activations
            if self.scaler.is_enabled():
                self.statistics.keep()
        means = self.accumulate(batch, epoch, temperature)
        with self.clock.part("optimizer"):
            self._update()
        return means

    def accumulate(self, batch: Batch, epoch: int, temperature: float) -> dict[str, Tensor]:
        """Gradients of the batch's mean loss, micro batch by micro batch -> means over the batch.

        They are those of the batch taken at once, but for batch norm: it normalises by the micro
        batches that all ranks take at the same time, and its running statistics move with each.
        """
        shares = self.shares or Shares(len(batch.label))
        parts = shares.split(batch)
        if len(parts) > 1:
            self._zero_gradients()
        means: dict[str, Tensor] = {}
        for part in parts:
            clips = len(part.label)
            with nullcontext() if part is parts[-1] else self._unsynchronised():
                with self.clock.part("forward"):
                    loss, found = self._losses(part, epoch, temperature)
                with self.clock.part("backward"):
                    self.scaler.scale(loss * shares.weight(clips)).backward()
            if self._last_gradient is not None:
                self._last_gradient.learned()
            for name, mean in found.items():
                weighted = mean * (clips / len(batch.label))
                means[name] = means[name] + weighted if name in means else weighted
        return means

    def _losses(
        self, batch: Batch, epoch: int, temperature: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A forward pass -> the loss, and all means that are logged."""
        output = predict(self.model, batch, temperature, self.precision)
        labels = batch.label if batch.target is None else batch.target
        loss, parts = training_loss(output, labels, self.loss, epoch, batch.pseudo)
        prediction = output.heads()[0].detach().argmax(1)
        top1 = (prediction == main_label(batch)).double().mean()
        return loss, {"loss": loss.detach(), **parts, "top1": top1}

    def _zero_gradients(self) -> None:
        """A gradient that is there is added to. A first one is taken as it is, and where a CUDA
        graph made it (engine/cuda_graph.py), the next one would be written over it."""
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)

    def _unsynchronised(self) -> AbstractContextManager:
        """Within it gradients stay on their rank: they are averaged once per step."""
        if isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return nullcontext()

    def _update(self) -> None:
        """Clip, update, and look whether the gradients were finite."""
        self.scaler.unscale_(self.optimizer)
        norm = None
        if self.clip_norm:
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        if self.scaler.is_enabled():
            self.statistics.put_back(self.scaler.was_bad(self.optimizer))
        elif norm is not None:
            self.trouble = norm * 0.0
        else:
            self.trouble = trouble([p.grad for p in self.model.parameters() if p.grad is not None])
        self.scaler.step(self.optimizer)
        self.scaler.finish(self.optimizer)
