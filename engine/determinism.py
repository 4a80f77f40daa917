"""The same bits from every run on a GPU (`train.deterministic`). CPUs need nothing for that."""

import os

import torch
from torch import nn

from models.spatial import gather_pools


def make_deterministic() -> None:
    """Of this process, from here on: operations on GPUs give the same bits every time, or raise
    RuntimeError where torch has no such form of them.

    Before the process uses a GPU: cuBLAS reads the environment once. Child processes inherit that.
    """
    # Else what runs beside a product decides on its workspace, and so on the order of its sums.
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    # Reading what was never written would be a defect; looking for it costs a write per tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def replace_pools(network: nn.Module, device: torch.device) -> None:
    """Where that is wanted, let the network pool without torch's 3-D pool, whose gradients are
    added up by atomics, or in newer releases slowly."""
    if device.type == "cuda" and torch.are_deterministic_algorithms_enabled():
        gather_pools(network)
