"""MixUp and ShuffleMix: each clip of a batch mixed with a partner, its label likewise (UMDR,
section "Augmentation"). Draws and arithmetic; which loss the labels go into is losses.py's.

Both are one operation, a weighted mean of the clip and its partner frame by frame: MixUp gives all
frames the same weight, ShuffleMix gives some frames all of the partner. What is drawn depends on
(seed, step) alone: it is the same on all ranks, and after any restart. A clip's partner is the one
half a batch further on, so that ranks with even shares pair as one rank does.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipelines.batch import Batch, one_or_each

DRAWN_FOR_MIXING = 5
"""Beside the purposes of pipelines/sampling.py, whose generators take an index in this place."""


@dataclass(frozen=True)
class MixConfig:
    """How training clips are mixed with each other; the defaults do not mix."""

    mixup: float = 0.0
    """MixUp: both parameters of the Beta distribution that a clip's share is drawn from; 0: none.
    UMDR: 0.8 (NvGesture: 0.001, in which all but a few batches stay as they are)."""

    shufflemix: float = 0.0
    """As `mixup`, for ShuffleMix. UMDR: 0.3."""

    shufflemix_share: float = 0.0
    """Probability that a batch takes ShuffleMix, and not MixUp. UMDR: 0.2."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """(key, what is wrong with it) of every impossible value."""
        for key in ("mixup", "shufflemix"):
            if getattr(self, key) < 0:
                yield key, f"is {getattr(self, key)}; it must be positive, or 0 for none"
        if not 0 <= self.shufflemix_share <= 1:
            yield "shufflemix_share", f"is {self.shufflemix_share}; a share is between 0 and 1"
        elif self.shufflemix_share and not self.shufflemix:
            yield "shufflemix_share", "asks for ShuffleMix: set mix.shufflemix to 0.3, say"
        elif self.shufflemix and not self.shufflemix_share:
            yield "shufflemix", "takes effect only with mix.shufflemix_share above 0"

    @property
    def mixes(self) -> bool:
        """Whether any batch is changed."""
        return bool(self.mixup or self.shufflemix)


@dataclass(frozen=True)
class Draw:
    """How the clips of one batch are mixed with their partners."""

    label_weight: float
    """Weight of a clip's own label; the rest is its partner's."""

    partner_weight: NDArray[np.float64]
    """(T,) weight of the partner's frame at each place."""


def draw(config: MixConfig, num_frames: int, rng: np.random.Generator) -> Draw:
    """ShuffleMix with probability `shufflemix_share`, else MixUp; each with its own share lambda of
    the clip itself.

    ShuffleMix takes round((1 - lambda) T) frames, anywhere, from the partner; its labels are
    weighted by lambda, as published, not by the rounded share.
    """
    if rng.random() < config.shufflemix_share:
        own = rng.beta(config.shufflemix, config.shufflemix)
        weight = np.zeros(num_frames)
        weight[rng.permutation(num_frames)[: round((1 - own) * num_frames)]] = 1.0
        return Draw(own, weight)
    own = rng.beta(config.mixup, config.mixup) if config.mixup else 1.0
    return Draw(own, np.full(num_frames, 1 - own))


class Mixing:
    """Mixes the batches of a run."""

    def __init__(self, config: MixConfig, seed: int, num_classes: int, *, paired: bool):
        """`paired`: all modalities by one draw, so that a clip keeps one label; otherwise each by
        its own, as published for fusion."""
        self.config = config
        self.seed = seed
        self.num_classes = num_classes
        self.paired = paired

    def draw(self, step: int, modality: int, num_frames: int) -> Draw:
        """The draw of a step (from 0) for a modality (0 RGB, 1 depth)."""
        number = 0 if self.paired else modality
        rng = np.random.default_rng([self.seed, step, number, DRAWN_FOR_MIXING])
        return draw(self.config, num_frames, rng)

    def __call__(self, batch: Batch, step: int) -> Batch:
        """The batch of a step, mixed, with the labels to learn in `target`."""
        if not self.config.mixes:
            return batch
        labels = F.one_hot(batch.label, self.num_classes).float()
        clips, maps, targets = [], [], []
        for modality, (clip, motion) in enumerate(batch.streams):
            drawn = self.draw(step, modality, clip.shape[2])
            clips.append(mixed(clip, drawn))
            maps.append(None if motion is None else mixed(motion, drawn))
            targets.append(torch.lerp(partner(labels), labels, drawn.label_weight))
        motions = [motion for motion in maps if motion is not None]
        return dataclasses.replace(
            batch,
            clip=one_or_each(clips),
            motion=one_or_each(motions) if motions else None,
            target=tuple(targets),
        )


def mixed(video: Tensor, drawn: Draw) -> Tensor:
    """video (B, C, T, H, W), channels_last_3d, -> the same, each clip mixed with its partner."""
    frames = video.movedim(1, -1)  # (B, T, H, W, C), contiguous
    weight = torch.from_numpy(drawn.partner_weight).to(frames.dtype)
    weight = weight.to(frames.device, non_blocking=True)[None, :, None, None, None]
    return torch.lerp(frames, partner(frames), weight).movedim(-1, 1)


def partner(values: Tensor) -> Tensor:
    """(B, ...) -> (B, ...), those of the clip half a batch further on; a single clip's own."""
    return values.roll(-(len(values) // 2), 0)
