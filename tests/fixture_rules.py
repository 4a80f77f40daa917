"""Weights and inputs of the recorded fixtures: functions of names, shapes and seeds.

Random integers k of 24 bits, arithmetic in float64, one rounding to float32 at the end: the same
bits on every machine.
"""

import re
import zlib

import numpy as np
import torch
from torch import Tensor

TEMPERED_HEAD = re.compile(
    r"(mlp_head_(small|media|large)\.1|multi_scale_transformers\.\d+\.3\.2)\.weight$"
)


def ints24(seed: int, count: int) -> np.ndarray:
    """(count,) float64 integers in [0, 2^24)"""
    return np.floor(np.random.RandomState(seed).random_sample(count) * 2.0**24)


def unit(k: np.ndarray) -> np.ndarray:
    """Integers of `ints24` -> values of mean 0 and variance 1"""
    return ((k + 0.5) / 2.0**23 - 1) * np.sqrt(3.0)


def filled(name: str, like: Tensor) -> Tensor:
    """The value of the published entry `name`, with the shape and kind of `like`."""
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    k = ints24(zlib.crc32(name.encode()), like.numel())
    values = _values(name, k, like.shape).reshape(tuple(like.shape))
    return torch.from_numpy(values.astype(np.float32))


def _values(name: str, k: np.ndarray, shape: torch.Size) -> np.ndarray:
    leaf = name.rpartition(".")[2]
    if leaf == "running_var":
        return 1 + 0.1 * k / 2.0**24
    if leaf == "running_mean":
        return 0.1 * unit(k)
    if name.endswith("rpconv1d.weight"):
        return np.array([1.0, 0.5]) + 0.1 * unit(k)
    if "cls_token" in leaf or "pos_embedding" in leaf:
        return 0.5 * unit(k)
    if leaf == "bias":
        return 0.1 * unit(k)
    if len(shape) == 1:
        return 1 + 0.1 * unit(k)
    rows = k.reshape(shape[0], -1)
    fan_in = rows.shape[1]
    centred = rows * fan_in - rows.sum(1, keepdims=True)
    centred = centred / (fan_in * 2.0**24) * np.sqrt(12.0)
    return centred * (0.005 if TEMPERED_HEAD.search(name) else np.sqrt(2.0 / fan_in))


def random_video(seed: int, shape: tuple[int, int, int, int, int]) -> Tensor:
    """(B, C, T, H, W) float32 in [0, 1): a coarse pattern that lasts four frames, plus noise."""
    batch, channels, frames, height, width = shape
    random = np.random.RandomState(seed)

    def draw(*size: int) -> np.ndarray:
        return (np.floor(random.random_sample(size) * 2.0**24) / 2.0**24).astype(np.float32)

    coarse = draw(batch, channels, frames // 4, 8, 8)
    fine = draw(*shape)
    coarse = coarse.repeat(4, axis=2).repeat(height // 8, axis=3).repeat(width // 8, axis=4)
    return torch.from_numpy((0.7 * coarse + 0.3 * fine).astype(np.float32))
