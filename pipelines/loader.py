"""A plan of clips -> batches on the training device, made ahead of the step that needs them. Which
clips is for pipelines/plan.py to say, what happens to their pixels for graph.py and geometry.py."""

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import torch
from nvidia.dali.types import DALIDataType
from torch import Tensor

from pipelines.background import in_background
from pipelines.batch import Batch, one_or_each
from pipelines.config import DataConfig
from pipelines.frame_cache import FrameCache
from pipelines.geometry import colour_table, normalise, view_clip
from pipelines.graph import (
    Requests,
    decode_arrays,
    decode_graph,
    raise_fault,
    run,
    view_arrays,
    view_graph,
    views,
)
from pipelines.kept import KeptFrames
from pipelines.media import Way, way_of
from pipelines.motion import motion_maps
from pipelines.recycler import Recycler
from pipelines.source import ClipRequest, Stream
from pipelines.spans import span

THREADS = "loader"
"""What the names of a loader's own threads begin with."""


class Loader:
    """Makes the batches of one rank. Holds no position and no random state: a plan says it all."""

    def __init__(
        self,
        config: DataConfig,
        device: torch.device,
        dtype: torch.dtype,
        max_batch: int,
        threads: int,
        cache: FrameCache | None = None,
    ) -> None:
        """Clips in `dtype` on `device`, at most `max_batch` at a time; `threads` decode and, on the
        CPU, `threads` more do the geometry. `cache` as the config's, and other loaders' too."""
        self.config = config
        self.device = device
        self.dtype = dtype
        self.threads = threads
        self.cache = cache
        self._colours = [colour_table(config, modality) for modality in config.modalities]
        self._pipeline: dict[str, Any] = {
            "batch_size": max_batch * config.num_frames,
            "num_threads": threads,
            "prefetch_queue_depth": config.prefetch,
        }

    def batches(self, plan: Iterable[Requests]) -> Generator[Batch, None, None]:
        """One batch per entry of the plan, in order, while the next ones are being made.

        Sizes may vary up to `max_batch`. Closing or dropping the generator stops the work. Raises
        ValueError, at the batch concerned, naming the first file that is missing or damaged.
        """
        if self.device.type == "cuda":
            return self._handed_over(in_background(self._gpu_batches(plan), self.config.prefetch))
        return in_background(self._cpu_batches(plan), self.config.prefetch)

    def _handed_over(
        self, made: Generator[tuple[Batch, torch.cuda.Event], None, None]
    ) -> Generator[Batch, None, None]:
        """Batches of another stream, ready for the CUDA stream current in the caller.

        Stream contract: what the caller queues there after `next` sees the batch complete, without
        a wait of the host, and the batch's memory is used again only behind what was queued there
        before it was dropped. Whoever reads a batch on a third stream makes the two wait for each
        other.
        """
        with closing(made):
            for batch, complete in made:
                stream = torch.cuda.current_stream(self.device)
                stream.wait_event(complete)
                for tensor in batch.tensors():
                    if tensor.is_cuda:
                        tensor.record_stream(stream)
                yield batch

    def _gpu_batches(
        self, plan: Iterable[Requests]
    ) -> Generator[tuple[Batch, torch.cuda.Event], None, None]:
        """Each batch, and when it is complete: in a thread and on a CUDA stream of its own, so that
        the step waits for no file and for no Python. DALI works ahead of it in turn."""
        device_id = self._device_id()
        # bfloat16, which DALI does not know, holds the same values exactly: converted below.
        dtype = DALIDataType.FLOAT16 if self.dtype.itemsize == 2 else DALIDataType.FLOAT
        graph = partial(
            view_graph, device="gpu", dtype=dtype, device_id=device_id, **self._pipeline
        )
        if self.config.cache == "gpu":
            graph = partial(graph, given_on="gpu")
        window = self.config.motion_window
        shape = (self.config.size, self.config.size, 3)
        own_stream = torch.cuda.Stream(device_id)
        with (
            torch.cuda.stream(own_stream),
            ThreadPoolExecutor(self.threads, THREADS) as pool,
        ):
            arrays = self._view_arrays(device_id, pool)
            for requests, outputs in self._run(graph, arrays, plan, lambda: own_stream):
                pixels, clips = (
                    [
                        torch.from_dlpack(part.as_tensor()).view(len(requests), -1, *shape)
                        for part in parts
                    ]
                    for parts in zip(*outputs, strict=True)
                )
                with span("loader: motion"):
                    maps = [motion_maps(part, window) for part in pixels] if window else []
                with span("loader: copy"):
                    # To memory of torch's, which knows who still reads it; DALI's does not.
                    clips = [clip.to(self.dtype, copy=True) for clip in clips]
                    batch = self._batch(requests, clips, maps)
                yield batch, own_stream.record_event()

    def _cpu_batches(self, plan: Iterable[Requests]) -> Generator[Batch, None, None]:
        """DALI decodes; then each clip of a batch is one task of a thread pool. While the last
        clips of a batch are made, other threads are at the next batch already."""
        with (
            ThreadPoolExecutor(self.threads, THREADS) as pool,
            # Of their own: reading for DALI must not stand behind the clips in `pool`.
            ThreadPoolExecutor(self.threads, THREADS) as readers,
        ):
            begun: deque[Callable[[], Batch]] = deque()
            for finish in self._begun(self._cpu_frames(plan, readers), pool):
                begun.append(finish)
                if len(begun) > 1:
                    yield begun.popleft()()
            while begun:
                yield begun.popleft()()

    def _begun(
        self, decoded: Iterable[tuple[Requests, Sequence[Any]]], pool: Executor
    ) -> Iterator[Callable[[], Batch]]:
        """What waits for each batch. A fault is raised in its turn, behind the batch before it."""
        memory = Recycler()
        try:
            for requests, frames in decoded:
                yield self._begin_batch(requests, frames, memory, pool)
                del frames  # their memory is DALI's again when the clips are made
        except Exception as error:
            fault = error

            def fail() -> Batch:
                raise fault

            yield fail

    def _cpu_frames(
        self, plan: Iterable[Requests], readers: Executor
    ) -> Iterator[tuple[Requests, Sequence[Any]]]:
        """Each batch of the plan with the decoded frames of every modality, as `_begin_batch` takes
        them."""
        if self.cache is not None:
            kept = self._kept("cpu", None)
            for requests in plan:
                yield requests, [part.of(requests) for part in kept.values()]
            return
        graph = partial(decode_graph, device_id=None, **self._pipeline)
        arrays = partial(decode_arrays, each=readers.map)
        for requests, outputs in self._run(graph, arrays, plan):
            yield requests, [part[0] if part else None for part in outputs]

    def _kept(self, device: str, device_id: int | None) -> dict[str, KeptFrames]:
        """Frames by way of the cache, of each modality."""
        assert self.cache is not None
        options = {"num_threads": self.threads, "device_id": device_id}
        return {
            modality: KeptFrames(self.cache, self.config, modality, device, **options)
            for modality in self.config.modalities
        }

    def _view_arrays(self, device_id: int, pool: Executor) -> Callable[..., Any]:
        """What feeds the graph of a view: what `pool` reads or decodes, or what the cache has."""
        if self.cache is None:
            return partial(view_arrays, each=pool.map)
        kept = self._kept("gpu" if self.config.cache == "gpu" else "cpu", device_id)

        def kept_arrays(requests: Requests, config: DataConfig, modality: str, way: Way) -> Any:
            frames = [frame for clip in kept[modality].of(requests) for frame in clip]
            return frames, *views(requests, config, modality, way)

        return kept_arrays

    def _run(
        self, graph: Any, arrays: Any, plan: Iterable[Requests], *stream: Any
    ) -> Iterator[tuple[Requests, list[Sequence[Any]]]]:
        """Each batch of the plan with the outputs of every modality's graph; on the CPU none where
        frames are decoded clip by clip."""
        plan = iter(plan)
        first = next(plan, None)
        if first is None:
            return
        modalities, device, device_id = self.config.modalities, "cpu", 0
        if self.device.type == "cuda":
            device, device_id = "gpu", self._device_id()
        plans = itertools.tee(itertools.chain([first], plan), len(modalities))
        runs: list[Iterator[tuple[Requests, Sequence[Any]]]] = []
        for modality, stream_of, own_plan in zip(modalities, first[0].streams, plans, strict=True):
            way = Way.RAW
            if self.cache is None:
                way = way_of(stream_of.media, device, device_id)
            if way is Way.RAW and device == "cpu":
                runs.append(self._checked(own_plan, modality, way))
            else:
                runs.append(run(graph, arrays, own_plan, self.config, modality, way, *stream))
        for results in zip(*runs, strict=True):
            yield results[0][0], [outputs for _, outputs in results]

    def _device_id(self) -> int:
        """Number of the GPU among those that CUDA shows to this process."""
        index = self.device.index
        return torch.cuda.current_device() if index is None else index

    def _checked(
        self, plan: Iterable[Requests], modality: str, way: Way
    ) -> Iterator[tuple[Requests, Sequence[Any]]]:
        """What is still to be decoded, as sound as when it was found."""
        for requests in plan:
            raise_fault(requests, self.config, modality, way)
            yield requests, ()

    def _begin_batch(
        self, requests: Requests, decoded: Sequence[Any], memory: Recycler, pool: Executor
    ) -> Callable[[], Batch]:
        """B * T decoded frames of each modality, clip after clip, or B videos of T frames, or None
        where a clip's frames are still to be decoded, or a list of those of each clip -> what waits
        for the batch."""
        config = self.config
        shape = (len(requests), config.num_frames, config.size, config.size)
        num_maps = len(decoded) if config.motion_window else 0
        pixels = [memory.empty((*shape, 3), torch.uint8) for _ in decoded]
        clips = [memory.empty((*shape, 3), self.dtype) for _ in decoded]
        maps = [memory.empty(shape, torch.float32) for _ in range(num_maps)]

        def make_clip(i: int) -> None:
            with span("loader: frames"):
                frames = [
                    _clip_frames(part, i, stream)
                    for part, stream in zip(decoded, requests[i].streams, strict=True)
                ]
            with span("loader: view"):
                self._view(requests[i], frames, [part[i].numpy() for part in pixels])
            with span("loader: normalise"):
                for seen, clip in zip(pixels, clips, strict=True):
                    normalise(seen[i].numpy(), out=clip[i].numpy())
            with span("loader: motion"):
                for stream, part in enumerate(maps):
                    made = motion_maps(pixels[stream][i : i + 1], config.motion_window)
                    part[i].numpy()[...] = made[0, 0].numpy()

        tasks = pool.map(make_clip, range(len(requests)))

        def finish() -> Batch:
            list(tasks)  # waits, and raises what a task raised
            return self._batch(requests, clips, [part[:, None] for part in maps])

        return finish

    def _view(
        self, request: ClipRequest, frames: Sequence[Sequence[Any]], out: Sequence[Any]
    ) -> None:
        """T decoded frames of each modality of a clip -> out, (T, size, size, 3) of each."""
        for i, stream in enumerate(request.streams):
            turned_as = frames[0] if self.config.paired_view and i else None
            view_clip(
                frames[i], stream.view, self.config, self._colours[i], stream.boxes, out[i],
                turned_as,
            )  # fmt: skip

    def _batch(self, requests: Requests, clips: Sequence[Tensor], maps: Sequence[Tensor]) -> Batch:
        """clips (B, T, H, W, 3) and maps (B, 1, T, H, W), or no maps, of each modality, on the
        device -> the batch; channels_last_3d without a copy."""
        branches = zip(*(request.branch_indices for request in requests), strict=True)
        return Batch(
            clip=one_or_each([clip.permute(0, 4, 1, 2, 3) for clip in clips]),
            motion=one_or_each(maps) if maps else None,
            label=self._place([request.label for request in requests]),
            branch_indices=tuple(self._place(np.stack(indices)) for indices in branches),
            index=torch.tensor([request.index for request in requests]),
        )

    def _place(self, values: Any) -> Tensor:
        """Whole numbers -> int64 on the device, on GPUs without making the host wait."""
        tensor = torch.as_tensor(values, dtype=torch.int64)
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor


def _clip_frames(decoded: Any, i: int, stream: Stream) -> Sequence[Any]:
    """T frames (h, w, C) of the batch's clip i, whichever way they come."""
    if decoded is None:
        return list(stream.decode())
    if isinstance(decoded, list):
        return list(decoded[i])
    if decoded.layout() == "FHWC":
        return list(np.asarray(decoded[i]))
    places = range(i * len(stream.frames), (i + 1) * len(stream.frames))
    return [np.asarray(decoded[place]) for place in places]
