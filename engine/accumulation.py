"""Which part of a global batch a rank takes at a time, and what each part counts. No arithmetic of
the network: that is engine/loop.py."""

import itertools
from dataclasses import dataclass

from pipelines.batch import Batch


@dataclass(frozen=True)
class Shares:
    """A global batch over `num_ranks` ranks, each taking at most `micro_batch` clips at a time
    (0: its share at once).

    Shares differ by one clip at most, micro batches of a rank too, and every rank takes equally
    many: each of them meets the others in batch norm and in the gradients.
    """

    global_batch: int
    num_ranks: int = 1
    micro_batch: int = 0

    @property
    def largest(self) -> int:
        """Clips of a rank with the larger share."""
        return -(-self.global_batch // self.num_ranks)

    @property
    def smallest(self) -> int:
        """Clips of a rank with the smaller share."""
        return self.global_batch // self.num_ranks

    @property
    def num_micro_batches(self) -> int:
        """Micro batches of each rank in one step."""
        return -(-self.largest // (self.micro_batch or self.largest))

    @property
    def largest_micro_batch(self) -> int:
        """Most clips that go through the network at a time: what decides on memory."""
        return self.sizes(self.largest)[0]

    def sizes(self, clips: int) -> list[int]:
        """Clips of each micro batch of a rank that has `clips`, larger ones first."""
        size, left = divmod(clips, self.num_micro_batches)
        return [size + (i < left) for i in range(self.num_micro_batches)]

    def split(self, batch: Batch) -> list[Batch]:
        """A rank's share -> its micro batches, in order."""
        ends = [0]
        for size in self.sizes(len(batch.label)):
            ends.append(ends[-1] + size)
        return [batch.part(*bounds) for bounds in itertools.pairwise(ends)]

    def weight(self, clips: int) -> float:
        """What the mean loss of a micro batch is multiplied by, so that gradients, added up over
        micro batches and averaged over ranks, are those of the global batch's mean loss."""
        return clips * self.num_ranks / self.global_batch

    def problem(self) -> str:
        """Why a rank would be left without clips, and the fix; empty where none is."""
        ranks, batch = self.num_ranks, self.global_batch
        if batch < ranks:
            return (
                f"train.global_batch = {batch} leaves some of {ranks} ranks without a clip; take "
                f"{ranks} or more, or start fewer ranks"
            )
        if self.smallest < self.num_micro_batches:
            return (
                f"train.micro_batch = {self.micro_batch} leaves nothing for the last micro batch "
                f"of some of {ranks} ranks, whose shares of {batch} clips differ by one; take 2 or "
                f"more, or a train.global_batch that {ranks} divides"
            )
        return ""
