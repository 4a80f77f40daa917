"""One clip of a download -> its frame folders or videos, all of them or none. Which clips, and what
becomes of the lists, is for pipelines/preparation.py."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import cv2
import numpy as np

from pipelines.datasets.download import Images, SourceClip, Stream, Video
from pipelines.depth import metric, read_depth
from pipelines.ffmpeg import DamagedSource, Image, decode, encode, too_few
from pipelines.folders import Frames
from pipelines.layouts import LAYOUT_FILES, clip_frames, is_stored_in_mm
from pipelines.manifest import Entry, Manifest, checksum
from pipelines.roi import PersonCentres, person_centres
from pipelines.verify import problem
from pipelines.video_copy import copy_with_times

PARTIAL = ".partial"
ROI_SIZE = (320, 240)
"""Width and height at which the published recipe stores NTU's RGB frames."""


@dataclass(frozen=True)
class Form:
    """How frames are stored."""

    videos: bool = False
    copies: bool = False
    """The download's own videos, not encoded anew; the rest of this matters only for others."""

    quality: int = 95
    """Of JPEG."""

    gop: int = 8
    crf: int = 18
    size: tuple[int, int] | None = None
    """Width and height of the frames; None: as they come."""

    depth_range_mm: tuple[int, int] = (500, 4500)
    """Distances shown as white and black where 16-bit depth becomes JPEG."""

    keep_damaged: bool = False


@dataclass(frozen=True)
class Written:
    """A finished clip."""

    outputs: dict[str, Entry]
    """By modality."""

    is_new: bool
    """Made just now, rather than found finished."""


class ClipWriter:
    """Writes clips of one layout into one folder; called from several threads."""

    def __init__(self, out: str, layout: str, form: Form, manifest: Manifest) -> None:
        self._out = out
        self._layout = layout
        self._files = LAYOUT_FILES[layout]
        self._form = form
        self._manifest = manifest

    def write(self, clip: SourceClip) -> Written:
        """Makes the clip's outputs, unless all of them are there.

        Raises DamagedSource, and leaves nothing of the clip, if any of its frames is unusable.
        """
        targets = {s.modality: self._target(clip.name, s) for s in clip.streams}
        try:
            made = {s.modality: self._fingerprint(s) for s in clip.streams}
        except OSError as error:
            self._forget(targets)
            raise DamagedSource(f"{error.filename}: {error.strerror}") from None
        known = {m: self._manifest.get(self._key(target)) for m, target in targets.items()}
        if all(
            entry and entry.made == made[m] and _is_there(targets[m], entry)
            for m, entry in known.items()
        ):
            return Written({m: entry for m, entry in known.items() if entry}, is_new=False)
        self._forget(targets)
        entries = {}
        with ExitStack() as on_failure:
            for stream in clip.streams:
                target = targets[stream.modality]
                on_failure.callback(_remove, target + PARTIAL)
                entry = self._write_partial(clip.name, stream, target)
                entries[stream.modality] = replace(entry, made=made[stream.modality])
            on_failure.pop_all()
        for target in targets.values():
            _remove(target)
            os.replace(target + PARTIAL, target)
        for modality, target in targets.items():
            self._manifest.put(self._key(target), entries[modality])
        return Written(entries, is_new=True)

    def _forget(self, targets: dict[str, str]) -> None:
        """Before the files of an entry change, the entry goes: a kill in between must not leave one
        that speaks of other files."""
        for target in targets.values():
            self._manifest.put(self._key(target), None)

    def _frames(self, name: str, stream: Stream) -> Frames:
        return clip_frames(self._out, self._files[stream.modality], name)

    def _in_mm(self, stream: Stream) -> bool:
        return is_stored_in_mm(self._layout, stream.modality)

    def _is_video(self, stream: Stream) -> bool:
        return (self._form.videos or self._form.copies) and not self._in_mm(stream)

    def _target(self, name: str, stream: Stream) -> str:
        """The folder of the frames, or the video."""
        folder = self._frames(name, stream).folder
        # 16-bit depth has no place in an 8-bit video: it stays a folder of images.
        return f"{folder}.mp4" if self._is_video(stream) else folder

    def _key(self, target: str) -> str:
        return os.path.relpath(target, self._out).replace(os.sep, "/")

    def _fingerprint(self, stream: Stream) -> str:
        """The source as it is on disk and all that decides what is made of it."""
        used = [stream.source, stream.masks] if stream.masks else [stream.source]
        stats = [os.stat(source.path) for source in used if source]
        window = stream.source.window if isinstance(stream.source, Video) else None
        settings = {key: value for key, value in vars(self._form).items() if key != "copies"}
        form = "copies" if self._form.copies else settings
        facts = [[[s.st_size, s.st_mtime_ns] for s in stats], window, form]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def _write_partial(self, name: str, stream: Stream, target: str) -> Entry:
        frames = self._frames(name, stream)
        part = target + PARTIAL
        _remove(part)
        os.makedirs(os.path.dirname(part), exist_ok=True)
        try:
            centres = _centres(stream.masks) if stream.masks else None
            if self._is_video(stream):
                copies = self._form.copies
                entry = _copy(stream, part) if copies else self._video(stream, centres, part)
            else:
                os.mkdir(part)
                linked = self._linked(stream)
                entry = (
                    _link(linked, frames, part, self._in_mm(stream))
                    if linked is not None
                    else self._folder(stream, centres, frames, part)
                )
        except DamagedSource:
            raise
        except ValueError as error:
            raise DamagedSource(str(error)) from None
        if not entry.frames:
            raise DamagedSource(f"{stream.source.path}: no frame")
        if centres:
            boxes = (centres.borrowed(entry.frames), centres.from_middle)
            entry = replace(entry, boxes=boxes)
        return entry

    def _linked(self, stream: Stream) -> list[str] | None:
        """The image files that can be taken as they are, or None."""
        if isinstance(stream.source, Video):
            return None
        files = stream.source.files()
        if self._in_mm(stream):
            return files
        as_they_are = all(file.lower().endswith((".jpg", ".jpeg")) for file in files)
        return files if as_they_are and not self._form.size else None

    def _folder(
        self, stream: Stream, centres: PersonCentres | None, frames: Frames, part: str
    ) -> Entry:
        crcs, size = [], 0
        for number, image in enumerate(self._images(stream, centres)):
            ok, data = cv2.imencode(
                ".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, self._form.quality]
            )
            assert ok
            content = data.tobytes()
            with open(os.path.join(part, os.path.basename(frames.path(number))), "wb") as file:
                file.write(content)
            crcs.append(checksum(content))
            size += len(content)
        return Entry(_pattern(frames), frames.first, len(crcs), size, "".join(crcs), False, "")

    def _video(self, stream: Stream, centres: PersonCentres | None, part: str) -> Entry:
        count = encode(self._images(stream, centres), part, self._form.gop, self._form.crf)
        return _video_entry(part, count)

    def _images(self, stream: Stream, centres: PersonCentres | None) -> Iterator[Image]:
        """The frames as they are stored, (H, W, 3) RGB."""
        size = self._form.size
        for number, image in enumerate(self._source_images(stream)):
            if centres:
                left, top, right, bottom = centres.box(number, image.shape[1], image.shape[0])
                image = image[top:bottom, left:right]
            if size and image.shape[1::-1] != size:
                shrinks = size[0] <= image.shape[1] and size[1] <= image.shape[0]
                way = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
                image = cv2.resize(image, size, interpolation=way).astype(np.uint8, copy=False)
            yield image

    def _source_images(self, stream: Stream) -> Iterator[Image]:
        source = stream.source
        if isinstance(source, Video):
            yield from decode(source.path, source.window, self._form.keep_damaged)
            return
        for path in source.files():
            image = cv2.imread(path, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR_RGB)
            if image is None:
                raise DamagedSource(f"{path}: damaged or no image")
            if image.dtype == np.uint16:
                grey = metric(read_depth(path), self._form.depth_range_mm)
                yield np.repeat(grey[..., None], 3, axis=2)
            else:
                yield image.astype(np.uint8, copy=False)


