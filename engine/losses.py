"""ModelOutput + labels -> one scalar and its named parts. No ranks, no schedules."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.output import FusionOutput, ModelOutput


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss's parts; defaults are the published values of CVPR'22's unimodal network,
    and engine/config.py holds where those of other networks differ."""

    label_smoothing: float = 0.1
    merged_weight: float = 1.0
    """Weight of the cross-entropy of the merged (fused) logits; 0 in UMDR's fusion, where only the
    completed modalities learn."""

    branch_weight: float = 0.5
    """Weight of the cross-entropy of each branch (of each modality in a fusion network)."""

    recoupling_weight: float = 1.0
    recoupling_temperature: float = 0.5
    """Both distributions of the recoupling loss are softened by it: 0.5 for NTU, THU-READ and
    IsoGD, 0.4 for NvGesture and Jester."""

    recoupling_delay: int = 2
    """Epochs before the recoupling loss sets in."""

    recoupling_scale: float = 4.0
    """The published loss is a sum over one GPU's clips; ours is the mean over the global batch
    times this, their number per GPU, so that it depends on no number of ranks."""

    pseudo_weight: float = 0.2
    """Weight of the cross-entropy of the merged logits against the classes that a teacher of the
    other modality sees (train.teacher), without label smoothing."""

    teacher_gradient: bool = False
    """Whether the recoupling loss also moves its teachers, towards what their students say, as in
    the released UMDR; its value is then a cross-entropy, otherwise a KL divergence."""

    reconstruction_weight: float = 1.0
    """Fusion network: squared distance of the decoded token from each modality's."""

    modality_weight: float = 1.0
    """Fusion network: cross-entropy of telling the modalities' tokens apart."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, what is wrong with it) of every impossible value."""
        if not 0 <= self.label_smoothing < 1:
            yield "label_smoothing", f"is {self.label_smoothing}; it must be in [0, 1)"
        if self.recoupling_temperature <= 0:
            yield "recoupling_temperature", "must be positive"
        for key in (
            "merged_weight", "branch_weight", "recoupling_weight", "recoupling_delay",
            "recoupling_scale", "pseudo_weight", "reconstruction_weight", "modality_weight",
        ):  # fmt: skip
            if getattr(self, key) < 0:
                yield key, "is negative"


Labels = Tensor | tuple[Tensor, ...]
"""(B,) int64 classes, or of each modality (B, K) shares of the classes in mixed clips."""


def training_loss(
    output: ModelOutput,
    labels: Labels,
    config: LossConfig,
    epoch: int,
    pseudo: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of this rank's clips -> (scalar, its detached parts by name, before their weights).

    Parts are `merged`, and where the network has them `branches`, `recoupling`, `reconstruction`
    and `modality`; with `pseudo`, the (B,) classes of a teacher, also `pseudo`. Each is a mean over
    clips, so that averaging gradients over ranks of equal batches gives the loss of the global
    batch. Where modalities were mixed each by its own draw, each learns its own labels, and what is
    made of both their mean.
    """
    label, of_branches = _of_heads(labels, len(output.branch_logits))
    parts = {"merged": _cross_entropy(output.logits, label, config)}
    weights = {"merged": config.merged_weight}
    if output.branch_logits:
        branches = [
            _cross_entropy(logits, own, config)
            for logits, own in zip(output.branch_logits, of_branches, strict=True)
        ]
        parts["branches"] = torch.stack(branches).sum()
        weights["branches"] = config.branch_weight
    if output.recoupled:
        temperature = config.recoupling_temperature
        recoupling = [
            recoupling_loss(*pair, temperature, config.teacher_gradient)
            for pair in output.recoupled
        ]
        parts["recoupling"] = torch.stack(recoupling).sum()
        # Weight 0, not absence, during the delay: every parameter gets a gradient in every step,
        # which DistributedDataParallel counts on.
        started = epoch >= config.recoupling_delay
        weights["recoupling"] = config.recoupling_weight * config.recoupling_scale * started
    if pseudo is not None:
        parts["pseudo"] = F.cross_entropy(_exact(output.logits), pseudo)
        weights["pseudo"] = config.pseudo_weight
    if isinstance(output, FusionOutput):
        parts["reconstruction"] = reconstruction_loss(output)
        parts["modality"] = modality_loss(output)
        weights["reconstruction"] = config.reconstruction_weight
        weights["modality"] = config.modality_weight
    total = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
    return total, {name: part.detach() for name, part in parts.items()}


def _of_heads(labels: Labels, branches: int) -> tuple[Tensor, list[Tensor]]:
    """The labels of the merged logits, and of each branch."""
    if isinstance(labels, Tensor):
        return labels, [labels] * branches
    if len(labels) == 1:
        return labels[0], [labels[0]] * branches
    return torch.stack(labels).mean(0), list(labels)


def recoupling_loss(
    student: Tensor, teacher: Tensor, temperature: float, teacher_gradient: bool = False
) -> Tensor:
    """KL(softmax(teacher / t) || softmax(student / t)), mean over clips; both (B, D). With
    `teacher_gradient` the cross-entropy, which has the same gradient for the student."""
    # A 16-bit log-softmax over D values loses the small probabilities.
    log_student = F.log_softmax(_exact(student) / temperature, dim=1)
    if teacher_gradient:
        return F.cross_entropy(
            _exact(student) / temperature, (_exact(teacher) / temperature).softmax(1)
        )
    log_teacher = F.log_softmax(_exact(teacher.detach()) / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def reconstruction_loss(output: FusionOutput) -> Tensor:
    """Mean squared distance of the decoded token from the RGB and from the depth token, added; the
    gradient reaches both sides, as published."""
    assert output.decoded is not None
    decoded = _exact(output.decoded)
    return torch.stack([F.mse_loss(decoded, _exact(t)) for t in output.modality_tokens]).sum()


def modality_loss(output: FusionOutput) -> Tensor:
    """Cross-entropy of recognising the RGB token as RGB and the depth token as not, added."""
    rgb, depth = (_exact(score) for score in output.modality_logits)
    return F.softplus(-rgb).mean() + F.softplus(depth).mean()


def _cross_entropy(logits: Tensor, label: Tensor, config: LossConfig) -> Tensor:
    return F.cross_entropy(_exact(logits), label, label_smoothing=config.label_smoothing)


def _exact(values: Tensor) -> Tensor:
    """In float32 at least."""
    return values if values.dtype == torch.float64 else values.float()
