"""RGB-D network of UMDR: two trained unimodal networks, frozen, and what completes each by the
other. No loss."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.cross_complement import CrossComplement
from models.decoupled import require
from models.output import CrossOutput, Pair
from models.umdr import UmdrNetwork


class UmdrFusionNetwork(nn.Module):
    """RGB clip and depth clip -> class scores (UMDR, "CFCer" over two DSNV2 networks, as released).

    The unimodal networks are frozen: they stay in evaluation mode, in which they see the middle
    frames of the branches' segments, and get no gradients. Start them from trained ones. Options
    are those of `UmdrNetwork`, for both alike; `spatial_depth` and `temporal_depth` are the layers
    of the fusion's two stages. Raises ValueError naming the option whose value is impossible.
    """

    head_names = ("sum", "mean", "rgb + depth", "rgb", "depth", "completed rgb", "completed depth")
    """Names of `CrossOutput.heads`."""

    def __init__(
        self,
        num_classes: int,
        *,
        num_frames: int = 32,
        branch_frames: Sequence[int] | None = None,
        num_blocks: int = 6,
        knn_ratio: float = 0.7,
        dropout: float = 0.1,
        width: int = 64,
        dim: int = 512,
        batch_norm_momentum: float = 0.01,
        spatial_depth: int = 2,
        temporal_depth: int = 4,
    ):
        super().__init__()
        require(spatial_depth >= 0, "spatial_depth", spatial_depth, "at least 0")
        require(temporal_depth >= 1, "temporal_depth", temporal_depth, "at least 1")
        trunk: dict[str, Any] = {
            "num_frames": num_frames,
            "branch_frames": branch_frames,
            "num_blocks": num_blocks,
            "knn_ratio": knn_ratio,
            "dropout": dropout,
            "width": width,
            "dim": dim,
            "batch_norm_momentum": batch_norm_momentum,
        }
        self.rgb, self.depth = (UmdrNetwork(num_classes, **trunk) for _ in ("rgb", "depth"))
        self.complement = CrossComplement(
            num_classes,
            num_frames=num_frames,
            dim=dim,
            spatial_depth=spatial_depth,
            temporal_depth=temporal_depth,
            knn_ratio=knn_ratio,
            dropout=dropout,
        )
        for trunk_network in (self.rgb, self.depth):
            trunk_network.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "UmdrFusionNetwork":
        """As of every module, except that the unimodal networks stay in evaluation mode."""
        super().train(mode)
        self.rgb.eval()
        self.depth.eval()
        return self

    def forward(
        self,
        clip: Pair,
        motion: Pair | None = None,
        branch_indices: Sequence[Tensor] | None = None,
        temperature: float = 1.0,
    ) -> CrossOutput:
        """Classify a batch of paired clips.

        clip: RGB and depth, (B, 3, T, H, W) each. motion, branch_indices: ignored.
        temperature: what the unimodal networks' scores are divided by; the completed ones are not.
        Raises ValueError if a shape does not fit.
        """
        frames: list[Tensor] = []
        class_tokens: list[Tensor] = []
        alone: list[Tensor] = []
        for network, seen in zip((self.rgb, self.depth), clip, strict=True):
            tokens, last = network.tokens(seen)
            frames.append(tokens)
            class_tokens.append(torch.stack(last).mean(0))
            alone.append(torch.stack(network.scores(last, temperature)).amax(0))
        rgb, depth = self.complement((frames[0], frames[1]), (class_tokens[0], class_tokens[1]))
        completed = (rgb.to(alone[0].dtype), depth.to(alone[1].dtype))
        return CrossOutput(torch.stack((*alone, *completed)).sum(0), completed, (), tuple(alone))
