"""Files -> frames: the recipe as two DALI graphs, and running one over a plan of batches.

A graph is for one modality. Frames are DALI's samples: a batch of B clips is B * T files with
per-frame copies of the clip's view. `decode_graph` stops after decoding, for the CPU, where OpenCV
and torch do the geometry faster (pipelines/geometry.py); `view_graph` is the whole recipe, for the
GPU.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def
from nvidia.dali.pipeline import DataNode, Pipeline
from nvidia.dali.types import DALIDataType

from pipelines import transforms
from pipelines.config import DataConfig
from pipelines.culprit import changed, find_problem, passing, refused
from pipelines.folders import padded
from pipelines.lz4_graph import inflate_depth, inflate_shapes
from pipelines.media import Way
from pipelines.source import ClipRequest, Stream
from pipelines.spans import span
from pipelines.verify import suspects
from pipelines.video_graph import decode_video

Requests = Sequence[ClipRequest]
Arrays = tuple[Any, ...]
"""One batch of each external input: a list of arrays, or an array with one row per frame."""
Feed = Callable[[], Arrays]
"""Gives DALI the next batch; StopIteration ends the run."""
Each = Callable[[Callable[[Stream], Any], Iterable[Stream]], Iterable[Any]]
"""As the built-in map."""


@pipeline_def
def decode_graph(
    feed: Feed, config: DataConfig, modality: str, way: Way, device: str = "cpu"
) -> tuple[DataNode, ...]:
    """Frames as stored, (h, w, 3) uint8 or (h, w, 1) uint16 mm, on `device`, and signatures (on
    the CPU). Of videos, (T, h, w, 3)."""
    given = fn.external_source(feed, num_outputs=len(LAYOUTS[way]), layout=LAYOUTS[way])
    return _frames(given, config, modality, way, device)


@pipeline_def
def view_graph(
    feed: Feed,
    config: DataConfig,
    modality: str,
    way: Way,
    device: str,
    dtype: DALIDataType,
    given_on: str = "cpu",
) -> tuple[DataNode, ...]:
    """(size, size, 3) uint8 pixels, the same normalised in `dtype`, and signatures (on the CPU). Of
    samples that are whole clips, T of each. Frames that come decoded are `given_on` that device."""
    count = 3 + takes_turn_of_rgb(config, modality) + config.boxed(modality)
    two = _in_two(feed, len(LAYOUTS[way]))
    source = fn.external_source(
        two[0], num_outputs=len(LAYOUTS[way]), layout=LAYOUTS[way], device=given_on
    )
    frames, signature = _frames(source, config, modality, way, device)
    angle, corner, flip, *more = fn.external_source(two[1], num_outputs=count)
    box = more.pop() if config.boxed(modality) else None
    frames = _colour(frames, box, config, modality)
    frames = transforms.rotate(frames, angle, *more)
    frames = transforms.resize(frames, *config.resize)
    pixels = _crop(frames, corner, flip, config)
    layout = "FHWC" if way.by_clip else "HWC"
    return pixels, transforms.normalise(pixels, dtype, layout), signature


def _in_two(feed: Feed, count: int) -> tuple[Feed, Feed]:
    """The first `count` inputs and the others as feeds of their own, which DALI calls in turns."""
    waiting: tuple[deque[Arrays], deque[Arrays]] = (deque(), deque())

    def half(which: int) -> Arrays:
        if not waiting[which]:
            arrays = feed()
            waiting[0].append(arrays[:count])
            waiting[1].append(arrays[count:])
        return waiting[which].popleft()

    # DALI looks at the signature: what takes an argument would be given the sample's number.
    return lambda: half(0), lambda: half(1)


LAYOUTS = {
    Way.FILES: [""],
    Way.IMAGES: [""],
    Way.LZ4: ["", ""],
    Way.VIDEO: ["", ""],
    Way.VIDEO_DATA: ["", ""],
    Way.RAW: ["HWC"],
}
"""DALI layouts of the inputs that carry frames."""


READING = ("fn.io.file.read", "fn.decoders.")
"""Operators, as DALI's errors call them, that fail by what is in a file."""


