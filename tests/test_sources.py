"""Frame folders, videos and packs give the same batches, on any way of decoding them."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from nvidia.dali.types import DALIDataType

from clips import write_clip
from lists import TURNS, open_source, write_list
from nvdecs import need_kind
from pipelines.batch import Batch
from pipelines.config import DataConfig, FrameFiles
from pipelines.depth import read_depth
from pipelines.depth_boxes import depth_boxes
from pipelines.frame_cache import FrameCache
from pipelines.graph import decode_arrays, decode_graph, run, view_arrays, view_graph
from pipelines.index import scan
from pipelines.loader import Loader
from pipelines.media import VideoFile, Way, way_of
from pipelines.pack_format import PackedClip, depth_track, image_track
from pipelines.pack_reader import Pack
from pipelines.pack_writer import PackWriter
from pipelines.source import ClipSource
from pipelines.video import decode_frames
from videos import KINDS, number_of, write_video

CPU = torch.device("cpu")
DEVICES = [CPU, pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]
PNG = FrameFiles("rgb/{name}/{frame:06d}.png")


def batches(config: DataConfig, device: torch.device = CPU) -> Iterator[Batch]:
    """Three clips of epoch 7, in two batches."""
    index = scan(config, "train")
    boxes = depth_boxes(index, config, processes=1) if config.boxed("depth") else None
    source = ClipSource(index, config, 3, boxes)
    requests = [source.train_request(7, i) for i in range(3)]
    return Loader(config, device, torch.float32, 2, 2).batches([requests[:2], requests[2:]])


def assert_same(one: DataConfig, other: DataConfig, device: torch.device = CPU) -> None:
    for a, b in zip(batches(one, device), batches(other, device), strict=True):
        for parts in zip(a.streams, b.streams, strict=True):
            assert all(map(torch.equal, *parts))
        assert torch.equal(a.label, b.label)


def pack(config: DataConfig, folder: Path) -> DataConfig:
    """The same clips as a pack, 16-bit depth as LZ4."""
    index = scan(config, "train")
    with PackWriter(folder, shard_bytes=10_000) as writer:
        for i, clip in enumerate(index.clips):
            tracks = {}
            for modality, media in index.media.items():
                paths = [media[i].path(t) for t in range(clip.num_frames)]
                if config.in_mm(modality):
                    tracks[modality] = depth_track(np.stack(list(map(read_depth, paths))))
                else:
                    tracks[modality] = image_track([Path(path).read_bytes() for path in paths])
            writer.add(PackedClip(clip.name, tracks))
    shutil.copy(Path(config.root) / "list.txt", folder)
    return replace(config, root=str(folder), cache_dir=str(folder / "cache"))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("modality", "encoding"),
    [("rgb", "color"), ("depth", "metric"), ("depth", "wrapped_jet"), ("rgbd", "metric"),
     ("rgbd", "wrapped_jet")],
)  # fmt: skip
def test_a_pack_gives_the_batches_of_its_folders(tmp_path, modality, encoding, device):
    folders = write_list(tmp_path / "folders", 3, modality, (96, 54), depth_encoding=encoding)
    packed = pack(folders, tmp_path / "pack")
    assert len(Pack.open(tmp_path / "pack").shards) > 1
    assert_same(folders, packed, device)


def write_videos(
    root: Path, kind: str, modality: str = "rgb", **options: object
) -> tuple[DataConfig, DataConfig]:
    """The clips of `write_list` with RGB videos in place of RGB frames, and beside it the same with
    the frames that FFmpeg makes of these videos."""
    config = write_list(root / "videos", 3, modality, **options)
    shutil.rmtree(root / "videos" / "rgb")
    suffix, settings = KINDS[kind]
    frames = replace(config, root=str(root / "frames"), rgb=PNG, cache_dir=str(root / "fc"))
    for i in range(3):
        (root / "videos/rgb").mkdir(exist_ok=True)
        write_video(root / f"videos/rgb/c{i}.{suffix}", 5 + i, **settings)
    for i, media in enumerate(scan(replace(config, modality="rgb"), "train").media["rgb"]):
        pixels = decode_frames(media.path, media.info, range(5 + i))
        write_clip(root / "frames" / "rgb" / f"c{i}", list(pixels), "{:06d}.png")
    shutil.copy(root / "videos/list.txt", root / "frames")
    if modality == "rgbd":
        shutil.copytree(root / "videos/depth", root / "frames/depth")
    return config, frames


@pytest.mark.parametrize("kind", ["h264", "vp9", "mjpeg", "mpeg4_bframes"])
def test_videos_give_the_batches_of_their_frames(tmp_path, kind):
    videos, frames = write_videos(tmp_path, kind, resize=(160, 144), crop=128, size=128)
    way = way_of(scan(videos, "train").media["rgb"][0], "cpu")
    assert way is (Way.VIDEO if kind in ("vp9", "mjpeg") else Way.RAW)
    assert_same(videos, frames)


@pytest.mark.parametrize("kind", ["h264", "vp9"])
def test_videos_go_with_folders_of_depth(tmp_path, kind):
    videos, frames = write_videos(tmp_path, kind, "rgbd", depth_encoding="metric")
    assert_same(videos, frames)


def test_the_sampled_frames_are_the_ones_shown(tmp_path):
    videos, _ = write_videos(
        tmp_path, "h264", resize=(160, 144), crop=128, size=128, flip=0.0, rotate=0.0,
        crop_offset=(0, 0),
    )  # fmt: skip
    source = open_source(videos)
    request = source.train_request(1, 2)
    (batch,) = Loader(videos, CPU, torch.float32, 1, 1).batches([[request]])
    pixels = (batch.clip[0].permute(1, 2, 3, 0) * 128 + 127.5).byte().numpy()
    padded = np.zeros((4, 144, 160, 3), np.uint8)
    padded[:, :128, :128] = pixels
    low_bits = [number_of(frame) & 0b111 for frame in padded]
    assert low_bits == request.streams[0].frames.tolist()


def view(config: DataConfig, way: Way, device: str) -> list[np.ndarray]:
    """Pixels and normalised pixels of RGB clips by the whole graph, clip after clip."""
    source = open_source(config)
    requests = [source.eval_request(i) for i in range(3)]
    for request, turn in zip(requests, TURNS, strict=True):
        object.__setattr__(request.streams[0], "view", turn)
    graph = partial(
        view_graph, device=device, dtype=DALIDataType.FLOAT, batch_size=16, num_threads=1,
        device_id=0 if device == "gpu" else None, prefetch_queue_depth=2,
    )  # fmt: skip
    plan = [requests[:2], requests[2:]]
    seen = [outputs for _, outputs in run(graph, view_arrays, plan, config, "rgb", way)]
    return [
        np.concatenate([part.as_cpu().as_array().reshape(-1, 32, 32, 3) for part in parts])
        for parts in zip(*seen, strict=True)
    ]


@pytest.mark.parametrize("device", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("kind", "way"), [("vp9", Way.VIDEO), ("h264", Way.RAW)])
def test_the_graph_sees_clips_as_it_sees_their_frames(tmp_path, kind, way, device):
    if device == "gpu" and way is Way.VIDEO:
        need_kind(kind)
    videos, frames = write_videos(tmp_path, kind)
    for whole, single in zip(view(videos, way, device), view(frames, Way.FILES, device),
                             strict=True):  # fmt: skip
        difference = np.abs(whole.astype(float) - single)
        assert difference.max() == 0 if device == "cpu" else difference.mean() < 1


def test_the_graph_sees_packed_frames_as_it_sees_files(tmp_path):
    folders = write_list(tmp_path / "folders", 3)
    packed = pack(folders, tmp_path / "pack")
    for one, other in zip(view(packed, Way.IMAGES, "cpu"), view(folders, Way.FILES, "cpu"),
                          strict=True):  # fmt: skip
        np.testing.assert_array_equal(one, other)


def test_auto_takes_what_is_there(tmp_path):
    folders = write_list(tmp_path / "folders", 3)
    assert way_of(scan(folders, "train").media["rgb"][0], "cpu") is Way.FILES
    packed = pack(folders, tmp_path / "pack")
    assert way_of(scan(packed, "train").media["rgb"][0], "cpu") is Way.IMAGES
    videos, _ = write_videos(tmp_path, "vp9")
    assert way_of(scan(videos, "train").media["rgb"][0], "cpu") is Way.VIDEO


def test_downloaded_videos_are_found_where_the_data_sets_have_them(tmp_path):
    for layout, name, file in (
        ("ntu", "S001C001P001R001A001_rgb", "nturgb+d_rgb/S001C001P001R001A001_rgb.avi"),
        ("isogd", "train/001/K_00001", "train/001/M_00001.avi"),
        ("jester", "12", "12.webm"),
    ):
        root = tmp_path / layout
        (root / file).parent.mkdir(parents=True)
        codec = "libvpx-vp9" if file.endswith("webm") else "mpeg4"
        write_video(root / file, 6, codec)
        (root / "list.txt").write_text(f"{name} 6 0\n")
        config = DataConfig(
            str(root), "list.txt", "list.txt", 2, layout=layout, cache_dir=str(root / "cache")
        )
        index = scan(config, "train")
        (media,) = index.media["rgb"]
        assert isinstance(media, VideoFile) and media.path == str(root / file)


def test_frames_among_videos_are_refused_by_name(tmp_path):
    videos, _ = write_videos(tmp_path, "h264")
    (tmp_path / "videos/rgb/c1.mp4").unlink()
    shutil.copytree(tmp_path / "frames/rgb/c1", tmp_path / "videos/rgb/c1")
    with pytest.raises(ValueError, match=r"txt:2: .*rgb/c1: frames where others have a video"):
        scan(videos, "train")


def test_a_video_with_fewer_frames_than_listed_and_a_damaged_one_are_named_with_their_lines(
    tmp_path,
):
    videos, _ = write_videos(tmp_path, "h264")
    bad = tmp_path / "videos/rgb/c2.mp4"
    bad.write_bytes(bad.read_bytes()[:400])
    (tmp_path / "videos/list.txt").write_text("c0 9 0\nc1 6 1\nc2 7 2\nc9 4 0\n")
    with pytest.raises(ValueError) as error:
        scan(videos, "train")
    first, second, third = str(error.value).splitlines()
    assert first.startswith(f"{tmp_path}/videos/list.txt:1: 9 frames listed, 5 found: ")
    assert f"{bad}: " in second and second.startswith(f"{tmp_path}/videos/list.txt:3: ")
    assert "c9" in third and third.startswith(f"{tmp_path}/videos/list.txt:4: ")


def test_packed_depth_cannot_pass_for_images(tmp_path):
    folders = write_list(tmp_path / "folders", 3, "depth", depth_encoding="metric")
    packed = pack(folders, tmp_path / "pack")
    with pytest.raises(ValueError, match="16-bit depth where an image is expected"):
        scan(replace(packed, depth_encoding="color"), "train")


def test_a_shard_damaged_after_the_scan_stops_the_run_by_name(tmp_path):
    packed = pack(write_list(tmp_path / "folders", 3), tmp_path / "pack")
    made = batches(packed)
    for shard in (tmp_path / "pack").glob("*.tar"):
        data = bytearray(shard.read_bytes())
        data[5000:-1024] = bytes(len(data[5000:-1024]))
        shard.write_bytes(data)
    with pytest.raises(ValueError, match=r"shard-00000\d.tar: clip 'c\d': rgb frame \d+ differs"):
        list(made)


@pytest.mark.parametrize("moment", ["before its batch", "while DALI may read it"])
def test_a_video_replaced_during_the_run_is_named(tmp_path: Path, moment: str) -> None:
    """DALI would give black frames for those that the new one lacks."""
    videos, _ = write_videos(tmp_path, "vp9", resize=(160, 144), crop=128, size=128)
    source = open_source(videos)
    path = tmp_path / "videos/rgb/c1.webm"

    def plan():
        yield [source.eval_request(0)]
        if moment == "before its batch":
            write_video(path, 2, "libvpx-vp9")
        yield [source.eval_request(1)]
        if moment != "before its batch":
            write_video(path, 2, "libvpx-vp9")

    graph = partial(decode_graph, device_id=None, batch_size=4, num_threads=1)
    with pytest.raises(ValueError, match=f"{path}: was replaced by another video while in use"):
        list(run(graph, decode_arrays, plan(), videos, "rgb", Way.VIDEO))


@pytest.mark.parametrize("cache", ["none", "host"])
@pytest.mark.parametrize("kind", ["h264", "vp9"])
def test_a_video_replaced_by_a_longer_one_is_named_by_the_loader(
    tmp_path: Path, kind: str, cache: str
) -> None:
    videos, _ = write_videos(tmp_path, kind, resize=(160, 144), crop=128, size=128, cache=cache)
    source = open_source(videos)
    path = Path(source.eval_request(1).streams[0].media.name)
    write_video(path, 9, **KINDS[kind][1])
    kept = FrameCache(10**9) if cache == "host" else None
    loader = Loader(videos, CPU, torch.float32, 2, 1, kept)
    with pytest.raises(ValueError, match=f"{path}: was replaced by another video while in use"):
        list(loader.batches([[source.eval_request(0), source.eval_request(1)]]))


def test_a_video_touched_during_the_run_goes_on(tmp_path: Path) -> None:
    videos, _ = write_videos(tmp_path, "vp9", resize=(160, 144), crop=128, size=128)
    source = open_source(videos)
    (tmp_path / "videos/rgb/c0.webm").touch()
    graph = partial(decode_graph, device_id=None, batch_size=4, num_threads=1)
    plan = [[source.eval_request(0)]]
    assert len(list(run(graph, decode_arrays, plan, videos, "rgb", Way.VIDEO))) == 1


def test_a_kept_index_that_is_another_kind_of_file_is_made_anew(tmp_path: Path) -> None:
    packed = pack(write_list(tmp_path / "folders", 3), tmp_path / "pack")
    kept = tmp_path / "pack/shard-000000.npz"
    with kept.open("wb") as file:
        np.save(file, np.arange(3))
    assert len(scan(packed, "train")) == 3
    with np.load(kept) as arrays:
        assert int(arrays["num_bytes"]) == kept.with_suffix(".tar").stat().st_size


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [(b'"num_frames":5', b'"num_frames":4', "number of frames"),
     (b'"height":48', b'"height":-8', "numbers out of range"),
     (b'"encoding":"jpeg"', b'"encoding":"jpfg"', "shape or encoding")],
)  # fmt: skip
def test_a_clip_whose_description_was_damaged_is_refused(tmp_path, old, new, words) -> None:
    packed = pack(write_list(tmp_path / "folders", 1), tmp_path / "pack")
    shard = tmp_path / "pack/shard-000000.tar"
    shard.write_bytes(shard.read_bytes().replace(old, new))
    shard.with_suffix(".npz").unlink()
    with pytest.raises(ValueError, match=f"{shard}: c0-.*do not fit together .{words}"):
        scan(packed, "train")


def test_an_index_that_leads_out_of_its_shard_is_refused(tmp_path: Path) -> None:
    packed = pack(write_list(tmp_path / "folders", 1), tmp_path / "pack")
    index = tmp_path / "pack/shard-000000.idx"
    index.write_text(index.read_text().replace("json 512 ", f"json {10**30} "))
    index.with_suffix(".npz").unlink()
    with pytest.raises(ValueError, match=r"shard-000000\.tar: c0-.*: its members lie outside of"):
        scan(packed, "train")


@pytest.mark.parametrize("cache", [None, FrameCache(0), FrameCache(10**9)])
@pytest.mark.parametrize("kind", ["h264", "vp9"])
def test_what_a_gpus_graph_is_fed_with_is_the_same_by_every_way(tmp_path, kind, cache):
    """The arrays of the GPU's path, which need no GPU to be made."""
    videos, _ = write_videos(tmp_path, kind)
    source = open_source(videos)
    requests = [source.train_request(1, i) for i in range(3)]
    with ThreadPoolExecutor(2) as pool:
        feed = Loader(videos, CPU, torch.float32, 3, 2, cache)._view_arrays(None, pool)
        for _ in range(2):  # the second time from the cache, if there is one
            made = feed(requests, videos, "rgb", Way.RAW)
            expected = view_arrays(requests, videos, "rgb", Way.RAW)
            assert len(made) == len(expected) and len(made[0]) == 12
            for ours, theirs in zip(made, expected, strict=True):
                assert all(map(np.array_equal, ours, theirs))
