"""One clip of a list -> which frames, which view, which branch frames. Pure: no file is touched."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.config import DataConfig
from pipelines.depth import DepthBoxes
from pipelines.folders import FrameList, Frames
from pipelines.index import ClipIndex
from pipelines.media import Media, PackedFrames, PackedVideo, VideoFile
from pipelines.pack_format import TrackInfo
from pipelines.sampling import (
    BRANCHES,
    DEPTH_VIEW,
    FRAMES,
    VIEW,
    branch_indices,
    clip_rng,
    sample_frames,
)
from pipelines.view import View, draw_view, eval_view


@dataclass(frozen=True, eq=False)
class Stream:
    """One modality of a clip: T frames of its media, and one view, equal for all of them."""

    media: Media
    frames: NDArray[np.int64]
    """(T,) numbers of the frames in the media, from 0, in time."""

    view: View
    boxes: NDArray[np.int64] | None = None
    """(T, 4) region of interest as left, top, width, height; None: the whole frame."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The T files of a clip that has one per frame."""
        assert isinstance(self.media, (Frames, FrameList))
        return tuple(self.media.path(frame) for frame in self.frames.tolist())

    def path_bytes(self) -> NDArray[np.uint8]:
        """(T, L) the same as bytes, shorter ones ending in zeros."""
        assert isinstance(self.media, (Frames, FrameList))
        return self.media.path_bytes(self.frames)

    @property
    def packed_info(self) -> TrackInfo:
        """Of a clip of a pack."""
        assert isinstance(self.media, PackedFrames)
        return self.media.info

    def encoded(self) -> list[NDArray[np.uint8]]:
        """The bytes of T frames of a pack. Raises ValueError naming shard, clip and frame."""
        assert isinstance(self.media, PackedFrames)
        return self.media.encoded(self.frames)

    def video_data(self) -> NDArray[np.uint8]:
        """The bytes of a video of a pack. Raises ValueError naming shard and clip."""
        assert isinstance(self.media, PackedVideo)
        return self.media.data()

    def decode(self) -> NDArray[Any]:
        """(T, h, w, C) frames, without DALI. Raises ValueError naming file and frame."""
        assert isinstance(self.media, (VideoFile, PackedFrames, PackedVideo))
        return self.media.decode(self.frames)


@dataclass(frozen=True, eq=False)
class ClipRequest:
    """All that decides the pixels of a clip."""

    index: int
    """The clip's place in its list."""

    label: int
    streams: tuple[Stream, ...]
    """One per modality, as in `DataConfig.modalities`: the same T frames of each."""

    branch_indices: tuple[NDArray[np.int64], ...]
    """One (f,) per temporal branch: which of the T frames it sees."""

    num_frames: int = 0
    """Frames of the whole clip that may be drawn in other epochs; 0: there are none."""

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
        rng = partial(clip_rng, self.seed, epoch, clip)
        views = [draw_view(self.config, rng(VIEW))] * len(self.config.modalities)
        if len(views) > 1 and not self.config.paired_view:
            views[1] = draw_view(self.config, rng(DEPTH_VIEW))
        return self._request(clip, rng(FRAMES), views, rng(BRANCHES))

    def eval_request(self, clip: int) -> ClipRequest:
        """Middle frames and the fixed view."""
        views = [eval_view(self.config)] * len(self.config.modalities)
        return self._request(clip, None, views, None)

    def _request(
        self,
        clip: int,
        frames_rng: np.random.Generator | None,
        views: Sequence[View],
        branches_rng: np.random.Generator | None,
    ) -> ClipRequest:
        listed, config = self.index.clips[clip], self.config
        frames = sample_frames(listed.num_frames, config.num_frames, frames_rng)
        return ClipRequest(
            index=clip,
            label=listed.label,
            streams=tuple(
                self._stream(clip, modality, frames, view)
                for modality, view in zip(config.modalities, views, strict=True)
            ),
            branch_indices=branch_indices(config.num_frames, config.branch_frames, branches_rng),
            num_frames=listed.num_frames,
            origin=f"clip {listed.name}, {self.index.list_path}:{listed.line}",
        )

    def _stream(self, clip: int, modality: str, frames: NDArray[np.int64], view: View) -> Stream:
        boxes = None
        if self.config.boxed(modality):
            assert self.boxes is not None, "this depth encoding needs pipelines/depth_boxes.py"
            boxes = self.boxes[clip][frames]
        return Stream(self.index.media[modality][clip], frames, view, boxes)