def _copy(stream: Stream, part: str) -> Entry:
    """The video as it is coded, decoded once to know that it is sound."""
    path = stream.source.path
    count = copy_with_times(path, part)
    if fault := too_few(path, count):
        raise DamagedSource(f"{path}: {fault}")
    return _video_entry(part, count)


def _video_entry(part: str, count: int) -> Entry:
    if not count:
        return Entry("", 0, 0, 0, "", False, "")
    with open(part, "rb") as file:
        content = file.read()
    return Entry("", 0, count, len(content), checksum(content), False, "")


def _link(files: list[str], frames: Frames, part: str, millimetres: bool) -> Entry:
    """Takes image files as they are: another name of the same file where the disk allows it."""
    crcs, size = [], 0
    for number, file in enumerate(files):
        if found := problem(file, millimetres):
            raise DamagedSource(f"{file}: {found[0]}")
        target = os.path.join(part, os.path.basename(frames.path(number)))
        try:
            # Of a symbolic link, the file behind it: a link elsewhere might lead nowhere.
            os.link(os.path.realpath(file), target)
        except OSError:  # another disk, or one without links
            shutil.copyfile(file, target)
        with open(target, "rb") as image:
            content = image.read()
        crcs.append(checksum(content))
        size += len(content)
    pattern = _pattern(frames)
    return Entry(pattern, frames.first, len(crcs), size, "".join(crcs), millimetres, "")


def _centres(masks: Images) -> PersonCentres:
    files = masks.files()
    if not files:
        raise DamagedSource(f"{masks.path}: no depth frame")
    return person_centres(files)


def _pattern(frames: Frames) -> str:
    return os.path.basename(frames.pattern)


def _is_there(target: str, entry: Entry) -> bool:
    """Whether the entry's files exist, all frames of it: one that was damaged may be deleted."""
    if not entry.pattern:
        return os.path.exists(target)
    try:
        return set(entry.files("")).issubset(os.listdir(target))
    except OSError:
        return False


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.remove(path)
