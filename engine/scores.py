"""The scores of every evaluated clip, kept for fusion with other networks: arrays in a file."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.distributed import Ranks
from pipelines.index import ClipIndex


@dataclass(frozen=True)
class ClipScores:
    """N clips in the order of their list, H heads, K classes. The file is a NumPy archive (.npz)
    with these arrays by these names."""

    names: NDArray[np.str_]
    """(N,) as in the split list."""

    labels: NDArray[np.int64]
    """(N,)"""

    heads: NDArray[np.str_]
    """(H,) the first is the one that top-1 is computed from."""

    logits: NDArray[np.float32]
    """(H, N, K) divided by the temperature of the evaluation."""

    def save(self, path: Path) -> None:
        """Write the file. Raises OSError."""
        np.savez_compressed(
            path, names=self.names, labels=self.labels, heads=self.heads, logits=self.logits
        )

    @classmethod
    def load(cls, path: Path) -> "ClipScores":
        """What `save` wrote. Raises ValueError naming a file that is something else."""
        try:
            with np.load(path, allow_pickle=False) as file:
                scores = cls(*(file[key] for key in ("names", "labels", "heads", "logits")))
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"{path}: cannot be read as scores of engine/evaluate.py ({error})"
            ) from None
        shape = (len(scores.heads), len(scores.names))
        if scores.logits.ndim != 3 or scores.logits.shape[:2] != shape:
            raise ValueError(
                f"{path}: logits {scores.logits.shape} do not fit {shape} heads and clips"
            )
        return scores


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
