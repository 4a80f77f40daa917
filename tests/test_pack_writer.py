"""Shards: whole or absent, the same bytes each time, and readable by others."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from nvidia.dali import fn, pipeline_def

from clips import depth_frames
from packs import FRAMES, assert_same_shards, contents, jpegs, rgbd_clip, write_pack
from pipelines.pack_format import PackedClip, image_track, key_of, video_track
from pipelines.pack_reader import Pack
from pipelines.pack_writer import PackWriter

ROOT = Path(__file__).parents[1]
CLIPS = [rgbd_clip(number) for number in range(5)]
TWO_CLIPS = 31_000
"""Bytes of a shard with room for two clips."""


def test_a_shard_is_a_tar_file_of_one_sample_per_clip(tmp_path: Path) -> None:
    write_pack(tmp_path, CLIPS[:2])
    with tarfile.open(tmp_path / "shard-000000.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
        owners = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar}
    keys = [key_of(clip.name) for clip in CLIPS[:2]]
    extensions = ("json", "rgb.mjpg", "depth.lz4")
    assert list(members) == [f"{key}.{extension}" for key in keys for extension in extensions]
    assert owners == {(0, 0, 0, "", "", 0o644)}
    assert members[f"{keys[1]}.rgb.mjpg"] == b"".join(jpegs(seed=1))


def test_the_json_tells_what_the_clip_is(tmp_path: Path) -> None:
    write_pack(tmp_path, [replace(CLIPS[1], listed=[("train", 3), ("eval", 4), ("train", 3)])])
    with tarfile.open(tmp_path / "shard-000000.tar") as tar:
        record = json.load(tar.extractfile(f"{key_of(CLIPS[1].name)}.json"))
    files = jpegs(seed=1)
    assert record.pop("depth")["encoding"] == "lz4"
    assert len(record["rgb"].pop("crc32")) == FRAMES
    assert record == {
        "version": 1, "name": "set/c 1.x", "listed": [["eval", 4], ["train", 3]],
        "rgb": {"member": "rgb.mjpg", "encoding": "jpeg", "num_frames": 5, "height": 48,
                "width": 64, "sizes": list(map(len, files))},
    }  # fmt: skip


def test_the_webdataset_package_reads_a_pack(tmp_path: Path) -> None:
    pack = write_pack(tmp_path, CLIPS, TWO_CLIPS)
    assert len(pack.shards) == 3
    samples = list(webdataset.WebDataset(list(map(str, pack.shards)), shardshuffle=False))
    assert [json.loads(sample["json"])["name"] for sample in samples] == list(pack.names)
    for number, sample in enumerate(samples):
        assert sample["__key__"] == key_of(CLIPS[number].name)
        assert sample["rgb.mjpg"] == b"".join(jpegs(seed=number))
        assert sample["depth.lz4"] == b"".join(CLIPS[number].tracks["depth"].pieces)


def test_dalis_reader_reads_a_pack_by_our_index(tmp_path: Path) -> None:
    pack = write_pack(tmp_path, CLIPS[:4], TWO_CLIPS)

    @pipeline_def(batch_size=4, num_threads=1, device_id=None)
    def graph():
        return tuple(fn.readers.webdataset(
            paths=[str(path) for path in pack.shards],
            index_paths=[str(path.with_suffix(".idx")) for path in pack.shards],
            ext=["json", "rgb.mjpg", "depth.lz4"], missing_component_behavior="error",
        ))  # fmt: skip

    texts, rgb, depth = graph().run()
    for number, clip in enumerate(CLIPS[:4]):
        assert json.loads(np.asarray(texts[number]).tobytes())["name"] == clip.name
        assert np.asarray(rgb[number]).tobytes() == b"".join(clip.tracks["rgb"].pieces)
        assert np.asarray(depth[number]).tobytes() == b"".join(clip.tracks["depth"].pieces)


@pytest.mark.skipif(not shutil.which("tar"), reason="wds2idx reads shards by the tar program")
def test_the_index_is_that_of_dalis_own_tool(tmp_path: Path) -> None:
    (shard,) = write_pack(tmp_path, CLIPS).shards
    program = "import sys, wds2idx; wds2idx.IndexCreator(*sys.argv[1:]).create_index()"
    subprocess.run([sys.executable, "-c", program, shard, tmp_path / "theirs"], check=True)
    assert (tmp_path / "theirs").read_text() == shard.with_suffix(".idx").read_text()


def test_the_same_clips_give_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_pack(tmp_path / folder, CLIPS, TWO_CLIPS)
    assert len(contents(tmp_path / "a")) == 9
    assert_same_shards(tmp_path / "a", tmp_path / "b")


def test_a_shard_ends_before_it_grows_too_large_and_holds_a_clip_at_least(tmp_path: Path) -> None:
    assert len(write_pack(tmp_path / "pairs", CLIPS, TWO_CLIPS).shards) == 3
    assert len(write_pack(tmp_path / "singles", CLIPS, 1).shards) == 5
    assert all(path.stat().st_size <= TWO_CLIPS + 1024 for path in tmp_path.glob("pairs/*.tar"))


class Broken(Exception):
    """Raised in the middle of writing."""


def test_an_error_in_mid_shard_leaves_whole_shards_and_going_on_changes_no_byte(
    tmp_path: Path,
) -> None:
    with pytest.raises(Broken), PackWriter(tmp_path / "broken", TWO_CLIPS) as writer:
        for clip in CLIPS[:3]:
            writer.add(clip)
        raise Broken
    names = sorted(path.name for path in (tmp_path / "broken").iterdir())
    assert names == ["lock", "shard-000000.idx", "shard-000000.npz", "shard-000000.tar"]
    with PackWriter(tmp_path / "broken", TWO_CLIPS) as writer:
        assert [writer.add(clip) for clip in CLIPS] == [False, False, True, True, True]
    write_pack(tmp_path / "whole", CLIPS, TWO_CLIPS)
    assert_same_shards(tmp_path / "broken", tmp_path / "whole")


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from packs import rgbd_clip
from pipelines import pack_writer
place = int(sys.argv[2])
count = 0
def dying(function):
    def call(*arguments):
        global count
        count += 1
        if count == place:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
    return call
pack_writer.os.replace = dying(os.replace)
pack_writer.member_header = dying(pack_writer.member_header)
with pack_writer.PackWriter(sys.argv[1], {size}) as writer:
    for number in range(5):
        writer.add(rgbd_clip(number))
"""


