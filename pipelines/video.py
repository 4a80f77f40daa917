"""The n-th frames of a video by FFmpeg (PyAV), on the CPU. Trusts what pipelines/video_index.py
found out about the file; knows nothing of DALI, clips or batches.

Frame n is the n-th picture that the file shows, in display order, whatever its time: what OpenCV
reads one after the other. The ffmpeg program does the same with `-fps_mode passthrough` alone;
without it, it repeats and drops pictures of a variable rate.

Pixels, alike for all decoders (pipelines/video_graph.py does these too):
- RGB by the BT.601 matrix, whatever the file is tagged with: so do OpenCV, DALI (CPU and GPU), and
  FFmpeg where there is no tag, as in the data sets. Limited or full range as the file says.
- Chroma is interpolated linearly. OpenCV and FFmpeg's default take the nearest, 2.7 times as fast
  (6 against 17 ms per 1920x1080 frame on one busy core): on a clip of NTU 1.2 levels off on
  average, up to 43 at edges.
- More than 8 bits are rounded to 8.
- A rotation that the file notes is applied, as OpenCV and ffmpeg do where frames are extracted.
"""

import io
import itertools
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import av
import numpy as np
from av.codec.context import Flags
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipelines.nvdec import FORMATS, Picture

SEEK_GAIN = 4
"""Frames that a seek must save: as many may be lost in the decoder, which puts them in order."""
MOST_PIXELS = 2**26
"""Of a frame. A damaged header must not exhaust the memory."""
INTERPOLATION = (
    Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
)  # DALI's: the pixels of its CPU backend are bit-equal

DALI_CPU = frozenset({"mjpeg", "vp8", "vp9"})
BIT_DEPTHS = {"yuv420p": 8, "yuvj420p": 8, "yuv420p10le": 10}
"""Bits per sample of the pixel formats that NVDEC is given."""

RESTORE = "restore it or take its clip off the list"


class Packet(NamedTuple):
    """The header of one packet of the video stream."""

    place: int
    """Among the stream's packets, from where reading began."""

    pts: int | None
    dts: int | None
    is_key: bool
    byte: int | None
    """Where it begins in the file, if the container says so."""


@dataclass(frozen=True)
class VideoInfo:
    """What a sound video file holds; made by `probe` of pipelines/video_index.py."""

    num_frames: int
    """Pictures that decode and are shown: the truth, not the header's figure."""

    width: int
    """Of the frames as delivered, after the rotation."""

    height: int
    codec: str
    """FFmpeg's name of the format: h264, hevc, mpeg4, mjpeg, vp8, vp9, av1, ..."""

    pixel_format: str
    """FFmpeg's name: yuv420p, yuv420p10le, ..."""

    quarter_turns: int
    """Counter-clockwise, to be applied to the stored pictures: 0 to 3."""

    variable_rate: bool
    plain: bool
    """One picture per packet, found by the packets' own times, as large as the container's header
    says: what DALI takes for granted. Elsewhere it delivers other frames or ends the process."""

    interlaced: bool
    seek_points: tuple[tuple[int, int], ...]
    """Frames at which decoding can start, tried out, and the times that lead there."""

    state: tuple[int, int] = field(default=(0, 0), compare=False)
    """Bytes and time of change (ns) of the file that was looked at."""

    @property
    def dali_cpu(self) -> bool:
        """Whether DALI's CPU backend delivers the frames of this file."""
        return self.codec in DALI_CPU and self.plain and not self.quarter_turns

    @property
    def picture(self) -> Picture | None:
        """Format and size that a GPU is asked about; None where no GPU need be asked."""
        bits = BIT_DEPTHS.get(self.pixel_format, 0)
        known = (self.codec, bits) in FORMATS
        return Picture(self.codec, bits, self.width, self.height) if known else None

    @property
    def dali_gpu(self) -> bool:
        """Whether DALI's mixed backend should deliver the frames of this file, if the GPU's NVDEC
        decodes its pictures (pipelines/nvdec.py). Conservative where DALI's source has gaps."""
        even = self.width % 2 == 0 and self.height % 2 == 0  # it halves sizes to find the chroma
        plain = self.plain and not (self.interlaced or self.quarter_turns)
        return plain and even and self.picture is not None


def decode_frames(
    source: str | bytes, info: VideoInfo, frames: Sequence[int], name: str = "video in memory"
) -> NDArray[np.uint8]:
    """T frame numbers, in any order, repeats allowed -> (T, h, w, 3) RGB, by one decoder thread.

    `source` is a path or the file's bytes, `name` what messages call the latter. Only these frames
    are converted. Raises ValueError naming file and frame if one does not come out; call it for
    several clips from several threads, FFmpeg works without the interpreter's lock.
    """
    name = source if isinstance(source, str) else name
    out = np.empty((len(frames), info.height, info.width, 3), np.uint8)
    places: dict[int, list[int]] = {}
    for place, frame in enumerate(frames):
        if not 0 <= frame < info.num_frames:
            raise ValueError(f"{name}: frame {frame} asked of {info.num_frames}")
        places.setdefault(int(frame), []).append(place)
    if not places:
        return out
    stored = (info.width, info.height) if info.quarter_turns % 2 == 0 else (info.height, info.width)
    convert = VideoReformatter()
    with open_video(source, name) as (container, stream):
        for number, picture in _wanted(container, stream, info, sorted(places), name):
            if (picture.width, picture.height) != stored:
                raise ValueError(f"{name}: frame {number} has another size than probed; {RESTORE}")
            first, *others = places[number]
            to_rgb(picture, convert, info.quarter_turns, out[first])
            for place in others:
                out[place] = out[first]
    return out


