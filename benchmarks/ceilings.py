"""What a step could reach at most: the arithmetic it needs, and the rates of this device."""

import torch

from benchmarks.forms import LOSS, Setting, engine_network, make_batch
from engine import flops

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
    copying = flops.median_seconds(lambda: target.copy_(source), device, REPEATS)
    found = {
        "step_tflop": step_flop(setting) / 1e12,
        "matmul_tflop_per_s": flops.multiplication_rate(source, REPEATS) / 1e12,
        "copy_gb_per_s": 2 * source.nbytes / copying / 1e9,
    }
    if device.type == "cuda":
        rate = flops.multiplication_rate(source.bfloat16(), REPEATS)
        found["matmul_bf16_tflop_per_s"] = rate / 1e12
    return found


def step_flop(setting: Setting) -> int:
    """Floating-point operations of one step (engine/flops.py)."""
    meta = torch.device("meta")
    return flops.step_flop(engine_network(setting).to(meta), make_batch(setting, True, meta), LOSS)
