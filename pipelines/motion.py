"""Rank-pooling motion maps of a batch, on the batch's device. No networks, no disk.

The coefficients of a window sum to zero, so offset and scale of the pixels cancel and the pooled
sums are exact integers of the uint8 pixels; only the map made of them is float32.
"""

from collections.abc import Iterator

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

GREY = (0.2989, 0.587, 0.114)
"""Weights of R, G, B."""

INT16_WINDOW = 16
"""Longest window whose sums stay within int16, the steps of the running sums included."""


def motion_maps(pixels: Tensor, window: int) -> Tensor:
    """pixels (B, T, H, W, 3) uint8 -> (B, 1, T, H, W) float32 in [0, 2], on the same device.

    Map t shows what moved in frames t - window + 1 .. t (CVPR'22, motion attention); the first
    window - 1 maps are zero. Raises ValueError unless 2 <= window <= T.
    """
    if not 2 <= window <= pixels.shape[1]:
        raise ValueError(
            f"data.motion_window is {window}; it must be between 2 and the {pixels.shape[1]} "
            "frames of a clip"
        )
    shape = (pixels.shape[0], 1, *pixels.shape[1:4])
    if pixels.device.type != "cpu":
        maps = pixels.new_zeros(shape, dtype=torch.float32)
        maps[:, 0, window - 1 :] = _batch_maps(pixels, window)
        return maps
    # Not torch's zeros, whose filling starts OpenMP threads in the thread of the loader that calls
    # this. Beyond one OpenMP thread a core all of the process's, the training step's among them,
    # no longer spin while they wait for each other: its steps took 1.5 times as long.
    made = np.zeros(shape, np.float32)
    for clip, clip_maps in zip(pixels.numpy(), made, strict=True):
        # Frame by frame the few images in work stay in the cache: 14 ms instead of 100 ms by
        # `_batch_maps` for 64x224x224 and window 10, one thread of a Xeon.
        for t, pooled in enumerate(_pooled_windows(clip, window), start=window - 1):
            _write_map(pooled, clip_maps[0, t])
    return torch.from_numpy(made)


def _pooled_windows(clip: NDArray[np.uint8], window: int) -> Iterator[NDArray[np.signedinteger]]:
    """(T, H, W, 3) -> T - window + 1 times (H, W, 3): the sum of (2i - N - 1) x_i, i = 1..N.

    One buffer is yielded again and again. From one window to the next every coefficient falls by
    2, the oldest frame leaves with 1 - N and the newest enters with N - 1.
    """
    dtype = np.int16 if window <= INT16_WINDOW else np.int32
    shared = np.zeros(clip.shape[1:], dtype)
    pooled = np.zeros_like(shared)
    ends = np.zeros_like(shared)
    black = np.zeros_like(clip[0])
    for t, newest in enumerate(clip):
        oldest = clip[t - window] if t >= window else black
        shared -= oldest  # now the sum of the N - 1 frames that both windows hold
        np.add(oldest, newest, out=ends, dtype=dtype)
        ends *= window - 1
        pooled += ends
        pooled -= shared
        pooled -= shared
        shared += newest
        if t >= window - 1:
            yield pooled


def _write_map(pooled: NDArray[np.signedinteger], out: NDArray[np.float32]) -> None:
    """(H, W, 3) pooled sums -> out (H, W)."""
    positive = np.maximum(pooled, np.zeros_like(pooled))  # with an array 10 times as fast as with 0
    low, high = int(positive.min()), int(positive.max())
    if low == high:
        out.fill(0)
        return
    positive -= low
    grey = cv2.transform(positive.astype(np.float32), np.array([GREY]) / (high - low))
    _, salient = cv2.threshold(grey, cv2.mean(grey)[0], 0, cv2.THRESH_TOZERO)
    salient = cv2.erode(salient, np.ones((2, 2), np.uint8), anchor=(1, 1))
    salient = cv2.dilate(salient, np.ones((3, 3), np.uint8))
    salient = cv2.normalize(salient, salient, 0, 1, cv2.NORM_MINMAX)
    np.add(grey, salient, out=out)
    out *= salient


def _batch_maps(pixels: Tensor, window: int) -> Tensor:
    """(B, T, H, W, 3) -> (B, M, H, W) with M = T - window + 1: all maps at once, no host sync."""
    num_maps = pixels.shape[1] - window + 1
    dtype = torch.int16 if window <= INT16_WINDOW else torch.int32
    pooled = pixels.new_zeros((len(pixels), num_maps, *pixels.shape[2:]), dtype=dtype)
    for i in range(window):
        pooled.add_(pixels[:, i : i + num_maps], alpha=2 * i + 1 - window)
    pooled.clamp_(min=0)
    low, high = pooled.amin((2, 3, 4)), pooled.amax((2, 3, 4))
    pooled -= low[..., None, None, None]
    grey = sum(weight * pooled[..., c] for c, weight in enumerate(GREY))
    grey /= (high - low).clamp_(min=1)[..., None, None]
    salient = torch.where(grey > grey.mean((2, 3), keepdim=True), grey, 0)
    # Erosion by 2x2 anchored at (1, 1): the smallest of a pixel and its upper left neighbours.
    salient = -F.max_pool2d(-salient, 2, stride=1, padding=1)[..., :-1, :-1]
    salient = F.max_pool2d(salient, 3, stride=1, padding=1)
    salient -= salient.amin((2, 3), keepdim=True)
    peak = salient.amax((2, 3), keepdim=True)
    salient /= torch.where(peak > 0, peak, 1)
    return (grey + salient) * salient