def file_state(path: str) -> tuple[int, int]:
    """Bytes and time of change (ns): another file, or another content, has others."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


@contextmanager
def open_video(source: str | bytes, name: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its main video stream, to be decoded strictly by one thread.

    Whatever FFmpeg finds wrong, here or in the body, becomes a ValueError that names the file.
    """
    try:
        with av.open(
            # A plain name may hold a colon, which would make a protocol of what is before it.
            f"file:{source}" if isinstance(source, str) else io.BytesIO(source),
            metadata_errors="replace",
            options={"err_detect": "explode"},
        ) as container:
            # PyAV's stubs know neither the kind of the stream nor, by its mode, of the container.
            stream: Any = container.streams.best("video")
            if stream is None:
                raise ValueError(f"{name}: holds no video; name a video or correct the list")
            if stream.codec_context is None:
                raise ValueError(f"{name}: its codec is unknown here; convert it with ffmpeg")
            stream.thread_type = "NONE"
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {
                "err_detect": "explode+crccheck+bitstream+buffer",
                "max_pixels": str(MOST_PIXELS),
            }
            stream.codec_context.flags |= Flags.copy_opaque
            yield cast(InputContainer, container), stream
    except av.FFmpegError as error:
        # The path's own troubles have a number of the system, a damaged file's one of FFmpeg.
        reason = error.strerror if isinstance(error, OSError) else _no_video(source)
        raise ValueError(f"{name}: {reason}; {RESTORE}") from None


def _no_video(source: str | bytes) -> str:
    head = source[:8] if isinstance(source, bytes) else b""
    if isinstance(source, str):
        with suppress(OSError), open(source, "rb") as file:
            head = file.read(8)
    return f"damaged or no video: at byte 0 it begins with {head!r}"


def pictures(
    container: InputContainer, stream: VideoStream, name: str, packets: list[Packet] | None = None
) -> Iterator[VideoFrame]:
    """The pictures from where the container stands to the end, in display order.

    `packets` takes what was read, without its data, and the `opaque` of a picture is its packet's
    entry there. Raises ValueError with the place of the first damage.
    """
    shown, position = 0, None
    try:
        for packet in container.demux(stream):
            # Empty are PyAV's last packet and AVI's for a frame that the camera dropped: the
            # decoder would take either for the end.
            if not packet.size:
                continue
            position = packet.pos
            if packets is not None:
                packets.append(
                    Packet(len(packets), packet.pts, packet.dts, packet.is_keyframe, position)
                )
                # PyAV finds it again by its identity: a number would be shared between threads.
                packet.opaque = packets[-1]
            for picture in () if packet.is_corrupt else stream.codec_context.decode(packet):
                shown += 1
                yield picture
            if packet.is_corrupt:
                raise av.InvalidDataError(0, "cut short")
        yield from stream.codec_context.decode(None)
    except av.FFmpegError:
        where = near(position)
        raise ValueError(f"{name}: damaged after {shown} frames{where}; {RESTORE}") from None


def near(byte: int | None) -> str:
    """For messages: where a packet begins, if that is known."""
    return "" if byte is None else f", near byte {byte}"


def pictures_from(
    container: InputContainer, stream: VideoStream, point: tuple[int, int], name: str
) -> Iterator[tuple[int, VideoFrame]]:
    """Numbered pictures from a seek point of VideoInfo on."""
    number, time = point
    container.seek(time, stream=stream)
    rest = pictures(container, stream, name)
    # Before the key frame, pictures may be shown that need what came earlier.
    yield from enumerate(itertools.dropwhile(lambda picture: not picture.key_frame, rest), number)


def _wanted(
    container: InputContainer,
    stream: VideoStream,
    info: VideoInfo,
    wanted: Sequence[int],
    name: str,
) -> Iterator[tuple[int, VideoFrame]]:
    """The pictures of these numbers, which ascend; decoded through, or from a key frame on where
    that saves more than it costs."""
    starts = [start for start, _ in info.seek_points]
    pending: Iterator[tuple[int, VideoFrame]] = enumerate(pictures(container, stream, name))
    position = 0
    for frame in wanted:
        place = bisect_right(starts, frame) - 1
        if place >= 0 and starts[place] - position >= SEEK_GAIN:
            pending = pictures_from(container, stream, info.seek_points[place], name)
        for number, picture in pending:
            if number == frame:
                yield number, picture
                break
        else:
            raise ValueError(f"{name}: frame {frame} of {info.num_frames} is missing; {RESTORE}")
        position = frame + 1


def to_rgb(
    picture: VideoFrame, convert: VideoReformatter, quarter_turns: int, out: NDArray[np.uint8]
) -> None:
    """Writes the decoded picture to `out` (h, w, 3), turned counter-clockwise."""
    rgb = convert.reformat(
        picture, format="rgb24", interpolation=INTERPOLATION, threads=1,
        src_colorspace=Colorspace.ITU601, dst_colorspace=Colorspace.ITU601,
    )  # fmt: skip
    plane = rgb.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(rgb.height, plane.line_size)
    pixels = rows[:, : rgb.width * 3].reshape(rgb.height, rgb.width, 3)
    out[...] = np.rot90(pixels, quarter_turns)
