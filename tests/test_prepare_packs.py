"""python -m pipelines.prepare --as packs: what is trained on is what the frame folders give."""

import json
from functools import partial

import pytest
import torch

from datasets import (
    NTU_SAMPLES,
    config_of,
    first_batch,
    prepare,
    write_isogd,
    write_ntu,
    write_thu_read,
)
from pipelines import check
from pipelines.index import scan
from pipelines.pack_reader import Pack


@pytest.mark.parametrize("dataset", ["isogd", "thu_read", "ntu60"])
def test_packs_hold_what_the_frames_hold(tmp_path, dataset):
    layout, encoding = ("ntu", "metric") if dataset == "ntu60" else (dataset, "color")
    source = {
        "isogd": write_isogd,
        "thu_read": partial(write_thu_read, keys=["fold_cgy_1", "stir_gs_2"]),
        "ntu60": partial(write_ntu, samples=NTU_SAMPLES),
    }[dataset](tmp_path / "in")
    out = tmp_path / "out"
    for _ in range(2):  # the second time, all is there
        assert prepare(dataset, source, out, "--as", "packs") == 0
    lists = sorted(
        str(path.relative_to(out / "frames"))
        for path in (out / "frames").rglob("*.txt")
        if path.name != "classes.txt" and path.read_text()
    )
    assert lists
    for which in lists:
        for modality in ("rgb", "depth"):
            # THU-READ has 6 frames of RGB and 5 of depth here, and a list for each.
            options = {"modality": modality, "depth_encoding": encoding}
            options["frame_slack"] = 1 if (modality == "depth") != ("depth" in which) else 0
            packed = config_of(out, layout, which, **options)
            frames = config_of(out / "frames", layout, which, **options)
            a, b = first_batch(packed), first_batch(frames)
            assert torch.equal(a.label, b.label) and torch.equal(a.clip, b.clip)


@pytest.mark.parametrize("rgb", [6, 4])
def test_each_modality_keeps_all_its_frames_and_training_cuts_as_with_folders(tmp_path, rgb):
    source, out = write_ntu(tmp_path / "in", NTU_SAMPLES, rgb, depth=5), tmp_path / "out"
    prepare("ntu60", source, out, "--as", "packs")
    pack = Pack.open(out)
    counts = {m: pack.info(f"{NTU_SAMPLES[0]}_rgb", m).num_frames for m in ("rgb", "depth")}
    assert counts == {"rgb": rgb, "depth": 5}
    for modality in ("rgb", "depth", "rgbd"):
        for slack in (0, 10):
            options = {"modality": modality, "depth_encoding": "metric", "frame_slack": slack}
            seen = []
            for root in (out, out / "frames"):
                config = config_of(root, "ntu", "dataset_splits/@CV/train.txt", **options)
                try:
                    seen.append([clip.num_frames for clip in scan(config, "train").clips])
                except ValueError as error:
                    seen.append("6 frames listed, 5 found" in str(error))
            too_few = modality != "rgb" and slack == 0 and rgb == 6
            expected = rgb if slack == 0 else min(rgb, 5)
            assert seen == [True if too_few else [expected] * 2] * 2


def test_clips_that_are_in_no_list_yet_are_packed_too(tmp_path):
    source, out = write_isogd(tmp_path / "in"), tmp_path / "out"
    prepare("isogd", source, out, "--as", "packs")
    assert {"valid/001/M_00001", "test/001/M_00001"} < set(Pack.open(out).names)


def test_a_pack_of_frames_that_were_made_anew_is_not_taken_for_one_of_these(tmp_path, capsys):
    source, out = write_ntu(tmp_path / "in", NTU_SAMPLES[:1]), tmp_path / "out"
    prepare("ntu60", source, out, "--as", "packs")
    capsys.readouterr()
    assert prepare("ntu60", source, out, "--as", "packs", "--quality", "50") == 1
    assert capsys.readouterr().err.endswith(
        f"error: {out}/shard-000000.tar: '{NTU_SAMPLES[0]}_rgb' has been prepared otherwise since "
        "it was packed; delete the shards and their indices, and prepare again\n"
    )


def test_a_prepared_pack_is_checked_without_its_frames(tmp_path, capsys):
    source, out = write_ntu(tmp_path / "in", NTU_SAMPLES), tmp_path / "out"
    prepare("ntu60", source, out, "--as", "packs")
    (out / "frames").rename(tmp_path / "elsewhere")
    capsys.readouterr()
    assert check.main([str(out)]) == 0
    assert f"{out}: 6 clips, 30 frames" in capsys.readouterr().out
    shard = out / "shard-000000.tar"
    data = bytearray(shard.read_bytes())
    data[data.index(b"\xff\xd8\xff") + 40] ^= 255  # in the first JPEG file
    shard.write_bytes(data)
    (out / "dataset_splits/@CS/train.txt").unlink()
    assert check.main([str(out)]) == 1
    said = capsys.readouterr().out
    assert f"  shard-000000.tar: clip '{NTU_SAMPLES[0]}_rgb': rgb frame 0 differs" in said
    assert "  dataset_splits/@CS/train.txt: No such file or directory" in said


def test_a_shard_that_is_gone_is_found(tmp_path, capsys):
    source, out = write_ntu(tmp_path / "in", NTU_SAMPLES[:1]), tmp_path / "out"
    prepare("ntu60", source, out, "--as", "packs")
    (out / "frames/manifest.jsonl").unlink()
    summary = json.loads((out / "prepare.json").read_text())
    (out / "prepare.json").write_text(json.dumps({**summary, "clips": 2}))
    assert check.main([str(out)]) == 1
    assert "  shards: hold 1 of the 2 clips in prepare.json" in capsys.readouterr().out
