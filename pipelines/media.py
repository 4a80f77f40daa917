"""What the frames of a clip are taken from: files, a video, a clip of a pack, a video in one. And
which of the ways of decoding fits it on a device. For a list they are found by
pipelines/finding.py."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines import nvdec
from pipelines.folders import FrameList, Frames
from pipelines.nvdec import Picture
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
    VIDEO_DATA = "bytes of a video, decoded by DALI"
    RAW = "frames, decoded here: by FFmpeg, by LZ4, or long ago"

    @property
    def by_clip(self) -> bool:
        """Whether a sample is a whole clip (T, h, w, C) rather than one of its frames."""
        return self in (Way.VIDEO, Way.VIDEO_DATA)


@dataclass(frozen=True)
class ByDali:
    """Tells whether DALI decodes every video of a list: there is one way for all of them."""

    on_cpu: bool = False
    on_gpu: bool = False
    """True if only the GPU has to be asked, about all `pictures`."""

    pictures: frozenset[Picture] = frozenset()
    """Codecs and sizes of the list's videos."""

    def refusal(self, device_id: int) -> str:
        """Says why FFmpeg decodes a list that is otherwise fit for NVDEC (`Decoders.refusal`);
        empty if NVDEC decodes it, or would on no GPU."""
        return nvdec.decoders(device_id).refusal(self.pictures) if self.on_gpu else ""

    def on(self, device: str, device_id: int) -> bool:
        """Whether it does on "cpu", or on "gpu": the CUDA device of this number, which is asked."""
        return self.on_cpu if device == "cpu" else self.on_gpu and not self.refusal(device_id)


@dataclass(frozen=True)
class VideoFile:
    """A video on disk."""

    path: str
    info: VideoInfo
    by_dali: ByDali

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

    @property
    def is_video(self) -> bool:
        """Whether all frames are in one file, whose bytes are those of its frame 0."""
        return self.info.encoding == VIDEO

    def state(self) -> tuple[int, int]:
        """Bytes and CRC32 of a video: another one has others, wherever it is."""
        place = self.clip, self.modality
        return self.pack.stored_bytes(*place), int(self.pack.crc32(*place)[0])

    def encoded(self, frames: FrameNumbers) -> list[NDArray[np.uint8]]:
        """(T,) frame numbers -> their bytes. Raises ValueError naming shard, clip and frame."""
        return self.pack.encoded(self.clip, self.modality, frames)

    def decode(self, frames: FrameNumbers) -> NDArray[Any]:
        """(T,) frame numbers -> (T, h, w, 1) uint16 mm. Raises as `encoded`."""
        return self.pack.depth_frames(self.clip, frames)[..., None]


@dataclass(frozen=True, eq=False)
class PackedVideo:
    """A video in a pack."""

    packed: PackedFrames
    info: VideoInfo
    by_dali: ByDali

    @property
    def name(self) -> str:
        """What tells these frames from any others on this disk."""
        return self.packed.name

    def size(self) -> tuple[int, int]:
        """Width and height of the frames."""
        return self.info.width, self.info.height

    def changed_ns(self) -> int:
        """When the clip's shard was last written or replaced."""
        return self.packed.changed_ns()

    def data(self) -> NDArray[np.uint8]:
        """The file's bytes. Raises ValueError naming shard and clip where they are others than
        those that were packed."""
        return self.packed.encoded([0])[0]

    def decode(self, frames: NDArray[np.int64]) -> NDArray[Any]:
        """(T,) frame numbers -> (T, h, w, 3) uint8. Raises as `data`."""
        return decode_frames(self.data().tobytes(), self.info, frames.tolist(), self.name)


Media = Frames | FrameList | VideoFile | PackedFrames | PackedVideo


def way_of(media: Media, device: str, device_id: int = 0) -> Way:
    """How these frames, and all others of their list, are decoded on "cpu" or "gpu": the CUDA
    device of this number."""
    if isinstance(media, (Frames, FrameList)):
        return Way.FILES
    if isinstance(media, (VideoFile, PackedVideo)):
        way = Way.VIDEO if isinstance(media, VideoFile) else Way.VIDEO_DATA
        return way if media.by_dali.on(device, device_id) else Way.RAW
    if media.is_lz4:
        return Way.LZ4 if device == "gpu" else Way.RAW
    assert not media.is_video, "made a PackedVideo when the list was read"
    return Way.IMAGES
