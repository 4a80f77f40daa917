"""What every network returns. A plain record: no arithmetic, no loss."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class ModelOutput:
    """Outputs of one forward pass; B clips, K classes, D token width."""

    logits: Tensor
    """(B, K) merged logits: what top-1 is computed from."""

    branch_logits: tuple[Tensor, ...] = ()
    """One (B, K) per temporal branch, fewest frames first."""

    recoupling_student: Tensor | None = None
    """(B, D) vector predicted from the temporal weights of the recoupling module."""

    recoupling_teacher: Tensor | None = None
    """(B, D) mean class token of the branches, detached."""
