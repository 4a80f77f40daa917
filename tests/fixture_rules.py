"""The recorded fixtures: their weights and inputs, functions of names, shapes and seeds, and how a
network's numbers are held to them.

Random integers k of 24 bits, arithmetic in float64, one rounding to float32 at the end: the same
bits on every machine.
"""

import json
import math
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from models.upstream import published_names

DATA = Path(__file__).parent / "data"

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


def record(name: str) -> dict[str, Any]:
    return json.loads((DATA / f"{name}.json").read_text())


def assert_digest(found: Tensor, digest: Mapping[str, Any], tolerance: float, name: str) -> None:
    assert list(found.shape) == digest["shape"], name
    found = found.detach().double().cpu()
    scale = digest["absmax"]
    length = digest["l2"]
    first = torch.tensor(digest["first8"], dtype=torch.float64)
    errors = {
        "first8": (found.flatten()[: len(first)] - first).abs().max().item() / scale,
        "absmax": abs(found.abs().max().item() - scale) / scale,
        "mean": abs(found.mean().item() - digest["mean"]) / scale,
        "sum": abs(found.sum().item() - digest["sum"]) / (length * math.sqrt(found.numel())),
        "l2": abs(found.norm().item() - length) / length,
    }
    assert max(errors.values()) <= tolerance, (name, errors)


class Choices:
    """Attention to the best keys that remembers which they were, or uses those it remembers."""

    def __init__(self) -> None:
        self.made: list[Tensor] = []
        self.left: list[Tensor] | None = None
        self.differing = 0

    def replay(self) -> None:
        self.left = list(self.made)

    def top_softmax(self, scores: Tensor, kept: int) -> Tensor:
        keys = scores.topk(kept, sorted=False).indices
        if self.left is None:
            self.made.append(keys)
        else:
            own, keys = keys, self.left.pop(0)
            differs = own.sort(-1).values != keys.sort(-1).values
            self.differing += int(differs.any(-1).sum())
        chosen = scores.gather(-1, keys).softmax(-1)
        return torch.zeros_like(scores).scatter(-1, keys, chosen)


def compute_once(module: nn.Module) -> None:
    """The module computes in its next forward pass only and gives the same from then on, without a
    graph: for what comes behind it to be run in several ways."""
    compute, given = module.forward, []

    def forward(*inputs: Any) -> Any:
        if given:
            return given[0]
        output = compute(*inputs)
        given.append(tree_map(Tensor.detach, output))
        return output

    module.forward = forward


def published_gradients(model: nn.Module) -> dict[str, Tensor]:
    """Published parameter name -> gradient, on the CPU."""
    parameters = dict(model.named_parameters())
    names = published_names(model)
    return {names[ours]: parameters[ours].grad.cpu() for ours in names if ours in parameters}


def assert_gradients(
    gradient: Mapping[str, Tensor],
    expected: dict[str, Any],
    noisy: dict[str, Any] | None = None,
    exact: float = 1e-8,
    sensitive: Mapping[str, float] = MappingProxyType({}),
) -> None:
    """Gradients by published name against the float64 record, within `exact`.

    Those of a float32 model may be off by 1e-3, or by three times as much as `noisy`, the record of
    the published network in float32; `sensitive` ones by what is said there.
    """

    def tolerance(exact: float, noisy_value: float) -> float:
        return max(1e-3, 3 * abs(noisy_value / exact - 1))

    assert all(grad.abs().max() > 0 for grad in gradient.values())
    for name, norm in expected["grad_norm"].items():
        rel = tolerance(norm, noisy["grad_norm"][name]) if noisy else exact
        rel = sensitive.get(name, rel) if noisy else rel
        assert gradient[name].norm().item() == pytest.approx(norm, rel=rel), name
        if not noisy and "grad_first4" in expected:
            first = torch.tensor(expected["grad_first4"][name], dtype=torch.float64)
            found = gradient[name].flatten()[: len(first)]
            torch.testing.assert_close(found, first, rtol=0, atol=exact * norm)
    total = torch.stack([grad.norm() for grad in gradient.values()]).norm().item()
    rel = tolerance(expected["total_grad_norm"], noisy["total_grad_norm"]) if noisy else exact
    assert total == pytest.approx(expected["total_grad_norm"], rel=rel)