@pytest.mark.parametrize("place", [2, 8, 16, 19, 20, 21, 27])
def test_a_killed_writer_goes_on_and_changes_no_byte(tmp_path: Path, place: int) -> None:
    """Killed at a member or a rename, counted together: of shard 0 and of shard 1."""
    program = KILLED.format(tests=str(Path(__file__).parent), size=TWO_CLIPS)
    command = [sys.executable, "-c", program, str(tmp_path / "killed"), str(place)]
    root = Path(__file__).parents[1]
    assert subprocess.run(command, cwd=root).returncode == -signal.SIGKILL
    write_pack(tmp_path / "killed", CLIPS, TWO_CLIPS)
    write_pack(tmp_path / "whole", CLIPS, TWO_CLIPS)
    assert not list((tmp_path / "killed").glob("*.partial"))
    assert_same_shards(tmp_path / "killed", tmp_path / "whole")


def test_clips_that_the_pack_holds_are_not_written_again(tmp_path: Path) -> None:
    write_pack(tmp_path, CLIPS, TWO_CLIPS)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("shard-*")}
    write_pack(tmp_path, CLIPS, TWO_CLIPS)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("shard-*")} == before


def test_more_clips_go_to_new_shards(tmp_path: Path) -> None:
    write_pack(tmp_path, CLIPS[:1])
    pack = write_pack(tmp_path, CLIPS)
    assert [path.name for path in pack.shards] == ["shard-000000.tar", "shard-000001.tar"]
    assert pack.names == tuple(clip.name for clip in CLIPS)


def test_a_clip_with_other_frames_than_packed_is_an_error(tmp_path: Path) -> None:
    write_pack(tmp_path, CLIPS[:1])
    rgb_alone = PackedClip(CLIPS[0].name, {"rgb": image_track(jpegs(3))})
    message = r"holds clip 'set/c 0.x' with frames {'rgb': 5, 'depth': 5}, not {'rgb': 3}"
    with PackWriter(tmp_path) as writer, pytest.raises(ValueError, match=message):
        writer.add(rgb_alone)


def test_a_truncated_shard_is_not_added_to(tmp_path: Path) -> None:
    (shard,) = write_pack(tmp_path, CLIPS).shards
    shard.write_bytes(shard.read_bytes()[:-1024])
    with pytest.raises(
        ValueError, match=r"shard-000000\.tar: clip 'set/c 0\.x': it is cut short at byte "
    ):
        write_pack(tmp_path, [rgbd_clip(9)])


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with PackWriter(tmp_path), pytest.raises(ValueError, match="another process writes this pack"):
        PackWriter(tmp_path).__enter__()
    write_pack(tmp_path, CLIPS[:1])


def test_a_clip_without_frames_and_a_shard_without_room_are_errors(tmp_path: Path) -> None:
    with PackWriter(tmp_path) as writer, pytest.raises(ValueError, match="neither RGB nor depth"):
        writer.add(PackedClip("empty", {}))
    with pytest.raises(ValueError, match="shard_bytes is 0"):
        PackWriter(tmp_path, 0)


def test_a_video_is_a_member_of_its_own_kind(tmp_path: Path) -> None:
    depth = CLIPS[0].tracks["depth"]
    clip = PackedClip("v", {"rgb": video_track(b"film", "mp4", 7, 48, 64), "depth": depth})
    pack = write_pack(tmp_path, [clip])
    assert pack.video("v", "rgb").tobytes() == b"film"
    assert pack.info("v", "rgb").num_frames == 7
    with tarfile.open(pack.shards[0]) as tar:
        assert f"{key_of('v')}.rgb.mp4" in tar.getnames()
    assert (Pack.open(tmp_path).depth_frames("v", [2])[0] == depth_frames(FRAMES)[2]).all()


WRITE_UNDER_LIMIT = """
import resource, signal, sys
from pathlib import Path
from packs import rgbd_clip, write_pack
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
clips = [rgbd_clip(number) for number in range(5)]
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
try:
    write_pack(Path(sys.argv[1]), clips)
except OSError as error:
    print(error)
    sys.exit(7)
"""


def test_a_full_disk_is_named_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """A file-size limit fails writes in the middle, as a full disk does: in a process of its own,
    whose other files it limits, too."""
    done = subprocess.run(
        [sys.executable, "-c", WRITE_UNDER_LIMIT, str(tmp_path)], capture_output=True, text=True,
        cwd=Path(__file__).parent, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 7, done.stderr
    assert "shard-000000.tar.partial" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
