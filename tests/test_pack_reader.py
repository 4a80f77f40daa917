"""Sampled frames by offset: those bytes, no others, and never wrong ones."""

import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clips import depth_frames
from packs import FRAMES, flip_bit, jpegs, rgbd_clip, write_pack
from pipelines import pack_reader
from pipelines.pack_format import PackedClip, depth_track, image_track
from pipelines.pack_reader import Pack

NAMES = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=30)
SIZES = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    """Clips 0 to 3, two per shard."""
    return write_pack(tmp_path / "pack", map(rgbd_clip, range(4)), 31_000)


@settings(max_examples=40)
@given(
    st.dictionaries(NAMES | st.just("a/b.c d\udcff"), SIZES, min_size=1, max_size=5),
    st.integers(1, 5000),
    st.integers(0, 2**32 - 1),
)
def test_what_is_packed_is_read_back_bit_for_bit(clips, shard_bytes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    depths = {name: rng.integers(0, 2**16, size, np.uint16) for name, size in clips.items()}
    with TemporaryDirectory() as folder:
        made = (PackedClip(name, {"depth": depth_track(d)}) for name, d in depths.items())
        pack = write_pack(Path(folder), made, shard_bytes)
        assert set(pack.names) == set(depths) and len(pack) == len(depths)
        for name, depth in depths.items():
            info = pack.info(name, "depth")
            assert (info.num_frames, info.height, info.width) == depth.shape
            frames = rng.integers(0, len(depth), 7)
            np.testing.assert_array_equal(pack.depth_frames(name, frames), depth[frames])


def test_encoded_frames_are_those_of_the_files_in_any_order(pack: Pack) -> None:
    files = jpegs(seed=2)
    views = pack.encoded("set/c 2.x", "rgb", [4, 0, 0, 2, 3])
    assert [view.tobytes() for view in views] == [files[i] for i in (4, 0, 0, 2, 3)]
    assert pack.encoded("set/c 2.x", "rgb", []) == []


def test_encoded_frames_are_views_of_one_buffer_that_nobody_can_write(pack: Pack) -> None:
    first, again, other = pack.encoded("set/c 2.x", "rgb", [1, 1, 3])
    assert first is again
    assert first.base is other.base is not None
    with pytest.raises(ValueError, match="read-only"):
        other[0] = 0


def test_only_the_bytes_of_sampled_frames_are_read(pack: Pack, monkeypatch) -> None:
    extents = pack.extents("set/c 3.x", "rgb", range(FRAMES))
    shard = pack.shard_of("set/c 3.x").read_bytes()
    assert [shard[o : o + n] for o, n in extents.tolist()] == jpegs(seed=3)
    reads, preadv = [], pack_reader.os.preadv

    def noted(file: int, buffers: list[memoryview], offset: int) -> int:
        reads.append((offset, offset + sum(map(len, buffers))))
        return preadv(file, buffers, offset)

    monkeypatch.setattr(pack_reader.os, "preadv", noted)
    pack.encoded("set/c 3.x", "rgb", [4, 1, 2, 1])
    ends = extents.sum(axis=1)
    assert reads == [(extents[1, 0], ends[2]), (extents[4, 0], ends[4])]


def test_reads_that_the_system_cuts_short_are_continued(pack: Pack, monkeypatch) -> None:
    preadv = pack_reader.os.preadv
    monkeypatch.setattr(
        pack_reader.os, "preadv", lambda f, buffers, at: preadv(f, [buffers[0][:100]], at)
    )
    assert [v.tobytes() for v in pack.encoded("set/c 0.x", "rgb", range(FRAMES))] == jpegs()


def test_depth_goes_into_memory_that_is_given(pack: Pack) -> None:
    out = np.zeros((3, 48, 64), np.uint16)
    assert pack.depth_frames("set/c 1.x", [3, 3, 0], out) is out
    np.testing.assert_array_equal(out, depth_frames(FRAMES, seed=1)[[3, 3, 0]])


def test_threads_share_a_pack(pack: Pack) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = list(
            pool.map(lambda i: pack.depth_frames(f"set/c {i % 4}.x", [i % 5]), range(99))
        )
    for i, depth in enumerate(results):
        np.testing.assert_array_equal(depth, depth_frames(FRAMES, seed=i % 4)[[i % 5]])


def test_a_pack_travels_to_another_process(pack: Pack, tmp_path: Path) -> None:
    pack.encoded("set/c 0.x", "rgb", [0])  # its shard is open now
    (tmp_path / "pickled").write_bytes(pickle.dumps(pack))
    program = (
        "import pickle, sys; pack = pickle.load(open(sys.argv[1], 'rb')); "
        "sys.stdout.buffer.write(pack.encoded('set/c 0.x', 'rgb', [1])[0].tobytes())"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "pickled"], cwd=root, capture_output=True
    )
    assert done.stdout == jpegs()[1], done.stderr.decode()


def test_shards_are_opened_when_they_are_needed(pack: Pack) -> None:
    pack.shards[1].unlink()
    assert len(pack.encoded("set/c 1.x", "rgb", [0])) == 1
    with pytest.raises(FileNotFoundError, match=r"shard-000001\.tar"):
        pack.encoded("set/c 2.x", "rgb", [0])


