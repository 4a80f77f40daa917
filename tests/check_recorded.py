"""Holds the data path to pixels and motion maps recorded with the published loader. Run by hand, as
real clips are no part of the repository; the suite does the same with rendered ones.

    python tests/check_recorded.py RECORDED.npz FRAMES [--resize 320 240] [--window 10]

RECORDED.npz: `clip_u8` (T, size, size, 3) of evaluation with a centre crop, `heat_f32_frames`
(n, size, size) motion maps and `heat_f32_frame_ids` (n,) their frames. FRAMES: a folder of JPEG, or
of 16-bit depth PNG in millimetres, all frames of the clip in the order of their names.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lists import stream_of
from pipelines import reference
from pipelines.config import DataConfig
from pipelines.depth import box_centre, boxes_at, read_depth, wrap
from pipelines.geometry import colour_table, view_clip
from pipelines.motion import motion_maps
from pipelines.sampling import sample_frames
from pipelines.view import View, eval_view

ANGLES = (7, -10)
"""Nothing was recorded turned: there the two are compared with each other."""


def executor(paths: list[str], view: View, config: DataConfig) -> NDArray[np.uint8]:
    """(T, size, size, 3) by what training runs on the CPU, from the twin's decoded frames."""
    boxes = None
    frames: list[NDArray[Any]]
    if config.in_mm(config.modality):
        frames = [read_depth(path)[..., None] for path in paths]
        centres = np.array([box_centre(wrap(frame[..., 0])) for frame in frames])
        boxes = boxes_at(centres, *frames[0].shape[:2])
    else:
        frames = [reference.read_color(path) for path in paths]
    pixels = np.empty((len(paths), config.size, config.size, 3), np.uint8)
    view_clip(frames, view, config, colour_table(config, config.modality), boxes, pixels)
    return pixels


def compare(name: str, pixels: NDArray[np.uint8], expected: NDArray[np.uint8]) -> None:
    levels = np.abs(pixels.astype(int) - expected)
    print(
        f"{name:<32} mean {levels.mean():.5f} grey levels, largest {levels.max()}, "
        f"{(levels <= 2).mean():.4%} within 2"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("recorded", type=Path)
    parser.add_argument("frames", type=Path)
    parser.add_argument("--resize", type=int, nargs=2, default=(320, 240))
    parser.add_argument("--window", type=int, default=10)
    given = parser.parse_args()
    recorded = np.load(given.recorded)
    num_frames, size = recorded["clip_u8"].shape[:2]
    files = sorted(str(path) for path in given.frames.iterdir())
    paths = [files[i] for i in sample_frames(len(files), num_frames, None)]
    config = DataConfig("", "", "", 2, resize=tuple(given.resize), crop=size, size=size)
    if files[0].endswith(".png"):
        config = replace(config, modality="depth", depth_encoding="wrapped_jet")

    view = eval_view(config)
    (twin,) = reference.clip_pixels([stream_of(paths, view)], config)
    fast = executor(paths, view, config)
    compare("twin, recorded", twin, recorded["clip_u8"])
    compare("executor, recorded", fast, recorded["clip_u8"])
    for angle in ANGLES:
        turned = replace(view, angle=angle, flip=True)
        (expected,) = reference.clip_pixels([stream_of(paths, turned)], config)
        compare(f"executor, twin at {angle} degrees", executor(paths, turned, config), expected)
    ids = recorded["heat_f32_frame_ids"]
    maps = motion_maps(torch.from_numpy(fast)[None], given.window)[0, 0].numpy()
    for name, made in (("twin", reference.motion_maps(twin, given.window)), ("engine", maps)):
        away = np.abs(made[ids] - recorded["heat_f32_frames"])
        print(f"{'motion maps: ' + name:<32} mean {away.mean():.2e}, largest {away.max():.2e}")


if __name__ == "__main__":
    main()
