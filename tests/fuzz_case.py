"""One damaged file in a small data set, met as a training run would meet it, and a verdict on what
came of it. The processes around it, which see crashes and hangs, are tests/fuzz.py's."""

import io
import itertools
import resource
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image

import fuzz_damage
from lists import write_list
from pipelines.config import DataConfig, FrameFiles
from pipelines.depth import read_depth
from pipelines.depth_boxes import depth_boxes
from pipelines.geometry import colour_table, view_clip
from pipelines.index import ClipIndex, scan
from pipelines.loader import Loader
from pipelines.media import PackedFrames, PackedVideo, VideoFile
from pipelines.pack import write
from pipelines.pack_format import PackedClip, depth_track, image_track
from pipelines.pack_writer import PackWriter
from pipelines.source import ClipRequest, ClipSource, Stream
from pipelines.video import to_rgb
from videos import KINDS as VIDEO_KINDS
from videos import write_video

CLIPS, T = 3, 7
"""All frames of each clip are loaded: none can hide its damage."""
MOST_GROWTH = 2**20
"""KiB that a case may add to the memory of the process."""

PNG = FrameFiles("rgb/{name}/{frame:06d}.png")
FRAMES: dict[str, dict[str, Any]] = {
    "jpeg": {"modality": "rgb"},
    "png": {"modality": "rgb", "rgb": PNG},
    "depth_metric": {"modality": "depth", "depth_encoding": "metric"},
    "depth_wrapped_jet": {"modality": "depth", "depth_encoding": "wrapped_jet"},
    "rgbd": {"modality": "rgbd", "depth_encoding": "metric"},
}
PACKS: dict[str, dict[str, Any]] = {
    "pack": FRAMES["rgbd"],
    "pack_png": FRAMES["rgbd"],
    "pack_index": FRAMES["rgbd"],
    "pack_npz": FRAMES["rgbd"],
    "pack_h264": FRAMES["jpeg"],
    "pack_vp9": FRAMES["jpeg"],
}
"""JPEG and LZ4, JPEG and PNG: damaged shards; then damaged .idx and .npz of the former; shards of
videos."""
VIDEOS = ("h264", "h264_mkv", "hevc", "mpeg4", "mjpeg", "vp8", "vp9", "av1")
KINDS = (*FRAMES, *PACKS, *VIDEOS)

REFUSED_EARLY, REFUSED_LATE = "refused at the scan", "refused at loading"
SAME, AS_DECODED = "delivered: as before", "delivered: as decoders see it"
SUBSTITUTE, UNNAMED, MEMORY = "SUBSTITUTE", "UNNAMED ERROR", "MEMORY"
MISSED = "QUARANTINE MISSED"
CRASH, HANG = "CRASH", "HANG"
DEFECTS = (CRASH, HANG, UNNAMED, SUBSTITUTE, MEMORY, MISSED)
OUTCOMES = (REFUSED_EARLY, REFUSED_LATE, SAME, AS_DECODED, *DEFECTS)

Clips = dict[str, NDArray[np.uint8]]
"""(modalities, T, size, size, 3) pixels by the clip's name."""


@dataclass
class DataSet:
    """Sound files of one kind."""

    config: DataConfig
    files: list[Path]
    """That may be damaged."""

    optional: list[Path]
    """Kept results about them that may be missing."""

    sound: Clips


def make(kind: str, root: Path) -> DataSet:
    """Writes the data set and loads it once."""
    shape = {"num_frames": T, "resize": (64, 48), "crop": 48, "size": 48, "flip": 0.0}
    settings = FRAMES.get(kind) or PACKS.get(kind) or {"modality": "rgb"}
    config = write_list(root / "frames", CLIPS, **{**settings, **shape, "rgb": None})
    config = replace(config, rgb=settings.get("rgb"), rotate=0.0, source="frames")
    optional: list[Path] = []
    if kind in PACKS:
        codec = kind.removeprefix("pack_")
        if codec in VIDEOS:
            videos = replace(_videos(config, root / "videos", codec), source="videos")
            config = _pack_videos(videos, root / "pack")
        else:
            config = _pack(config, root / "pack", kind)
        config = replace(config, source="pack")
        shards = sorted((root / "pack").glob("shard-*"))
        ending = {"pack_index": ".idx", "pack_npz": ".npz"}.get(kind, ".tar")
        files = [path for path in shards if path.suffix == ending]
        optional = [path for path in shards if path.suffix == ".npz" != ending]
    elif kind in VIDEOS:
        config = replace(_videos(config, root / "videos", kind), source="videos")
        files = sorted((root / "videos" / "rgb").iterdir())
    else:
        if kind == "png":
            for path in sorted(root.glob("frames/rgb/*/*.jpg")):
                Image.open(path).save(path.with_suffix(".png"))
                path.unlink()
        files = sorted(path for m in config.modalities for path in root.glob(f"frames/{m}/*/*"))
    data = DataSet(config, files, optional, {})
    index, source = _open(config)
    data.sound = {name: pixels for name, _, pixels in _load(config, index, source, _nothing)}
    return data


