"""A running average of a network's weights, evaluated in their place. Reads them, changes nothing.

Not torch.optim.swa_utils.AveragedModel: its update copies a counter to the GPU and waits for it.
"""

import copy

import torch
from torch import nn


def decay_at(decay: float, step: int) -> float:
    """What is left of the average in `step`, counted from 0: little at first, `decay` in the end,
    so that the weights that a run started from are soon forgotten."""
    return min(decay, (1 + step) / (10 + step))


class WeightAverage:
    """The network again, with the exponential moving average of its weights and batch statistics.

    A function of the weights of all steps, which are equal on all ranks, and so equal on them too.
    """

    def __init__(self, network: nn.Module, decay: float):
        """`network` where it will stay, outside of DistributedDataParallel."""
        self.decay = decay
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        pairs = list(
            zip(self.network.state_dict().values(), network.state_dict().values(), strict=True)
        )
        self.averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self.copied = [pair for pair in pairs if not pair[0].is_floating_point()]
        """Batch norm's counters of batches."""

    def update(self, step: int) -> None:
        """Take in the weights that `step`, counted from 0, has led to."""
        self.take_in(decay_at(self.decay, step))

    @torch.no_grad()
    def take_in(self, kept: float) -> None:
        """The network's weights now, beside the share `kept` of the average."""
        averages, values = map(list, zip(*self.averaged, strict=True))
        torch._foreach_lerp_(averages, values, 1 - kept)
        if self.copied:
            counters, counts = map(list, zip(*self.copied, strict=True))
            torch._foreach_copy_(counters, counts)
