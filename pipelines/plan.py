"""Which clips make which batch on which rank, in training and evaluation. No files, no pixels."""

from collections.abc import Iterator

from pipelines.sampling import stream_clips
from pipelines.source import ClipRequest, ClipSource


def train_plan(
    source: ClipSource,
    seed: int,
    global_batch: int,
    first_step: int,
    last_step: int,
    rank: int,
    world_size: int,
) -> Iterator[list[ClipRequest]]:
    """This rank's clips of the steps first_step .. last_step - 1 of the training stream.

    Step k holds the stream's positions k * global_batch .. (k + 1) * global_batch - 1 on any number
    of ranks; every world_size-th of them is this rank's, so that shares differ by one at most.
    """
    assert global_batch >= world_size, "each rank needs a clip"
    for step in range(first_step, last_step):
        clips = stream_clips(seed, len(source), step * global_batch, (step + 1) * global_batch)
        yield [source.train_request(epoch, clip) for epoch, clip in clips[rank::world_size]]


def eval_plan(
    source: ClipSource, batch: int, rank: int, world_size: int
) -> Iterator[list[ClipRequest]]:
    """Each clip exactly once over all ranks: this rank's are rank, rank + world_size, ...

    The last batch may be smaller; a rank beyond the last clip has no batch at all.
    """
    clips = range(rank, len(source), world_size)
    for first in range(0, len(clips), batch):
        yield [source.eval_request(clip) for clip in clips[first : first + batch]]
