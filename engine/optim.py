"""Optimizer and learning rate. The rate is a pure function of epoch and step, except for
`plateau`, whose state travels in the checkpoint."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

LOWEST_WARMUP_LR = 1e-8
TIMM_WARMUP_LR = 1e-6


@dataclass(frozen=True)
class OptimConfig:
    """Published values of the CVPR'22 recipe as defaults."""

    name: str = "sgd"
    """`sgd` or `adamw`."""

    lr: float = 0.01
    min_lr: float = 1e-5
    momentum: float = 0.9
    """Of SGD; AdamW takes its usual betas."""

    nesterov: bool = False
    """SGD looks ahead: UMDR's recipe."""

    weight_decay: float = 3e-4

    decay_norms: bool = True
    """Weight decay also on biases and the weights of norms, as published for CVPR'22; UMDR's recipe
    spares them."""

    clip_norm: float = 5.0
    """Largest norm of the whole gradient; 0 turns clipping off."""

    schedule: str = "cosine"
    """`cosine`, `plateau` (a tenth of the rate, at least `min_lr`, after `patience` epochs without
    a better top-1) or `constant`; all after the warm-up. UMDR's, as its trainer drives timm's
    schedulers, one epoch late: `timm_cosine`, whose cosine counts from the run's start, and
    `timm_step`, a tenth every `decay_every` epochs."""

    decay_every: int = 10
    """Of `timm_step`."""

    schedule_by: str = "epoch"
    """`epoch`: the rate is constant within an epoch, as published; `step`: it changes every step,
    and `warmup` counts steps."""

    warmup: int = 3
    """Epochs (or steps) of linear rise from 1e-8 (timm's schedules: 1e-6) to `lr`."""

    fused: str = "auto"
    """Whose kernels do SGD's update: `apex` (NVIDIA Apex, for GPUs), `torch`, or `auto`: Apex's
    where it is installed and the model is on a GPU. The arithmetic is the same."""

    patience: int = 4
    cooldown: int = 3

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, what is wrong with it) of every impossible value."""
        choices = {
            "name": ("sgd", "adamw"),
            "schedule": ("cosine", "plateau", "constant", "timm_cosine", "timm_step"),
            "schedule_by": ("epoch", "step"),
            "fused": ("auto", "apex", "torch"),
        }
        for key, allowed in choices.items():
            if getattr(self, key) not in allowed:
                yield key, f"is {getattr(self, key)!r}; it must be one of {', '.join(allowed)}"
        if self.fused == "apex" and self.name != "sgd":
            yield "fused", f"is apex, which is for sgd here; with {self.name} leave it at auto"
        if self.nesterov and self.name != "sgd":
            yield "nesterov", f"is for sgd; with {self.name} set it to false"
        elif self.nesterov and not self.momentum:
            yield "nesterov", "needs momentum; set optim.momentum to 0.9, say"
        if self.decay_every < 1:
            yield "decay_every", f"is {self.decay_every}; it must be at least 1"
        if self.lr <= 0:
            yield "lr", f"is {self.lr}; it must be positive"
        if self.min_lr > self.lr:
            yield "min_lr", f"is {self.min_lr}, above lr = {self.lr}"
        if self.schedule == "plateau" and self.schedule_by == "step":
            yield "schedule_by", "is 'step', but plateau looks at each epoch's accuracy: use epoch"
        for key in ("min_lr", "momentum", "weight_decay", "clip_norm", "warmup", "patience"):
            if getattr(self, key) < 0:
                yield key, "is negative"


def scheduled_lr(config: OptimConfig, now: int, end: int) -> float:
    """Learning rate of epoch (or step) `now` out of `end`; `plateau` as if it never fell.

    Warm-up: linspace(1e-8, lr, warmup)[now]; then lr falls along half a cosine to `min_lr` at
    `end`, as the CVPR'22 recipe is meant (its released trainer stops the warm-up at lr / 2).
    """
    if config.schedule.startswith("timm_"):
        return _timm_lr(config, max(now - 1, 0), end)
    if now < config.warmup:
        rise = now / max(config.warmup - 1, 1)
        return LOWEST_WARMUP_LR + (config.lr - LOWEST_WARMUP_LR) * rise
    if config.schedule != "cosine":
        return config.lr
    done = (now - config.warmup) / max(end - config.warmup, 1)
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * done)) / 2


def _timm_lr(config: OptimConfig, now: int, end: int) -> float:
    """timm's rate at `now`: the warm-up ends one step below `lr`, and nothing is shifted by it."""
    if now < config.warmup:
        return TIMM_WARMUP_LR + (config.lr - TIMM_WARMUP_LR) * now / config.warmup
    if config.schedule == "timm_step":
        return config.lr * 0.1 ** (now // config.decay_every)
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * now / end)) / 2


