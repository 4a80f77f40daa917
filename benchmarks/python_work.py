"""What Python does per batch on the way to DALI: the plan of a large list and the arrays made of
it. No file exists, no pixel is touched; the same on any machine, with a GPU or without."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.loader_cases import Setting
from benchmarks.records import summary
from pipelines.config import DataConfig
from pipelines.depth import DepthBoxes
from pipelines.folders import Frames
from pipelines.graph import Requests, decode_arrays, view_arrays
from pipelines.index import Clip, ClipIndex
from pipelines.layouts import clip_frames, modality_files
from pipelines.media import Way
from pipelines.plan import train_plan
from pipelines.sampling import stream_clips
from pipelines.source import ClipSource
from pipelines.verify import suspects

CLIPS = 40_000
"""About as many as NTU RGB+D's cross-subject list for training."""

ROOT = "/data/ntu_rgbd_60"


def python_work(setting: Setting, what: str, repeats: int = 20) -> dict[str, dict[str, float]]:
    """Milliseconds per batch (median, quartiles, n) of each part, and of `plan` and `view_arrays`,
    which are all of it but the checks, together as `total`."""
    config = setting.data_config(ROOT, what, "motion", {"layout": "ntu"})
    source = large_source(config, setting)
    plan = train_plan(source, setting.seed, setting.batch, 0, 10**9, 0, 1)
    steps = iter(range(10**9))
    requests = next(plan)
    modalities = len(config.modalities)
    signatures = np.zeros((setting.batch * setting.frames, 34), np.uint8)
    parts: dict[str, Callable[[], Any]] = {
        "plan": lambda: next(plan),
        "of it: which clips": lambda: _clips_of_step(next(steps), setting),
        "view_arrays": lambda: _of_each(view_arrays, requests, config),
        "of it: paths": lambda: _of_each(decode_arrays, requests, config),
        "checks": lambda: [suspects(signatures, False) for _ in range(modalities)],
    }
    samples = {name: list(_times(part, repeats)) for name, part in parts.items()}
    pairs = zip(samples["plan"], samples["view_arrays"], strict=True)
    samples["total"] = [sum(pair) for pair in pairs]
    return {name: summary([1000 * s for s in seconds]) for name, seconds in samples.items()}


@dataclass(frozen=True)
class SizedFrames(Frames):
    """Frames of which no file need be opened to know their size."""

    width_height: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, frames: Frames, width_height: tuple[int, int]) -> "SizedFrames":
        return cls(frames.pattern, frames.first, width_height)

    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.width_height


def _of_each(arrays: Callable[..., Any], requests: Requests, config: DataConfig) -> list[Any]:
    return [arrays(requests, config, modality, Way.FILES) for modality in config.modalities]


def large_source(config: DataConfig, setting: Setting) -> ClipSource:
    """Clips of a data set that is not there."""
    shortest, longest = setting.clip_lengths
    clips = [
        Clip(f"S001C001P001R001A{i:05d}_rgb", shortest + i % (longest - shortest + 1), i % 8, i + 1)
        for i in range(CLIPS)
    ]
    files, sizes = modality_files(config), {"rgb": setting.rgb_size, "depth": setting.depth_size}
    media = {
        m: tuple(SizedFrames.of(clip_frames(ROOT, files[m], c.name), sizes[m]) for c in clips)
        for m in config.modalities
    }
    index = ClipIndex(tuple(clips), ROOT, dict(media), f"{ROOT}/train.txt", 0)
    boxes = None
    if config.boxed("depth"):
        width, height = setting.depth_size
        centres = [np.full((clip.num_frames, 2), 200, np.int16) for clip in clips]
        boxes = DepthBoxes(tuple(centres), ((height, width),) * CLIPS, 0, 0)
    return ClipSource(index, config, setting.seed, boxes)


def _clips_of_step(step: int, setting: Setting) -> list[tuple[int, int]]:
    return stream_clips(setting.seed, CLIPS, step * setting.batch, (step + 1) * setting.batch)


def _times(work: Callable[[], Any], repeats: int) -> Iterator[float]:
    work()  # what is made once is made
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        yield time.perf_counter() - started


def as_text(work: dict[str, dict[str, float]], what: str, setting: Setting) -> str:
    """One line per part."""
    title = f"Python per batch, {what}, B={setting.batch}, T={setting.frames}, {CLIPS} clips"
    lines = [f"{title:<64}{'ms':>8}"]
    lines += [f"  {name:<62}{spread['median']:>8.2f}" for name, spread in work.items()]
    return "\n".join(lines)
