"""What the loader benchmark measures: the setting all share, and the list of cases. Runs nothing.

A case is named DEVICE/SOURCE/WHAT/UPTO/PAGES, such as `cpu/frames/rgb/motion/warm`.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from pipelines.config import DataConfig

WHATS: dict[str, dict[str, Any]] = {
    "rgb": {"modality": "rgb"},
    "depth_metric": {"modality": "depth", "depth_encoding": "metric"},
    "depth_wrapped_jet": {"modality": "depth", "depth_encoding": "wrapped_jet"},
    "rgbd": {"modality": "rgbd", "depth_encoding": "metric"},
}
"""Values of `DataConfig` for each kind of clip."""

UPTOS = {
    "hand_over": "plan, arrays, their way to DALI",
    "read": "files read",
    "decode": "frames decoded",
    "view": "rotated, resized, cropped, normalised: a batch without motion maps",
    "motion": "with motion maps: all of the loader's work",
}
"""How far the work goes, each containing the one before: differences are what a stage costs."""

PAGES = ("warm", "cold")
"""Files in the page cache, and files that must come from the disk."""


@dataclass(frozen=True)
class Setting:
    """What all cases of a run share; two runs are comparable where it is the same."""

    clips: int = 64
    size: int = 224
    frames: int = 64
    batch: int = 8
    workers: int = len(os.sched_getaffinity(0))
    prefetch: int = DataConfig.prefetch
    windows: int = 5
    batches: int = 3
    rgb_size: tuple[int, int] = (320, 240)
    depth_size: tuple[int, int] = (512, 424)
    seed: int = 0

    @property
    def clip_lengths(self) -> tuple[int, int]:
        """Fewest and most frames on disk: 72 to 104 for clips of 64, about NTU's lengths."""
        return self.frames * 9 // 8, self.frames * 13 // 8

    @property
    def ahead(self) -> int:
        """Batches that may be ready or in work at any time: DALI's, those behind it, the next one
        that threads are at, and one in hand. A window begins and ends with as many."""
        return 2 * self.prefetch + 2

    @property
    def cold_batches(self) -> int:
        """Most batches of a window of which no clip was read since the pages were dropped."""
        return self.clips // self.batch - self.ahead

    def data_config(self, root: str, what: str, upto: str, source: Mapping[str, Any]) -> DataConfig:
        """The published recipe at this size: `source` has the values that choose where clips
        come from."""
        quarters = tuple(self.frames * share // 4 for share in (1, 2, 3))
        return DataConfig(
            root=root, train_list="train.txt", eval_list="eval.txt", num_classes=8,
            num_frames=self.frames, branch_frames=quarters, prefetch=self.prefetch,
            resize=(self.size * 8 // 7, self.size * 8 // 7), crop=self.size, size=self.size,
            motion_window=min(DataConfig.motion_window, self.frames) if upto == "motion" else 0,
            workers=self.workers, **WHATS[what], **source,
        )  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    device: str
    source: str
    what: str
    upto: str
    pages: str

    @property
    def name(self) -> str:
        return "/".join((self.device, self.source, self.what, self.upto, self.pages))

    @property
    def turn(self) -> tuple[str, str, str]:
        """Cases of one turn are measured side by side: those whose ratio is of interest. A cold
        one would empty the page cache of a warm one."""
        return self.device, self.what, self.pages


def all_cases(
    devices: Sequence[str],
    sources: Mapping[str, tuple[Sequence[str], Sequence[str]]],
    patterns: Sequence[str],
) -> Iterator[Case]:
    """Cases whose name fits one of the patterns, those of one turn together.

    `sources`: the WHATS and UPTOS of each.
    """
    for device in devices:
        for what in WHATS:
            for pages in PAGES:
                for source, (whats, uptos) in sources.items():
                    for upto in uptos if what in whats else ():
                        case = Case(device, source, what, upto, pages)
                        if any(fnmatchcase(case.name, pattern) for pattern in patterns):
                            yield case
