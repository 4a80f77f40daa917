"""Each way to read a pack is measured, and what LZ4 makes of its depth."""

import json

import numpy as np
import pytest

from benchmarks import packs as benchmark
from packs import jpegs, write_pack
from pipelines.pack_format import PackedClip, depth_track, image_track, video_track


def depth_frames() -> np.ndarray:
    """6 frames of which LZ4 keeps a small part."""
    return np.stack([np.full((24, 32), 1000 + t, np.uint16) for t in range(6)])


def test_figures_of_each_way_are_printed_and_kept(tmp_path, capsys):
    clip = PackedClip("a", {"rgb": image_track(jpegs()), "depth": depth_track(depth_frames())})
    write_pack(tmp_path / "pack", [clip])
    out = tmp_path / "packs.json"
    command = [str(tmp_path / "pack"), "--clips", "2", "--frames", "4", "--json", str(out)]
    assert benchmark.main(command) == 0
    result = json.loads(out.read_text())
    assert {"command", "commit", "machine", "versions"} <= result.keys()
    assert list(result["ms_per_clip"]) == [
        "rgb, encoded", "rgb, mapped, also held to the CRC32",
        "depth, encoded", "depth, mapped, also held to the CRC32", "depth, depth_frames",
    ]  # fmt: skip
    assert all(ms["n"] == benchmark.ROUNDS for ms in result["ms_per_clip"].values())
    assert [found["level"] for found in result["lz4"]] == list(benchmark.LEVELS)
    assert all(found["times_smaller"] > 10 for found in result["lz4"])
    printed = capsys.readouterr().out
    assert "  depth, depth_frames: " in printed and "  LZ4 level 12: " in printed


def test_a_video_is_read_as_a_whole(tmp_path, capsys):
    clip = PackedClip("a", {"rgb": video_track(bytes(1000), "mp4", 5, 144, 160)})
    write_pack(tmp_path / "pack", [clip])
    assert benchmark.main([str(tmp_path / "pack"), "--clips", "2", "--frames", "4"]) == 0
    assert "rgb, encoded: " in capsys.readouterr().out


def test_a_folder_without_shards_is_an_error(tmp_path, capsys):
    assert benchmark.main([str(tmp_path)]) == 1
    assert "holds no shard-000000.tar" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        benchmark.main([])
