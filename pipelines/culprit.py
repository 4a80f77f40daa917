"""Which frame of a batch is at fault, once DALI or a glance at the signatures says that one is."""

from collections.abc import Sequence

from pipelines.folders import FrameList, Frames
from pipelines.media import VideoFile
from pipelines.source import ClipRequest, Stream
from pipelines.verify import image_problem, problem
from pipelines.video_index import probe


def find_problem(
    requests: Sequence[ClipRequest],
    stream: int,
    millimetres: bool,
    places: Sequence[int] | None = None,
) -> ValueError | None:
    """The error to raise for the first unusable frame of a batch's streams of one modality, or None
    if all are sound.

    `places` limits the search to these frames of the batch, counted over all its clips.
    """
    shown = [(r.streams[stream], t, r.origin) for r in requests
             for t in range(len(r.streams[stream].frames))]  # fmt: skip
    for place in range(len(shown)) if places is None else places:
        frames, t, origin = shown[place]
        if found := _frame_problem(frames, t, millimetres):
            return ValueError(f"{found} ({origin})")
    return None


def _frame_problem(stream: Stream, t: int, millimetres: bool) -> str | None:
    """File, what is wrong with it and what to do, or None for a sound one."""
    media, frame = stream.media, int(stream.frames[t])
    if isinstance(media, (Frames, FrameList)):
        name, found = media.path(frame), problem(media.path(frame), millimetres)
    elif isinstance(media, VideoFile):
        if t:
            return None  # looked at as a whole
        try:
            probe(media.path)
        except ValueError as error:
            return str(error)
        return None
    else:
        name = f"{media.name} frame {frame}"
        try:
            (data,) = media.encoded(stream.frames[t : t + 1])
        except (ValueError, OSError) as error:
            return str(error)
        found = None if media.is_lz4 else image_problem(data.tobytes(), millimetres)
    return f"{name}: {found[0]}; {found[1]}" if found else None