def _frames(
    given: Sequence[DataNode], config: DataConfig, modality: str, way: Way, device: str
) -> tuple[DataNode, DataNode]:
    """Inputs -> decoded frames on `device`, and signatures of files or of nothing."""
    nothing = transforms.no_signature()
    if way is Way.RAW:
        (frames,) = given
        return frames.gpu() if device == "gpu" and frames.device == "cpu" else frames, nothing
    if way is Way.LZ4:
        return inflate_depth(*given), nothing
    if way.by_clip:
        video, numbers = given
        encoded = transforms.read(video) if way is Way.VIDEO else video
        return decode_video(encoded, numbers, device), nothing
    encoded = transforms.read(given[0]) if way is Way.FILES else given[0]
    decode = transforms.decode_depth if config.in_mm(modality) else transforms.decode_color
    return decode(encoded, device), transforms.signature(encoded)


def takes_turn_of_rgb(config: DataConfig, modality: str) -> bool:
    """Whether its frames turn as RGB's do, whose size then counts (pipelines/view.py)."""
    return config.modality == "rgbd" and config.paired_view and modality == "depth"


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


def decode_arrays(
    requests: Requests, config: DataConfig, modality: str, way: Way, each: Each = map
) -> Arrays:
    """The inputs of `decode_graph`: one row per frame of the batch, N = B * T, or per clip. Clips
    whose bytes or frames are taken here are so by `each`, which may be the map of a thread pool."""
    streams = _streams(requests, config, modality)
    if way is Way.FILES:
        return (_joined([s.path_bytes() for s in streams]),)
    if way.by_clip:
        numbers = [s.frames.astype(np.int32) for s in streams]
        if way is Way.VIDEO:
            return padded([s.media.name for s in streams]), numbers
        return list(each(Stream.video_data, streams)), numbers
    if way is Way.RAW:
        return ([frame for clip in each(Stream.decode, streams) for frame in clip],)
    encoded = [data for clip in each(Stream.encoded, streams) for data in clip]
    if way is Way.IMAGES:
        return (encoded,)
    return encoded, inflate_shapes([s.packed_info for s in streams], config.num_frames)


def view_arrays(
    requests: Requests, config: DataConfig, modality: str, way: Way, each: Each = map
) -> Arrays:
    """The inputs of `view_graph`: those of `decode_graph`, then those of the views."""
    frames = decode_arrays(requests, config, modality, way, each)
    return *frames, *views(requests, config, modality, way)


def views(requests: Requests, config: DataConfig, modality: str, way: Way) -> Arrays:
    """Angles (N,), corners (N, 2), flips (N,), the sizes (N, 2) of frames whose turns are taken
    over and boxes (N, 4), where there are such. The view of a clip is repeated for each of its
    frames where these are the samples."""
    streams = _streams(requests, config, modality)
    times = [1 if way.by_clip else len(s.frames) for s in streams]

    def repeated(values: Sequence[Any], dtype: type) -> NDArray[Any]:
        return np.repeat(np.array(values, dtype), times, axis=0)

    arrays = [
        repeated([s.view.angle for s in streams], np.float32),
        repeated([(s.view.left, s.view.top) for s in streams], np.int32),
        repeated([s.view.flip for s in streams], np.int32),
    ]
    if takes_turn_of_rgb(config, modality):
        arrays.append(repeated([r.streams[0].media.size() for r in requests], np.float32))
    boxes = [s.boxes for s in streams if s.boxes is not None]
    if boxes:
        arrays.append(np.concatenate(boxes).astype(np.int32))
    return tuple(arrays)


def _streams(requests: Requests, config: DataConfig, modality: str) -> list[Stream]:
    place = config.modalities.index(modality)
    return [request.streams[place] for request in requests]


