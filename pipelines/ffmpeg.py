"""Videos to frames and back through the FFmpeg program, for preparing data sets. Training reads
videos by other means."""

import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import IO, Any

import av
import ffmpeg
import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
FRAMES_PER_SECOND = 30
"""Of the videos written: frames count, not seconds."""


class DamagedSource(ValueError):
    """A downloaded file that does not hold what it promises: its clip is left out."""


def decode(
    path: str, window: tuple[int, int] | None = None, keep_damaged: bool = False
) -> Iterator[Image]:
    """Every frame (H, W, 3) RGB in the order shown, none dropped or doubled to fit a frame rate.

    `window`: only frames first .. stop - 1, counted from 0. Raises DamagedSource behind the last
    frame if FFmpeg found fault, the file is cut short or a window is not full; with `keep_damaged`
    only if there was no frame at all.
    """
    video = ffmpeg.input(f"file:{path}", threads=1)["v:0"]
    if window:
        video = video.filter("trim", start_frame=window[0], end_frame=window[1])
    output = video.output(
        "pipe:", format="image2pipe", vcodec="ppm", pix_fmt="rgb24", fps_mode="passthrough",
        loglevel="error",
    ).global_args("-nostdin")  # fmt: skip
    count = 0
    with tempfile.TemporaryFile() as messages:
        process = _start(output, messages, stdout=subprocess.PIPE)
        assert process.stdout
        try:
            while (frame := _read_ppm(process.stdout)) is not None:
                count += 1
                yield frame
        finally:
            process.stdout.close()  # FFmpeg ends when nobody reads
            status = process.wait()
        fault = _first_message(messages) or (f"FFmpeg ended with {status}" if status else "")
    fault = fault or too_few(path, count, window)
    if not count or (fault and not keep_damaged):
        raise DamagedSource(f"{path}: {fault or 'no frame'}")


def encode(frames: Iterable[Image], path: str, gop: int, crf: int) -> int:
    """Writes H.264 in MP4 with a key frame every `gop` frames and none out of order; the number of
    frames. An odd last row or column is left out: 4:2:0 has none."""
    process: subprocess.Popen[bytes] | None = None
    count = 0
    with tempfile.TemporaryFile() as messages:
        try:
            for frame in frames:
                height, width = (side // 2 * 2 for side in frame.shape[:2])
                if process is None:
                    output = _h264(path, width, height, gop, crf)
                    process = _start(output, messages, stdin=subprocess.PIPE)
                assert process.stdin
                process.stdin.write(np.ascontiguousarray(frame[:height, :width]).data)
                count += 1
        except BrokenPipeError:
            pass  # FFmpeg has ended and says why
        except BaseException:
            if process:
                process.kill()
            raise
        finally:
            if process and process.stdin:
                with suppress(BrokenPipeError):
                    process.stdin.close()
            status = process.wait() if process else 0
        if status:
            raise OSError(f"{path}: not written: {_first_message(messages)}")
    return count


def _h264(path: str, width: int, height: int, gop: int, crf: int) -> Any:
    frames = ffmpeg.input(
        "pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}",
        framerate=FRAMES_PER_SECOND,
    )  # fmt: skip
    return frames.output(
        f"file:{path}", format="mp4", vcodec="libx264", pix_fmt="yuv420p", crf=crf, g=gop,
        keyint_min=gop, sc_threshold=0, bf=0, threads=1, movflags="+faststart", loglevel="error",
        # The same bytes whenever the same frames are written.
        fflags="+bitexact", **{"flags:v": "+bitexact"},
    ).overwrite_output()  # fmt: skip


def _start(
    output: Any, messages: IO[bytes], stdin: int = subprocess.DEVNULL, stdout: int | None = None
) -> subprocess.Popen[bytes]:
    command = output.compile(cmd=imageio_ffmpeg.get_ffmpeg_exe())
    # Messages go to a file: a pipe that nobody reads would fill and stop FFmpeg.
    return subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=messages)


def _read_ppm(pipe: IO[bytes]) -> Image | None:
    """The next frame; None at the end."""
    if not pipe.readline():  # P6
        return None
    width, height = map(int, pipe.readline().split())
    pipe.readline()  # 255
    data = pipe.read(height * width * 3)
    if len(data) < height * width * 3:
        return None  # FFmpeg was stopped in mid-frame: its exit status tells
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)


def _first_message(messages: IO[bytes]) -> str:
    messages.seek(0)
    lines = messages.read().decode(errors="replace").splitlines()
    # "[h264 @ 0x55d3cd9f8d00] error while decoding": the address differs from run to run
    return lines[0].rpartition("] ")[2].strip() if lines else ""


def too_few(path: str, count: int, window: tuple[int, int] | None = None) -> str:
    """What is wrong with the number of frames that were decoded, or nothing."""
    if window:
        wanted = window[1] - window[0]
        short = f"only {count} of the {wanted} frames {window[0]} to {window[1] - 1}"
        return "" if count == wanted else short
    try:
        with av.open(path) as container:
            promised = container.streams.video[0].frames  # 0: the container does not say
    except (av.FFmpegError, IndexError):
        return ""  # FFmpeg the program had no complaint
    # Some writers count one frame more than they write.
    return f"only {count} of its {promised} frames" if count < promised - 1 else ""