def _nothing() -> None:
    pass


def _pack(config: DataConfig, folder: Path, kind: str) -> DataConfig:
    index = scan(config, "train", log=_forget)
    with PackWriter(folder, shard_bytes=60_000) as writer:
        for i, clip in enumerate(index.clips):
            tracks = {}
            for modality, media in index.media.items():
                paths = [media[i].path(t) for t in range(clip.num_frames)]
                if modality == "depth" and kind != "pack_png":
                    tracks[modality] = depth_track(np.stack(list(map(read_depth, paths))))
                else:
                    tracks[modality] = image_track([Path(path).read_bytes() for path in paths])
            writer.add(PackedClip(clip.name, tracks))
    shutil.copy(Path(config.root) / "list.txt", folder)
    return replace(config, root=str(folder), cache_dir=str(folder / "cache"))


def _pack_videos(config: DataConfig, folder: Path) -> DataConfig:
    write(config, folder, shard_bytes=1, log=_forget)
    return replace(config, root=str(folder), cache_dir=str(folder / "cache"))


def _videos(config: DataConfig, root: Path, kind: str) -> DataConfig:
    suffix, settings = VIDEO_KINDS[kind]
    (root / "rgb").mkdir(parents=True)
    for i in range(CLIPS):
        write_video(root / "rgb" / f"c{i}.{suffix}", 5 + i, **settings)
    (root / "list.txt").write_text("".join(f"c{i} {5 + i} {i}\n" for i in range(CLIPS)))
    shape = {"resize": (160, 144), "crop": 144, "size": 144}
    return replace(config, root=str(root), cache_dir=str(root / "cache"), **shape)


def _forget(_: str) -> None:
    pass


def _open(config: DataConfig) -> tuple[ClipIndex, ClipSource]:
    """All that a run does before its first batch."""
    shutil.rmtree(config.cache_dir, ignore_errors=True)
    index = scan(config, "train", log=_forget)
    boxes = None
    if config.boxed("depth"):
        boxes = depth_boxes(index, config, log=_forget, processes=1)
    return index, ClipSource(index, config, 0, boxes)


def _load(
    config: DataConfig, index: ClipIndex, source: ClipSource, before_second: Callable[[], None]
) -> Iterator[tuple[str, ClipRequest, NDArray[np.uint8]]]:
    """Each clip by itself; `before_second` is called while the loader runs."""

    def plan() -> Iterator[list[ClipRequest]]:
        for i in range(len(index)):
            if i == min(1, len(index) - 1):
                before_second()
            yield [source.eval_request(i)]

    loader = Loader(replace(config, motion_window=0), torch.device("cpu"), torch.float32, 1, 2)
    for batch in loader.batches(plan()):
        (i,) = batch.index.tolist()
        parts = [(clip[0] * 128 + 127.5).round().byte() for clip, _ in batch.streams]
        pixels = torch.stack(parts).permute(0, 2, 3, 4, 1).numpy()
        yield index.clips[i].name, source.eval_request(i), pixels


def run_case(data: DataSet, kind: str, seed: int, number: int) -> dict[str, Any]:
    """Damages, scans, loads, judges, and puts the file back."""
    rng = np.random.default_rng([seed, zlib.crc32(kind.encode()), number])
    path = data.files[int(rng.integers(len(data.files)))]
    before = {file: file.read_bytes() for file in (path, *data.optional)}
    for file in data.optional:
        if rng.random() < 0.5:
            file.unlink()
    moment = ("before the scan", "after the scan", "while loading")[
        int(rng.choice(3, p=(0.7, 0.15, 0.15)))
    ]
    damage, strike = fuzz_damage.draw(path, rng)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        outcome, what = _meet(data, path, moment, strike)
    finally:
        for file, content in before.items():
            fuzz_damage.restore(file, content)
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory > MOST_GROWTH:
        outcome = MEMORY
    return {"kind": kind, "number": number, "damage": damage, "moment": moment,
            "file": path.name, "outcome": outcome, "what": what}  # fmt: skip


def _meet(data: DataSet, path: Path, moment: str, strike: Callable[[], None]) -> tuple[str, str]:
    if moment == "before the scan":
        strike()
        outcome, what = _run(data, data.config, path, _nothing, _nothing)
        config = replace(data.config, on_error="quarantine", max_bad=1.0)
        again, found = _run(data, config, path, _nothing, _nothing)
        if again in DEFECTS:
            return again, found
        return (MISSED, found) if again == REFUSED_LATE else (outcome, what)
    at_once, later = (strike, _nothing) if moment == "after the scan" else (_nothing, strike)
    return _run(data, data.config, path, at_once, later)


