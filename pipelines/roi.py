"""Where in an RGB frame of NTU RGB+D the person is, found in the masked depth frames. The regions
of the depth frames themselves are found when they are loaded (pipelines/depth.py)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.depth_boxes import boxes_of
from pipelines.folders import FrameList


@dataclass(frozen=True)
class PersonCentres:
    """Where the person is in each depth frame of a clip."""

    centres: NDArray[np.int16]
    """(T, 2) x, y."""

    size: tuple[int, int]
    """Width and height of the depth frames."""

    from_neighbour: int
    """Depth frames without a contour that took the nearest frame's centre."""

    from_middle: int
    """Depth frames of a clip without any contour: the middle of the frame."""

    def box(self, frame: int, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom in the RGB frame: half its width and height around the
        person, cut at its border. Frames after the last depth frame take that one's."""
        x, y = map(int, self.centres[min(frame, len(self.centres) - 1)])
        left = max(x * width // self.size[0] - width // 4, 0)
        top = max(y * height // self.size[1] - height // 4, 0)
        return left, top, min(left + width // 2, width), min(top + height // 2, height)

    def borrowed(self, num_frames: int) -> int:
        """How many of a clip's RGB frames have another frame's box."""
        return self.from_neighbour + max(num_frames - len(self.centres), 0)


def person_centres(depth_files: Sequence[str]) -> PersonCentres:
    """The centres of a clip, by its masked depth frames, at least one. ValueError: damaged."""
    assert depth_files
    boxes = boxes_of([(FrameList(tuple(depth_files)), len(depth_files))], processes=1)
    height, width = boxes.sizes[0]
    counts = boxes.from_neighbour, boxes.from_centre
    return PersonCentres(boxes.centres[0], (width, height), *counts)
