"""Small real video files whose frames carry their number as a picture: what was decoded can be read
back through a lossy codec."""

import struct
import subprocess
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

from engine.doctor_decoding import scheduled_as_before

WIDTH, HEIGHT = 160, 144
"""The least that NVDEC takes of HEVC is 144 x 144."""
BITS = 8

KINDS: dict[str, tuple[str, dict]] = {
    "h264": ("mp4", {"codec": "libx264", "options": {"bf": "3", "g": "12"}}),
    "h264_open_gop": ("mp4", {
        "codec": "libx264",
        "options": {"bf": "3", "g": "14", "x264-params": "open-gop=1:scenecut=0"},
    }),
    "h264_long_gop": ("mp4", {"codec": "libx264", "options": {"bf": "2", "g": "250"}}),
    "h264_refresh": ("mp4", {
        "codec": "libx264", "options": {"bf": "0", "g": "10", "x264-params": "intra-refresh=1"},
    }),
    "h264_10bit": ("mp4", {"codec": "libx264", "pix_fmt": "yuv420p10le", "options": {"g": "12"}}),
    "h264_odd": ("mp4", {"codec": "libx264", "pix_fmt": "yuv444p", "size": (163, 145)}),
    "h264_uneven": ("mp4", {"codec": "libx264", "size": (166, 146), "options": {"g": "12"}}),
    "h264_avi": ("avi", {"codec": "libx264", "options": {"bf": "0", "g": "12"}}),
    "h264_avi_bframes": ("avi", {"codec": "libx264", "options": {"bf": "3", "g": "12"}}),
    "h264_mkv": ("mkv", {"codec": "libx264", "options": {"bf": "3", "g": "12"}}),
    "hevc": ("mp4", {"codec": "libx265", "options": {"x265-params": "keyint=12:log-level=none"}}),
    "hevc_10bit": ("mp4", {
        "codec": "libx265", "pix_fmt": "yuv420p10le",
        "options": {"x265-params": "keyint=12:log-level=none"},
    }),
    "mpeg4": ("avi", {"codec": "mpeg4", "options": {"g": "12", "b": "2M"}}),
    "mpeg4_bframes": ("avi", {"codec": "mpeg4", "options": {"bf": "2", "g": "12", "b": "2M"}}),
    "mpeg4_odd": ("avi", {"codec": "mpeg4", "size": (163, 145), "options": {"b": "2M"}}),
    "mjpeg": ("avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p", "options": {"qmax": "4"}}),
    "mjpeg_422_odd": ("avi", {
        "codec": "mjpeg", "pix_fmt": "yuvj422p", "size": (163, 145), "options": {"qmax": "4"},
    }),
    "vp8": ("webm", {"codec": "libvpx", "options": {
        "auto-alt-ref": "1", "lag-in-frames": "10", "arnr-maxframes": "5", "g": "12", "b": "1M",
    }}),
    "vp8_plain": ("webm", {"codec": "libvpx", "options": {
        "auto-alt-ref": "0", "lag-in-frames": "0", "g": "12", "b": "1M",
    }}),
    "vp9": ("webm", {"codec": "libvpx-vp9", "options": {
        "auto-alt-ref": "1", "lag-in-frames": "10", "g": "12", "b": "1M", "cpu-used": "4",
    }}),
    "vp9_odd": ("webm", {"codec": "libvpx-vp9", "size": (163, 145), "options": {"b": "1M"}}),
    "av1": ("mp4", {"codec": "libsvtav1", "options": {"preset": "10", "g": "12", "crf": "25"}}),
    "av1_odd": ("mkv", {"codec": "libsvtav1", "size": (164, 146), "options": {"preset": "10"}}),
}  # fmt: skip
"""Containers and encoder settings of the formats that data sets come in."""


def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """(h, w, 3): the number's bits as bright and dark blocks above a drifting colour gradient."""
    frame = np.empty((height, width, 3), np.uint8)
    x, y = np.arange(width) / width, np.arange(height)[:, None] / height
    phase = 2 * np.pi * (x + 0.5 * y + number / 40)
    for channel in range(3):
        frame[..., channel] = np.rint(128 + 80 * np.sin(phase + 2 * np.pi * channel / 3))
    for bit, (top, left, bottom, right) in enumerate(_blocks(width, height)):
        frame[top:bottom, left:right] = 215 if number >> bit & 1 else 40
    return frame


def number_of(frame: NDArray[np.uint8]) -> int:
    """The number that `picture` drew, from a decoded (h, w, 3) frame."""
    height, width = frame.shape[:2]
    means = [
        frame[top + 5 : bottom - 5, left + 5 : right - 5].mean()
        for top, left, bottom, right in _blocks(width, height)
    ]
    return sum(int(mean > 128) << bit for bit, mean in enumerate(means))


