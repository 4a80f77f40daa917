"""The only forward pass, and the only training step: forward, backward, update."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.losses import LossConfig, training_loss
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


class TrainStep:
    """Forward, loss, backward, clip, update: never waits for the device."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: LossConfig,
        clip_norm: float,
        precision: Precision,
    ):
        self.model = model
        self.optimizer = optimizer
        self.loss = loss
        self.clip_norm = clip_norm
        self.precision = precision
        self.scaler = torch.amp.GradScaler(precision.device_type, enabled=precision.needs_scaler)

    def __call__(self, batch: Batch, epoch: int, temperature: float) -> dict[str, Tensor]:
        """One update -> device scalars `loss`, its parts, and `top1`, means over the batch."""
        self.optimizer.zero_grad(set_to_none=True)  # first: their memory is free for activations
        output = predict(self.model, batch, temperature, self.precision)
        loss, parts = training_loss(output, batch.label, self.loss, epoch)
        self.scaler.scale(loss).backward()
        if self.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        prediction = output.heads()[0].detach().argmax(1)
        top1 = (prediction == batch.label).double().mean()
        return {"loss": loss.detach(), **parts, "top1": top1}
