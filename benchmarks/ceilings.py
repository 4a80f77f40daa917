"""What a step could reach at most: rates of this device, and what they make of its operations."""

from collections.abc import Sequence

import torch

from benchmarks.operations import Operation, merged
from benchmarks.traffic import Rates
from engine import flops

REPEATS = 7

WALL_PRECISION = {"cuda": "bf16", "cpu": "fp32"}
"""What each device is fastest in."""


def rates(device: torch.device) -> dict[str, float]:
    """Measured now: of a large product of matrices, `matmul_tflop_per_s` in fp32 (TF32 off) and on
    GPUs `matmul_bf16_tflop_per_s`, and of a large copy, read plus written, `copy_gb_per_s`."""
    torch.backends.cuda.matmul.allow_tf32 = False
    side = 8192 if device.type == "cuda" else 2048
    source = torch.randn(side, side, device=device)
    target = torch.empty_like(source)
    copying = flops.median_seconds(lambda: target.copy_(source), device, REPEATS)
    found = {
        "matmul_tflop_per_s": flops.multiplication_rate(source, REPEATS) / 1e12,
        "copy_gb_per_s": 2 * source.nbytes / copying / 1e9,
    }
    if device.type == "cuda":
        rate = flops.multiplication_rate(source.bfloat16(), REPEATS)
        found["matmul_bf16_tflop_per_s"] = rate / 1e12
    return found


def wall(operations: Sequence[Operation], device_rates: dict[str, float]) -> dict[str, float]:
    """Of one step: `tflop`, `gb` as its operations move them and `merged_gb` with the element-wise
    ones part of others; and on a device of these rates `least_seconds` of the latter, each taking
    the longer of its arithmetic (bf16 where it is known) and its bytes."""
    fewest = merged(operations)
    multiplying = device_rates.get("matmul_bf16_tflop_per_s", device_rates["matmul_tflop_per_s"])
    most = Rates(device_rates["copy_gb_per_s"], multiplying)
    return {
        "tflop": sum(operation.flop for operation in operations) / 1e12,
        "gb": sum(operation.num_bytes for operation in operations) / 1e9,
        "merged_gb": sum(operation.num_bytes for operation in fewest) / 1e9,
        "least_seconds": most.least_seconds(fewest),
    }
