"""Is every byte of a pack what it was, and does every frame decode? Reads all; mends nothing."""

import io
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from pipelines.image_structure import damage
from pipelines.media import PackedFrames
from pipelines.pack_format import LZ4, VIDEO, ShardIndex
from pipelines.pack_reader import Pack, build_index, load_index, read_samples
from pipelines.video_index import probe_packed


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong, as a line that names shard and clip."""

    shard: Path
    clip: str
    """Empty where it concerns the shard's own structure."""

    problem: str


def verify(pack: Pack, threads: int = 1) -> list[Damage]:
    """All damage of a pack: what its readers would stumble over, each shard and clip at most once.

    Every frame is held to its CRC32 and decoded. A shard of another length than indexed damages all
    of its clips.
    """
    damage = [found for shard in pack.shards for found in _shard_damage(shard)]
    with ThreadPoolExecutor(threads) as pool:
        problems = pool.map(partial(_clip_problem, pack), pack.names)
        bar = tqdm(problems, "checking clips", len(pack), unit="clip", disable=None)
        for clip, problem in zip(pack.names, bar, strict=True):
            if problem:
                damage.append(Damage(pack.shard_of(clip), clip, problem))
    return damage


def _shard_damage(shard: Path) -> Iterator[Damage]:
    """Tar headers, `.idx`, JSON members and kept index against each other."""
    try:
        expected = [
            (f"{sample.key}.{extension}", *place)
            for sample in read_samples(shard)
            for extension, place in sample.members.items()
        ]
        with tarfile.open(shard, "r:") as tar:
            found = [(member.name, member.offset_data, member.size) for member in tar]
        kept, fresh = load_index(shard), build_index(shard)
    except (ValueError, OSError, tarfile.TarError) as error:
        name = "" if str(shard.with_suffix("")) in str(error) else f"{shard}: "
        yield Damage(shard, "", f"{name}{error}")
        return
    for place, member in enumerate(expected):
        if found[place : place + 1] != [member]:
            what = f"no tar header of {member[0]} before byte {member[1]}"
            yield Damage(shard, "", f"{shard}: {what}; restore the shard and its .idx")
            break
    if clip := _first_difference(kept, fresh):
        what = "its JSON is not that of the index; restore the shard"
        yield Damage(shard, clip, f"{shard}: clip '{clip}': {what}")


def _first_difference(kept: ShardIndex, fresh: ShardIndex) -> str | None:
    """The first clip that the two do not describe alike."""
    if len(kept.names) != len(fresh.names):
        return kept.names[min(len(kept.names), len(fresh.names)) - 1]
    different = np.flatnonzero((kept.described != fresh.described).any(axis=1))
    return kept.names[different[0]] if len(different) else None


def _clip_problem(pack: Pack, clip: str) -> str | None:
    try:
        for modality in pack.modalities(clip):
            info = pack.info(clip, modality)
            if info.encoding == VIDEO:
                probe_packed(PackedFrames(pack, clip, modality))
            elif info.encoding == LZ4:
                pack.depth_frames(clip, range(info.num_frames))
            else:
                _decode_images(pack, clip, modality)
    except (ValueError, OSError) as error:
        return str(error)
    return None


def _decode_images(pack: Pack, clip: str, modality: str) -> None:
    info = pack.info(clip, modality)
    for frame, data in enumerate(pack.encoded(clip, modality, range(info.num_frames))):
        where = f"{pack.shard_of(clip)}: clip '{clip}': {modality} frame {frame}"
        try:
            with Image.open(io.BytesIO(data.data)) as image:
                image.load()
        except Exception as error:  # of many types: Pillow's decoders raise their own
            raise ValueError(
                f"{where} was damaged before it was packed ({damage(data.tobytes(), error)}); "
                "restore its file and write the pack anew, or take the clip off the lists"
            ) from None
        if image.size != (info.width, info.height):
            raise ValueError(f"{where} is not of {info.width}x{info.height} pixels; write it anew")
