"""Damage of every kind is found and named; a sound pack has none."""

import subprocess
import sys
from pathlib import Path

import pytest

from packs import FRAMES, flip_bit, jpegs, rgbd_clip, write_pack
from pipelines.pack_check import Damage, verify
from pipelines.pack_format import PackedClip, image_track, key_of
from pipelines.pack_reader import Pack


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    """Clips 0 to 3, two per shard."""
    return write_pack(tmp_path / "pack", map(rgbd_clip, range(4)), 31_000)


def test_a_sound_pack_has_no_damage(pack: Pack) -> None:
    assert verify(pack, threads=2) == []


@pytest.mark.parametrize("modality", ["rgb", "depth"])
def test_a_flipped_bit_is_found_in_whichever_frame(pack: Pack, modality: str) -> None:
    for frame in range(FRAMES):
        place = int(pack.extents("set/c 2.x", modality, [frame])[0, 0]) + 30
        flip_bit(pack.shards[1], place)
        (found,) = verify(pack)
        flip_bit(pack.shards[1], place)
        assert (found.shard, found.clip) == (pack.shards[1], "set/c 2.x")
        assert f"shard-000001.tar: clip 'set/c 2.x': {modality} frame {frame} " in found.problem


def test_every_clip_of_a_truncated_shard_is_named(pack: Pack) -> None:
    pack.shards[0].write_bytes(pack.shards[0].read_bytes()[:20_000])
    found = verify(pack)
    assert [damage.clip for damage in found] == ["", "set/c 0.x", "set/c 1.x"]
    assert all("shard-000000.tar" in damage.problem for damage in found)


def test_a_lost_dali_index_is_found(pack: Pack) -> None:
    pack.shards[1].with_suffix(".idx").unlink()
    (found,) = verify(pack)
    assert (found.shard, found.clip) == (pack.shards[1], "")
    assert found.problem.startswith(f"{pack.shards[1].with_suffix('.idx')}: No such file")


def test_a_damaged_tar_header_is_found_though_no_reader_of_ours_needs_it(pack: Pack) -> None:
    offset = int(pack.extents("set/c 1.x", "rgb", [0])[0, 0])
    flip_bit(pack.shards[0], offset - 500)
    (found,) = verify(pack)
    name = f"{key_of('set/c 1.x')}.rgb.mjpg"
    assert found == Damage(
        pack.shards[0], "",
        f"{pack.shards[0]}: no tar header of {name} before byte {offset}; restore the shard and "
        "its .idx",
    )  # fmt: skip


def test_a_changed_json_is_found(pack: Pack) -> None:
    shard = pack.shards[0]
    shard.write_bytes(
        shard.read_bytes().replace(b'"listed":[["train",1]]', b'"listed":[["train",7]]')
    )
    (found,) = verify(pack)
    assert found.clip == "set/c 1.x" and "its JSON is not that of the index" in found.problem


def test_an_image_that_was_damaged_before_it_was_packed_is_found(tmp_path: Path) -> None:
    files = jpegs()
    files[3] = files[3][: len(files[3]) // 2]
    pack = write_pack(tmp_path, [PackedClip("a", {"rgb": image_track(files)})])
    (found,) = verify(pack)
    assert "clip 'a': rgb frame 3 was damaged before it was packed" in found.problem


def test_the_command_line_names_the_damage_and_fails(pack: Pack) -> None:
    flip_bit(pack.shards[1], int(pack.extents("set/c 3.x", "depth", [1])[0, 0]))
    command = [sys.executable, "-m", "pipelines.pack", "check", str(pack.folder)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 1
    first, last = done.stdout.splitlines()
    assert first.startswith(f"{pack.shards[1]}: clip 'set/c 3.x': depth frame 1 differs")
    assert last == f"{pack.folder}: 4 clips checked, 1 damaged, 1 problems"
