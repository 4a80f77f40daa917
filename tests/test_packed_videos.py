"""Clips whose RGB is a video in a pack: written, read, checked, and refused by name."""

import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import prepare, write_generic
from lists import open_source, write_list
from nvdecs import need_kind
from packs import flip_bit, jpegs, write_pack
from pipelines import video_index
from pipelines.config import DataConfig
from pipelines.frame_cache import FrameCache
from pipelines.graph import decode_arrays, decode_graph, run
from pipelines.index import scan
from pipelines.loader import Loader
from pipelines.media import Way, way_of
from pipelines.pack import main, write
from pipelines.pack_check import verify
from pipelines.pack_format import PackedClip, image_track, video_track
from pipelines.pack_reader import Pack
from pipelines.source_choice import choose_source
from pipelines.video import decode_frames
from test_sources import assert_same, batches, view, write_videos
from videos import write_kind, write_video

CPU = torch.device("cpu")
GPU = pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)
WAYS = {"h264": Way.RAW, "vp9": Way.VIDEO_DATA, "mjpeg": Way.VIDEO_DATA, "mpeg4_bframes": Way.RAW}
"""On the CPU."""


def pack_of(config: DataConfig, folder: Path) -> DataConfig:
    """The same clips packed, a shard each, as the command does it."""
    write(config, folder, shard_bytes=1)
    return replace(config, root=str(folder), cache_dir=str(folder / "cache"))


def packed_videos(tmp_path: Path, kind: str, modality: str = "rgb", **options: object):
    """A data set of videos, and the pack of it."""
    videos, _ = write_videos(tmp_path, kind, modality, **options)
    return videos, pack_of(videos, tmp_path / "pack")


