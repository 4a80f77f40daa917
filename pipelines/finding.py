"""Where the media of a list's clips are, and how many frames they truly hold. Decodes for training
nothing; videos are decoded once, to count their frames and to know that they are sound."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.cache import open_cache
from pipelines.config import DataConfig
from pipelines.folders import Frames, count_frames
from pipelines.layouts import (
    clip_frames,
    clip_path,
    is_video,
    modality_files,
    renamed,
    video_path,
    video_patterns,
)
from pipelines.media import ByDali, Media, PackedFrames, PackedVideo, VideoFile
from pipelines.pack_reader import Pack, find_shards
from pipelines.video_index import Probe, probe_videos


@dataclass(frozen=True)
class Found:
    """One modality of a clip on disk."""

    media: Media | None
    num_frames: int
    """Frames from the first one on without a hole."""

    missing: str
    """What is not there of a longer clip, and what to do, for messages."""

    error: str | None = None
    """Where there should be something, and why there is nothing."""


Key = tuple[str, str]
"""Clip name and modality."""

Log = Callable[[str], None]


def find_media(config: DataConfig, root: str, names: Sequence[str], log: Log) -> dict[Key, Found]:
    """What there is of each clip and modality.

    Raises ValueError where the pack itself, or the config, is at fault.
    """
    source = config.source
    if source == "auto":  # where none is faster by measurement (pipelines/source_choice.py)
        source = next(iter(present_sources(config, root, names[0]) if names else ()), "frames")
    if source == "pack":
        return _packed(config, root, names, log)
    files = modality_files(config)
    folders: dict[Key, Frames] = {}
    videos: dict[Key, str] = {}
    for modality in wanted_modalities(config):
        patterns = video_patterns(config, modality) if source == "videos" else ()
        for name in names:
            if patterns and (path := video_path(root, files[modality], patterns, name)):
                videos[name, modality] = path
            elif is_video(files[modality]):
                videos[name, modality] = clip_path(root, files[modality], name)
            else:
                folders[name, modality] = clip_frames(root, files[modality], name)
    found = {**_folders(folders, config, root, log), **_videos(videos, config, root, log)}
    mixed = {modality for _, modality in videos} & {modality for _, modality in folders}
    for name, modality in folders:
        seen = found[name, modality]
        if modality in mixed and not seen.error:  # the loader decodes a list in one way
            path = folders[name, modality].folder
            error = f"{path}: frames where others have a video (data.source=frames reads these)"
            found[name, modality] = replace(seen, error=error)
    return found


def wanted_modalities(config: DataConfig) -> Sequence[str]:
    """A modality that is not used matters only where a clip may be cut to the frames both have."""
    return list(modality_files(config)) if config.frame_slack else config.modalities


def present_sources(config: DataConfig, root: str, name: str) -> list[str]:
    """What a clip can be read from: `pack`, `frames`, `videos`. A guess by one clip, made before
    anything is looked through; empty where nothing of it is there."""
    present = ["pack"] if find_shards(Path(root)) else []
    files = modality_files(config)
    folders, videos = [], []
    for modality in config.modalities:
        if not is_video(files[modality]):
            folders.append(os.path.isdir(clip_frames(root, files[modality], name).folder))
        patterns = video_patterns(config, modality)
        videos.append(video_path(root, files[modality], patterns, name) is not None)
    if len(folders) == len(videos) and all(folders):
        present.append("frames")
    # A modality without videos is read from its frames.
    if any(videos) and all(v or f for v, f in zip(videos, folders or videos, strict=True)):
        present.append("videos")
    return present


def _folders(
    wanted: Mapping[Key, Frames], config: DataConfig, root: str, log: Log
) -> dict[Key, Found]:
    counts = count_frames(list(wanted.values()), root, open_cache(config, "frames", log))
    found = {}
    for key, media in wanted.items():
        count = counts[media]
        error = f"{media.folder}: {count.error}" if count.error else None
        missing = f"no {media.path(count.num_frames)}; restore it"
        found[key] = Found(media, count.num_frames, missing, error)
    return found


def _videos(wanted: Mapping[Key, str], config: DataConfig, root: str, log: Log) -> dict[Key, Found]:
    if not wanted:
        return {}
    probes = probe_videos(list(wanted.values()), root, open_cache(config, "videos", log))
    by_dali = _by_dali(probes.values())
    found = {}
    for key, path in wanted.items():
        probe = probes[path]
        if probe.info is None:
            found[key] = Found(None, 0, "", probe.error)
        else:
            media = VideoFile(path, probe.info, by_dali)
            found[key] = Found(media, probe.info.num_frames, f"more in {path}; restore it")
    return found


def _by_dali(probes: Iterable[Probe]) -> ByDali:
    """Tells whether DALI decodes all of these videos. No GPU is asked yet: ranks may have several
    kinds."""
    sound = [probe.info for probe in probes if probe.info]
    return ByDali(
        on_cpu=all(info.dali_cpu for info in sound),
        on_gpu=all(info.dali_gpu for info in sound),
        pictures=frozenset(info.picture for info in sound if info.picture),
    )


def _packed(config: DataConfig, root: str, names: Sequence[str], log: Log) -> dict[Key, Found]:
    pack = Pack.open(root)
    pack.check_shards()
    files = modality_files(config).values()
    found: dict[Key, Found] = {}
    videos: dict[Key, PackedFrames] = {}
    first: dict[str, PackedFrames] = {}
    for name in names:
        # A list may call clips by the other modality's name (IsoGD, THU-READ).
        called = (name, *(renamed(rules, name) for rules in files))
        clip = next((known for known in called if known in pack), name)
        for modality in wanted_modalities(config):
            try:
                info = pack.info(clip, modality)
            except ValueError as problem:
                found[name, modality] = Found(None, 0, "", str(problem))
                continue
            media = PackedFrames(pack, clip, modality)
            missing = f"more in {pack.shard_of(clip)}; write it anew"
            kind = first.setdefault(modality, media)
            error = _unusable(media, kind, config.in_mm(modality))
            found[name, modality] = Found(media, info.num_frames, missing, error)
            if media.is_video and error is None:
                videos[name, modality] = media
    return {**found, **_packed_videos(videos, found, config, root, log)}


def _unusable(media: PackedFrames, first: PackedFrames, in_mm: bool) -> str | None:
    """What keeps a packed track from being read as the config says, and the list's `first` is."""
    if media.is_lz4 and not in_mm:
        return (
            f"{media.name}: is 16-bit depth where an image is expected; set "
            "data.depth_encoding=metric"
        )
    if media.is_video and in_mm:
        return (
            f"{media.name}: is a video where 16-bit depth is expected; set "
            "data.depth_encoding=color"
        )
    if (media.is_lz4, media.is_video) != (first.is_lz4, first.is_video):
        return (
            f"{media.name}: is {media.info.encoding}, and {first.name} is {first.info.encoding}; "
            "pack all clips in one way"
        )
    return None


def _packed_videos(
    wanted: Mapping[Key, PackedFrames], found: Mapping[Key, Found], config: DataConfig, root: str,
    log: Log,
) -> dict[Key, Found]:  # fmt: skip
    """Those of `found` that are videos, decoded once as those in files are."""
    if not wanted:
        return {}
    probes = probe_videos(list(wanted.values()), root, open_cache(config, "videos", log))
    by_dali = _by_dali(probes.values())
    return {
        key: replace(found[key], media=PackedVideo(media, probe.info, by_dali))
        if (probe := probes[media]).info
        else Found(None, 0, "", probe.error)
        for key, media in wanted.items()
    }
