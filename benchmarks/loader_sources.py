"""The table of what the loader benchmark knows: each source of clips is one entry. A new one needs
a function that writes its data and the values of `DataConfig` that choose it."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks import peers
from benchmarks.loader_cases import UPTOS, WHATS, Case, Setting
from benchmarks.loader_data import (
    FRAMES,
    PACK,
    VIDEO_PATTERN,
    VIDEOS,
    write_frames,
    write_pack,
    write_videos,
)
from benchmarks.loader_stages import first_stages
from pipelines import transforms
from pipelines.config import FrameFiles
from pipelines.depth_boxes import depth_boxes
from pipelines.frame_cache import FrameCache
from pipelines.graph import Requests
from pipelines.index import scan
from pipelines.loader import Loader
from pipelines.source import ClipSource

Open = Callable[[Case, Setting, Path], Iterator[Any]]
"""A case and the data folder -> its batches, without end."""

CACHE_BYTES = 8 * 10**9

HARDWARE_SHARES = {"frames_hw0": 0.0, "frames_hw65": 0.65, "frames_hw80": 0.8}
"""Share of the JPEG files that a GPU's hardware decoder takes, by source; of `frames`, all."""

VIDEO_THREADS = {"videos_threads16": 16, "videos_threads32": 32}
"""Threads that decode videos, by source; of `videos`, as many as all sources have."""

LOADED = ("view", "motion")
"""How far work goes that the loader or a peer does as a whole."""


@dataclass(frozen=True)
class Source:
    """One source of clips, or a peer."""

    folder: str
    """Below the data folder: all files it reads are there."""

    write: Callable[[Path, Setting], None]
    """Writes into the data folder what is missing."""

    open: Open
    whats: tuple[str, ...] = tuple(WHATS)
    uptos: tuple[str, ...] = LOADED
    devices: tuple[str, ...] = ("cpu", "cuda")
    is_peer: bool = False
    missing: str = ""
    """Why it cannot be measured here."""


def clip_source(case: Case, setting: Setting, root: Path, **options: Any) -> ClipSource:
    """The training list in `root` as the case wants it; depth boxes come from their cache."""
    config = setting.data_config(str(root), case.what, case.upto, options)
    index = scan(config, "train")
    boxes = depth_boxes(index, config) if config.boxed("depth") else None
    return ClipSource(index, config, setting.seed, boxes)


def keep_scans(case: Case, setting: Setting, data: Path) -> None:
    """Scans the list and computes the depth boxes, so that no case's process has to."""
    clip_source(case, setting, data / FRAMES, layout="ntu")


def plan(source: ClipSource, batch: int) -> Iterator[Requests]:
    """Epoch after epoch in the order of the list, so that as many clips as the list has are all
    different wherever one begins to count. Random frames and views, as in training."""
    for first in itertools.count(0, batch):
        places = range(first, first + batch)
        yield [source.train_request(*divmod(place, len(source))) for place in places]


def open_loader(
    case: Case, setting: Setting, data: Path, folder: str = FRAMES, **options: Any
) -> Iterator[Any]:
    """Batches of `pipelines.loader`, or of frame folders what its first stages make."""
    source = clip_source(case, setting, data / folder, **options)
    device = torch.device(case.device)
    requests = plan(source, setting.batch)
    if case.upto not in LOADED:
        return first_stages(
            case.upto, source.config, case.device, requests, num_threads=setting.workers,
            batch_size=setting.batch * setting.frames, prefetch_queue_depth=setting.prefetch,
        )  # fmt: skip
    dtype = torch.bfloat16 if case.device == "cuda" else torch.float32
    cache = None if source.config.cache == "none" else FrameCache(CACHE_BYTES)
    loader = Loader(source.config, device, dtype, setting.batch, setting.workers, cache)
    return loader.batches(requests)


def open_with_share(case: Case, setting: Setting, data: Path, share: float) -> Iterator[Any]:
    """Batches of frame folders, of whose JPEG files the GPU's hardware decoder takes `share`, 0 to
    1. Another share than the loader's own holds for this whole process while they are made."""
    with mock.patch.object(transforms, "HARDWARE_SHARE", share):
        yield from open_loader(case, setting, data, layout="ntu", source="frames")


def open_videos(
    case: Case, setting: Setting, data: Path, threads: int | None = None
) -> Iterator[Any]:
    """Batches of videos, decoded by as many threads as the loader has, or by `threads`."""
    setting = setting if threads is None else replace(setting, workers=threads)
    return open_loader(
        case, setting, data, layout="ntu", source="videos", rgb=FrameFiles(VIDEO_PATTERN)
    )


def open_peer(
    case: Case, setting: Setting, data: Path, decoder: peers.Decoder | None
) -> Iterator[Any]:
    """Batches of torch's DataLoader."""
    source = clip_source(case, setting, data / FRAMES, layout="ntu")
    return peers.batches(source, setting.batch, setting.workers, data, decoder)


def video_peer(module: str, decoder: peers.Decoder) -> Source:
    """A library that decodes videos, in torch's DataLoader."""
    return Source(
        VIDEOS, write_videos, partial(open_peer, decoder=decoder), whats=("rgb",),
        devices=("cpu",), is_peer=True, missing=peers.missing(module),
    )  # fmt: skip


SOURCES: dict[str, Source] = {
    "frames": Source(
        FRAMES,
        write_frames,
        partial(open_loader, layout="ntu", source="frames"),
        uptos=tuple(UPTOS),
    ),
    "videos": Source(
        VIDEOS,
        write_videos,
        open_videos,
        whats=("rgb", "rgbd"),
    ),
    "pack": Source(PACK, write_pack, partial(open_loader, folder=PACK, layout="ntu")),
    "cache_host": Source(
        FRAMES, write_frames, partial(open_loader, layout="ntu", source="frames", cache="host")
    ),
    "cache_gpu": Source(
        FRAMES,
        write_frames,
        partial(open_loader, layout="ntu", source="frames", cache="gpu"),
        devices=("cuda",),
    ),
    **{
        name: Source(
            FRAMES,
            write_frames,
            partial(open_with_share, share=share),
            whats=("rgb",),
            uptos=("decode",),
            devices=("cuda",),
        )
        for name, share in HARDWARE_SHARES.items()
    },
    **{
        name: Source(
            VIDEOS,
            write_videos,
            partial(open_videos, threads=threads),
            whats=("rgb",),
            uptos=("motion",),
            devices=("cuda",),
        )
        for name, threads in VIDEO_THREADS.items()
    },
    "twin": Source(
        FRAMES, write_frames, partial(open_peer, decoder=None), devices=("cpu",), is_peer=True
    ),
    "torchcodec": video_peer("torchcodec", peers.torchcodec_frames),
    "pyav": video_peer("av", peers.pyav_frames),
    "decord": video_peer("decord", peers.decord_frames),
}
