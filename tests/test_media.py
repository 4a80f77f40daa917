"""Which way videos are decoded: by what DALI, the list and the GPU allow."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.clips import open_clips
from engine.config import Config, TrainConfig
from engine.distributed import Ranks
from engine.given_clips import clip_requests
from engine.loop import Precision
from lists import open_source
from nvdecs import HAS_AV1, refuse
from pipelines import nvdec
from pipelines.index import scan
from pipelines.media import Way, way_of
from test_packed_videos import pack_of
from test_sources import batches, write_videos

CPU = torch.device("cpu")


def way(config, device: str) -> Way:
    return way_of(scan(config, "train").media["rgb"][0], device)


@pytest.mark.parametrize(("name", "has_av1"), HAS_AV1.items())
def test_av1_goes_to_nvdec_where_the_gpu_decodes_it(put_gpu, tmp_path, name, has_av1) -> None:
    put_gpu(name)
    videos, _ = write_videos(tmp_path, "av1")
    assert way(videos, "gpu") is (Way.VIDEO if has_av1 else Way.RAW)
    packed = pack_of(videos, tmp_path / "pack")
    assert way(packed, "gpu") is (Way.VIDEO_DATA if has_av1 else Way.RAW)


def test_a_list_goes_one_way_by_all_of_its_videos(put_gpu, tmp_path: Path) -> None:
    put_gpu("hopper")
    videos, _ = write_videos(tmp_path, "h264")
    assert way(videos, "gpu") is Way.VIDEO
    write_videos(tmp_path / "other", "av1")
    (tmp_path / "videos/rgb/c1.mp4").write_bytes(
        (tmp_path / "other/videos/rgb/c1.mp4").read_bytes()
    )
    assert way(videos, "gpu") is Way.RAW
    put_gpu("ada")  # what was remembered of the files holds on any GPU
    assert way(videos, "gpu") is Way.VIDEO


def test_a_cpu_asks_no_gpu_nor_do_clips_given_by_hand(put_gpu, tmp_path: Path) -> None:
    asked = put_gpu("ada")
    videos, _ = write_videos(tmp_path, "vp9")
    assert way(videos, "cpu") is Way.VIDEO
    (request,) = clip_requests([str(tmp_path / "videos/rgb/c0.webm")], videos)
    assert way_of(request.streams[0].media, "gpu") is Way.RAW  # they may be of several kinds
    assert not asked


def test_a_device_is_asked_by_its_own_number(put_gpu, tmp_path: Path) -> None:
    asked = put_gpu("ada")
    videos, _ = write_videos(tmp_path, "h264")
    media = open_source(videos).index.media["rgb"][0]
    assert way_of(media, "gpu", 3) is Way.VIDEO and asked == [3]


def warnings_of(config, capsys) -> list[str]:
    """What opening the lists of a run on a GPU says."""
    ranks = Ranks(0, 0, 1, torch.device("cuda", 0))
    open_clips(Config(config, TrainConfig("", 3)), ranks, Precision.choose("fp32", CPU))
    return capsys.readouterr().err.splitlines()


def test_one_line_says_which_codec_a_gpu_lacks(put_gpu, tmp_path: Path, capsys) -> None:
    put_gpu("hopper")
    videos, _ = write_videos(tmp_path, "av1")
    assert warnings_of(videos, capsys) == [
        "warning: NVDEC of NVIDIA H200 does not decode AV1: all videos of a list that holds such "
        "are decoded by FFmpeg on the CPU; python -m pipelines.prepare DATASET --source DOWNLOAD "
        "--out OUT --as videos makes H.264"
    ]
    # The CPU decodes for a cache of its own.
    assert warnings_of(replace(videos, cache="host"), capsys) == []
    put_gpu("ada")
    assert warnings_of(videos, capsys) == []


def test_one_line_says_that_the_library_is_missing(
    nothing_known, tmp_path, monkeypatch, capsys
) -> None:
    refuse(monkeypatch, "libnvcuvid.so.1: cannot open")
    videos, _ = write_videos(tmp_path, "h264")
    assert way(videos, "gpu") is Way.RAW
    assert warnings_of(videos, capsys) == [
        "warning: NVDEC did not say what it decodes (libnvcuvid.so.1: cannot open): videos are "
        "decoded by FFmpeg on the CPU; python -m engine.doctor says how to fix it"
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["h264", "av1"])
def test_the_loader_of_this_gpu_takes_videos_whatever_nvdec_decodes(tmp_path, kind) -> None:
    videos, _ = write_videos(tmp_path, kind, resize=(160, 144), crop=128, size=128)
    decoded = nvdec.decoders().limits[kind, 8] is not None
    assert way(videos, "gpu") is (Way.VIDEO if decoded else Way.RAW)
    made = batches(videos, torch.device("cuda")), batches(videos)
    for ours, expected in zip(*made, strict=True):
        assert (ours.clip.cpu() - expected.clip).abs().mean() < 4 / 128  # grey levels
