"""Files -> frames: the recipe as two DALI graphs, and running one over a plan of batches.

A graph is for one modality. Frames are DALI's samples: a batch of B clips is B * T files with
per-frame copies of the clip's view. `decode_graph` stops after decoding, for the CPU, where OpenCV
and torch do the geometry faster (pipelines/geometry.py); `view_graph` is the whole recipe, for the
GPU.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def
from nvidia.dali.pipeline import DataNode, Pipeline
from nvidia.dali.types import DALIDataType

from pipelines import transforms
from pipelines.config import DataConfig
from pipelines.source import ClipRequest, Stream
from pipelines.verify import find_problem, suspects

Requests = Sequence[ClipRequest]
Arrays = tuple[Any, ...]
"""One batch of each external input: a list of arrays, or an array with one row per frame."""
Feed = Callable[[], Arrays]
"""Gives DALI the next batch; StopIteration ends the run."""


@pipeline_def
def decode_graph(feed: Feed, config: DataConfig, modality: str) -> tuple[DataNode, ...]:
    """Frames as stored, (h, w, 3) uint8 or (h, w, 1) uint16 mm, and signatures: on the CPU."""
    (path,) = fn.external_source(feed, num_outputs=1, dtype=DALIDataType.UINT8, ndim=1)
    encoded = transforms.read(path)
    return _decode(encoded, config.in_mm(modality), "cpu"), transforms.signature(encoded)


@pipeline_def
def view_graph(
    feed: Feed, config: DataConfig, modality: str, device: str, dtype: DALIDataType
) -> tuple[DataNode, ...]:
    """(size, size, 3) uint8 pixels, the same normalised in `dtype`, and signatures (on the CPU)."""
    count = 4 + takes_turn_of_rgb(config, modality) + config.boxed(modality)
    path, angle, corner, flip, *more = fn.external_source(feed, num_outputs=count)
    box = more.pop() if config.boxed(modality) else None
    encoded = transforms.read(path)
    frames = _decode(encoded, config.in_mm(modality), device)
    frames = _colour(frames, box, config, modality)
    frames = transforms.rotate(frames, angle, *more)
    frames = transforms.resize(frames, *config.resize)
    pixels = _crop(frames, corner, flip, config)
    return pixels, transforms.normalise(pixels, dtype), transforms.signature(encoded)


def takes_turn_of_rgb(config: DataConfig, modality: str) -> bool:
    """Whether its frames turn as RGB's do, whose size then counts (pipelines/view.py)."""
    return config.modality == "rgbd" and config.paired_view and modality == "depth"


def _decode(encoded: DataNode, in_mm: bool, device: str) -> DataNode:
    decode = transforms.decode_depth if in_mm else transforms.decode_color
    return decode(encoded, device)


def _colour(frames: DataNode, box: DataNode | None, config: DataConfig, modality: str) -> DataNode:
    """Decoded frames -> (h, w, 3) images, cut to their `box` where there is one."""
    if box is not None:
        return transforms.wrapped_jet(transforms.cut(frames, box))
    if config.in_mm(modality):
        return transforms.metric_grey(frames, config.depth_range_mm)
    return frames


def _crop(frames: DataNode, corner: DataNode, flip: DataNode, config: DataConfig) -> DataNode:
    """Resized frames -> (size, size, 3) pixels."""
    pixels = transforms.crop_and_flip(frames, corner, config.crop, flip)
    if config.size == config.crop:
        return pixels
    return transforms.resize(pixels, config.size, config.size)


def decode_arrays(requests: Requests, config: DataConfig, modality: str) -> Arrays:
    """The input of `decode_graph`: N = B * T paths."""
    return (_paths(_streams(requests, config, modality)),)


def view_arrays(requests: Requests, config: DataConfig, modality: str) -> Arrays:
    """The inputs of `view_graph`: N = B * T paths, angles (N,), corners (N, 2), flips (N,), then
    the sizes (N, 2) of frames whose turns are taken over and boxes (N, 4), where there are such. A
    view is repeated for each of T frames."""
    streams = _streams(requests, config, modality)
    num_frames = [len(s.frames) for s in streams]

    def per_frame(values: Sequence[Any], dtype: type) -> NDArray[Any]:
        return np.repeat(np.array(values, dtype), num_frames, axis=0)

    arrays = [
        _paths(streams),
        per_frame([s.view.angle for s in streams], np.float32),
        per_frame([(s.view.left, s.view.top) for s in streams], np.int32),
        per_frame([s.view.flip for s in streams], np.int32),
    ]
    if takes_turn_of_rgb(config, modality):
        arrays.append(per_frame([r.streams[0].media.size() for r in requests], np.float32))
    boxes = [s.boxes for s in streams if s.boxes is not None]
    return *arrays, *([np.concatenate(boxes).astype(np.int32)] if boxes else [])


def _streams(requests: Requests, config: DataConfig, modality: str) -> list[Stream]:
    place = config.modalities.index(modality)
    return [request.streams[place] for request in requests]


def _paths(streams: Sequence[Stream]) -> list[Any]:
    return [np.frombuffer(os.fsencode(path), np.uint8) for s in streams for path in s.paths]


def run(
    graph: Callable[..., Pipeline],
    arrays: Callable[[Requests, DataConfig, str], Arrays],
    plan: Iterable[Requests],
    config: DataConfig,
    modality: str,
    stream: Callable[[], Any] = lambda: None,
) -> Iterator[tuple[Requests, Sequence[Any]]]:
    """Each batch of the plan with the graph's outputs (less the signatures), in order.

    DALI works ahead by its own prefetch; outputs belong to whoever holds them, and those on a GPU
    are bound to the CUDA stream that `stream()` names. Raises ValueError naming the first file of
    a batch that is missing, damaged or of another kind.
    """
    batches, in_flight = iter(plan), deque[Requests]()
    place, in_mm = config.modalities.index(modality), config.in_mm(modality)

    def feed() -> Arrays:
        in_flight.append(next(batches))
        return arrays(in_flight[-1], config, modality)

    pipeline = graph(feed, config=config, modality=modality)
    while True:
        try:
            results: tuple[Any, ...] = pipeline.run(stream())
        except StopIteration:
            return
        except Exception as error:
            # DALI tells the operator, not the file: look for it among the batch's.
            if in_flight and (found := find_problem(in_flight[0], place, in_mm)):
                raise found from None
            raise error
        requests = in_flight.popleft()
        *outputs, signatures = results
        suspicious = suspects(signatures.as_array(), in_mm)
        if found := find_problem(requests, place, in_mm, suspicious):
            raise found
        yield requests, outputs
