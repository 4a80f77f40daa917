"""`data.source=auto`: of several things that clips can be read from, the one that loads fastest on
this machine. Measured once on a few clips, and remembered."""

import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from pipelines.cache import open_cache
from pipelines.config import DataConfig
from pipelines.depth_boxes import depth_boxes
from pipelines.finding import present_sources
from pipelines.index import read_names, scan
from pipelines.loader import Loader
from pipelines.plan import train_plan
from pipelines.source import ClipSource

CLIPS, BATCH = 12, 2
"""The first clips of the training list; the first of their batches warms up."""


def choose_source(
    config: DataConfig, device: torch.device, threads: int, log: Callable[[str], None]
) -> str:
    """`data.source`, or for `auto` what is there; `log` is told why if there was a choice.

    Raises ValueError as pipelines/index.py does, for the first clips of the list.
    """
    if config.source != "auto":
        return config.source
    root = os.path.expanduser(config.root)
    names = read_names(config, "train")[:CLIPS]
    present = present_sources(config, root, names[0]) if names else []
    if len(present) < 2:
        return present[0] if present else "frames"
    cache = open_cache(config, "source_speed", log)
    key = " ".join((platform.node(), str(device.type), str(threads), config.modality,
                    config.depth_encoding, *present))  # fmt: skip
    speeds = cache.get(key)
    if speeds is None:
        speeds = {source: _clips_per_s(config, source, device, threads) for source in present}
        cache.put(key, speeds)
    chosen = max(speeds, key=lambda source: speeds[source])
    others = ", ".join(f"{speeds[s]:.1f} from {s}" for s in present if s != chosen)
    log(f"data.source=auto: {chosen}, {speeds[chosen]:.1f} clips/s on this machine ({others})")
    return chosen


def _clips_per_s(config: DataConfig, source: str, device: torch.device, threads: int) -> float:
    """Of a loader that does nothing else, over the list's first clips, thrice."""
    lines = Path(os.path.expanduser(config.root), config.train_list).read_bytes().splitlines()
    with tempfile.TemporaryDirectory() as folder:
        few = Path(folder) / "few.txt"
        few.write_bytes(b"\n".join([line for line in lines if line.strip()][:CLIPS]))
        own = replace(config, source=source, train_list=str(few), cache_dir=folder, on_error="stop",
                      min_frames=1)  # fmt: skip
        index = scan(own, "train", log=lambda text: None)
        boxed = any(map(own.boxed, own.modalities))
        boxes = depth_boxes(index, own, processes=1) if boxed else None
        clips = ClipSource(index, own, 0, boxes)
        steps = 3 * max(len(clips) // BATCH, 1)
        batches = Loader(own, device, torch.float32, BATCH, threads).batches(
            train_plan(clips, 0, BATCH, 0, 1 + steps, 0, 1)
        )
        next(batches)
        started = time.perf_counter()
        for _ in batches:
            pass
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return steps * BATCH / (time.perf_counter() - started)
