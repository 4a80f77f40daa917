"""A video's coded pictures in a new .mp4, unchanged, each with its time: for DALI's GPU decoder,
which finds frames by times, and .avi files, which have none. Encodes nothing."""

from collections.abc import Iterator
from fractions import Fraction

import av
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from pipelines.video import RESTORE, open_video
from pipelines.video_index import Look, look_through


def copy_with_times(path: str, out: str) -> None:
    """Writes `path` to `out` (.mp4) with frame n at n steps of the average rate.

    Raises ValueError if the file is damaged or has pictures that are never shown (VP8, some AV1).
    """
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
        stream = source.streams.best("video")
        assert stream is not None
        copy = target.add_stream_from_template(stream)
        for place, packet in enumerate(_packets(source, stream)):
            packet.stream, packet.time_base = copy, 1 / rate
            packet.pts, packet.dts, packet.duration = shown[place], place - delay, 1
            target.mux(packet)


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