def temperature_at(epoch: int, first: float, last: float, epochs: int) -> float:
    """What logits are divided by: linear from `first` to `last` over `epochs`, then constant."""
    return first + (last - first) * min(epoch / max(epochs - 1, 1), 1.0)


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over all parameters that learn, in fused kernels.

    Raises ValueError where they are to be Apex's and cannot be.
    """
    groups = parameter_groups(model, config)
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=True)
    device = next(model.parameters()).device
    sgd = _apex_sgd(config, device) or partial(torch.optim.SGD, fused=True)
    return sgd(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """All in one, or without `decay_norms` first those of one axis, which do not decay."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.decay_norms:
        return [{"params": learning, "weight_decay": config.weight_decay}]
    return [
        {"params": [p for p in learning if p.dim() <= 1], "weight_decay": 0.0},
        {"params": [p for p in learning if p.dim() > 1], "weight_decay": config.weight_decay},
    ]


def _apex_sgd(config: OptimConfig, device: torch.device) -> Callable[..., torch.optim.SGD] | None:
    """NVIDIA Apex's SGD where it is to be used."""
    if config.fused == "torch" or (config.fused == "auto" and device.type != "cuda"):
        return None
    if device.type != "cuda":
        raise ValueError("optim.fused is apex, which is for GPUs; set optim.fused=torch")
    try:
        from apex.optimizers import FusedSGD  # type: ignore
    except ImportError as error:
        if config.fused == "auto":  # Apex is optional
            return None
        raise ValueError(
            f"optim.fused is apex, but NVIDIA Apex cannot be imported ({error}); install it from "
            "NVIDIA's source tree, or set optim.fused=torch"
        ) from None
    return FusedSGD


def resume_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Continue from another's state, by the kernels of this one: torch's `load_state_dict` takes
    over whose they were, and published states name none."""
    ours: list[dict[str, Any]] = [
        {key: group[key] for key in ("fused", "foreach") if key in group}
        for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(state)
    for group, kernels in zip(optimizer.param_groups, ours, strict=True):
        group.update(kernels)


class LearningRate:
    """Sets the optimizer's rate before each step; holds state only for `plateau`."""

    def __init__(self, optimizer: torch.optim.Optimizer, config: OptimConfig):
        self.optimizer = optimizer
        self.config = config
        self.plateau = None
        if config.schedule == "plateau":
            self.plateau = ReduceLROnPlateau(
                optimizer, "max", factor=0.1, patience=config.patience, cooldown=config.cooldown,
                min_lr=config.min_lr,
            )  # fmt: skip

    def set(self, epoch: int, epochs: int, step: int, steps: int) -> float:
        """Set and return the rate of `step` (of `steps`) in `epoch` (of `epochs`)."""
        if self.plateau and epoch > self.config.warmup:
            return self.optimizer.param_groups[0]["lr"]  # as end_epoch left it
        by_step = self.config.schedule_by == "step"
        now, end = (step, steps) if by_step else (epoch, epochs)
        rate = scheduled_lr(self.config, now, end)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def end_epoch(self, epoch: int, top1: float) -> None:
        """Tell `plateau` how an epoch ended; the warm-up does not count."""
        if self.plateau and epoch >= self.config.warmup:
            self.plateau.step(top1)

    def state_dict(self) -> dict[str, object]:
        """Plain values; empty for the schedules that are pure functions."""
        return self.plateau.state_dict() if self.plateau else {}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue where `state_dict` was taken."""
        if self.plateau:
            self.plateau.load_state_dict(state)
