"""One clip of a list -> which files, which view, which branch frames. Pure: no file is touched."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.config import DataConfig
from pipelines.depth import DepthBoxes
from pipelines.index import ClipIndex
from pipelines.sampling import BRANCHES, FRAMES, VIEW, branch_indices, clip_rng, sample_frames
from pipelines.view import View, draw_view, eval_view


@dataclass(frozen=True, eq=False)
class ClipRequest:
    """All that decides the pixels of a clip: T frame files and one view, equal for all of them."""

    index: int
    """The clip's place in its list."""

    label: int
    paths: tuple[str, ...]
    """T files, in time."""

    view: View
    boxes: NDArray[np.int64] | None
    """(T, 4) region of interest as left, top, width, height; None: the whole frame."""

    branch_indices: tuple[NDArray[np.int64], ...]
    """One (f,) per temporal branch: which of the T frames it sees."""

    origin: str = ""
    """Name and line in the list, for messages."""


class ClipSource:
    """Makes the requests of one list: a function of (seed, epoch, index) and of nothing else."""

    def __init__(
        self, index: ClipIndex, config: DataConfig, seed: int, boxes: DepthBoxes | None = None
    ) -> None:
        self.index = index
        self.config = config
        self.seed = seed
        self.boxes = boxes

    def __len__(self) -> int:
        return len(self.index)

    def train_request(self, epoch: int, clip: int) -> ClipRequest:
        """Random frames, view and branch frames: drawn anew each epoch, the same on any rank."""
        frames, view, branches = (
            clip_rng(self.seed, epoch, clip, purpose) for purpose in (FRAMES, VIEW, BRANCHES)
        )
        return self._request(clip, frames, draw_view(self.config, view), branches)

    def eval_request(self, clip: int) -> ClipRequest:
        """Middle frames and the fixed view."""
        return self._request(clip, None, eval_view(self.config), None)

    def _request(
        self,
        clip: int,
        frames_rng: np.random.Generator | None,
        view: View,
        branches_rng: np.random.Generator | None,
    ) -> ClipRequest:
        listed, files, config = self.index.clips[clip], self.index.frames(clip), self.config
        frames = sample_frames(listed.num_frames, config.num_frames, frames_rng)
        return ClipRequest(
            index=clip,
            label=listed.label,
            paths=tuple(files.path(frame) for frame in frames.tolist()),
            view=view,
            boxes=None if self.boxes is None else self.boxes[clip][frames],
            branch_indices=branch_indices(config.num_frames, config.branch_frames, branches_rng),
            origin=f"clip {listed.name}, {self.index.list_path}:{listed.line}",
        )
