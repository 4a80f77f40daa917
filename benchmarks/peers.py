"""What else loads such clips, for comparison: torch's DataLoader whose workers read frame files
with Pillow and OpenCV (the plain twin of the recipe) or videos with a decoding library.

All decode the same frames of the same clips and go on with the twin's geometry and motion maps.
"""

import importlib.util
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from benchmarks.loader_data import video_path
from pipelines import reference
from pipelines.config import DataConfig
from pipelines.source import ClipRequest, ClipSource

Frames = Sequence[NDArray[np.uint8]]
"""(H, W, 3) each."""

Decoder = Callable[[str, Sequence[int]], Frames]
"""A video file and the wanted frames, by number, ascending, repeats allowed -> these frames."""


def missing(module: str) -> str:
    """Why the peer cannot be measured here; empty where it can."""
    return "" if importlib.util.find_spec(module) else "not installed"


def batches(
    source: ClipSource, batch: int, workers: int, data: Path, decoder: Decoder | None
) -> Iterator[Any]:
    """Endless batches of `workers` processes; `decoder` None reads frame files.

    The workers are forked, as torch's default has it in a program of its own: not from a process in
    which DALI or OpenCV has started threads.
    """
    clips = _Clips(source, data, decoder)
    return iter(
        DataLoader(
            clips, batch, sampler=_InOrder(), num_workers=workers, worker_init_fn=_one_thread,
            multiprocessing_context="fork" if workers else None,
        )
    )  # fmt: skip


class _InOrder(Sampler[int]):
    """0, 1, 2, ... without end."""

    def __iter__(self) -> Iterator[int]:
        return itertools.count()


class _Clips(Dataset[tuple[Any, ...]]):
    """Epoch after epoch of the source's clips, in the order of the list."""

    def __init__(self, source: ClipSource, data: Path, decoder: Decoder | None) -> None:
        self._source = source
        self._data = data
        self._decoder = decoder

    def __getitem__(self, place: int) -> tuple[Any, ...]:
        """(T, H, W, 3) float32 and, with maps, (T, H, W) of each modality; label, branch frames."""
        request = self._source.train_request(*divmod(place, len(self._source)))
        config = self._source.config
        pixels = self._pixels(request, config)
        clips = [reference.normalise(part) for part in pixels]
        window = config.motion_window
        maps = [reference.motion_maps(part, window) for part in pixels] if window else []
        return clips, maps, request.label, request.branch_indices

    def _pixels(self, request: ClipRequest, config: DataConfig) -> list[reference.Pixels]:
        if self._decoder is None:
            return reference.clip_pixels(request.streams, config)
        (stream,) = request.streams
        files = [Path(path) for path in stream.paths]
        video = video_path(self._data, files[0].parent.name)
        frames = self._decoder(str(video), [int(file.stem) - 1 for file in files])
        return [reference.from_frames(frames, stream.view, config)]


def _one_thread(_: int) -> None:
    cv2.setNumThreads(1)  # the worker processes fill the cores


def pyav_frames(path: str, wanted: Sequence[int]) -> Frames:
    """By PyAV: all frames up to the last that is wanted."""
    import av

    frames: dict[int, NDArray[np.uint8]] = {}
    with av.open(path) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                pixels: Any = frame.to_ndarray(format="rgb24")
                frames[number] = pixels
            if number >= wanted[-1]:
                break
    return [frames[number] for number in wanted]


def torchcodec_frames(path: str, wanted: Sequence[int]) -> Frames:
    """By torchcodec, on the CPU with one thread."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(path, dimension_order="NHWC", num_ffmpeg_threads=1)
    return list(decoder.get_frames_at(list(wanted)).data.numpy())


def decord_frames(path: str, wanted: Sequence[int]) -> Frames:
    """By decord, on the CPU with one thread."""
    from decord import VideoReader

    return list(VideoReader(path, num_threads=1).get_batch(list(wanted)).asnumpy())
