"""How much arithmetic a training step is, and how fast this device could do it at most."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from engine.config import Config, model_options
from engine.loop import Precision
from engine.losses import LossConfig
from engine.rehearsal import step_loss
from models.registry import build_model
from pipelines.batch import Batch

META = torch.device("meta")
"""Tensors of shapes alone."""

CPU_SIDE, GPU_SIDE = 512, 8192
"""Of the matrices that are multiplied: large enough for the full rate (of a CPU core 0.01 s)."""


def clip_flop(config: Config, batch: Batch) -> float:
    """Floating-point operations of a training step, per clip of `batch`. Costs no arithmetic."""
    with META:
        network = build_model(config.model.name, **model_options(config))
    for module in network.modules():
        if isinstance(module, _BatchNorm):  # no product, and three fifths of the counting's time
            module.forward = _unchanged  # type: ignore[assignment, method-assign]
    return step_flop(network, batch, config.loss) / len(batch.label)


def step_flop(network: nn.Module, batch: Batch, loss: LossConfig) -> int:
    """Of all convolutions and matrix products, forward and backward; two per multiply-add. Counted
    on shapes alone, by a `network` on the meta device."""
    counter = FlopCounterMode(display=False)
    with counter:
        single = Precision.choose("fp32", torch.device("cpu"))
        step_loss(network.train(), _shapes(batch), loss, single).backward()
    return counter.get_total_flops()


@cache
def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large product of matrices, measured once, in a part of a second; of float32 on
    GPUs with the TF32 that convolutions may use."""
    side = GPU_SIDE if device.type == "cuda" else CPU_SIDE
    matrix = torch.randn(side, side, device=device).to(dtype)
    with _tf32(torch.backends.cudnn.allow_tf32):
        return multiplication_rate(matrix, repeats=3)


def multiplication_rate(matrix: torch.Tensor, repeats: int) -> float:
    """FLOP/s of a square matrix times itself."""
    seconds = median_seconds(lambda: matrix @ matrix, matrix.device, repeats)
    return 2 * len(matrix) ** 3 / seconds


def median_seconds(action: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Of an action, which runs twice more to warm up."""
    times = []
    for _ in range(repeats + 2):
        _synchronise(device)
        start = time.perf_counter()
        action()
        _synchronise(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def _unchanged(planes: torch.Tensor) -> torch.Tensor:
    return planes


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _shapes(batch: Batch) -> Batch:
    """The batch on the meta device."""

    def moved(value: Any) -> Any:
        if value is None:
            return None
        return tuple(map(moved, value)) if isinstance(value, tuple) else value.to(META)

    fields = dataclasses.fields(batch)
    return Batch(*(moved(getattr(batch, field.name)) for field in fields))