def _blocks(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Top, left, bottom and right of each bit: two rows of four in the upper half."""
    across, down = width // 4, height // 4
    places = [(bit // 4 * down, bit % 4 * across) for bit in range(BITS)]
    return [(top, left, top + down, left + across) for top, left in places]


def write_video(
    path: Path,
    num_frames: int = 30,
    codec: str = "libx264",
    size: tuple[int, int] = (WIDTH, HEIGHT),
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
    frames: Sequence[NDArray[np.uint8]] | None = None,
    audio: bool = False,
) -> Path:
    """Numbered pictures (or `frames`) as a video; `times` in 1/30 s, else 0, 1, 2, ..."""
    with scheduled_as_before(), av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, 30)
        sound = container.add_stream("libmp3lame", rate=16000) if audio else None
        for number in range(num_frames):
            pixels = picture(number, *size) if frames is None else frames[number]
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts = number if times is None else times[number]
            frame.time_base = Fraction(1, 30)
            container.mux(stream.encode(frame))
            if sound is not None:
                container.mux(sound.encode(_silence(number)))
        container.mux(stream.encode())
        if sound is not None:
            container.mux(sound.encode())
    return path


def write_kind(folder: Path, kind: str, num_frames: int = 30) -> Path:
    """A video of one of the KINDS."""
    suffix, settings = KINDS[kind]
    return write_video(folder / f"{kind}.{suffix}", num_frames, **settings)


def write_with_hidden_frames(
    path: Path, codec: str, num_frames: int = 90, pix_fmt: str = "yuv420p"
) -> Path:
    """VP8 or VP9 ("libvpx", "libvpx-vp9") with alternate reference frames that are never shown:
    encoders make them in two passes only, which PyAV has no way to ask for, nor for 10 bits."""
    raw = b"".join(picture(number).tobytes() for number in range(num_frames))
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", "-f", "rawvideo",
        "-pix_fmt", "rgb24", "-s", f"{WIDTH}x{HEIGHT}", "-r", "30", "-i", "-", "-c:v", codec,
        "-threads", "1",  # several wait for each other by spinning: minutes where cores are busy
        "-pix_fmt", pix_fmt, "-b:v", "200k", "-g", "30", "-auto-alt-ref", "1",
        "-lag-in-frames", "16", "-arnr-maxframes", "7", "-arnr-strength", "5",
        "-passlogfile", str(path.with_suffix("")),
    ]  # fmt: skip
    for ending in (["-pass", "1", "-f", "null", "-"], ["-pass", "2", str(path)]):
        subprocess.run([*command, *ending], input=raw, check=True)
    return path


def write_packed(path: Path, num_frames: int = 12) -> Path:
    """MPEG-4 in .avi as DivX wrote it: a B-frame shares the packet of the frame after it, and an
    empty picture fills the place that it left."""
    context = av.CodecContext.create("mpeg4", "w")
    context.width, context.height, context.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    context.time_base, context.framerate = Fraction(1, 30), Fraction(30)
    context.options = {"bf": "1", "b_strategy": "0", "g": "100", "b": "2M"}
    parts: list[bytes] = []
    for number in range(num_frames):
        frame = av.VideoFrame.from_ndarray(picture(number), "rgb24")
        frame.pts, frame.time_base = number, Fraction(1, 30)
        parts += map(bytes, context.encode(frame))
    parts += map(bytes, context.encode())
    signature = b"\0\0\1\xb2DivX503b1393p"
    start = parts[0].index(b"\0\0\1\xb6")
    packets = [parts[0][:start] + signature + parts[0][start:]]
    coded = iter(parts[1:])
    for part in coded:
        follower = next(coded, b"")
        packets += [part + follower] + ([b"\0\0\1\xb6\x57"] if follower else [])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        container.start_encoding()
        for number, data in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, 30)
            packet.pts = packet.dts = number
            packet.is_keyframe = number == 0
            container.mux(packet)
    return path


def turned(mp4: bytes, quarter_turns: int) -> bytes:
    """The same .mp4 with a note that it be shown turned clockwise so often."""
    cosine, sine = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarter_turns]
    place = mp4.index(b"tkhd") + 4 + 40
    matrix = struct.pack(
        ">9i", *(65536 * v for v in (cosine, sine, 0, -sine, cosine, 0, 0, 0)), 2**30
    )
    return mp4[:place] + matrix + mp4[place + len(matrix) :]


def _silence(number: int) -> av.AudioFrame:
    frame = av.AudioFrame(format="s16p", layout="mono", samples=533)
    frame.sample_rate, frame.pts, frame.time_base = 16000, number * 533, Fraction(1, 16000)
    for plane in frame.planes:
        plane.update(bytes(plane.buffer_size))
    return frame
