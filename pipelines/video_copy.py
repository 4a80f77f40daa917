"""A video's coded pictures in a new .mp4, unchanged, each with its time: for DALI's GPU decoder,
which finds frames by times, and .avi files, which have none. Encodes nothing."""

from collections.abc import Iterator
from fractions import Fraction

import av
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from pipelines.video import RESTORE, open_video
from pipelines.video_container import noted_size
from pipelines.video_index import Look, look_through


def copy_with_times(path: str, out: str) -> int:
    """Writes `path` to `out` (.mp4) with frame n at n steps of the average rate; number of frames.

    Raises ValueError if the file is damaged, has pictures that are never shown (VP9 may) or is of a
    format that is not copied into .mp4 (VP8, AV1).
    """
    _check_whole(path)
    with open_video(path, path) as (source, stream):
        look = look_through(source, stream, path)
        rate = stream.average_rate or Fraction(30)
    shown = _display_numbers(look, path)
    # A picture is decoded before it is shown: times of decoding start as far ahead as that needs.
    delay = max(place - number for place, number in enumerate(shown))
    # Found sound: what goes wrong from here on is the disk's and keeps its name.
    with (
        av.open(f"file:{path}", metadata_errors="replace") as source,
        av.open(f"file:{out}", "w", format="mp4") as target,
    ):
        best = source.streams.best("video")
        assert isinstance(best, VideoStream)
        stream = best
        copy = _stream_like(stream, target, path)
        for place, packet in enumerate(_packets(source, stream)):
            packet.stream, packet.time_base = copy, 1 / rate
            packet.pts, packet.dts, packet.duration = shown[place], place - delay, 1
            target.mux(packet)
    return len(shown)


def _check_whole(path: str) -> None:
    """FFmpeg takes a file cut between frames for a short video."""
    try:
        noted_size(path)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; {RESTORE}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {RESTORE}") from None


def _stream_like(stream: VideoStream, target: OutputContainer, path: str) -> VideoStream:
    try:
        return target.add_stream_from_template(stream)
    except ValueError:  # of PyAV: .mp4 or its library does not take the codec
        codec = stream.codec_context.codec.canonical_name
        raise ValueError(f"{path}: {codec} is not copied into .mp4; encode it anew") from None


def _packets(source: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """One picture each: DivX packed two into one."""
    unpack = stream.codec_context.codec.canonical_name == "mpeg4"
    name = "mpeg4_unpack_bframes" if unpack else "null"
    single = BitStreamFilterContext(name, stream)
    for packet in source.demux(stream):
        if packet.size:
            yield from single.filter(packet)
    yield from single.filter(None)


def _display_numbers(look: Look, path: str) -> list[int]:
    """Of each packet, the number of the frame it holds."""
    if sorted(look.places) != list(range(len(look.packets))):
        raise ValueError(f"{path}: its packets are not one frame each; encode it anew, {RESTORE}")
    numbers = [0] * len(look.places)
    for number, place in enumerate(look.places):
        numbers[place] = number
    return numbers
