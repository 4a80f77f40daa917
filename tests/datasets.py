"""Tiny data sets in the layouts and with the names in which the real ones are downloaded; frames
carry their number in the picture."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from clips import write_clip
from lists import TINY, open_source
from pipelines.batch import Batch
from pipelines.config import DataConfig
from pipelines.loader import Loader
from pipelines.plan import eval_plan
from pipelines.prepare import main

BITS = 8
NTU_SAMPLES = ("S001C001P001R001A001", "S001C002P003R002A060", "S001C003P002R001A007")
JESTER_LABELS = ("Swiping Left", "Thumb Up", "No gesture")


def numbered(numbers: Iterable[int], width: int = 64, height: int = 48) -> NDArray[np.uint8]:
    """(T, H, W, 3): each frame shows its number as eight bars, white for 1, highest bit left."""
    place = np.arange(width) * BITS // width
    bars = [255 * (n >> (BITS - 1 - place) & 1) for n in numbers]
    return np.stack([np.broadcast_to(b[None, :, None], (height, width, 3)) for b in bars]).astype(
        np.uint8
    )


def number_in(image: NDArray[np.uint8]) -> int:
    """The number that a frame of `numbered` shows, whatever its size."""
    bars = np.array_split(image.astype(float).mean(axis=(0, 2)), BITS)
    return sum(int(bar.mean() > 127) << (BITS - 1 - i) for i, bar in enumerate(bars))


def numbers_in(folder: Path) -> list[int]:
    """Of all images of a folder, by file name."""
    return [number_in(cv2.imread(str(path))) for path in sorted(folder.iterdir())]


def write_video(path: Path, frames: NDArray[np.uint8]) -> None:
    """(T, H, W, 3) -> a video in the codec usual for the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = {".avi": "mpeg4", ".webm": "libvpx", ".mp4": "libx264"}[path.suffix]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, Fraction(30))
        _encode(container, stream, frames, "yuv420p")


def write_lossless(path: Path, frames: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        _encode(container, container.add_stream("ffv1", Fraction(30)), frames, "bgr0")


def write_ntu(root: Path, samples: Sequence[str], rgb: int = 5, depth: int = 5) -> Path:
    """nturgb+d_rgb/S..._rgb.avi and nturgb+d_depth_masked/S.../MDepth-00000001.png."""
    for sample in samples:
        write_video(root / "nturgb+d_rgb" / f"{sample}_rgb.avi", numbered(range(1, rgb + 1)))
        folder = root / "nturgb+d_depth_masked" / sample
        write_clip(folder, [masked_depth(64, 53)] * depth, "MDepth-{:08d}.png", first=1)
    return root


def masked_depth(x: int, y: int, width: int = 128, height: int = 106) -> NDArray[np.uint16]:
    """(H, W) millimetres: a body of 31x41 pixels whose middle is at x, y; 0 around it."""
    depth = np.zeros((height, width), np.uint16)
    depth[max(y - 20, 0) : y + 21, max(x - 15, 0) : x + 16] = 2000
    return depth


def write_nvgesture(root: Path, lines: Mapping[str, Sequence[str]], frames: int = 160) -> Path:
    """The two .lst files, and a video per sensor for each of their lines."""
    for split, texts in lines.items():
        name = f"nvgesture_{split}_correct_cvpr2016_v2.lst"
        root.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("".join(f"{text}\n" for text in texts))
        for text in texts:
            folder = root / text.split()[0].removeprefix("path:./")
            for sensor in ("sk_color", "sk_depth"):
                write_video(folder / f"{sensor}.avi", numbered(range(frames)))
    return root


def nvgesture_line(clip: str, label: int, depth: int, color: int) -> str:
    """As in the official lists, with the first frames of the two windows of 80."""
    return (
        f"path:./Video_data/{clip} depth:sk_depth:{depth}:{depth + 80} "
        f"color:sk_color:{color}:{color + 80} duo_left:duo_left:{color}:{color + 80} label:{label}"
    )


def write_isogd(root: Path) -> Path:
    """IsoGD_phase_1 with train and valid, IsoGD_phase_2 with test; labels for train only."""
    for phase, split, numbers, labels in (
        (1, "train", (1, 2, 201), (36, 1, 249)), (1, "valid", (1,), (None,)),
        (2, "test", (1,), (None,)),
    ):  # fmt: skip
        folder = root / f"IsoGD_phase_{phase}"
        lines = []
        for number, label in zip(numbers, labels, strict=True):
            pair = [f"{split}/{1 + number // 200:03d}/{kind}_{number:05d}.avi" for kind in "MK"]
            for path in pair:
                write_video(folder / path, numbered(range(6)))
            lines.append(" ".join([*pair, *([str(label)] if label else [])]))
        (folder / f"{split}_list.txt").write_text("\n".join(lines))
    return root


def write_thu_read(root: Path, keys: Sequence[str]) -> Path:
    """RGB/RGB_ACTION_SUBJECT_TAKE.avi and folders Depth/D_... of 16-bit frames."""
    for key in keys:
        write_video(root / "RGB" / f"RGB_{key}.avi", numbered(range(6)))
        depth = [np.full((48, 64), 500 + 1000 * i, np.uint16) for i in range(5)]
        write_clip(root / "Depth" / f"D_{key}", depth, "{:06d}.png")
    return root


def write_jester(root: Path, videos: bool = False) -> Path:
    """20bn-jester-v1/ID/00001.jpg or 20bn-jester-v1/ID.webm, and the three CSV files."""
    lists = {"train": {"34870": 1, "56557": 0}, "validation": {"9223": 2}}
    for split, clips in lists.items():
        for clip in clips:
            folder = root / "20bn-jester-v1"
            if videos:
                write_video(folder / f"{clip}.webm", numbered(range(1, 7)))
            else:
                write_clip(folder / clip, numbered(range(1, 7)), "{:05d}.jpg", first=1)
        text = "".join(f"{clip};{JESTER_LABELS[label]}\n" for clip, label in clips.items())
        (root / f"jester-v1-{split}.csv").write_text(text)
    (root / "jester-v1-labels.csv").write_text("\n".join(JESTER_LABELS))
    return root


def write_generic(root: Path, names: Sequence[str]) -> Path:
    """A video of six frames for each name with its suffix."""
    for name in names:
        write_video(root / name, numbered(range(6)))
    return root


def prepare(dataset: str, source: Path, out: Path, *options: str) -> int:
    """The command, one clip at a time: its exit status."""
    return main([dataset, "--source", str(source), "--out", str(out), "--jobs", "1", *options])


def config_of(out: Path, layout: str, which: str, **options: object) -> DataConfig:
    """Of a prepared folder and one of its lists."""
    lists = {"train_list": which, "eval_list": which}
    settings = {"num_classes": 249, "depth": None, "cache_dir": str(out.parent / "cache")}
    return replace(TINY, root=str(out), layout=layout, **{**settings, **lists, **options})


def first_batch(config: DataConfig) -> Batch:
    """Of all the clips of the list, as evaluation sees them."""
    source = open_source(config)
    loader = Loader(config, torch.device("cpu"), torch.float32, len(source), 1)
    return next(loader.batches(eval_plan(source, len(source), 0, 1)))


def tree(folder: Path) -> dict[str, bytes]:
    """The content of every file of a folder, by path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _encode(
    container: av.container.OutputContainer, stream: av.VideoStream, frames: NDArray, form: str
) -> None:
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = form
    stream.bit_rate = 4_000_000
    for frame in frames:
        image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")
        container.mux(stream.encode(image))
    container.mux(stream.encode())
