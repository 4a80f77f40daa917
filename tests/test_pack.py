"""From frame files to a pack by a config, and the command line."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from clips import DEPTH_NAME, RGB_NAME, depth_frames, rgb_frames, write_clip
from lists import write_list
from packs import assert_same_shards
from pipelines.config import FrameFiles
from pipelines.depth import read_depth
from pipelines.index import scan
from pipelines.pack import main, write
from pipelines.pack_reader import Pack

RGBD = {"modality": "rgbd", "depth_encoding": "metric"}


def test_a_pack_holds_the_frames_of_the_lists_bit_for_bit(tmp_path: Path) -> None:
    config = write_list(tmp_path / "data", 3, **RGBD)
    assert write(config, tmp_path / "pack", threads=2) == 3
    pack, index = Pack.open(tmp_path / "pack"), scan(config, "train")
    assert pack.names == ("c0", "c1", "c2")
    for number, clip in enumerate(index.clips):
        frames = range(5 + number)
        paths = {m: [index.media[m][number].path(f) for f in frames] for m in ("rgb", "depth")}
        packed = [view.tobytes() for view in pack.encoded(clip.name, "rgb", frames)]
        assert packed == [Path(path).read_bytes() for path in paths["rgb"]]
        depth = np.stack([read_depth(path) for path in paths["depth"]])
        np.testing.assert_array_equal(pack.depth_frames(clip.name, frames), depth)


def test_8_bit_depth_images_stay_images(tmp_path: Path) -> None:
    config = write_list(tmp_path / "data", 1)
    paths = write_clip(tmp_path / "data/depth/c0", rgb_frames(5), RGB_NAME)
    (tmp_path / "data/list.txt").write_text("c0 5 0\n")
    config = replace(config, modality="depth", depth=FrameFiles("depth/{name}/{frame:06d}.jpg"))
    write(config, tmp_path / "pack")
    pack = Pack.open(tmp_path / "pack")
    assert pack.info("c0", "depth").encoding == "jpeg"
    assert pack.encoded("c0", "depth", [4])[0].tobytes() == Path(paths[4]).read_bytes()


def test_names_are_those_of_the_list_whatever_bytes_they_have(tmp_path: Path) -> None:
    config = write_list(tmp_path / "data", 1)
    names = ["set.1/a b/c", "ü/名", os.fsdecode(b"bad \xff\xfe"), "{brace}"]
    for name in names:
        write_clip(tmp_path / "data/rgb" / name, rgb_frames(2), RGB_NAME)
    lines = "".join(f"{name} 2 0\n" for name in names)
    (tmp_path / "data/list.txt").write_bytes(os.fsencode(lines))
    write(config, tmp_path / "pack")
    assert Pack.open(tmp_path / "pack").names == tuple(names)
    assert (tmp_path / "pack/list.txt").read_bytes() == os.fsencode(lines)


def test_the_lists_and_class_names_are_copied_to_the_same_places(tmp_path: Path) -> None:
    config = write_list(tmp_path / "data", 3)
    root = tmp_path / "data"
    (root / "splits/@1").mkdir(parents=True)
    (root / "list.txt").rename(root / "splits/@1/train.txt")
    (tmp_path / "outside.txt").write_text("c1 6 1\n")
    (root / "classes.txt").write_text("a\nb\nc\n")
    config = replace(
        config, train_list="splits/@1/train.txt", eval_list=str(tmp_path / "outside.txt")
    )
    told: list[str] = []
    write(config, tmp_path / "pack", log=told.append)
    pack = tmp_path / "pack"
    assert (pack / "splits/@1/train.txt").read_text() == "c0 5 0\nc1 6 1\nc2 7 2\n"
    assert (pack / "eval.txt").read_text() == "c1 6 1\n"
    assert (pack / "classes.txt").read_text() == "a\nb\nc\n"
    assert told == [
        f"{tmp_path}/outside.txt: is outside data.root; with data.root={pack} set "
        "data.eval_list=eval.txt"
    ]
    assert Pack.open(pack).names == ("c0", "c1", "c2")


def test_a_second_call_writes_only_what_is_missing(tmp_path: Path) -> None:
    config = write_list(tmp_path / "data", 4)
    lines = (tmp_path / "data/list.txt").read_text().splitlines(keepends=True)
    (tmp_path / "data/list.txt").write_text("".join(lines[:2]))
    assert write(config, tmp_path / "pack", shard_bytes=1) == 2
    (tmp_path / "data/list.txt").write_text("".join(lines))
    assert write(config, tmp_path / "pack", shard_bytes=1) == 2
    write(config, tmp_path / "at once", shard_bytes=1)
    assert_same_shards(tmp_path / "pack", tmp_path / "at once")


def test_the_number_of_threads_changes_no_byte(tmp_path: Path) -> None:
    config = write_list(tmp_path / "data", 7, **RGBD)
    for threads in (1, 3):
        write(config, tmp_path / str(threads), threads, shard_bytes=60_000)
    assert_same_shards(tmp_path / "1", tmp_path / "3")


def test_a_damaged_frame_stops_the_writing_and_is_named(tmp_path: Path) -> None:
    config = write_list(tmp_path / "data", 2)
    path = tmp_path / "data/rgb/c1/000003.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"rgb/c1/000003\.jpg: damaged .*; restore it .*'c1'"):
        write(config, tmp_path / "pack")


def test_a_depth_frame_of_another_size_is_named(tmp_path: Path) -> None:
    config = write_list(tmp_path / "data", 1, modality="depth", depth_encoding="metric")
    folder = tmp_path / "data/depth/c0"
    write_clip(folder, depth_frames(1, 32, 24), DEPTH_NAME, first=3)
    with pytest.raises(ValueError, match=r"MDepth-00000003\.png: of another size than .*01\.png"):
        write(config, tmp_path / "pack")


def test_rgb_frames_of_two_sizes_are_named_with_their_folder(tmp_path: Path) -> None:
    config = write_list(tmp_path / "data", 1)
    write_clip(tmp_path / "data/rgb/c0", rgb_frames(1, 32, 24), RGB_NAME, first=2)
    with pytest.raises(ValueError, match=r"data/rgb/c0: frame 2: jpeg of 32x24 .*\(clip 'c0'\)"):
        write(config, tmp_path / "pack")


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    write_list(tmp_path / "data", 3, **RGBD)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({
        "train": {"run_dir": "elsewhere"},
        "data": {"root": str(tmp_path / "data"), "train_list": "list.txt", "num_classes": 3,
                 "eval_list": "list.txt", "modality": "rgbd", "depth_encoding": "metric",
                 "depth": {"pattern": "depth/{name}/MDepth-{frame:08d}.png", "first": 1}},
    }))  # fmt: skip
    return path


def test_the_command_line_writes_lists_and_checks(
    config_file: Path, tmp_path: Path, capsys
) -> None:
    pack = str(tmp_path / "pack")
    assert main(["write", "--config", str(config_file), "--out", pack, "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{pack}: 3 clips in 1 shards, ")
    assert lines[1].startswith("  rgb jpeg: 3 clips, 18 frames, ")
    assert lines[2].startswith("  depth lz4: 3 clips, 18 frames, ")
    assert lines[3] == f"3 clips written now; train from it with data.root={pack}"
    assert main(["list", pack, "--clips"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == (
        "shard-000000.tar\tc1\trgb 6 x 64x48 jpeg\tdepth 6 x 96x72 lz4"
    )
    assert main(["check", pack]) == 0
    assert capsys.readouterr().out == f"{pack}: 3 clips checked, 0 damaged, 0 problems\n"


def test_values_of_the_config_can_be_replaced(config_file: Path, tmp_path: Path) -> None:
    command = ["write", "--config", str(config_file), "--out", str(tmp_path / "rgb")]
    assert main([*command, "data.modality=rgb"]) == 0
    assert Pack.open(tmp_path / "rgb").modalities("c0") == ("rgb",)


def test_a_user_error_is_one_line_and_a_status(tmp_path: Path, capsys) -> None:
    assert main(["list", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path}: holds no shard-000000.tar; is it the folder of a pack?\n"
    )
