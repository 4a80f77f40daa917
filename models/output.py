"""What networks return: records of tensors, and which of them are class scores. No loss."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]
"""RGB and depth."""


class Recoupled(NamedTuple):
    """The two sides of a recoupling loss."""

    student: Tensor
    """(B, D) vector predicted from the temporal weights of a recoupling module."""

    teacher: Tensor
    """(B, D) mean (UMDR: sum) of the temporal branches' class tokens."""


@dataclass
class ModelOutput:
    """Outputs of one forward pass; B clips, K classes, D token width."""

    logits: Tensor
    """(B, K) merged logits: what top-1 is computed from."""

    branch_logits: tuple[Tensor, ...] = ()
    """One (B, K) per temporal branch, fewest frames first."""

    recoupled: tuple[Recoupled, ...] = ()
    """One pair per recoupling module."""

    def heads(self) -> tuple[Tensor, ...]:
        """All class scores worth evaluating, (B, K) each, named by the network's `head_names`; the
        first are the prediction: merged, sum of the branches, each branch."""
        if not self.branch_logits:
            return (self.logits,)
        return (self.logits, torch.stack(self.branch_logits).sum(0), *self.branch_logits)


@dataclass
class FusionOutput(ModelOutput):
    """Outputs of an RGB-D network: `logits` are the fused ones, `branch_logits` RGB and depth."""

    modality_tokens: tuple[Tensor, ...] = ()
    """RGB and depth, (B, D) each, after they have seen each other."""

    decoded: Tensor | None = None
    """(B, D) what the decoder makes of the fused code: trained to be both tokens."""

    modality_logits: tuple[Tensor, ...] = ()
    """(B,) of the RGB and of the depth token: a score for being RGB."""

    def heads(self) -> tuple[Tensor, ...]:
        """Sum of all three (the prediction), fused, RGB + depth, RGB, depth; (B, K) each."""
        rgb, depth = self.branch_logits
        return (self.logits + rgb + depth, self.logits, rgb + depth, rgb, depth)


@dataclass
class CrossOutput(ModelOutput):
    """Outputs of UMDR's RGB-D network: `logits` are the sum of all four scores, `branch_logits`
    those of RGB and depth completed by each other, which alone learn."""

    alone: tuple[Tensor, ...] = ()
    """(B, K) scores of the RGB and of the depth network."""

    def heads(self) -> tuple[Tensor, ...]:
        """Sum of all four (the prediction), their mean, RGB + depth of the unimodal networks, RGB,
        depth, completed RGB, completed depth; (B, K) each."""
        rgb, depth = self.alone
        return (self.logits, self.logits / 4, rgb + depth, rgb, depth, *self.branch_logits)
