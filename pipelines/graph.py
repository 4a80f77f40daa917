"""Files -> frames: the recipe as two DALI graphs, and running one over a plan of batches.

Frames are DALI's samples: a batch of B clips is B * T files with per-frame copies of the clip's
view. `decode_graph` stops after decoding, for the CPU, where OpenCV and torch do the geometry
faster (pipelines/geometry.py); `view_graph` is the whole recipe, for the GPU.
"""

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
from pipelines.source import ClipRequest
from pipelines.verify import find_problem, suspects

Requests = Sequence[ClipRequest]
Arrays = tuple[Any, ...]
"""One batch of each external input: a list of arrays, or an array with one row per frame."""
Feed = Callable[[], Arrays]
"""Gives DALI the next batch; StopIteration ends the run."""


@pipeline_def
def decode_graph(feed: Feed, config: DataConfig) -> tuple[DataNode, ...]:
    """Frames as stored, (h, w, 3) uint8 or (h, w, 1) uint16 mm, and signatures: on the CPU."""
    (path,) = fn.external_source(feed, num_outputs=1, dtype=DALIDataType.UINT8, ndim=1)
    encoded = transforms.read(path)
    return _decode(encoded, config, "cpu"), transforms.signature(encoded)


@pipeline_def
def view_graph(
    feed: Feed, config: DataConfig, device: str, dtype: DALIDataType
) -> tuple[DataNode, ...]:
    """(size, size, 3) uint8 pixels, the same normalised in `dtype`, and signatures (on the CPU)."""
    boxed = config.depth_in_mm and config.depth_encoding == "wrapped_jet"
    path, angle, corner, flip, *box = fn.external_source(feed, num_outputs=5 if boxed else 4)
    encoded = transforms.read(path)
    frames = _decode(encoded, config, device)
    if boxed:
        frames = transforms.wrapped_jet(transforms.cut(frames, *box))
    elif config.depth_in_mm:
        frames = transforms.metric_grey(frames, config.depth_range_mm)
    frames = transforms.rotate(frames, angle)
    frames = transforms.resize(frames, *config.resize)
    pixels = transforms.crop_and_flip(frames, corner, config.crop, flip)
    if config.size != config.crop:
        pixels = transforms.resize(pixels, config.size, config.size)
    return pixels, transforms.normalise(pixels, dtype), transforms.signature(encoded)


def _decode(encoded: DataNode, config: DataConfig, device: str) -> DataNode:
    decode = transforms.decode_depth if config.depth_in_mm else transforms.decode_color
    return decode(encoded, device)


def path_arrays(requests: Requests) -> Arrays:
    """The input of `decode_graph`."""
    paths = (path for request in requests for path in request.paths)
    return ([np.frombuffer(os.fsencode(path), np.uint8) for path in paths],)


def view_arrays(requests: Requests) -> Arrays:
    """The inputs of `view_graph`: N = B * T paths, angles (N,), corners (N, 2), flips (N,) and, for
    clips that have them, boxes (N, 4). A clip's view is repeated for each of its T frames."""
    num_frames = [len(r.paths) for r in requests]
    angles = np.array([r.view.angle for r in requests], np.float32)
    corners = np.array([(r.view.left, r.view.top) for r in requests], np.int32)
    flips = np.array([r.view.flip for r in requests], np.int32)
    boxes = [r.boxes for r in requests if r.boxes is not None]
    return (
        *path_arrays(requests),
        np.repeat(angles, num_frames),
        np.repeat(corners, num_frames, axis=0),
        np.repeat(flips, num_frames),
        *([np.concatenate(boxes).astype(np.int32)] if boxes else []),
    )


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
    while True:
        try:
            results: tuple[Any, ...] = pipeline.run(stream())
        except StopIteration:
            return
        except Exception as error:
            # DALI tells the operator, not the file: look for it among the batch's.
            if in_flight and (found := find_problem(in_flight[0], config.depth_in_mm)):
                raise found from None
            raise error
        requests = in_flight.popleft()
        *outputs, signatures = results
        suspicious = suspects(signatures.as_array(), config.depth_in_mm)
        if found := find_problem(requests, config.depth_in_mm, suspicious):
            raise found
        yield requests, outputs