@pytest.mark.parametrize("frames, wrong", [([5], 5), ([0, -1], -1), ([7, 2], 7)])
def test_a_frame_that_is_not_there_is_an_error(pack: Pack, frames: list[int], wrong: int) -> None:
    message = rf"shard-000000\.tar: clip 'set/c 0\.x' has rgb frames 0 to 4, not {wrong}; correct"
    with pytest.raises(ValueError, match=message):
        pack.encoded("set/c 0.x", "rgb", frames)


def test_a_clip_or_modality_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    pack = write_pack(tmp_path, [PackedClip("a", {"rgb": image_track(jpegs(1))})])
    with pytest.raises(ValueError, match="no clip 'b' in its 1 shards; correct the split list"):
        pack.info("b", "rgb")
    with pytest.raises(ValueError, match=r"clip 'a' has no depth; set data\.modality"):
        pack.depth_frames("a", [0])
    assert pack.modalities("a") == ("rgb",) and "b" not in pack


def test_a_folder_without_shards_is_no_pack(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no shard-000000\.tar"):
        Pack.open(tmp_path)


def test_a_shard_cut_before_it_is_opened_is_named_with_the_clip(pack: Pack) -> None:
    path = pack.shards[1]
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(
        ValueError,
        match=r"shard-000001\.tar: clip 'set/c 3\.x': it is cut short at byte 20000 of \d{5};",
    ):
        pack.encoded("set/c 3.x", "rgb", [0])
    with pytest.raises(
        ValueError,
        match=r"shard-000001\.tar: clip 'set/c 2\.x': it is cut short at byte 20000 of \d{5};",
    ):
        pack.check_shards()


def test_a_shard_cut_while_in_use_is_an_error_and_no_signal(pack: Pack) -> None:
    pack.encoded("set/c 1.x", "rgb", [0])
    with pack.shards[0].open("r+b") as file:
        file.truncate(8192)
    assert len(pack.encoded("set/c 0.x", "rgb", [0])) == 1
    with pytest.raises(
        ValueError, match=r"shard-000000\.tar: clip 'set/c 1\.x': it was cut short at byte 8192"
    ):
        pack.encoded("set/c 1.x", "rgb", [0])


def test_a_flipped_bit_is_named_with_clip_and_frame(pack: Pack) -> None:
    offset, size = pack.extents("set/c 1.x", "depth", [3])[0].tolist()
    flip_bit(pack.shards[0], offset + size // 2)
    assert len(pack.depth_frames("set/c 1.x", [0, 1, 2, 4])) == 4
    with pytest.raises(ValueError) as raised:
        pack.depth_frames("set/c 1.x", [2, 3])
    assert str(raised.value) == (
        f"{pack.shards[0]}: clip 'set/c 1.x': depth frame 3 differs (bytes {offset} to "
        f"{offset + size - 1}); the shard was damaged or replaced: restore it, or delete "
        "shard-000000.npz if it was replaced on purpose"
    )


def test_a_shard_replaced_by_one_of_the_same_length_never_passes(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 2**16, (2, 3, 8, 8), np.uint16)
    packs = [
        write_pack(tmp_path / str(i), [PackedClip("a", {"depth": depth_track(depth)})])
        for i, depth in enumerate(noise)
    ]
    shutil.copy(packs[1].shards[0], packs[0].shards[0])
    reopened = Pack.open(tmp_path / "0")
    with pytest.raises(
        ValueError, match=r"clip 'a': (depth frame 0 differs|it (has|is cut short))"
    ):
        reopened.depth_frames("a", [0])
    (tmp_path / "0" / "shard-000000.npz").unlink()
    shutil.copy(packs[1].shards[0].with_suffix(".idx"), tmp_path / "0")
    np.testing.assert_array_equal(Pack.open(tmp_path / "0").depth_frames("a", [0]), noise[1][:1])


@pytest.mark.parametrize("damage", [None, b"", b"PK\3\4 torn"])
def test_an_index_that_is_lost_or_torn_is_made_again(pack: Pack, damage: bytes | None) -> None:
    kept = [path.with_suffix(".npz") for path in pack.shards]
    for path in kept:
        path.unlink() if damage is None else path.write_bytes(damage)
    again = Pack.open(pack.folder)
    assert again.names == pack.names
    assert again.info("set/c 3.x", "depth") == pack.info("set/c 3.x", "depth")
    assert [v.tobytes() for v in again.encoded("set/c 3.x", "rgb", [2])] == [jpegs(seed=3)[2]]
    assert all(path.stat().st_size > 100 for path in kept)


def test_a_lost_dali_index_is_named_with_the_way_to_make_it(pack: Pack) -> None:
    for suffix in (".npz", ".idx"):
        pack.shards[1].with_suffix(suffix).unlink()
    shard, index = pack.shards[1], pack.shards[1].with_suffix(".idx")
    with pytest.raises(ValueError) as raised:
        Pack.open(pack.folder)
    assert str(raised.value) == (
        f"{index}: No such file or directory; restore it, or make it: wds2idx {shard} {index}"
    )


def test_a_cut_shard_without_its_index_is_named_with_the_clip(pack: Pack) -> None:
    pack.shards[0].with_suffix(".npz").unlink()
    pack.shards[0].write_bytes(pack.shards[0].read_bytes()[:12_000])
    with pytest.raises(
        ValueError,
        match=r"shard-000000\.tar: set-c-0-x-\w+: its members lie outside of 12000 bytes",
    ):
        Pack.open(pack.folder)
