"""Clips given as folders of frames -> the requests that evaluation would make of them. No pixels,
except that the published depth encoding looks for the person in each depth frame."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from numpy.typing import NDArray

from pipelines.config import DataConfig
from pipelines.depth_boxes import boxes_of
from pipelines.sampling import branch_indices, sample_frames
from pipelines.source import ClipRequest
from pipelines.view import eval_view

IMAGE_TYPES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".webp": "WebP",
               ".tif": "TIFF", ".tiff": "TIFF"}  # fmt: skip


@dataclass(frozen=True)
class FrameFiles:
    """The frames of one clip, in time."""

    paths: tuple[str, ...]

    def path(self, number: int) -> str:
        """File of the 0-based frame `number`."""
        return self.paths[number]


def clip_requests(clips: Sequence[str], config: DataConfig) -> list[ClipRequest]:
    """One request per folder of frames: the frames, the view and the boxes of evaluation.

    The label is 0, as it is not known. Raises ValueError naming a folder that holds no clip.
    """
    files = [list_frames(clip) for clip in clips]
    boxes = None
    if config.modality == "depth" and config.depth_encoding == "wrapped_jet":
        boxes = boxes_of([(clip, len(clip.paths)) for clip in files])
    view = eval_view(config)
    requests = []
    for i, (name, clip) in enumerate(zip(clips, files, strict=True)):
        frames: NDArray = sample_frames(len(clip.paths), config.num_frames, None)
        requests.append(
            ClipRequest(
                index=i,
                label=0,
                paths=tuple(clip.path(frame) for frame in frames.tolist()),
                view=view,
                boxes=None if boxes is None else boxes[i][frames],
                branch_indices=branch_indices(config.num_frames, config.branch_frames, None),
                origin=f"clip {name}",
            )
        )
    return requests


def list_frames(folder: str) -> FrameFiles:
    """The image files of a folder in natural order: frame2 before frame10.

    Raises ValueError where there are none, where they are of several types, and for a file.
    """
    if os.path.isfile(folder):
        raise ValueError(
            f"{folder}: is a file; a clip is a folder of its frames, such as FFmpeg writes by "
            f"`ffmpeg -i {folder} -start_number 0 FOLDER/%06d.jpg`"
        )
    try:
        names = sorted(os.listdir(folder), key=_natural)
    except OSError as error:
        raise ValueError(f"{folder}: {error.strerror}; name a folder of frames") from None
    types = {name: IMAGE_TYPES.get(os.path.splitext(name)[1].lower()) for name in names}
    images = [name for name in names if types[name] and not name.startswith(".")]
    kinds = sorted({str(types[name]) for name in images})
    if not images:
        raise ValueError(f"{folder}: holds no images ({', '.join(IMAGE_TYPES)})")
    if len(kinds) > 1:
        raise ValueError(f"{folder}: holds {' and '.join(kinds)} images; keep the clip's own only")
    return FrameFiles(tuple(os.path.join(folder, name) for name in images))


def _natural(name: str) -> list[str | int]:
    """Sorting key: text and the values of numbers, in turn."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]