def _joined(rows: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Several (T, L) -> one (B * T, L) of the longest L."""
    longest = max(part.shape[1] for part in rows)
    parts = [np.pad(part, ((0, 0), (0, longest - part.shape[1]))) for part in rows]
    return np.concatenate(parts)


def run(
    graph: Callable[..., Pipeline],
    arrays: Callable[[Requests, DataConfig, str, Way], Arrays],
    plan: Iterable[Requests],
    config: DataConfig,
    modality: str,
    way: Way,
    stream: Callable[[], Any] = lambda: None,
) -> Iterator[tuple[Requests, Sequence[Any]]]:
    """Each batch of the plan with the graph's outputs (less the signatures), in order.

    DALI works ahead by its own prefetch; outputs belong to whoever holds them, and those on a GPU
    are bound to the CUDA stream that `stream()` names. Raises ValueError naming the first file of
    a batch that is missing, damaged or of another kind.
    """
    batches, in_flight = iter(plan), deque[Requests]()

    def feed() -> Arrays:
        requests = next(batches)
        raise_fault(requests, config, modality, way)
        in_flight.append(requests)
        with span("loader: read"):
            return arrays(requests, config, modality, way)

    pipeline = graph(feed, config=config, modality=modality, way=way)
    while True:
        try:
            with span("loader: decode"):
                results: tuple[Any, ...] = pipeline.run(stream())
        except StopIteration:
            return
        except Exception as error:
            if isinstance(error, ValueError) or not in_flight:
                raise error  # of the plan, or already with a name
            raise_fault(in_flight[0], config, modality, way, error)
        requests = in_flight.popleft()
        *outputs, signatures = results
        raise_fault(requests, config, modality, way, signatures)
        yield requests, outputs


def raise_fault(
    requests: Requests, config: DataConfig, modality: str, way: Way, sign: Any = None
) -> None:
    """Raises ValueError naming the first bad frame of a batch by a `sign` of one: an error of
    DALI's, raised itself where the fault is in no file; signatures, which may be sound; or, before
    DALI reads, nothing but that files have changed since they were found sound."""
    place, in_mm = config.modalities.index(modality), config.in_mm(modality)
    if isinstance(sign, Exception):
        if found := _fault(sign, requests, config, modality, way):
            raise found from None
        raise sign
    glance = None if sign is None else sign.as_array()
    suspicious = suspects(glance, in_mm) if glance is not None and glance.size else (
        changed(requests, place)
    )  # fmt: skip
    if found := find_problem(requests, place, in_mm, suspicious):
        raise found


def _fault(
    error: Exception, requests: Requests, config: DataConfig, modality: str, way: Way
) -> ValueError | None:
    """DALI tells the operator, not the file: looks for it among the batch's. None if the fault is
    in no file."""
    place, in_mm = config.modalities.index(modality), config.in_mm(modality)
    found = find_problem(requests, place, in_mm) or _refused(requests, config, modality, way)
    if found is None and any(operator in str(error) for operator in READING):
        return passing(requests, place)
    return found


def _refused(requests: Requests, config: DataConfig, modality: str, way: Way) -> ValueError | None:
    """The error for the first frame of a batch that DALI alone cannot decode, where other decoders
    see nothing wrong: each by itself, on the CPU."""
    if way in (Way.LZ4, Way.RAW):
        return None
    place = config.modalities.index(modality)
    for request in requests:
        stream = request.streams[place]
        for frames in [stream.frames] if way.by_clip else stream.frames[:, None]:
            streams = list(request.streams)
            streams[place] = replace(stream, frames=frames)
            single = replace(request, streams=tuple(streams))
            try:
                _decode_one(single, config, modality, way)
            except RuntimeError as error:
                return refused(single, place, str(error))
    return None


def _decode_one(request: ClipRequest, config: DataConfig, modality: str, way: Way) -> None:
    def feed() -> Arrays:
        return decode_arrays([request], config, modality, way)

    decode_graph(
        feed, config, modality, way, device_id=None, batch_size=1, num_threads=1,
        prefetch_queue_depth=1,
    ).run()  # fmt: skip
