"""Files -> frames: the recipe as two DALI graphs, and running one over a plan of batches.

Frames are DALI's samples: a batch of B clips is B * T files of each modality with per-frame copies
of the clip's view. `decode_graph` stops after decoding, for the CPU, where OpenCV and torch do the
geometry faster (pipelines/geometry.py); `view_graph` is the whole recipe, for the GPU. All of a
graph's outputs are per modality, in the order of `DataConfig.modalities`.
"""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
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
def decode_graph(feed: Feed, config: DataConfig) -> tuple[DataNode, ...]:
    """Frames as stored, (h, w, 3) uint8 or (h, w, 1) uint16 mm, then signatures: on the CPU."""
    count = len(config.modalities)
    paths = fn.external_source(feed, num_outputs=count, dtype=DALIDataType.UINT8, ndim=1)
    encoded = [transforms.read(path) for path in paths]
    frames = (
        _decode(files, config.in_mm(modality), "cpu")
        for files, modality in zip(encoded, config.modalities, strict=True)
    )
    return *frames, *map(transforms.signature, encoded)


@pipeline_def
def view_graph(
    feed: Feed, config: DataConfig, device: str, dtype: DALIDataType
) -> tuple[DataNode, ...]:
    """(size, size, 3) uint8 pixels and the same normalised in `dtype`, then the signatures (on the
    CPU)."""
    inputs = [5 if config.boxed(modality) else 4 for modality in config.modalities]
    given = iter(fn.external_source(feed, num_outputs=sum(inputs)))
    images: list[DataNode] = []
    outputs: list[DataNode] = []
    signatures: list[DataNode] = []
    for modality, count in zip(config.modalities, inputs, strict=True):
        path, angle, corner, flip, *box = itertools.islice(given, count)
        encoded = transforms.read(path)
        frames = _decode(encoded, config.in_mm(modality), device)
        images.append(_colour(frames, box, config, modality))
        turned_as = images[0] if config.paired_view and len(images) > 1 else None
        frames = transforms.rotate(images[-1], angle, turned_as)
        frames = transforms.resize(frames, *config.resize)
        pixels = _crop(frames, corner, flip, config)
        outputs += [pixels, transforms.normalise(pixels, dtype)]
        signatures.append(transforms.signature(encoded))
    return *outputs, *signatures


def _decode(encoded: DataNode, in_mm: bool, device: str) -> DataNode:
    decode = transforms.decode_depth if in_mm else transforms.decode_color
    return decode(encoded, device)


def _colour(
    frames: DataNode, box: Sequence[DataNode], config: DataConfig, modality: str
) -> DataNode:
    """Decoded frames -> (h, w, 3) images, cut to their `box` where there is one."""
    if config.boxed(modality):
        return transforms.wrapped_jet(transforms.cut(frames, *box))
    if config.in_mm(modality):
        return transforms.metric_grey(frames, config.depth_range_mm)
    return frames


def _crop(frames: DataNode, corner: DataNode, flip: DataNode, config: DataConfig) -> DataNode:
    """Resized frames -> (size, size, 3) pixels."""
    pixels = transforms.crop_and_flip(frames, corner, config.crop, flip)
    if config.size == config.crop:
        return pixels
    return transforms.resize(pixels, config.size, config.size)


def path_arrays(requests: Requests) -> Arrays:
    """The inputs of `decode_graph`: per modality, N = B * T paths."""
    return tuple(_paths(streams) for streams in _by_modality(requests))


def view_arrays(requests: Requests) -> Arrays:
    """The inputs of `view_graph`, per modality: N = B * T paths, angles (N,), corners (N, 2), flips
    (N,) and, for clips that have them, boxes (N, 4). A view is repeated for each of T frames."""
    arrays: list[Any] = []
    for streams in _by_modality(requests):
        num_frames = [len(s.paths) for s in streams]
        angles = np.array([s.view.angle for s in streams], np.float32)
        corners = np.array([(s.view.left, s.view.top) for s in streams], np.int32)
        flips = np.array([s.view.flip for s in streams], np.int32)
        boxes = [s.boxes for s in streams if s.boxes is not None]
        arrays += [
            _paths(streams),
            np.repeat(angles, num_frames),
            np.repeat(corners, num_frames, axis=0),
            np.repeat(flips, num_frames),
            *([np.concatenate(boxes).astype(np.int32)] if boxes else []),
        ]
    return tuple(arrays)


def _by_modality(requests: Requests) -> Iterator[tuple[Stream, ...]]:
    """One stream per clip, for each modality."""
    return zip(*(request.streams for request in requests), strict=True)


def _paths(streams: Sequence[Stream]) -> list[Any]:
    return [np.frombuffer(os.fsencode(path), np.uint8) for s in streams for path in s.paths]


def run(
    graph: Callable[[Feed], Pipeline],
    arrays: Callable[[Requests], Arrays],
    plan: Iterable[Requests],
    config: DataConfig,
    stream: Callable[[], Any] = lambda: None,
) -> Iterator[tuple[Requests, Sequence[Any]]]:
    """Each batch of the plan with the graph's outputs (less the signatures), in order.

    DALI works ahead by its own prefetch; outputs belong to whoever holds them, and those on a GPU
    are bound to the CUDA stream that `stream()` names. Raises ValueError naming the first file of
    a batch that is missing, damaged or of another kind.
    """
    batches, in_flight = iter(plan), deque[Requests]()

    def feed() -> Arrays:
        in_flight.append(next(batches))
        return arrays(in_flight[-1])

    pipeline = graph(feed)
    in_mm = [config.in_mm(modality) for modality in config.modalities]
    while True:
        try:
            results: tuple[Any, ...] = pipeline.run(stream())
        except StopIteration:
            return
        except Exception as error:
            # DALI tells the operator, not the file: look for it among the batch's.
            if in_flight and (found := find_problem(in_flight[0], in_mm)):
                raise found from None
            raise error
        requests = in_flight.popleft()
        outputs, signatures = results[: -len(in_mm)], results[-len(in_mm) :]
        suspicious = list(map(suspects, (s.as_array() for s in signatures), in_mm))
        if found := find_problem(requests, in_mm, suspicious):
            raise found
        yield requests, outputs
