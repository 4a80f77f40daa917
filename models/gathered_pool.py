"""The 3x3x3 max pool for GPUs, whose backward pass gathers: no atomics, the same bits every time.

Not for CPUs: there torch's pool is (models/blocks.py), and the reference for this one.
"""

from typing import Any

import torch
from torch import Tensor

BLOCK = 1024
"""Numbers of a frame that a program takes at a time: of 16 bits, 16 bytes for each of its threads.
Not yet tuned."""

RUN = 16
"""Frames that it takes one after the other, beside one before and one after. Not yet tuned."""


@torch.library.custom_op("rgbd_motion::gathered_max_pool", mutates_args=())
def _pool(frames: Tensor, num_frames: int, zeros: bool) -> tuple[Tensor, Tensor]:
    """As `gathered_max_pool_3x3x3`, and the place of each largest number in its window (uint8)."""
    from models import gathered_pool_kernels as kernels  # only here is there a Triton

    pooled, places = _empty(frames), _empty(frames, torch.uint8)
    _launch(kernels.largest, (_channels_last(frames), pooled, places), num_frames, ZEROS=zeros)
    return pooled, places


@torch.library.custom_op("rgbd_motion::gathered_max_pool_backward", mutates_args=())
def _pool_backward(gradient: Tensor, places: Tensor, num_frames: int) -> Tensor:
    """Gradient by the pooled frames -> by the frames, (B * T, C, H, W) both."""
    from models import gathered_pool_kernels as kernels

    by_frames = _empty(gradient)
    _launch(kernels.gathered, (_channels_last(gradient), places, by_frames), num_frames)
    return by_frames


def gathered_max_pool_3x3x3(frames: Tensor, num_frames: int, nonnegative: bool) -> Tensor:
    """As `max_pool_3x3x3` of models/blocks.py: its numbers, its ties, its gradients.

    frames (B * T, C, H, W) -> the same shape, channels-last, computed in the type of the frames;
    gradients are added up in float32 at least. Raises ValueError for a frame of 2^30 numbers.

    Per number, in 16 bits: read 2 bytes, write 2 and 1 for its place; backward read 2 and 1, write
    2. torch's pool writes places of 8 bytes, reads them again, and adds gradients to zeros that it
    has written beforehand, by atomics: what comes first differs from run to run, and so do sums.
    """
    return _pool(frames, num_frames, not nonnegative)[0]


def _launch(kernel: Any, tensors: tuple[Tensor, ...], num_frames: int, **options: Any) -> None:
    """Run a kernel on channels-last tensors (B * T, C, H, W)."""
    import triton
    import triton.language as tl

    count, channels, height, width = tensors[0].shape
    assert count % num_frames == 0, "whole clips"
    size = channels * height * width
    if size >= 2**30:  # within a frame the kernels count in 32 bits, from frame to frame in 64
        raise ValueError(f"a frame of {channels} x {height} x {width} numbers is too large to pool")
    num_blocks, num_runs = triton.cdiv(size, BLOCK), triton.cdiv(num_frames, RUN)
    compute = tl.float64 if tensors[0].dtype == torch.float64 else tl.float32
    with torch.cuda.device_of(tensors[0]):  # Triton would take the current device
        kernel[(num_blocks * num_runs * (count // num_frames),)](
            *tensors, num_frames, height, width, channels, num_blocks, num_runs,
            BLOCK=BLOCK, RUN=RUN, COMPUTE=compute, **options,
        )  # fmt: skip


def _channels_last(frames: Tensor) -> Tensor:
    return frames.contiguous(memory_format=torch.channels_last)


def _empty(frames: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty_like(frames, dtype=dtype, memory_format=torch.channels_last)


@_pool.register_fake
def _(frames: Tensor, num_frames: int, zeros: bool) -> tuple[Tensor, Tensor]:
    return _empty(frames), _empty(frames, torch.uint8)


@_pool_backward.register_fake
def _(gradient: Tensor, places: Tensor, num_frames: int) -> Tensor:
    return _empty(gradient)


def _keep_places(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.num_frames = inputs[1]
    ctx.set_materialize_grads(False)  # no zeros in place of a gradient by the places


def _backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor, None, None]:
    (places,) = ctx.saved_tensors
    return _pool_backward(gradient, places, ctx.num_frames), None, None


_pool.register_autograd(_backward, setup_context=_keep_places)
