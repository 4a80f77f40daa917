"""What a step could reach at most: the arithmetic it needs, and the rates of this device."""

import statistics
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.forms import EPOCH, LOSS, TEMPERATURE, Setting, engine_network, make_batch
from engine.loop import Precision, predict
from engine.losses import training_loss

REPEATS = 7


def ceilings(setting: Setting) -> dict[str, float]:
    """`step_tflop`: convolutions and products of one step. Measured now: the rate of a large
    product of matrices, `matmul_tflop_per_s` in fp32 (TF32 off) and on GPUs
    `matmul_bf16_tflop_per_s`, and `copy_gb_per_s` of a large copy, bytes read plus written."""
    device = torch.device(setting.device)
    torch.backends.cuda.matmul.allow_tf32 = False
    side = 8192 if device.type == "cuda" else 2048
    source = torch.randn(side, side, device=device)
    target = torch.empty_like(source)
    found = {
        "step_tflop": step_flop(setting) / 1e12,
        "matmul_tflop_per_s": _matmul_rate(source),
        "copy_gb_per_s": 2 * source.nbytes
        / _median_seconds(lambda: target.copy_(source), device) / 1e9,
    }  # fmt: skip
    if device.type == "cuda":
        found["matmul_bf16_tflop_per_s"] = _matmul_rate(source.bfloat16())
    return found


def step_flop(setting: Setting) -> int:
    """Floating-point operations of all convolutions and matrix products, forward and backward; two
    per multiply-add. Counted on shapes alone."""
    meta = torch.device("meta")
    network, batch = engine_network(setting).to(meta), make_batch(setting, True, meta)
    counter = FlopCounterMode(display=False)
    with counter:
        output = predict(network, batch, TEMPERATURE, Precision.choose("fp32", torch.device("cpu")))
        training_loss(output, batch.label, LOSS, EPOCH)[0].backward()
    return counter.get_total_flops()


def _matmul_rate(matrix: torch.Tensor) -> float:
    """TFLOP/s of a square matrix times itself."""
    seconds = _median_seconds(lambda: matrix @ matrix, matrix.device)
    return 2 * len(matrix) ** 3 / seconds / 1e12


def _median_seconds(action: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(REPEATS + 2):  # the first two warm up
        _synchronise(device)
        start = time.perf_counter()
        action()
        _synchronise(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
