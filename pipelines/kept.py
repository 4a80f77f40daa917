"""Frames of clips by way of a cache: what it lacks is decoded as ever, whole clips where these fit.
The only decoding outside the prefetching graphs of pipelines/graph.py."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pipelines.config import DataConfig
from pipelines.frame_cache import FrameCache
from pipelines.graph import Arrays, Requests, decode_arrays, decode_graph, raise_fault
from pipelines.media import Way, way_of
from pipelines.source import ClipRequest

MOST_FRAMES = 4096
"""That one run of the decoding graph takes: longer clips are not kept."""


class KeptFrames:
    """The decoded frames of one modality's clips, batch after batch."""

    def __init__(
        self, cache: FrameCache, config: DataConfig, modality: str, device: str, **pipeline: Any
    ) -> None:
        """Frames on "cpu" or "gpu"; `pipeline`: num_threads and device_id of the graph."""
        self.cache = cache
        self.config = config
        self.modality = modality
        self.device = device
        self._place = config.modalities.index(modality)
        self._options = pipeline
        self._pipeline: Any = None
        self._waiting: deque[Arrays] = deque()

    def of(self, requests: Requests) -> list[Any]:
        """(T, h, w, C) frames of each clip: NumPy arrays, on GPUs tensors.

        Raises ValueError naming what is missing or damaged.
        """
        whole: list[Any] = [self.cache.get(self._name(request)) for request in requests]
        missing = [i for i, frames in enumerate(whole) if frames is None]
        admitted = self._admit([requests[i] for i in missing])
        frames: dict[int, Any] = {}
        for i, is_whole, decoded in zip(
            missing, admitted, self._decode([requests[i] for i in missing], admitted), strict=True
        ):
            if is_whole:
                self.cache.put(self._name(requests[i]), decoded)
                whole[i] = decoded
            else:
                frames[i] = decoded
        return [
            frames[i] if i in frames else whole[i][request.streams[self._place].frames]
            for i, request in enumerate(requests)
        ]

    def _name(self, request: ClipRequest) -> str:
        return request.streams[self._place].media.name

    def _admit(self, requests: Requests) -> list[bool]:
        """Which clips are to be decoded whole, as they will be kept."""
        seen: set[str] = set()  # where an epoch begins in a batch, a clip may come twice
        admitted = []
        for request in requests:
            name, length = self._name(request), request.num_frames
            room = False
            if 0 < length <= MOST_FRAMES and name not in seen:
                width, height = request.streams[self._place].media.size()
                in_mm = self.config.in_mm(self.modality)
                channels, itemsize = (1, 2) if in_mm else (3, 1)
                room = self.cache.admit((length, height, width, channels), itemsize)
            seen.add(name)
            admitted.append(room)
        return admitted

    def _decode(self, requests: Requests, whole: Sequence[bool]) -> Iterator[Any]:
        """Frames of each clip, all of them or those it asks for."""
        wanted = [
            self._all_frames(request) if is_whole else request
            for request, is_whole in zip(requests, whole, strict=True)
        ]
        for part in self._parts(wanted):
            streams = [request.streams[self._place] for request in part]
            device_id = self._options["device_id"] or 0  # None on the CPU
            way = way_of(streams[0].media, self.device, device_id)
            if way is Way.RAW:
                raise_fault(part, self.config, self.modality, way)
                yield from (self._on_device(stream.decode()) for stream in streams)
            else:
                yield from self._by_dali(part, [len(s.frames) for s in streams], way)

    def _all_frames(self, request: ClipRequest) -> ClipRequest:
        streams = [replace(s, frames=np.arange(request.num_frames)) for s in request.streams]
        return replace(request, streams=tuple(streams))

    def _parts(self, requests: Requests) -> Iterator[Requests]:
        """Runs of clips of at most MOST_FRAMES frames, or of one clip."""
        part: list[ClipRequest] = []
        frames = 0
        for request in requests:
            count = len(request.streams[self._place].frames)
            if part and frames + count > MOST_FRAMES:
                yield part
                part, frames = [], 0
            part.append(request)
            frames += count
        if part:
            yield part

    def _by_dali(self, requests: Requests, counts: Sequence[int], way: Way) -> Iterator[Any]:
        if self._pipeline is None:
            self._pipeline = decode_graph(
                self._feed, config=self.config, modality=self.modality, way=way,
                device=self.device, batch_size=MOST_FRAMES, prefetch_queue_depth=1,
                exec_pipelined=False, exec_async=False, exec_dynamic=False, **self._options,
            )  # fmt: skip
        raise_fault(requests, self.config, self.modality, way)
        self._waiting.append(decode_arrays(requests, self.config, self.modality, way))
        try:
            frames, signatures = self._pipeline.run()
        except Exception as error:
            raise_fault(requests, self.config, self.modality, way, error)
        raise_fault(requests, self.config, self.modality, way, signatures)
        first = 0
        for i, count in enumerate(counts):
            parts = [frames[i]] if way.by_clip else [frames[first + t] for t in range(count)]
            first += count
            yield self._copy(parts, way)
        if self.device == "gpu":  # DALI writes there again without asking whether copies are done
            torch.cuda.current_stream().synchronize()

    def _feed(self) -> Arrays:
        return self._waiting.popleft()

    def _copy(self, parts: Sequence[Any], way: Way) -> Any:
        """DALI's tensors, which it will write to again -> (n, h, w, C) of our own."""
        if self.device == "gpu":
            tensors = [torch.from_dlpack(part) for part in parts]
            return tensors[0].clone() if way.by_clip else torch.stack(tensors)
        arrays = [np.asarray(part) for part in parts]
        return arrays[0].copy() if way.by_clip else np.stack(arrays)

    def _on_device(self, frames: np.ndarray) -> Any:
        return torch.from_numpy(frames).cuda() if self.device == "gpu" else frames
