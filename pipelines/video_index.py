"""What a video file truly holds, by decoding all of it once, and remembered. Keeps no pixels."""

import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from tqdm import tqdm

from pipelines.cache import JsonLines
from pipelines.media import PackedFrames
from pipelines.video import (
    RESTORE,
    Packet,
    VideoInfo,
    file_state,
    near,
    open_video,
    pictures,
    pictures_from,
    to_rgb,
)
from pipelines.video_container import is_chained, noted_size

SEEK_SPACING = 12
"""Fewest frames between two seek points: each is tried out, which costs some frames of decoding."""
RATE_TOLERANCE = 0.1
"""Of the mean step: containers round times, to milliseconds in .webm."""
VERSION = 2
"""Of VideoInfo's meaning: results of another one are computed anew."""

Source = str | PackedFrames
"""Path of a video, or a video in a pack."""


@dataclass(frozen=True)
class Probe:
    """What was found out about one file: either of the two is None."""

    info: VideoInfo | None
    error: str | None = None


@dataclass(frozen=True, eq=False)
class Look:
    """What decoding a file from end to end showed."""

    packets: list[Packet]
    places: list[int]
    """Of each picture, in display order: the place of its packet."""

    times: list[int | None]
    """When each picture is shown; in AVI, by its packet's place."""

    keys: dict[int, int]
    """Checksums of pictures at which decoding might start, by frame number."""

    first: VideoFrame
    interlaced: bool


def probe(source: str | bytes, name: str = "video in memory") -> VideoInfo:
    """Decodes the whole file strictly, once (and some frames after key frames twice).

    `source` is a path or the file's bytes, `name` what messages call the latter. Raises ValueError
    naming the file and, where known, frame and byte if any of it is damaged or missing. Wrong bits
    that still make pictures go unnoticed: only checksums find those.
    """
    name = source if isinstance(source, str) else name
    try:
        # Before: a change in between shows as another state later.
        state = file_state(source) if isinstance(source, str) else (len(source), 0)
        noted, chained = noted_size(source), is_chained(source)
    except OSError as error:
        raise ValueError(f"{name}: {error.strerror}; {RESTORE}") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}; {RESTORE}") from None
    with open_video(source, name) as (container, stream):
        look = look_through(container, stream, name)
        first = look.first
        turns = _quarter_turns(first)
        width, height = first.width, first.height
        return VideoInfo(
            num_frames=len(look.places),
            width=height if turns % 2 else width,
            height=width if turns % 2 else height,
            codec=stream.codec_context.codec.canonical_name,
            pixel_format=first.format.name,
            quarter_turns=turns,
            variable_rate=_is_variable(look.times),
            # DALI believes the header's count, where there is one, and refuses frames past it.
            plain=chained
            and (stream.frames == 0 or len(look.places) <= stream.frames < 2**31)
            and noted == (width, height)
            and _in_order(look, container.format.name == "avi"),
            interlaced=look.interlaced,
            seek_points=_seek_points(container, stream, look, name),
            state=state,
        )


def probe_packed(track: PackedFrames) -> VideoInfo:
    """The same of a video in a pack, held to its CRC32 and to what the pack's JSON says of it.

    Raises ValueError naming shard and clip.
    """
    info, said = probe(track.encoded([0])[0].tobytes(), track.name), track.info
    if (info.num_frames, info.height, info.width) != (said.num_frames, said.height, said.width):
        raise ValueError(
            f"{track.name}: holds {info.num_frames} frames of {info.width}x{info.height}, its JSON "
            f"says {said.num_frames} of {said.width}x{said.height}; write the pack anew"
        )
    return info


def probe_videos(
    sources: Sequence[Source], root: str, cache: JsonLines, workers: int | None = None
) -> dict[Source, Probe]:
    """Probes each video, unless it has the size and the time of change (in a pack, the CRC32) that
    the cache knows.

    `workers` threads (as many as there are processors) share the decoding, which needs no lock of
    the interpreter. A video that cannot be used is an entry with an error, not an exception.
    """
    found: dict[Source, Probe] = {}
    unique = list(dict.fromkeys(sources))
    keys = [os.path.relpath(s if isinstance(s, str) else s.name, root) for s in unique]
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        jobs = pool.map(_probe, unique, map(cache.get, keys))
        bar = tqdm(jobs, "verifying videos", len(keys), unit="video", delay=1, disable=None)
        for source, key, (result, entry) in zip(unique, keys, bar, strict=True):
            found[source] = result
            if entry is not None and cache.get(key) != entry:
                cache.put(key, entry)
    return found


