"""Where in an RGB frame of NTU RGB+D the person is, found in the masked depth frames. The regions
of the depth frames themselves are found when they are loaded (pipelines/depth.py)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.depth_boxes import boxes_of


@dataclass(frozen=True)
class PersonCentres:
    """Per depth frame, the centre of the person as a share of the frame."""

    shares: NDArray[np.float64]
    """(T, 2) x, y."""

    from_neighbour: int
    """Depth frames without a contour that took the nearest frame's centre."""

    from_middle: int
    """Depth frames of a clip without any contour: the middle of the frame."""

    def box(self, frame: int, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom in the RGB frame: half its width and height around the
        person, cut at its border. Frames after the last depth frame take that one's."""
        x, y = self.shares[min(frame, len(self.shares) - 1)]
        left = max(int(x * width) - width // 4, 0)
        top = max(int(y * height) - height // 4, 0)
        return left, top, min(left + width // 2, width), min(top + height // 2, height)

    def borrowed(self, num_frames: int) -> int:
        """How many of a clip's RGB frames have another frame's box."""
        return self.from_neighbour + max(num_frames - len(self.shares), 0)


@dataclass(frozen=True)
class _Paths:
    """What pipelines/depth_boxes.py asks of the files of a clip."""

    paths: Sequence[str]

    def path(self, number: int) -> str:
        return self.paths[number]


def person_centres(depth_files: Sequence[str]) -> PersonCentres:
    """The centres of a clip, by its masked depth frames, at least one. ValueError: damaged."""
    assert depth_files
    boxes = boxes_of([(_Paths(depth_files), len(depth_files))], processes=1)
    height, width = boxes.sizes[0]
    shares = boxes.centres[0] / np.array([width, height], np.float64)
    return PersonCentres(shares, boxes.from_neighbour, boxes.from_centre)
