"""Losses that are no longer finite, or too large: known at the next log line and before each save,
and told with the clips of that step. Until then they stay on the device."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from engine.distributed import Ranks, RunError
from engine.loop import TrainStep
from engine.skipping import trouble

MOST_SKIPPED = 20
"""Steps left out in a row, after which a run learns nothing any more."""


class Taken(NamedTuple):
    """A step since the last look."""

    step: int
    epoch: int
    clips: Tensor
    """(B,) places in the list of this rank's clips, on the CPU."""


class LossWatch:
    """The losses of the steps since the last look, of which there are at most `most`."""

    def __init__(
        self,
        step: TrainStep,
        ranks: Ranks,
        most: int,
        max_loss: float,
        name: Callable[[int], str],
    ):
        """`name` of a clip, by its place in the training list."""
        self.step = step
        self.ranks = ranks
        self.max_loss = max_loss
        self.name = name
        self.taken: list[Taken] = []
        self.own = torch.zeros(2, most, dtype=torch.float64, device=ranks.device)
        """Of each step this rank's loss, and 0 or NaN by its gradients."""

    def add(self, step: int, epoch: int, loss: Tensor, index: Tensor) -> None:
        """What the step that was just taken gave."""
        place = len(self.taken)
        self.own[0, place] = loss
        self.own[1, place] = self.step.trouble
        self.taken.append(Taken(step, epoch, index))

    def values(self) -> Tensor:
        """What `judge` looks at, on the device: (2 * most + 3,) float64, equal on all ranks."""
        sums = self.ranks.sum(self.own / self.ranks.world_size).flatten()
        return torch.cat([sums, self._skips()])

    def judge(self, values: Sequence[float]) -> None:
        """The steps' losses, as `values` gave them, are as they should be; forgets them.

        Raises RunError on all ranks naming the first step that is not, its clips and what to do.
        """
        most = self.own.shape[1]
        skips = self.step.scaler.is_enabled()
        for place in range(len(self.taken)):
            loss, gradient = values[place], values[most + place]
            if self.max_loss and math.isfinite(loss) and loss > self.max_loss:
                self._stop(place, f"its loss is {loss:.5g}, above train.max_loss = "
                           f"{self.max_loss:g}")  # fmt: skip
            if not (skips or math.isfinite(loss)):
                self._stop(place, f"its loss is {loss}")
            if not (skips or math.isfinite(gradient)):
                self._stop(place, f"its gradients are not finite, though its loss is {loss:.5g}")
        if self.taken and values[-1] >= MOST_SKIPPED:
            self._stop(
                len(self.taken) - 1,
                f"{MOST_SKIPPED} steps in a row up to here were left out, as their gradients were "
                "not finite",
            )
        self.taken.clear()

    def check(self) -> None:
        """As `judge`, of what it would be given now, and of the weights; waits for the device. To
        be called before each save, so that no checkpoint holds anything but finite numbers."""
        network = self.step.model
        kept = [tensor for tensor in _state(network) if tensor.is_floating_point()]
        weights = self.ranks.sum(trouble(kept).double().reshape(1))
        *values, finite = torch.cat([self.values(), weights]).tolist()
        self.judge(values)
        if math.isnan(finite):
            raise RunError(
                "the network's weights or statistics are not finite numbers after the last step, "
                "though its loss and its gradients were; nothing is saved. Lower optim.lr"
            )

    def _skips(self) -> Tensor:
        """(3,): steps left out so far, in a row until now, longest row."""
        if self.step.scaler.is_enabled():
            return self.step.scaler.counts(self.ranks.device)
        return self.own.new_zeros(3)

    def _stop(self, place: int, problem: str) -> NoReturn:
        taken = self.taken[place]
        loss = self.own[0, place].item()
        names = ", ".join(self.name(clip) for clip in taken.clips.tolist())
        shares = self.ranks.gather((names, loss))
        clips = names
        if len(shares) > 1:
            clips = "; ".join(_share(rank, *share) for rank, share in enumerate(shares))
        raise RunError(
            f"step {taken.step}, epoch {taken.epoch + 1}: {problem}. Nothing is saved after it.\n"
            f"its clips: {clips}\n"
            "look at these clips (python -m pipelines.check), lower optim.lr, raise optim.warmup, "
            "or set train.precision=fp32; train.on_nan=skip leaves out steps whose gradients are "
            "not finite. The same command goes on from the last checkpoint"
        )


def skipped(values: Sequence[float]) -> int:
    """Steps left out so far, of the `values` of a LossWatch."""
    return round(values[-3])


def _share(rank: int, names: str, loss: float) -> str:
    """One rank's clips, and whether the trouble is there."""
    return f"{names} (rank {rank}{'' if math.isfinite(loss) else f', whose own loss is {loss}'})"


def _state(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
