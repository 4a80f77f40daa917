"""A prepared folder of frames -> a pack of all its clips, with its split lists."""

import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from pipelines import manifest
from pipelines.config import DataConfig
from pipelines.datasets.download import Download
from pipelines.folders import Frames
from pipelines.layouts import LAYOUT_FILES, clip_frames, is_stored_in_mm
from pipelines.manifest import Entry
from pipelines.pack import SourceClip, in_order, read_clip
from pipelines.pack_format import LZ4, PackedClip, Track
from pipelines.pack_reader import Pack, find_shards
from pipelines.pack_writer import PackWriter
from pipelines.preparation import SUMMARY


@dataclass(frozen=True)
class PreparedClip:
    """A clip of the prepared folder."""

    name: str
    """As the first list that has it calls it."""

    frames: dict[str, Frames]
    """By modality."""

    entries: dict[str, Entry]
    listed: list[tuple[str, int]]
    """List and label of each line."""

    @property
    def num_frames(self) -> dict[str, int]:
        return {modality: entry.frames for modality, entry in self.entries.items()}


def pack_prepared(download: Download, frames: str, out: str, jobs: int) -> None:
    """Packs the clips of `frames`, as pipelines/preparation.py left it, into `out`, with its lists,
    class names and summary.

    Each modality keeps all its frames, however many the other has: what a clip is cut to is for
    training to say (`data.frame_slack`), as it is with folders. Lists that call a clip otherwise
    than the first one find it by the layout's rename rules.

    After a kill the next call packs the rest. Raises ValueError naming the first unusable file, or
    a clip of the pack that has been prepared otherwise since.
    """
    clips = list(_prepared(download, frames))
    _check_same(clips, out)
    with PackWriter(out) as writer, ThreadPoolExecutor(jobs) as pool:
        todo = [clip for clip in clips if not writer.holds(clip.name, clip.num_frames)]
        packed = in_order(pool, partial(_read, download.layout), todo, ahead=2 * jobs)
        for clip in tqdm(packed, "packing", len(todo), unit="clip", disable=None):
            writer.add(clip)
    # The summary last: where it is, all is.
    for path in (*download.lists, *(["classes.txt"] if download.classes else []), SUMMARY):
        os.makedirs(os.path.dirname(os.path.join(out, path)), exist_ok=True)
        shutil.copyfile(os.path.join(frames, path), os.path.join(out, path))


def _prepared(download: Download, root: str) -> Iterator[PreparedClip]:
    """The clips that were prepared, those of no list too."""
    entries = manifest.read(root)
    names: dict[str, str] = {}
    listed: dict[str, list[tuple[str, int]]] = {}
    for path, lines in download.lists.items():
        split = path.removeprefix("dataset_splits/").removesuffix(".txt")
        for line in lines:
            names.setdefault(line.clip, line.name)
            listed.setdefault(line.clip, []).append((split, line.label))
    files = LAYOUT_FILES[download.layout]
    for clip in download.clips:
        frames = {s.modality: clip_frames(root, files[s.modality], clip.name) for s in clip.streams}
        found = {
            modality: entries.get(os.path.relpath(media.folder, root).replace(os.sep, "/"))
            for modality, media in frames.items()
        }
        known = {modality: entry for modality, entry in found.items() if entry}
        if len(known) == len(frames):  # else rejected
            name = names.get(clip.name, clip.name)
            yield PreparedClip(name, frames, known, listed.get(clip.name, []))


def _check_same(clips: Sequence[PreparedClip], out: str) -> None:
    """Frame counts are the writer's to compare; other images of the same number are found here.
    Depth in millimetres is never made anew from the same files."""
    if not find_shards(Path(out)):
        return
    pack = Pack.open(out)
    for clip in clips:
        for modality in pack.modalities(clip.name) if clip.name in pack else ():
            packed, entry = pack.crc32(clip.name, modality), clip.entries.get(modality)
            if entry is None or pack.info(clip.name, modality).encoding == LZ4:
                continue
            if entry.crc32 != "".join(f"{crc:08x}" for crc in packed.tolist()):
                raise ValueError(
                    f"{pack.shard_of(clip.name)}: '{clip.name}' has been prepared otherwise since "
                    "it was packed; delete the shards and their indices, and prepare again"
                )


def _read(layout: str, clip: PreparedClip) -> PackedClip:
    tracks: dict[str, Track] = {}
    for modality, frames in clip.frames.items():
        in_mm = is_stored_in_mm(layout, modality)
        config = DataConfig("", "", "", 2, depth_encoding="metric" if in_mm else "color")
        source = SourceClip(clip.name, clip.entries[modality].frames, {modality: frames})
        tracks.update(read_clip(config, source).tracks)
    return PackedClip(clip.name, tracks, clip.listed)
