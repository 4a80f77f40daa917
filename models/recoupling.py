"""Recoupling module: weights frames and channels by each other before time is modelled.

The loss that trains its student vector is the training loop's (CVPR'22, "recoupling").
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN = 256
KEY_DIM = 64


class Recoupling(nn.Module):
    """tokens X (B, T, D) -> X times (frame weights x channel weights), and a student vector.

    T is fixed at construction: the weights are computed by layers over the frames.
    """

    def __init__(self, num_frames: int, dim: int):
        super().__init__()
        self.query = nn.Linear(num_frames, KEY_DIM, bias=False)
        self.key = nn.Linear(num_frames, KEY_DIM, bias=False)
        self.squeeze = nn.Linear(num_frames, HIDDEN, bias=False)
        self.excite = nn.Linear(HIDDEN, num_frames, bias=False)
        self.norm = nn.LayerNorm(num_frames)
        self.student = nn.Linear(num_frames, dim)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D) -> weighted tokens (B, T, D), student (B, D)"""
        frame_weight = self.frame_weight(tokens)
        weight = frame_weight[:, :, None] * self.channel_weight(tokens)[:, None, :]
        return tokens * weight, self.student(frame_weight)

    def frame_weight(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> (B, T) in (0, 1), from the mean over the channels"""
        hidden = F.gelu(self.squeeze(tokens.mean(2)))
        return torch.sigmoid(self.norm(self.excite(hidden)))

    def channel_weight(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> (B, D) in (0, 1): how much the channels, as queries, look at each channel.

        Published: Q K^T / 8 over the D channels, averaged over the queries. That mean equals
        (mean of Q) K^T, so neither the D x D scores nor K are ever formed.
        """
        mean_query = self.query(tokens.mean(2))  # (B, KEY_DIM)
        per_frame = mean_query @ self.key.weight / KEY_DIM**0.5  # (B, T)
        return torch.sigmoid(torch.einsum("btd,bt->bd", tokens, per_frame))
