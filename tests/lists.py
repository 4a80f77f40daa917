"""Small data sets on disk with their configs, and requests for their clips: for loading tests."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clips import DEPTH_NAME, RGB_NAME, depth_frames, rgb_frames, write_clip
from pipelines import reference
from pipelines.config import DataConfig, FrameFiles
from pipelines.folders import FrameList
from pipelines.index import scan
from pipelines.source import ClipRequest, ClipSource, Stream
from pipelines.view import View

TINY = DataConfig(
    root="", train_list="list.txt", eval_list="list.txt", num_classes=3,
    depth=FrameFiles("depth/{name}/MDepth-{frame:08d}.png", first=1),
    num_frames=4, branch_frames=(2, 3), resize=(48, 36), crop=32, size=32,
    flip=0.5, rotate=0.5, motion_window=2,
)  # fmt: skip
"""Frames of 64x48 or 96x72; every random choice is open."""

UPRIGHT = View()
TURNS = (View(0, 3, 2, False), View(7, 0, 0, True), View(-10, 5, 1, False))
"""Views at the angles of the acceptance test."""


def write_list(
    root: Path,
    num_clips: int = 7,
    modality: str = "rgb",
    rgb_size: tuple[int, int] = (64, 48),
    **options: object,
) -> DataConfig:
    """Clips c0, c1, ... of 5, 6, ... frames with labels 0, 1, 2, 0, ... and their config. Depth is
    16 bit and 96x72."""
    settings = {"root": str(root), "cache_dir": str(root / "cache"), "modality": modality}
    config = replace(TINY, **settings, **options)
    lines = []
    for i in range(num_clips):
        if "rgb" in config.modalities:
            write_clip(root / "rgb" / f"c{i}", rgb_frames(5 + i, *rgb_size, seed=i), RGB_NAME)
        if "depth" in config.modalities:
            frames = depth_frames(5 + i, 96, 72, seed=i)
            write_clip(root / "depth" / f"c{i}", frames, DEPTH_NAME, first=1)
        lines.append(f"c{i} {5 + i} {i % 3}\n")
    (root / "list.txt").write_text("".join(lines))
    return config


def open_source(config: DataConfig, seed: int = 0) -> ClipSource:
    return ClipSource(scan(config, "train"), config, seed)


def stream_of(paths: Sequence[str], view: View = UPRIGHT, boxes: NDArray | None = None) -> Stream:
    """All frames of a clip of these files."""
    return Stream(FrameList(tuple(paths)), np.arange(len(paths)), view, boxes)


def request(
    paths: Sequence[str], view: View = UPRIGHT, boxes: NDArray | None = None, index: int = 0
) -> ClipRequest:
    """A request made by hand, for as many frames as there are paths."""
    return request_of(stream_of(paths, view, boxes), index=index)


def request_of(*streams: Stream, index: int = 0) -> ClipRequest:
    """The same for any number of modalities."""
    branches = (np.arange(2), np.arange(3))
    return ClipRequest(index, index % 3, streams, branches, origin=f"clip c{index}, l:1")


def twin(request: ClipRequest, config: DataConfig, stream: int = 0) -> NDArray[np.uint8]:
    """(T, size, size, 3) pixels of one modality by the plain twin."""
    return reference.clip_pixels(request.streams, config)[stream]


def assert_like_twin(pixels: NDArray[np.uint8], expected: NDArray[np.uint8]) -> None:
    """The bound of the project: below 0.3 grey levels on average, 99.9 % of values within 2."""
    assert pixels.shape == expected.shape and pixels.dtype == expected.dtype == np.uint8
    difference = np.abs(pixels.astype(int) - expected)
    assert difference.mean() < 0.3
    assert (difference <= 2).mean() >= 0.999
