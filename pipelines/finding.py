"""Where the media of a list's clips are, and how many frames they truly hold. Decodes for training
nothing; videos are decoded once, to count their frames and to know that they are sound."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipelines.cache import open_cache
from pipelines.config import DataConfig
from pipelines.folders import Frames, count_frames
from pipelines.layouts import clip_frames, modality_files
from pipelines.media import Media


@dataclass(frozen=True)
class Found:
    """One modality of a clip on disk."""

    media: Media | None
    num_frames: int
    """Frames from the first one on without a hole."""

    missing: str
    """The first frame that is not there."""

    error: str | None = None
    """Where there should be something, and why there is nothing."""


Wanted = Mapping[tuple[str, str], Frames]
"""By clip name and modality."""


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
    return _folders(frames, config, root, log)


def wanted_modalities(config: DataConfig) -> Sequence[str]:
    """A modality that is not used matters only where a clip may be cut to the frames both have."""
    return list(modality_files(config)) if config.frame_slack else config.modalities


def _folders(
    wanted: Wanted, config: DataConfig, root: str, log: Callable[[str], None]
) -> dict[tuple[str, str], Found]:
    counts = count_frames(list(wanted.values()), root, open_cache(config, "frames", log))
    found = {}
    for key, media in wanted.items():
        count = counts[media]
        error = f"{media.folder}: {count.error}" if count.error else None
        found[key] = Found(media, count.num_frames, media.path(count.num_frames), error)
    return found
