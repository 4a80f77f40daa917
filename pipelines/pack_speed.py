"""How fast a pack is read on this machine, and what LZ4 makes of its depth. Not the loader: no
image is decoded, no clip is viewed."""

import time
import zlib
from collections.abc import Callable, Iterator, Sequence

import lz4.block
import numpy as np
from numpy.typing import NDArray

from pipelines.pack_format import LZ4, LZ4_LEVEL, VIDEO
from pipelines.pack_reader import Pack
from pipelines.sampling import sample_frames

ROUNDS = 7
MOST_DEPTH_FRAMES = 300
"""How many frames the LZ4 levels are tried on."""

Draw = tuple[str, NDArray[np.int64]]
"""A clip and its sampled frames."""


def speed_table(pack: Pack, num_clips: int, num_frames: int) -> str:
    """One line per measurement: median of 7 rounds after a warm-up round, one thread, files in the
    page cache if they fit there."""
    lines = [f"{num_clips} clips of {num_frames} sampled frames, ms per clip: median (quartiles)"]
    for modality in ("rgb", "depth"):
        clips = [clip for clip in pack.names if modality in pack.modalities(clip)]
        draws = _draws(pack, clips, modality, num_clips, num_frames) if clips else []
        for name, read in _readers(pack, modality, draws) if draws else ():
            ms = [1e3 * seconds / len(draws) for seconds in _rounds(read, draws)]
            low, middle, high = np.percentile(ms, (25, 50, 75))
            lines.append(f"  {modality} {name}: {middle:.2f} ({low:.2f} to {high:.2f})")
    return "\n".join([*lines, *_lz4_lines(pack, num_frames)])


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


def _readers(
    pack: Pack, modality: str, draws: Sequence[Draw]
) -> Iterator[tuple[str, Callable[[str, NDArray[np.int64]], object]]]:
    """Ways from a draw to bytes that were touched once: the one chosen, and what it replaced."""
    maps = {path: np.memmap(path, np.uint8, "r") for path in map(pack.shard_of, dict(draws))}

    def mapped(clip: str, frames: NDArray[np.int64]) -> None:
        data = maps[pack.shard_of(clip)]
        for offset, size in pack.extents(clip, modality, np.unique(frames)).tolist():
            zlib.crc32(data[offset : offset + size].data)

    yield "mapped, checked", mapped
    yield "read, checked (encoded)", lambda clip, frames: pack.encoded(clip, modality, frames)
    if pack.info(draws[0][0], modality).encoding == LZ4:
        yield (
            "read, checked, decompressed (depth_frames)",
            lambda clip, frames: pack.depth_frames(clip, frames),
        )


def _rounds(
    read: Callable[[str, NDArray[np.int64]], object], draws: Sequence[Draw]
) -> Iterator[float]:
    for number in range(1 + ROUNDS):
        started = time.perf_counter()
        for clip, frames in draws:
            read(clip, frames)
        if number:
            yield time.perf_counter() - started


def _lz4_lines(pack: Pack, num_frames: int) -> Iterator[str]:
    frames: list[NDArray[np.uint16]] = []
    for clip in pack.names:
        if "depth" in pack.modalities(clip) and pack.info(clip, "depth").encoding == LZ4:
            if len(frames) >= MOST_DEPTH_FRAMES:
                break
            frames.extend(pack.depth_frames(clip, range(pack.info(clip, "depth").num_frames)))
    if not frames:
        return
    raw = sum(frame.nbytes for frame in frames)
    yield f"LZ4 on {len(frames)} depth frames, {raw / 1e6:.1f} MB, one thread"
    for level in (0, 1, LZ4_LEVEL, 9, 12):
        mode = {"mode": "high_compression", "compression": level} if level else {"mode": "fast"}
        started = time.perf_counter()
        blocks = [lz4.block.compress(frame, store_size=False, **mode) for frame in frames]
        middle = time.perf_counter()
        for block, frame in zip(blocks, frames, strict=True):
            lz4.block.decompress(block, uncompressed_size=frame.nbytes)
        seconds = middle - started, time.perf_counter() - middle
        name = f"high compression {level}" if level else "fast"
        yield (
            f"  {name}: {raw / sum(map(len, blocks)):.2f} times smaller, compressed at "
            f"{raw / seconds[0] / 1e6:.0f} MB/s, decompressed at {raw / seconds[1] / 1e6:.0f} MB/s"
        )
