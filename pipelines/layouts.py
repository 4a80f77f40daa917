"""Where the frames of each known data set are: a table, and names turned into paths. No disk."""

import os
import re
from collections.abc import Sequence

from pipelines.config import DataConfig, FrameFiles
from pipelines.folders import Frames

# Folders and first numbers as the published CVPR'22 loader reads them. A list may name the clips
# of either modality: the rename rules of IsoGD and THU-READ lead from both names to the right one.
LAYOUT_FILES: dict[str, dict[str, FrameFiles]] = {
    "generic": {
        "rgb": FrameFiles("rgb/{name}/{frame:06d}.jpg"),
        "depth": FrameFiles("depth/{name}/{frame:06d}.jpg"),
    },
    "ntu": {
        "rgb": FrameFiles("Images/{name}/{frame:06d}.jpg", first=1),
        "depth": FrameFiles(
            "nturgb+d_depth_masked/{name}/MDepth-{frame:08d}.png",
            first=1,
            rename=((r"_rgb$", ""),),
        ),
    },
    "nvgesture": {
        "rgb": FrameFiles("rgb/{name}/{frame:06d}.jpg"),
        "depth": FrameFiles("depth/{name}/{frame:06d}.jpg"),
    },
    "isogd": {
        "rgb": FrameFiles("rgb/{name}/{frame:06d}.jpg", rename=((r"\bK_(\d+)$", r"M_\1"),)),
        "depth": FrameFiles("depth/{name}/{frame:06d}.jpg", rename=((r"\bM_(\d+)$", r"K_\1"),)),
    },
    "thu_read": {
        "rgb": FrameFiles(
            "{name}/{frame:06d}.jpg",
            rename=((r"(^|/)Depth(?=/)", r"\1RGB"), (r"(^|/)D_([^/]*)$", r"\1RGB_\2")),
        ),
        "depth": FrameFiles(
            "{name}/{frame:06d}.jpg",
            rename=((r"(^|/)RGB(?=/)", r"\1Depth"), (r"(^|/)RGB_([^/]*)$", r"\1D_\2")),
        ),
    },
    "jester": {
        "rgb": FrameFiles("{name}/{frame:05d}.jpg", first=1),
    },
}

# Where data sets have their videos as downloaded; as `<folder of frames>.*` all may have them.
LAYOUT_VIDEOS: dict[str, dict[str, str]] = {
    "ntu": {"rgb": "nturgb+d_rgb/{name}.*"},
    "isogd": {"rgb": "{name}.*", "depth": "{name}.*"},
}

VIDEO_TYPES = (".mp4", ".avi", ".webm", ".mkv", ".mov")
"""What `.*` stands for, the first that is there."""


def modality_files(config: DataConfig) -> dict[str, FrameFiles]:
    """The frames of each modality that the layout or the config offers.

    Raises ValueError if one of `config.modalities` is not among them or a pattern or rule is
    unusable.
    """
    offered = dict(LAYOUT_FILES[config.layout])
    for modality, override in (("rgb", config.rgb), ("depth", config.depth)):
        if override is not None:
            _check(override, modality)
            offered[modality] = override
    for modality in config.modalities:
        if modality not in offered:
            raise ValueError(
                f"data.modality: layout '{config.layout}' has no {modality} frames; choose "
                f"{' or '.join(offered)}, or say where they are in data.{modality}.pattern"
            )
    return offered


def clip_frames(root: str, files: FrameFiles, name: str) -> Frames:
    """The frame files of the clip that the list calls `name`."""
    name = renamed(files, name)
    # Braces in the names of folders and clips must survive the later format call.
    root, name = (text.replace("{", "{{").replace("}", "}}") for text in (root, name))
    return Frames(os.path.join(root, files.pattern.replace("{name}", name)), files.first)


def is_stored_in_mm(layout: str, modality: str) -> bool:
    """Whether the layout's frames are images of 16-bit depth."""
    return LAYOUT_FILES[layout][modality].pattern.endswith(".png")


def is_video(files: FrameFiles) -> bool:
    """Whether the pattern is that of one file for the whole clip."""
    return "{frame" not in files.pattern


def video_patterns(config: DataConfig, modality: str) -> tuple[str, ...]:
    """Where a clip's video of this modality may be."""
    files = modality_files(config)[modality]
    if is_video(files):
        return (files.pattern,)
    downloaded = LAYOUT_VIDEOS.get(config.layout, {}).get(modality)
    beside = f"{os.path.dirname(files.pattern)}.*"
    return (beside, downloaded) if downloaded else (beside,)


def video_path(root: str, files: FrameFiles, patterns: Sequence[str], name: str) -> str | None:
    """The first video there is of the clip that the list calls `name`."""
    for pattern in patterns:
        stem, any_type, _ = pattern.partition(".*")
        path = os.path.join(root, stem.replace("{name}", renamed(files, name)))
        for ending in VIDEO_TYPES if any_type else ("",):
            if os.path.exists(path + ending):
                return path + ending
    return None


def clip_path(root: str, files: FrameFiles, name: str) -> str:
    """Where the video of a clip should be."""
    return os.path.join(root, files.pattern.replace("{name}", renamed(files, name)))


def renamed(files: FrameFiles, name: str) -> str:
    """The name of a clip in a list -> its name in this modality's files."""
    for expression, replacement in files.rename:
        name = re.sub(expression, replacement, name)
    return name


def _check(files: FrameFiles, modality: str) -> None:
    key = f"data.{modality}"
    folder, file_name = os.path.split(files.pattern)
    try:
        if is_video(files) and files.pattern.format(name="clip") != files.pattern:
            return
        numbers = {file_name.format(name="clip", frame=frame) for frame in (1, 2)}
        folder.format(name="clip")
    except (KeyError, IndexError, ValueError):
        numbers = set()
    if len(numbers) != 2 or "{name}" not in files.pattern:
        raise ValueError(
            f"{key}.pattern: '{files.pattern}' needs {{name}} and, in its file name, "
            "{frame}, such as 'rgb/{name}/{frame:06d}.jpg'"
        )
    for expression, replacement in files.rename:
        try:
            re.sub(expression, replacement, "")
        except re.error as error:
            raise ValueError(f"{key}.rename: '{expression}' -> '{replacement}': {error}") from None
