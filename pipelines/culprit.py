"""Which frame of a batch is at fault, once DALI or a glance at the signatures says that one is."""

from collections.abc import Sequence
from pathlib import Path

from pipelines.folders import FrameList, Frames
from pipelines.image_structure import located
from pipelines.media import PackedFrames, PackedVideo, VideoFile
from pipelines.source import ClipRequest, Stream
from pipelines.verify import image_problem, problem
from pipelines.video import file_state
from pipelines.video_index import probe, probe_packed

CONVERT = "write it anew with another program, or take its clip off the list"
PASSING = "could not be decoded, but now can; start again, and write to no file while it is in use"
REPLACED = "was replaced by another video while in use; start again"


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
    if places is not None and not len(places):
        return None  # as nearly always: each batch comes by here
    shown = [(r.streams[stream], t, r.origin) for r in requests
             for t in range(len(r.streams[stream].frames))]  # fmt: skip
    for place in range(len(shown)) if places is None else places:
        frames, t, origin = shown[place]
        if found := _frame_problem(frames, t, millimetres):
            return ValueError(f"{found} ({origin})")
    return None


def refused(request: ClipRequest, stream: int, message: str) -> ValueError:
    """The error for the first frame of a stream, of which DALI's complaint is `message`."""
    frames = request.streams[stream]
    media, frame = frames.media, int(frames.frames[0])
    name = media.path(frame) if isinstance(media, (Frames, FrameList)) else media.name
    where = ""
    if isinstance(media, PackedFrames):
        name += f" frame {frame}"
        where = located(media.encoded([frame])[0].tobytes())
    elif isinstance(media, (Frames, FrameList)):
        where = located(Path(name).read_bytes())
    words = message.partition("encountered:")[2] or message  # before it: our own source lines
    reason = next((line.strip() for line in words.splitlines() if line.strip()), "no reason given")
    reason = "; ".join(filter(None, (where, reason)))
    return ValueError(f"{name}: DALI cannot decode it ({reason}); {CONVERT} ({request.origin})")


def passing(requests: Sequence[ClipRequest], stream: int) -> ValueError:
    """The error for a batch that DALI could not read or decode, though all of it can be now. A
    video that changed is named, of images only the clips that they may be of."""
    requests = [r for r in requests if changed([r], stream)] or requests
    names = ", ".join(f"{r.streams[stream].media.name} ({r.origin})" for r in requests)
    return ValueError(f"{names}: {PASSING}")


def changed(requests: Sequence[ClipRequest], stream: int) -> list[int]:
    """Places, as of `find_problem`, of videos that were written or replaced since they were found
    sound: of such files DALI gives black frames without a word, or ends the process."""
    places, place = [], 0
    for request in requests:
        media = request.streams[stream].media
        if isinstance(media, VideoFile) and not _is_as_probed(media):
            places.append(place)
        place += len(request.streams[stream].frames)
    return places


def _is_as_probed(video: VideoFile) -> bool:
    try:
        return file_state(video.path) == video.info.state
    except OSError:
        return False


def _frame_problem(stream: Stream, t: int, millimetres: bool) -> str | None:
    """File, what is wrong with it and what to do, or None for a sound one."""
    media, frame = stream.media, int(stream.frames[t])
    if isinstance(media, (Frames, FrameList)):
        name, found = media.path(frame), problem(media.path(frame), millimetres)
    elif isinstance(media, (VideoFile, PackedVideo)):
        return None if t else _video_problem(media)  # looked at as a whole
    else:
        name = f"{media.name} frame {frame}"
        try:
            (data,) = media.encoded(stream.frames[t : t + 1])
        except (ValueError, OSError) as error:
            return str(error)
        found = None if media.is_lz4 else image_problem(data.tobytes(), millimetres)
    return f"{name}: {found[0]}; {found[1]}" if found else None


def _video_problem(media: VideoFile | PackedVideo) -> str | None:
    try:
        info = probe(media.path) if isinstance(media, VideoFile) else probe_packed(media.packed)
    except (ValueError, OSError) as error:
        return str(error)
    return None if info == media.info else f"{media.name}: {REPLACED}"
