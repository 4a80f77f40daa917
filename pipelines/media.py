"""What the frames of a clip are taken from: files, a video, a clip of a pack. And which of the ways
of decoding fits it on a device. Finding media for a list is pipelines/finding.py."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.folders import FrameList, Frames
from pipelines.pack_format import LZ4, VIDEO, TrackInfo
from pipelines.pack_reader import Pack
from pipelines.video import VideoInfo, decode_frames

FrameNumbers = Sequence[int] | NDArray[np.int64]


class Way(Enum):
    """How frames get from a disk into a graph (pipelines/graph.py)."""

    FILES = "paths of images, read and decoded by DALI"
    IMAGES = "bytes of images, decoded by DALI"
    LZ4 = "bytes of LZ4 blocks, decompressed by DALI on the GPU"
    VIDEO = "path of a video, decoded by DALI"
    RAW = "frames, decoded here: by FFmpeg, by LZ4, or long ago"

    @property
    def by_clip(self) -> bool:
        """Whether a sample is a whole clip (T, h, w, C) rather than one of its frames."""
        return self is Way.VIDEO


@dataclass(frozen=True)
class VideoFile:
    """A video on disk."""

    path: str
    info: VideoInfo
    dali_devices: frozenset[str]
    """Where DALI decodes every video of the list: on the "cpu", on the "gpu"."""

    @property
    def name(self) -> str:
        """What tells these frames from any others on this disk."""
        return self.path

    def size(self) -> tuple[int, int]:
        """Width and height of the frames."""
        return self.info.width, self.info.height

    def changed_ns(self) -> int:
        """When the file was last written or replaced."""
        return os.stat(self.path).st_mtime_ns

    def decode(self, frames: NDArray[np.int64]) -> NDArray[Any]:
        """(T,) frame numbers -> (T, h, w, 3) uint8. Raises ValueError naming file and frame."""
        return decode_frames(self.path, self.info, frames.tolist())


@dataclass(frozen=True, eq=False)
class PackedFrames:
    """One modality of a clip in a pack."""

    pack: Pack
    clip: str
    modality: str

    @property
    def name(self) -> str:
        """What tells these frames from any others on this disk."""
        return f"{self.pack.shard_of(self.clip)}: {self.clip} {self.modality}"

    @property
    def info(self) -> TrackInfo:
        """Encoding, number and size of the frames."""
        return self.pack.info(self.clip, self.modality)

    def size(self) -> tuple[int, int]:
        """Width and height of the frames."""
        return self.info.width, self.info.height

    def changed_ns(self) -> int:
        """When the clip's shard was last written or replaced."""
        return os.stat(self.pack.shard_of(self.clip)).st_mtime_ns

    @property
    def is_lz4(self) -> bool:
        """Whether frames are 16-bit depth without an image format."""
        return self.info.encoding == LZ4

    def encoded(self, frames: FrameNumbers) -> list[NDArray[np.uint8]]:
        """(T,) frame numbers -> their bytes. Raises ValueError naming shard, clip and frame."""
        return self.pack.encoded(self.clip, self.modality, frames)

    def decode(self, frames: FrameNumbers) -> NDArray[Any]:
        """(T,) frame numbers -> (T, h, w, 1) uint16 mm. Raises as `encoded`."""
        return self.pack.depth_frames(self.clip, frames)[..., None]


Media = Frames | FrameList | VideoFile | PackedFrames


def way_of(media: Media, device: str) -> Way:
    """How these frames, and all others of their list, are decoded on "cpu" or "gpu"."""
    if isinstance(media, (Frames, FrameList)):
        return Way.FILES
    if isinstance(media, VideoFile):
        return Way.VIDEO if device in media.dali_devices else Way.RAW
    if media.is_lz4:
        return Way.LZ4 if device == "gpu" else Way.RAW
    assert media.info.encoding != VIDEO, "refused when the list was read"
    return Way.IMAGES
