"""RGB-D network of CVPR'22: two unimodal trunks that exchange what they see, fused by an
encoder-decoder. No loss."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.decoupled import DecoupledNetwork
from models.output import FusionOutput, Pair, Recoupled
from models.temporal import Head

INTERACTION_DROPOUT = 0.4
DISCRIMINATOR_DROPOUT = 0.5


class Interaction(nn.Module):
    """What both modalities' tokens together add to each of them (CVPR'22, spatial and temporal
    interaction): two 1x1 convolutions over their joint channels, scaled to length 1 beforehand."""

    def __init__(self, dim: int, dropout: float):
        super().__init__()
        self.reduce = nn.Conv2d(2 * dim, dim, 1, bias=False)
        self.norm = nn.BatchNorm2d(dim)
        self.out = nn.Conv2d(dim, dim, 1, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, rgb: Tensor, depth: Tensor, published_reshape: bool = False) -> Tensor:
        """Twice (B, T, D) -> (B, T, D).

        `published_reshape` reads the (T, 2 D) joint tokens as if they were (2 D, T), which mixes up
        time and channels, and the result the same way back: the released code does.
        """
        joint = F.normalize(torch.cat((rgb, depth), 2), dim=2)
        batch, frames, channels = joint.shape
        if published_reshape:
            planes = joint.reshape(batch, channels, frames, 1)
        else:
            planes = joint.transpose(1, 2)[..., None]
        mixed = self.dropout(self.out(F.relu(self.norm(self.reduce(planes)))))
        if published_reshape:
            return mixed.reshape(batch, frames, channels // 2)
        return mixed.squeeze(3).transpose(1, 2)


def conv_units(*channels: int) -> list[nn.Module]:
    """1x1 convolution, batch norm and ReLU from each channel count to the next."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(channels):
        layers += [nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return layers


class FusionNetwork(nn.Module):
    """RGB clip and depth clip -> class scores (CVPR'22, "cross-modal adaptive posterior fusion").

    Options are those of `DecoupledNetwork`, for both trunks alike; start these from the trained
    unimodal networks. `dropout` is that of the trunks; the interactions drop `INTERACTION_DROPOUT`
    of their output wherever it is not 0. `published_reshape`: see `Interaction`; only published
    checkpoints need it, and loading one sets it. Raises ValueError naming the option whose value is
    impossible.
    """

    head_names = ("sum", "fused", "rgb + depth", "rgb", "depth")
    """Names of `FusionOutput.heads`."""

    def __init__(
        self,
        num_classes: int,
        *,
        num_frames: int = 64,
        branch_frames: Sequence[int] = (16, 32, 48),
        num_blocks: int = 6,
        knn_ratio: float = 0.7,
        recoupling: bool = True,
        motion_attention: bool = True,
        motion_gain: float = 0.0,
        dropout: float = 0.1,
        width: int = 64,
        dim: int = 512,
        batch_norm_momentum: float = 0.01,
        published_reshape: bool = False,
    ):
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, not {num_classes}")
        trunk: dict[str, Any] = {
            "num_frames": num_frames,
            "branch_frames": branch_frames,
            "num_blocks": num_blocks,
            "knn_ratio": knn_ratio,
            "recoupling": recoupling,
            "motion_attention": motion_attention,
            "motion_gain": motion_gain,
            "dropout": dropout,
            "width": width,
            "dim": dim,
            "batch_norm_momentum": batch_norm_momentum,
        }
        self.published_reshape = published_reshape
        self.rgb = DecoupledNetwork(0, **trunk)
        self.depth = DecoupledNetwork(0, **trunk)
        self.spatial_interaction = Interaction(dim, INTERACTION_DROPOUT if dropout else 0.0)
        self.temporal_interaction = Interaction(dim, INTERACTION_DROPOUT if dropout else 0.0)
        code = dim // 2
        self.encoder = nn.Sequential(
            *conv_units(2 * dim, 2 * dim, dim, code), nn.Conv2d(code, code, 1, bias=False)
        )
        self.decoder = nn.Sequential(*conv_units(code, code, dim))
        self.classifier = nn.Conv2d(code, num_classes, 1, bias=False)
        self.discriminator = nn.Conv2d(dim, 1, 1, bias=False)
        self.discriminator_dropout = nn.Dropout(DISCRIMINATOR_DROPOUT if dropout else 0.0)
        self.heads = nn.ModuleList(Head(dim, num_classes) for _ in ("rgb", "depth"))

    def forward(
        self,
        clip: Pair,
        motion: Pair | None = None,
        branch_indices: Sequence[Tensor] | None = None,
        temperature: float = 1.0,
    ) -> FusionOutput:
        """Classify a batch of paired clips.

        clip: RGB and depth, (B, 3, T, H, W) each; motion: their maps, (B, 1, T, H, W) each.
        branch_indices: one (B, f) int64 per branch, for both modalities alike.
        temperature: what all class scores are divided by; this network was published with 1.
        Raises ValueError if a shape does not fit, and for a batch of one clip in training, whose
        batch norms would see a single value per channel.
        """
        if self.training and len(clip[0]) == 1:
            raise ValueError("the fusion network cannot train on a batch of one clip; take two")
        trunks, motions = (self.rgb, self.depth), motion or (None, None)
        seen = [
            trunk.frame_tokens(frames, maps)
            for trunk, frames, maps in zip(trunks, clip, motions, strict=True)
        ]
        shared = self.spatial_interaction(*seen, published_reshape=self.published_reshape)
        tokens: list[Tensor] = []  # (B, D) each
        recoupled: list[Recoupled] = []
        for trunk, own in zip(trunks, seen, strict=True):
            class_tokens, pairs = trunk.class_tokens(own + shared, branch_indices)
            tokens.append(torch.stack(class_tokens).amax(0))
            recoupled += pairs
        branch_logits = tuple(
            head(token) / temperature for head, token in zip(self.heads, tokens, strict=True)
        )
        added = self.temporal_interaction(*(token[:, None] for token in tokens))[:, 0]
        planes = [(token + added)[..., None, None] for token in tokens]  # (B, D, 1, 1) each
        code = self.encoder(torch.cat(planes, 1))
        return FusionOutput(
            logits=self.classifier(code).flatten(1) / temperature,
            branch_logits=branch_logits,
            recoupled=tuple(recoupled),
            modality_tokens=tuple(token.flatten(1) for token in planes),
            decoded=self.decoder(code).flatten(1),
            modality_logits=tuple(
                self.discriminator(self.discriminator_dropout(token)).flatten() for token in planes
            ),
        )
