"""ModelOutput + labels -> one scalar and its named parts. No ranks, no schedules."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.output import ModelOutput


@dataclass(frozen=True)
class LossConfig:
    """Weights of the unimodal loss (CVPR'22, published values as defaults)."""

    label_smoothing: float = 0.1
    branch_weight: float = 0.5
    """Weight of each branch's cross-entropy beside 1 for the merged logits."""

    recoupling_weight: float = 1.0
    recoupling_temperature: float = 0.5
    """Both distributions of the recoupling loss are softened by it: 0.5 for NTU, THU-READ and
    IsoGD, 0.4 for NvGesture and Jester."""

    recoupling_delay: int = 2
    """Epochs before the recoupling loss sets in."""

    recoupling_scale: float = 4.0
    """The published loss is a sum over one GPU's clips; ours is the mean over the global batch
    times this, their number per GPU, so that it depends on no number of ranks."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, what is wrong with it) of every impossible value."""
        if not 0 <= self.label_smoothing < 1:
            yield "label_smoothing", f"is {self.label_smoothing}; it must be in [0, 1)"
        if self.recoupling_temperature <= 0:
            yield "recoupling_temperature", "must be positive"
        for key in ("branch_weight", "recoupling_weight", "recoupling_delay", "recoupling_scale"):
            if getattr(self, key) < 0:
                yield key, "is negative"


def training_loss(
    output: ModelOutput, label: Tensor, config: LossConfig, epoch: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of this rank's clips -> (scalar, its detached parts `merged`, `branches`, `recoupling`).

    Every part is a mean over clips, so that averaging gradients over ranks of equal batches gives
    the loss of the global batch. label (B,) int64.
    """
    merged = _cross_entropy(output.logits, label, config)
    total = merged
    parts = {"merged": merged.detach()}
    if output.branch_logits:
        branches = torch.stack([_cross_entropy(x, label, config) for x in output.branch_logits])
        total = total + config.branch_weight * branches.sum()
        parts["branches"] = branches.sum().detach()
    if output.recoupling_student is not None and output.recoupling_teacher is not None:
        recoupling = recoupling_loss(
            output.recoupling_student, output.recoupling_teacher, config.recoupling_temperature
        )
        # Weight 0, not absence, during the delay: every parameter gets a gradient in every step,
        # which DistributedDataParallel counts on.
        weight = config.recoupling_weight if epoch >= config.recoupling_delay else 0.0
        total = total + weight * config.recoupling_scale * recoupling
        parts["recoupling"] = recoupling.detach()
    return total, parts


def recoupling_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(softmax(teacher / t) || softmax(student / t)), mean over clips; both (B, D)."""
    # In float32 at least: a 16-bit log-softmax over D values loses the small probabilities.
    student, teacher = (x if x.dtype == torch.float64 else x.float() for x in (student, teacher))
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def _cross_entropy(logits: Tensor, label: Tensor, config: LossConfig) -> Tensor:
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits, label, label_smoothing=config.label_smoothing)
