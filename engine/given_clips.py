"""Clips given by path, folders of frames or videos -> the requests that evaluation would make of
them. No pixels, except that the published depth encoding looks for the person in each depth frame,
and that videos are decoded once to count their frames."""

import os
import re
from collections.abc import Sequence

from pipelines.config import DataConfig
from pipelines.depth_boxes import boxes_of
from pipelines.folders import FrameList
from pipelines.media import ByDali, Media, VideoFile
from pipelines.sampling import branch_indices, sample_frames
from pipelines.source import ClipRequest, Stream
from pipelines.video_index import probe
from pipelines.view import eval_view

IMAGE_TYPES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".webp": "WebP",
               ".tif": "TIFF", ".tiff": "TIFF"}  # fmt: skip


def clip_requests(clips: Sequence[str], config: DataConfig) -> list[ClipRequest]:
    """One request per clip: the frames, the view and the boxes of evaluation.

    A clip is a folder of frames or a video; for RGB-D `RGB,DEPTH`, which count as many frames as
    both have. The label is 0, as it is not known. Raises ValueError naming what is no clip.
    """
    by_clip = [_clip_media(_parts(clip, config), config) for clip in clips]
    lengths = [min(length for _, length in modalities) for modalities in by_clip]
    streams = [
        _streams(modality, [media for media, _ in parts], lengths, config)
        for modality, parts in zip(config.modalities, zip(*by_clip, strict=True), strict=True)
    ]
    branches = branch_indices(config.num_frames, config.branch_frames, None)
    return [
        ClipRequest(
            i, 0, tuple(modality[i] for modality in streams), branches, origin=f"clip {name}"
        )
        for i, name in enumerate(clips)
    ]


def _clip_media(parts: Sequence[str], config: DataConfig) -> list[tuple[Media, int]]:
    """The media of each modality and how many frames they have."""
    found: list[tuple[Media, int]] = []
    for path, modality in zip(parts, config.modalities, strict=True):
        if not os.path.isfile(path):
            files = list_frames(path)
            found.append((files, len(files.paths)))
            continue
        if config.in_mm(modality):
            raise ValueError(f"{path}: is a file, but 16-bit depth is read from a folder of PNG")
        info = probe(path)
        # FFmpeg for all: clips given by hand may be of many kinds, in one batch.
        found.append((VideoFile(path, info, ByDali()), info.num_frames))
    return found


def _streams(
    modality: str, clips: Sequence[Media], lengths: Sequence[int], config: DataConfig
) -> list[Stream]:
    """One modality of each clip, of its first so many frames."""
    boxes = boxes_of(list(zip(clips, lengths, strict=True))) if config.boxed(modality) else None
    streams = []
    for i, (media, length) in enumerate(zip(clips, lengths, strict=True)):
        frames = sample_frames(length, config.num_frames, None)
        seen = None if boxes is None else boxes[i][frames]
        streams.append(Stream(media, frames, eval_view(config), seen))
    return streams


def _parts(clip: str, config: DataConfig) -> list[str]:
    """What is given of each modality. Raises ValueError where an RGB-D clip does not name two."""
    if len(config.modalities) == 1:
        return [clip]
    folders = clip.split(",")
    if len(folders) != len(config.modalities):
        raise ValueError(f"{clip}: an RGB-D network needs two folders or videos: RGB,DEPTH")
    return folders


def list_frames(folder: str) -> FrameList:
    """The image files of a folder in natural order: frame2 before frame10.

    Raises ValueError where there are none and where they are of several types.
    """
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
    return FrameList(tuple(os.path.join(folder, name) for name in images))


def _natural(name: str) -> list[str | int]:
    """Sorting key: text and the values of numbers, in turn."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]