def damage(packed: DataConfig, clip: str) -> Path:
    """Flips a bit in the middle of the clip's video; the shard."""
    pack = Pack.open(packed.root)
    ((offset, size),) = pack.extents(clip, "rgb", [0]).tolist()
    flip_bit(pack.shard_of(clip), offset + size // 2)
    return pack.shard_of(clip)


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("kind", WAYS)
def test_a_pack_of_videos_gives_the_batches_of_their_files(tmp_path, kind, device) -> None:
    videos, packed = packed_videos(tmp_path, kind, resize=(160, 144), crop=128, size=128)
    assert way_of(scan(packed, "train").media["rgb"][0], "cpu") is WAYS[kind]
    assert_same(videos, packed, device)


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("kind", ["h264", "vp9"])
def test_they_go_with_lz4_depth(tmp_path, kind, device) -> None:
    videos, packed = packed_videos(tmp_path, kind, "rgbd", depth_encoding="metric")
    pack = Pack.open(packed.root)
    assert [pack.info("c0", m).encoding for m in ("rgb", "depth")] == ["video", "lz4"]
    assert_same(videos, packed, device)


def test_a_pack_holds_the_files_byte_for_byte_and_a_second_call_writes_nothing(tmp_path) -> None:
    videos, packed = packed_videos(tmp_path, "h264")
    pack = Pack.open(packed.root)
    for number, name in enumerate(pack.names):
        assert (
            pack.video(name, "rgb").tobytes() == Path(videos.root, f"rgb/{name}.mp4").read_bytes()
        )
        info = pack.info(name, "rgb")
        assert (info.num_frames, info.height, info.width) == (5 + number, 144, 160)
    assert "rgb.mp4" in pack.shards[0].with_suffix(".idx").read_text()
    assert write(videos, packed.root, shard_bytes=1) == 0


def test_a_list_may_ask_for_the_beginning_of_a_video(tmp_path: Path) -> None:
    videos, _ = write_videos(tmp_path, "h264")
    Path(videos.root, "list.txt").write_text("c0 4 0\nc1 4 1\nc2 2 2\n")
    packed = pack_of(videos, tmp_path / "pack")
    assert Pack.open(packed.root).info("c2", "rgb").num_frames == 7
    assert [clip.num_frames for clip in scan(packed, "train").clips] == [4, 4, 2]
    assert_same(videos, packed)


def test_more_frames_listed_than_a_video_has_is_named(tmp_path: Path) -> None:
    _, packed = packed_videos(tmp_path, "vp9")
    Path(packed.root, "list.txt").write_text("c0 9 0\n")
    with pytest.raises(ValueError, match=r"list\.txt:1: 9 frames listed, 5 found: more in .*\.tar"):
        scan(packed, "train")


def test_videos_that_were_prepared_can_be_packed(tmp_path: Path) -> None:
    names = [f"{label}/{i}.mp4" for label in ("wave", "clap") for i in range(3)]
    write_generic(tmp_path / "source", names)
    options = ("--as", "videos", "--eval-every", "3")
    assert prepare("generic", tmp_path / "source", tmp_path / "out", *options) == 0
    config = DataConfig(
        str(tmp_path / "out"), "dataset_splits/train.txt", "dataset_splits/eval.txt", 2,
        source="videos", num_frames=4,
        branch_frames=(2,), resize=(48, 36), crop=32, size=32, motion_window=2,
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    packed = replace(pack_of(config, tmp_path / "pack"), source="pack")
    assert len(Pack.open(packed.root)) == 6
    assert_same(config, packed)


@pytest.mark.parametrize("kind", ["h264", "vp9"])
def test_kept_frames_are_the_same(tmp_path: Path, kind: str) -> None:
    _, packed = packed_videos(tmp_path, kind)
    source, cache = open_source(packed), FrameCache(10**8)
    plan = [[source.train_request(epoch, i) for i in range(3)] for epoch in range(2)]
    plain, kept = (Loader(packed, CPU, torch.float32, 3, 2, c).batches(plan) for c in (None, cache))
    for one, other in zip(plain, kept, strict=True):
        assert torch.equal(one.clip, other.clip)


@pytest.mark.parametrize("device", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("kind", "way"), [("vp9", Way.VIDEO), ("h264", Way.RAW)])
def test_the_graph_of_a_gpu_sees_them_as_it_sees_files(tmp_path, kind, way, device) -> None:
    if device == "gpu" and way is Way.VIDEO:
        need_kind(kind)
    videos, packed = packed_videos(tmp_path, kind)
    of_pack = Way.VIDEO_DATA if way is Way.VIDEO else way
    for one, other in zip(view(videos, way, device), view(packed, of_pack, device), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ["h264", "vp9"])
def test_a_flipped_bit_is_named_with_shard_and_clip_before_training_and_in_it(tmp_path, kind):
    _, packed = packed_videos(tmp_path, kind)
    made = batches(packed)  # scans, and remembers that all are sound
    shard = damage(packed, "c1")
    words = rf"{shard}: clip 'c1': rgb video differs.*; the shard was damaged or replaced"
    with pytest.raises(ValueError, match=words):
        list(made)
    shutil.rmtree(packed.cache_dir)
    with pytest.raises(ValueError, match=rf"list\.txt:2: {words}"):
        scan(packed, "train")


@pytest.mark.parametrize("remembered", [False, True])
def test_a_damaged_video_is_quarantined(tmp_path: Path, remembered: bool) -> None:
    _, packed = packed_videos(tmp_path, "h264")
    packed = replace(packed, on_error="quarantine", max_bad=0.5)
    if remembered:
        assert len(scan(packed, "train")) == 3
    shard = damage(packed, "c2")
    os.utime(shard, ns=(1, 1 << 62))
    index = scan(packed, "train")
    assert [clip.name for clip in index.clips] == ["c0", "c1"]
    assert f"list.txt:3: c2: {shard}: clip 'c2': rgb video differs" in index.quarantined[0]


def test_what_was_probed_is_remembered_by_its_checksum_wherever_the_pack_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, packed = packed_videos(tmp_path, "vp9")
    before = scan(packed, "train").media["rgb"]
    shutil.copytree(packed.root, tmp_path / "copy", copy_function=shutil.copyfile)
    copy = replace(packed, root=str(tmp_path / "copy"), cache_dir=str(tmp_path / "copy/cache"))
    monkeypatch.setattr(video_index, "probe", None)  # would raise if it were called
    after = scan(copy, "train").media["rgb"]
    assert [media.info for media in after] == [media.info for media in before]


def test_a_video_that_dali_alone_refuses_is_named(tmp_path: Path, monkeypatch) -> None:
    """Here for want of any bytes that it and FFmpeg disagree on: others are handed to it."""
    _, packed = packed_videos(tmp_path, "vp9")
    source = open_source(packed)
    request = source.eval_request(1)
    media = request.streams[0].media
    monkeypatch.setattr(type(media), "data", lambda self: np.zeros(500, np.uint8))
    graph = partial(decode_graph, device_id=None, batch_size=4, num_threads=1)
    with pytest.raises(ValueError, match=r"shard-000001\.tar: c1 rgb: DALI cannot decode it \("):
        list(run(graph, decode_arrays, [[request]], packed, "rgb", Way.VIDEO_DATA))


def test_check_decodes_videos_and_holds_them_to_their_description(tmp_path: Path) -> None:
    data = write_kind(tmp_path, "h264", 7).read_bytes()
    cut = write_kind(tmp_path, "vp8", 7).read_bytes()[:-300]
    clips = {
        "good": video_track(data, "mp4", 7, 144, 160), "cut": video_track(cut, "webm", 7, 144, 160),
        "long": video_track(data, "mp4", 8, 144, 160), "wide": video_track(data, "mp4", 7, 144, 90),
    }  # fmt: skip
    pack = write_pack(tmp_path / "pack", [PackedClip(n, {"rgb": t}) for n, t in clips.items()])
    cut_short, long, wide = verify(pack)
    assert (cut_short.clip, long.clip, wide.clip) == ("cut", "long", "wide")
    assert cut_short.problem.startswith(f"{pack.shards[0]}: cut rgb: cut short at byte {len(cut)} ")
    words = "holds 7 frames of 160x144, its JSON says 8 of 160x144; write the pack anew"
    assert long.problem == f"{pack.shards[0]}: long rgb: {words}"
    assert "its JSON says 7 of 90x144" in wide.problem


def test_check_finds_a_flipped_bit(tmp_path: Path) -> None:
    _, packed = packed_videos(tmp_path, "vp9")
    assert verify(Pack.open(packed.root)) == []
    shard = damage(packed, "c1")
    (found,) = verify(Pack.open(packed.root))
    assert (found.shard, found.clip) == (shard, "c1")
    assert f"{shard}: clip 'c1': rgb video differs" in found.problem


def test_list_takes_them(tmp_path: Path, capsys) -> None:
    _, packed = packed_videos(tmp_path, "mjpeg")
    assert main(["list", packed.root, "--clips"]) == 0
    assert "c0\trgb 5 x 160x144 video\n" in capsys.readouterr().out


def test_auto_measures_them_beside_their_files(tmp_path: Path) -> None:
    videos, packed = packed_videos(tmp_path, "vp9")
    for shard in Path(packed.root).glob("shard*"):
        shutil.copy(shard, videos.root)
    said: list[str] = []
    assert choose_source(videos, CPU, 1, said.append) in ("pack", "videos")
    assert "clips/s from" in said[0] or "clips/s on this machine" in said[0]


def test_clips_of_two_kinds_and_a_video_for_16_bit_depth_are_refused(tmp_path: Path) -> None:
    config = write_list(tmp_path, 0, source="pack")
    video = video_track(write_kind(tmp_path, "h264", 5).read_bytes(), "mp4", 5, 144, 160)
    clips = [PackedClip("a", {"rgb": image_track(jpegs())}),
             PackedClip("b", {"rgb": video, "depth": video})]  # fmt: skip
    shard = write_pack(tmp_path, clips).shards[0]
    (tmp_path / "list.txt").write_text("a 5 0\nb 5 1\n")
    with pytest.raises(ValueError, match=f"{shard}: b rgb: is video, and {shard}: a rgb is jpeg"):
        scan(config, "train")
    (tmp_path / "list.txt").write_text("b 5 1\n")
    assert len(scan(replace(config, modality="depth"), "train")) == 1
    with pytest.raises(ValueError, match="b depth: is a video where 16-bit depth is expected"):
        scan(replace(config, modality="depth", depth_encoding="metric"), "train")


def test_a_video_replaced_while_it_is_packed_is_named(tmp_path: Path, monkeypatch) -> None:
    videos, _ = write_videos(tmp_path, "vp9")
    index = scan(videos, "train")
    path = Path(videos.root, "rgb/c1.webm")
    write_video(path, 9, "libvpx-vp9")
    monkeypatch.setattr("pipelines.pack.scan", lambda *_: index)
    with pytest.raises(ValueError, match=rf"{path}: was replaced while in use; .*\(clip 'c1'\)"):
        write(videos, tmp_path / "pack")


def test_frames_are_those_that_ffmpeg_gives(tmp_path: Path) -> None:
    _, packed = packed_videos(tmp_path, "h264")
    media = scan(packed, "train").media["rgb"][2]
    path = str(tmp_path / "videos/rgb/c2.mp4")
    asked = np.array([6, 0, 3, 3])
    np.testing.assert_array_equal(media.decode(asked), decode_frames(path, media.info, asked))
