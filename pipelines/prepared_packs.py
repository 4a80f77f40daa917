"""A prepared folder of frames -> a pack of all its split lists."""

import shutil
from pathlib import Path

from pipelines import pack
from pipelines.config import DataConfig
from pipelines.datasets.download import Download
from pipelines.layouts import LAYOUT_FILES

ANY_SLACK = 10**6
"""Frames that one modality may have fewer than the other: a clip is packed to the shorter."""


def pack_prepared(download: Download, modality: str, frames: str, out: str, jobs: int) -> None:
    """Packs the clips of `frames`, as pipelines/preparation.py left it, into `out`, with its lists
    and class names. A clip is packed once, under the name of the first list that has it; lists
    that call it otherwise find it by the layout's rename rules.

    After a kill the next call packs the rest. Raises ValueError naming the first unusable file.
    """
    depth = LAYOUT_FILES[download.layout].get("depth")
    in_mm = depth is not None and depth.pattern.endswith(".png")
    packed: set[str] = set()
    for path, lines in download.lists.items():
        source, target = Path(frames, path), Path(out, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        clips = {line.clip for line in lines}
        if clips <= packed or not source.read_text().strip():
            continue
        packed |= clips
        config = DataConfig(
            frames, path, path, 1 + max(line.label for line in lines), modality=modality,
            layout=download.layout, source="frames", frame_slack=ANY_SLACK,
            depth_encoding="metric" if in_mm else "color",
        )  # fmt: skip
        pack.write(config, out, jobs)
    if download.classes:
        shutil.copyfile(Path(frames, "classes.txt"), Path(out, "classes.txt"))