def _probe(source: Source, known: Any) -> tuple[Probe, list[Any] | None]:
    """The result, and what the cache is to keep of it; errors are looked at again each time."""
    try:
        # Before decoding: a change during it shows as another time of change the next time.
        state = [VERSION, *(file_state(source) if isinstance(source, str) else source.state())]
    except OSError as error:
        return Probe(None, f"{source}: {error.strerror}; {RESTORE}"), None
    if known and known[: len(state)] == state:
        return Probe(_restored(known[-1])), None
    try:
        info = probe(source) if isinstance(source, str) else probe_packed(source)
    except (ValueError, OSError) as error:
        return Probe(None, str(error)), None
    return Probe(info), [*state, _plain(info)]


def _plain(info: VideoInfo) -> dict[str, Any]:
    """As JSON gives it back."""
    points = [list(point) for point in info.seek_points]
    return {**asdict(info), "seek_points": points, "state": list(info.state)}


def _restored(plain: dict[str, Any]) -> VideoInfo:
    points = tuple((frame, time) for frame, time in plain["seek_points"])
    return VideoInfo(**{**plain, "seek_points": points, "state": tuple(plain["state"])})


def look_through(container: InputContainer, stream: VideoStream, path: str) -> Look:
    """Decodes everything. Raises ValueError if nothing is there or frames differ in size."""
    packets: list[Packet] = []
    places: list[int] = []
    times: list[int | None] = []
    keys: dict[int, int] = {}
    first: VideoFrame | None = None
    is_avi = container.format.name == "avi"
    interlaced, last_key = False, 0
    for number, picture in enumerate(pictures(container, stream, path, packets)):
        first = first or picture
        packet = picture.opaque
        assert isinstance(packet, Packet), "every decoder hands its packet's entry on"
        what, where = f"{path}: frame {number} is", near(packet.byte)
        size, expected = (picture.width, picture.height), (first.width, first.height)
        if size != expected:
            raise ValueError(f"{what} {size}, those before {expected}{where}; convert")
        if picture.is_corrupt:
            raise ValueError(f"{what} damaged{where}; {RESTORE}")
        places.append(packet.place)
        # AVI notes no time of display: FFmpeg infers one, not always evenly.
        times.append(packets[number].dts if is_avi else picture.pts)
        interlaced |= bool(picture.interlaced_frame)
        is_key = picture.key_frame and packet.is_key
        if is_key and number - last_key >= SEEK_SPACING:
            last_key, keys[number] = number, _checksum(picture)
    if first is None:
        raise ValueError(f"{path}: holds no frames; {RESTORE}")
    return Look(packets, places, times, keys, first, interlaced)


def _checksum(picture: VideoFrame) -> int:
    pixels = np.empty((picture.height, picture.width, 3), np.uint8)
    to_rgb(picture, VideoReformatter(), 0, pixels)
    return zlib.crc32(pixels.data)


def _seek_points(
    container: InputContainer, stream: VideoStream, look: Look, path: str
) -> tuple[tuple[int, int], ...]:
    """The key frames from which decoding, tried out, starts with the same picture.

    Containers call frames keys that are none, keep no index or a wrong one: where any of that
    shows, the frame is left out, and decoding starts further ahead.
    """
    points = []
    for number, checksum in look.keys.items():
        packet = look.packets[look.places[number]]
        # MP4 is searched by the time of display, AVI by that of decoding.
        for time in dict.fromkeys((packet.pts, packet.dts)):
            point = (number, time or 0)
            if time is not None and _leads_to(container, stream, point, checksum, path):
                points.append(point)
                break
    return tuple(points)


def _leads_to(
    container: InputContainer,
    stream: VideoStream,
    point: tuple[int, int],
    checksum: int,
    path: str,
) -> bool:
    try:
        found = next(pictures_from(container, stream, point, path), None)
    except (ValueError, av.FFmpegError):  # no way to there, or none from there
        return False
    return found is not None and _checksum(found[1]) == checksum


def _in_order(look: Look, is_avi: bool) -> bool:
    """Whether the packets' times alone tell which frame is which."""
    times = [packet.dts if packet.pts is None else packet.pts for packet in look.packets]
    known = [time for time in times if time is not None and time >= 0]
    if len(set(known)) != len(times) or len(times) != len(look.places):
        return False
    in_time = sorted(range(len(times)), key=lambda place: known[place])
    # AVI counts packets; the times that we see of reordered frames are FFmpeg's inference, which
    # DALI, opening files without a first look inside, does without.
    reordered = look.places != list(range(len(times)))
    return in_time == look.places and not (reordered and is_avi)


def _is_variable(times: Sequence[int | None]) -> bool:
    known = [time for time in times if time is not None]
    steps = np.diff(known)
    if len(known) < len(times) or len(steps) < 2:
        return False
    return bool(np.ptp(steps) > max(1, RATE_TOLERANCE * steps.mean()))


def _quarter_turns(picture: VideoFrame) -> int:
    """Counter-clockwise; what is no multiple of 90 degrees is ignored, as OpenCV does."""
    return picture.rotation // 90 % 4 if picture.rotation % 90 == 0 else 0
