"""Fusion of UMDR's two modalities: what each has found is completed by what the other has. No loss.

It starts from what the trained unimodal networks give; it never sees a clip.
"""

import torch
from torch import Tensor, nn

from models.output import Pair
from models.temporal import NUM_HEADS, FeedForward, top_softmax


class Enhancement(nn.Module):
    """Weights the channels of each modality by what both show (UMDR, "enhancement")."""

    def __init__(self, dim: int):
        super().__init__()
        self.rgb, self.depth = (
            nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, dim))
            for _ in ("rgb", "depth")
        )
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, rgb: Tensor, depth: Tensor) -> Pair:
        """twice (..., D) -> twice (..., D)"""
        joint = self.norm(torch.cat((rgb, depth), -1))
        return rgb * torch.sigmoid(self.rgb(joint)), depth * torch.sigmoid(self.depth(joint))


class CrossBlock(nn.Module):
    """Transformer block of one modality whose attention compares its queries with the keys of the
    other (UMDR, "CFCer", as released: keys are swapped, where the paper's figure swaps queries).

    `knn_ratio`: as of `KnnAttention`.
    """

    def __init__(self, dim: int, num_tokens: int, knn_ratio: float, dropout: float):
        super().__init__()
        self.kept = max(1, int(num_tokens * knn_ratio)) if knn_ratio else num_tokens
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.norm = nn.LayerNorm(dim)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, dropout)

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        """twice (B, n, D) -> (B, n, D)"""
        query, key, value = (
            layer(tokens).unflatten(2, (NUM_HEADS, -1)).transpose(1, 2)  # (B, heads, n, D / heads)
            for layer, tokens in ((self.query, own), (self.key, other), (self.value, own))
        )
        scores = (query * query.shape[-1] ** -0.5) @ key.mT
        mixed = top_softmax(scores, self.kept) @ value
        own = own + self.norm(mixed.transpose(1, 2).flatten(2))
        return own + self.feed_forward(self.feed_forward_norm(own))


class CrossLayer(nn.Module):
    """Enhancement, where it has one, then a block of each modality, both of the same inputs."""

    def __init__(self, dim: int, num_tokens: int, knn_ratio: float, dropout: float, enhanced: bool):
        super().__init__()
        self.enhancement = Enhancement(dim) if enhanced else None
        self.rgb = CrossBlock(dim, num_tokens, knn_ratio, dropout)
        self.depth = CrossBlock(dim, num_tokens, knn_ratio, dropout)

    def forward(self, rgb: Tensor, depth: Tensor) -> Pair:
        """twice (B, n, D) -> twice (B, n, D)"""
        if self.enhancement is not None:
            rgb, depth = self.enhancement(rgb, depth)
        return self.rgb(rgb, depth), self.depth(depth, rgb)


class CrossStage(nn.Module):
    """A joint norm, then layers (UMDR: "SCC", spatial, with enhancement; "TCC", temporal)."""

    def __init__(
        self, depth: int, dim: int, num_tokens: int, knn_ratio: float, dropout: float,
        enhanced: bool,
    ):  # fmt: skip
        super().__init__()
        self.layers = nn.ModuleList(
            CrossLayer(dim, num_tokens, knn_ratio, dropout, enhanced) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, rgb: Tensor, depth: Tensor) -> Pair:
        """twice (B, n, D) -> twice (B, n, D)"""
        rgb, depth = self.norm(torch.cat((rgb, depth), 2)).chunk(2, 2)
        for layer in self.layers:
            rgb, depth = layer(rgb, depth)
        return rgb, depth


class CrossComplement(nn.Module):
    """Frame tokens and class token of both modalities -> class scores of each (UMDR, "CFCer")."""

    def __init__(
        self,
        num_classes: int,
        *,
        num_frames: int,
        dim: int,
        spatial_depth: int,
        temporal_depth: int,
        knn_ratio: float,
        dropout: float,
    ):
        super().__init__()
        rest = knn_ratio, dropout
        self.positions = nn.ParameterList(torch.randn(1, num_frames + 1, dim) for _ in range(2))
        self.spatial = CrossStage(spatial_depth, dim, num_frames, *rest, enhanced=True)
        self.enhancement = Enhancement(dim)
        self.temporal = CrossStage(temporal_depth, dim, num_frames + 1, *rest, enhanced=False)
        self.heads = nn.ModuleList(nn.Linear(dim, num_classes) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))

    def forward(self, frames: Pair, class_tokens: Pair) -> Pair:
        """frames, twice (B, T, D), class_tokens, twice (B, D) -> twice (B, K)"""
        frames = self.spatial(*frames)
        class_tokens = self.enhancement(*class_tokens)
        tokens = (
            norm(torch.cat((class_token[:, None], seen), 1)) + position
            for norm, class_token, seen, position in zip(
                self.norms, class_tokens, frames, self.positions, strict=True
            )
        )
        rgb, depth = self.temporal(*tokens)
        return self.heads[0](rgb[:, 0]), self.heads[1](depth[:, 0])
