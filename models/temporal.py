"""Temporal network: one branch per frame rate turns a clip's tokens into one class token.

Which frames a branch sees in training is drawn outside; it knows only those of evaluation.
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import Inception, InceptionWidths, same_padding

PUBLISHED_DIM = 512
NUM_HEADS = 8
INCEPTION_WIDTHS = InceptionWidths(160, 112, 224, 24, 64, 64)


def segment_middles(num_frames: int, num_segments: int) -> list[int]:
    """Middle frame of each of `num_segments` equal segments of the frames.

    That is the evaluation rule of the published loader: the mean of a segment, rounded down. Of
    more segments than frames some are empty and take the frame at which they begin.
    """
    bounds = [num_frames * i // num_segments for i in range(num_segments + 1)]
    return [max(start, (start + end - 1) // 2) for start, end in itertools.pairwise(bounds)]


def top_softmax(scores: Tensor, kept: int) -> Tensor:
    """Softmax over the `kept` largest of the last axis, 0 elsewhere; (..., n) -> (..., n).

    Exactly `kept` are positive even where scores tie, as is usual in 16 bits.
    """
    if kept == scores.shape[-1]:
        return scores.softmax(-1)
    best, where = scores.topk(kept, sorted=False)
    weights = best.softmax(-1)
    return torch.zeros_like(scores, dtype=weights.dtype).scatter(-1, where, weights)


class KnnAttention(nn.Module):
    """Self-attention in which each query attends to its floor(n * knn_ratio) best keys only.

    `knn_ratio` 0 is plain attention to all n tokens.
    """

    def __init__(self, dim: int, num_tokens: int, knn_ratio: float, dropout: float):
        super().__init__()
        self.kept = max(1, int(num_tokens * knn_ratio)) if knn_ratio else num_tokens
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, n, D) -> (B, n, D)"""
        query, key, value = self.heads(tokens)
        mixed = self.shares(query, key) @ value  # (B, heads, n, D / heads)
        return self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))

    def weights(self, tokens: Tensor) -> Tensor:
        """(B, n, D) -> (B, heads, n, n): how much each query attends to each key, to be looked at.

        Rows sum to 1 and have `kept` positive entries.
        """
        query, key, _ = self.heads(tokens)
        return self.shares(query, key)

    def heads(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """(B, n, D) -> query, key and value, each (B, heads, n, D / heads)"""
        heads = self.qkv(tokens).unflatten(2, (3, NUM_HEADS, -1))  # (B, n, 3, heads, D / heads)
        return heads.permute(2, 0, 3, 1, 4).unbind(0)

    def shares(self, query: Tensor, key: Tensor) -> Tensor:
        """twice (B, heads, n, D / heads) -> (B, heads, n, n)"""
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        return top_softmax(scores, self.kept)


class FeedForward(nn.Sequential):
    """Two linear layers with GELU between, 1.5 D wide inside; (B, n, D) -> (B, n, D)."""

    def __init__(self, dim: int, dropout: float):
        hidden = dim * 3 // 2
        super().__init__(
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, dim),
            nn.Dropout(dropout),
        )


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, num_tokens: int, knn_ratio: float, dropout: float):
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = KnnAttention(dim, num_tokens, knn_ratio, dropout)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, n, D) -> (B, n, D)"""
        tokens = tokens + self.attention(self.attention_norm(tokens))
        return tokens + self.feed_forward(self.feed_forward_norm(tokens))


class TemporalInception(Inception):
    """Inception module over time, then a max pool over three frames (CVPR'22, "TMS").

    `kernel`: frames that its convolutions and its own pool span.
    """

    def __init__(self, dim: int, momentum: float, kernel: int = 3):
        widths = INCEPTION_WIDTHS.scaled(dim / PUBLISHED_DIM)
        super().__init__(dim, widths, (kernel, 1, 1), momentum)
        self.kernel = kernel

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, f, D) -> (B, f, D)"""
        planes = tokens[:, :, None].permute(0, 3, 1, 2)  # (B, D, f, 1), channels-last
        before, after = same_padding(planes.shape[2], self.kernel, 1)
        pooled = F.max_pool2d(F.pad(planes, (0, 0, before, after)), (self.kernel, 1), stride=1)
        mixed = self.join(planes, pooled)
        return F.max_pool2d(mixed, (3, 1), stride=1, padding=(1, 0)).squeeze(3).transpose(1, 2)


class TemporalBranch(nn.Module):
    """f of a clip's T tokens -> one class token.

    Positions are added to the frames before the inception module (CVPR'22) or, with
    `position_last`, behind it (UMDR).
    """

    evaluation_indices: Tensor

    def __init__(
        self,
        *,
        num_frames: int,
        branch_frames: int,
        num_blocks: int,
        dim: int,
        knn_ratio: float,
        dropout: float,
        momentum: float,
        kernel: int = 3,
        position_last: bool = False,
    ):
        super().__init__()
        num_tokens = branch_frames + 1
        self.position_last = position_last
        self.position = nn.Parameter(torch.randn(1, num_tokens, dim))
        self.class_token = nn.Parameter(torch.randn(1, 1, dim))
        self.inception = TemporalInception(dim, momentum, kernel)
        self.blocks = nn.Sequential(
            *(Block(dim, num_tokens, knn_ratio, dropout) for _ in range(num_blocks))
        )
        indices = torch.tensor([segment_middles(num_frames, branch_frames)])
        self.register_buffer("evaluation_indices", indices, persistent=False)  # (1, f)

    def forward(self, tokens: Tensor, indices: Tensor | None = None) -> Tensor:
        """tokens (B, T, D), indices (B, f) int64 -> (B, D); by default the evaluation's frames."""
        return self.blocks(self.embedded(tokens, indices))[:, 0]

    def class_tokens(self, tokens: Tensor, indices: Tensor | None = None) -> list[Tensor]:
        """As `forward`, behind each of the blocks."""
        tokens, found = self.embedded(tokens, indices), []
        for block in self.blocks:
            tokens = block(tokens)
            found.append(tokens[:, 0])
        return found

    def embedded(self, tokens: Tensor, indices: Tensor | None = None) -> Tensor:
        """tokens (B, T, D), indices (B, f) -> (B, 1 + f, D): what the blocks begin with."""
        if indices is None:
            indices = self.evaluation_indices.expand(tokens.shape[0], -1)
        # Not take_along_dim, with which torch.export cannot leave the batch size open.
        frames = tokens.gather(1, indices[:, :, None].expand(-1, -1, tokens.shape[2]))
        place = self.position[:, 1:]
        frames = self.inception(frames) + place if self.position_last else (
            self.inception(frames + place)
        )  # fmt: skip
        class_token = (self.class_token + self.position[:, :1]).expand(tokens.shape[0], -1, -1)
        return torch.cat((class_token, frames), 1)


class Head(nn.Module):
    """Class token -> class scores, in the parameters' precision even under autocast.

    The scores are divided by a temperature near 0.04, which would show 16-bit steps 25 times as
    large; the layer is too small for its precision to cost time.
    """

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, num_classes)

    def forward(self, class_token: Tensor) -> Tensor:
        """(B, D) -> (B, K)"""
        with torch.autocast("cuda" if class_token.is_cuda else "cpu", enabled=False):
            return self.linear(self.norm(class_token.to(self.linear.weight.dtype)))