def _run(
    data: DataSet,
    config: DataConfig,
    path: Path,
    after_scan: Callable[[], None],
    while_loading: Callable[[], None],
) -> tuple[str, str]:
    """The outcome of one run, and the error's words."""
    refused = REFUSED_EARLY
    try:
        index, source = _open(config)
        refused = REFUSED_LATE
        after_scan()
        verdicts = [
            _judge(data.sound, name, request, pixels, config)
            for name, request, pixels in _load(config, index, source, while_loading)
        ]
    except (ValueError, OSError) as error:
        lines = str(error).splitlines() or [""]
        # Which shard a clip was in is not known once the shard is gone: its folder is.
        name = path.with_suffix("") if path.exists() or path.suffix != ".tar" else path.parent
        # Nor which frame was read while it was written, or which of two sizes is the wrong one.
        if "now can" in str(error) or "the clip's other frames have" in str(error):
            name = path.parent if config.source == "frames" else path
        named = all(str(name) in line for line in lines)
        one = refused == REFUSED_EARLY or len(lines) == 1
        return (refused if named and one else UNNAMED), f"{type(error).__name__}: {error}"
    except Exception as error:  # of any kind: that is the finding
        return UNNAMED, f"{refused}: {type(error).__name__}: {error}"[-600:]
    worst = max(verdicts, key=lambda verdict: OUTCOMES.index(verdict[0]), default=(SAME, ""))
    return worst


def _judge(
    sound: Clips, name: str, request: ClipRequest, pixels: NDArray[np.uint8], config: DataConfig
) -> tuple[str, str]:
    """Of what was delivered of one clip."""
    if np.array_equal(pixels, sound[name]):
        return SAME, ""
    frames: list[list[NDArray[Any]]] = []
    for place, stream in enumerate(request.streams):
        try:
            frames.append(_decoded(stream, config.in_mm(config.modalities[place])))
        except Exception as error:  # of many types: each decoder raises its own
            return SUBSTITUTE, f"{name}: another decoder refuses it: {error!r}"
        turned_as = frames[0] if place else None
        expected = np.empty_like(pixels[place])
        colours = colour_table(config, config.modalities[place])
        view_clip(frames[-1], stream.view, config, colours, stream.boxes, expected, turned_as)
        difference = np.abs(expected.astype(int) - pixels[place])
        if difference.mean() >= 0.3 or (difference <= 2).mean() < 0.999:
            words = f"{difference.mean():.2f} levels on average, {difference.max()} at most"
            frame = int(difference.mean(axis=(1, 2, 3)).argmax())
            return SUBSTITUTE, f"{name} {config.modalities[place]} frame {frame}: {words}"
    return AS_DECODED, ""


def _decoded(stream: Stream, in_mm: bool) -> list[NDArray[Any]]:
    """The frames by Pillow, or by FFmpeg from the start without its strict options."""
    media = stream.media
    if isinstance(media, VideoFile):
        return _played(media.path, stream.frames.tolist())
    if isinstance(media, PackedVideo):
        return _played(io.BytesIO(media.data().tobytes()), stream.frames.tolist())
    if isinstance(media, PackedFrames):
        if media.is_lz4:
            return list(media.decode(stream.frames))
        files: Sequence[Any] = [io.BytesIO(data.tobytes()) for data in stream.encoded()]
    else:
        files = stream.paths
    if in_mm:
        return [read_depth(file)[..., None] for file in files]
    return list(map(_colour, files))


def _colour(file: Any) -> NDArray[np.uint8]:
    try:
        return np.asarray(Image.open(file).convert("RGB"))
    except OSError:
        # OpenCV takes some JPEG files whose bytes make no sense from some place on, and DALI asks
        # it where its own decoder fails.
        data = file.getvalue() if isinstance(file, io.BytesIO) else Path(file).read_bytes()
        image = cv2.imdecode(
            np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        )
        if image is None:
            raise
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _played(path: str | io.BytesIO, frames: Sequence[int]) -> list[NDArray[Any]]:
    shown = []
    with av.open(path, metadata_errors="replace") as container:
        # Several threads conceal the same damage in several ways.
        container.streams.video[0].thread_type = "NONE"
        container.streams.video[0].codec_context.thread_count = 1
        for picture in itertools.islice(container.decode(video=0), max(frames) + 1):
            pixels = np.empty((picture.height, picture.width, 3), np.uint8)
            to_rgb(picture, VideoReformatter(), 0, pixels)
            shown.append(pixels)
    return [shown[frame] for frame in frames]
