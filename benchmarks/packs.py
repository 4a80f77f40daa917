"""How fast is a pack read, and what does LZ4 make of its depth? `python -m benchmarks.packs PACK`.

One thread, files in the page cache if they fit there. Not the loader: no image is decoded.
"""

import argparse
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence

import lz4.block
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.records import record, summary, write
from pipelines.pack_format import LZ4, LZ4_LEVEL, VIDEO
from pipelines.pack_reader import Pack
from pipelines.sampling import sample_frames

ROUNDS = 7
MOST_DEPTH_FRAMES = 300
"""How many frames the LZ4 levels are tried on."""

LEVELS = (0, 1, LZ4_LEVEL, 9, 12)
"""0 is LZ4's fast mode, the others are levels of its high compression."""

Draw = tuple[str, NDArray[np.int64]]
"""A clip and its sampled frames."""
Read = Callable[[str, NDArray[np.int64]], object]


def measure_reading(pack: Pack, num_clips: int, num_frames: int) -> dict[str, dict[str, float]]:
    """Milliseconds per clip of each way to read each modality: 7 rounds after a warm-up round."""
    found = {}
    for modality in ("rgb", "depth"):
        clips = [clip for clip in pack.names if modality in pack.modalities(clip)]
        draws = _draws(pack, clips, modality, num_clips, num_frames) if clips else []
        for name, read in _readers(pack, modality, draws) if draws else ():
            found[f"{modality}, {name}"] = summary(list(_rounds(read, draws)))
    return found


def measure_lz4(pack: Pack) -> list[dict[str, float]]:
    """Of each level: how many times smaller depth becomes, and MB/s of pixels. Empty where the pack
    has no LZ4."""
    frames: list[NDArray[np.uint16]] = []
    for clip in pack.names:
        if "depth" in pack.modalities(clip) and pack.info(clip, "depth").encoding == LZ4:
            if len(frames) >= MOST_DEPTH_FRAMES:
                break
            frames.extend(pack.depth_frames(clip, range(pack.info(clip, "depth").num_frames)))
    return [_lz4(level, frames) for level in LEVELS] if frames else []


def _draws(
    pack: Pack, clips: Sequence[str], modality: str, num_clips: int, num_frames: int
) -> list[Draw]:
    rng = np.random.default_rng(0)
    draws = []
    for place in rng.integers(0, len(clips), num_clips):
        info = pack.info(clips[place], modality)
        pieces = 1 if info.encoding == VIDEO else info.num_frames
        draws.append((clips[place], sample_frames(pieces, num_frames, rng)))
    return draws


def _readers(pack: Pack, modality: str, draws: Sequence[Draw]) -> Iterator[tuple[str, Read]]:
    """Ways from a draw to bytes that were touched once: what training does, and mapped files."""
    maps = {path: np.memmap(path, np.uint8, "r") for path in map(pack.shard_of, dict(draws))}

    def mapped(clip: str, frames: NDArray[np.int64]) -> None:
        data = maps[pack.shard_of(clip)]
        for offset, size in pack.extents(clip, modality, np.unique(frames)).tolist():
            zlib.crc32(data[offset : offset + size].data)

    yield "encoded", lambda clip, frames: pack.encoded(clip, modality, frames)
    yield "mapped, also held to the CRC32", mapped
    if pack.info(draws[0][0], modality).encoding == LZ4:
        yield "depth_frames", lambda clip, frames: pack.depth_frames(clip, frames)


def _rounds(read: Read, draws: Sequence[Draw]) -> Iterator[float]:
    for number in range(1 + ROUNDS):
        started = time.perf_counter()
        for clip, frames in draws:
            read(clip, frames)
        if number:
            yield 1000 * (time.perf_counter() - started) / len(draws)


def _lz4(level: int, frames: Sequence[NDArray[np.uint16]]) -> dict[str, float]:
    mode = {"mode": "high_compression", "compression": level} if level else {"mode": "fast"}
    raw = sum(frame.nbytes for frame in frames)
    started = time.perf_counter()
    blocks = [lz4.block.compress(frame, store_size=False, **mode) for frame in frames]
    middle = time.perf_counter()
    for block, frame in zip(blocks, frames, strict=True):
        lz4.block.decompress(block, uncompressed_size=frame.nbytes)
    ended = time.perf_counter()
    return {
        "level": level,
        "times_smaller": raw / sum(map(len, blocks)),
        "compressed_mb_s": raw / (middle - started) / 1e6,
        "decompressed_mb_s": raw / (ended - middle) / 1e6,
    }


def as_text(
    reading: dict[str, dict[str, float]], levels: Sequence[dict[str, float]], setting: str
) -> str:
    """A line per measurement."""
    lines = [f"{setting}, ms per clip: median (quartiles)"]
    for name, ms in reading.items():
        lines.append(f"  {name}: {ms['median']:.2f} ({ms['q1']:.2f} to {ms['q3']:.2f})")
    for found in levels:
        name = f"LZ4 level {found['level']}" if found["level"] else "LZ4 fast"
        lines.append(
            f"  {name}: {found['times_smaller']:.2f} times smaller, compressed at "
            f"{found['compressed_mb_s']:.0f} MB/s, decompressed at "
            f"{found['decompressed_mb_s']:.0f} MB/s"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write the JSON. Exit status 1 where there is no such pack."""
    options = command_line().parse_args(arguments)
    try:
        pack = Pack.open(options.pack)
        reading = measure_reading(pack, options.clips, options.frames)
        levels = measure_lz4(pack)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    setting = f"{options.clips} clips of {options.frames} sampled frames"
    print(as_text(reading, levels, setting))
    if options.json:
        contents = {"setting": setting, "ms_per_clip": reading, "lz4": levels}
        write(record("packs", "benchmarks.packs", torch.device("cpu"), **contents), options.json)
    return 0


def command_line() -> argparse.ArgumentParser:
    """PACK [--clips N] [--frames T] [--json FILE]"""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.packs", description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    parser.add_argument("pack", metavar="PACK", help="folder of the pack")
    parser.add_argument("--clips", type=int, default=100, metavar="N", help="clips of each round")
    parser.add_argument("--frames", type=int, default=64, metavar="T", help="frames of each clip")
    parser.add_argument("--json", metavar="FILE", help="write figures, machine, versions, commit")
    return parser


if __name__ == "__main__":
    sys.exit(main())
