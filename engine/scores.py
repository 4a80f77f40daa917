"""Collects the scores of every clip while ranks evaluate; the file: engine/clip_scores.py."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.clip_scores import ClipScores
from engine.distributed import Ranks
from pipelines.index import ClipIndex


@dataclass
class ScoreKeeper:
    """Collects what one rank evaluates; copies every batch to the host, so not for training."""

    index: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    def add(self, index: Tensor, heads: Sequence[Tensor]) -> None:
        """index (b,) places in the list, heads (b, K) each."""
        self.index.append(index.cpu())
        self.logits.append(torch.stack([head.float() for head in heads], 1).cpu())

    def gather(self, ranks: Ranks, clips: ClipIndex, heads: Sequence[str]) -> ClipScores:
        """The clips of all ranks; on every rank the same."""
        index: list[int] = []
        logits: list[NDArray[np.float32]] = []
        for own_index, own_logits in ranks.gather((self.index, self.logits)):
            index += [place for batch in own_index for place in batch.tolist()]
            logits += [batch.numpy() for batch in own_logits]
        order = np.argsort(index)
        return ClipScores(
            names=np.array([clips.clips[i].name for i in sorted(index)]),
            labels=np.array([clips.clips[i].label for i in sorted(index)], np.int64),
            heads=np.array(heads),
            logits=np.concatenate(logits)[order].swapaxes(0, 1),
        )
