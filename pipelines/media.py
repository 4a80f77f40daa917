"""What the frames of a clip are taken from, and finding it for the clips of a list."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipelines.cache import open_cache
from pipelines.config import DataConfig
from pipelines.folders import FrameList, Frames, count_frames
from pipelines.layouts import clip_frames, modality_files

Media = Frames | FrameList


@dataclass(frozen=True)
class Found:
    """One modality of a clip on disk."""

    media: Media
    num_frames: int
    """Frames from the first one on without a hole."""

    missing: str
    """The first frame that is not there."""

    error: str | None = None
    """Where there should be something, and why there is nothing."""


def find_media(
    config: DataConfig, root: str, names: Sequence[str], log: Callable[[str], None]
) -> dict[tuple[str, str], Found]:
    """What there is of each clip and modality, by (name, modality)."""
    files = modality_files(config)
    frames = {
        (name, modality): clip_frames(root, files[modality], name)
        for name in names
        for modality in wanted_modalities(config)
    }
    counts = count_frames(list(frames.values()), root, open_cache(config, "frames", log))
    found = {}
    for key, media in frames.items():
        count = counts[media]
        error = f"{media.folder}: {count.error}" if count.error else None
        found[key] = Found(media, count.num_frames, media.path(count.num_frames), error)
    return found


def wanted_modalities(config: DataConfig) -> Sequence[str]:
    """A modality that is not used matters only where a clip may be cut to the frames both have."""
    return list(modality_files(config)) if config.frame_slack else config.modalities
