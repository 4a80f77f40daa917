"""engine/given_clips.py: which files of a folder are the clip, and the request made of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clips import DEPTH_NAME, depth_frames, rgb_frames, write_clip
from engine.given_clips import clip_requests, list_frames
from lists import TINY, write_list
from pipelines.depth_boxes import depth_boxes
from pipelines.index import scan
from pipelines.source import ClipRequest, ClipSource
from videos import number_of, write_video


def touch(folder: Path, *names: str) -> str:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return str(folder)


def names_of(folder: str) -> list[str]:
    return [Path(path).name for path in list_frames(folder).paths]


def test_frames_come_in_natural_order_and_other_files_do_not_count(tmp_path: Path) -> None:
    folder = touch(tmp_path / "clip", "frame10.jpg", "frame2.JPG", "frame1.jpeg", "notes.txt",
                   "._frame1.jpg", "frame2b1.jpg")  # fmt: skip
    assert names_of(folder) == ["frame1.jpeg", "frame2.JPG", "frame2b1.jpg", "frame10.jpg"]


def test_numbers_with_and_without_leading_zeros_are_equal_names_apart(tmp_path: Path) -> None:
    folder = touch(tmp_path / "clip", "9.png", "10.png", "009.png", "1_2.png", "1.png")
    assert names_of(folder) == ["1.png", "1_2.png", "009.png", "9.png", "10.png"]


def test_what_is_no_clip_is_named(tmp_path: Path) -> None:
    video = tmp_path / "wave.mp4"
    video.touch()
    with pytest.raises(ValueError, match=r"wave\.mp4: "):
        clip_requests([str(video)], TINY)
    with pytest.raises(ValueError, match=r"wave\.mp4: is a file, but 16-bit depth is read from"):
        clip_requests([str(video)], replace(TINY, modality="depth", depth_encoding="metric"))
    with pytest.raises(ValueError, match=r"absent: No such file or directory; name a folder"):
        list_frames(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match=r"empty: holds no images \(\.jpg, "):
        list_frames(touch(tmp_path / "empty", "notes.txt"))
    with pytest.raises(ValueError, match=r"mixed: holds JPEG and PNG images; keep"):
        list_frames(touch(tmp_path / "mixed", "0.jpg", "0.png"))


def same_request(found: ClipRequest, expected: ClipRequest) -> bool:
    branches = zip(found.branch_indices, expected.branch_indices, strict=True)
    streams = zip(found.streams, expected.streams, strict=True)
    return all(np.array_equal(a, b) for a, b in branches) and all(
        (a.paths, a.view) == (b.paths, b.view) and np.array_equal(a.boxes, b.boxes)
        for a, b in streams
    )


@pytest.mark.parametrize("modality", ["rgb", "depth"])
def test_the_request_is_that_of_evaluation(tmp_path: Path, modality: str) -> None:
    config = write_list(tmp_path, num_clips=3, modality=modality, eval_crop=(5, 1),
                        depth_encoding="metric")  # fmt: skip
    source = ClipSource(scan(config, "eval"), config, seed=0)
    found = clip_requests([str(tmp_path / modality / f"c{i}") for i in range(3)], config)
    assert [request.index for request in found] == [0, 1, 2]
    assert all(same_request(found[i], source.eval_request(i)) for i in range(3))
    assert found[1].origin == f"clip {tmp_path / modality / 'c1'}"


@pytest.mark.parametrize("modality", ["depth", "rgbd"])
def test_the_person_is_looked_for_in_every_frame_as_evaluation_does(tmp_path, modality) -> None:
    frames = depth_frames(12, 400, 300)
    frames[3] = 0  # is sampled and takes the box of frame 2, which is not
    write_clip(tmp_path / "depth" / "c0", frames, DEPTH_NAME, first=1)
    write_clip(tmp_path / "rgb" / "c0", rgb_frames(14, 192, 108))  # two more than depth has
    (tmp_path / "list.txt").write_text("c0 12 1\n")
    config = replace(
        TINY, root=str(tmp_path), cache_dir=str(tmp_path / "cache"), modality=modality,
        depth_encoding="wrapped_jet", num_frames=8, branch_frames=(2, 3),
    )  # fmt: skip
    index = scan(config, "eval")
    expected = ClipSource(index, config, 0, depth_boxes(index, config)).eval_request(0)
    folders = [str(tmp_path / name / "c0") for name in config.modalities]
    (found,) = clip_requests([",".join(folders)], config)
    assert same_request(found, expected)
    assert [Path(path).name[-6:-4] for path in found.streams[-1].paths][:4] == [
        "01", "02", "04", "05",
    ]  # fmt: skip
    assert len(np.unique(found.streams[-1].boxes, axis=0)) > 3, "the boxes follow the person"


def test_an_rgbd_clip_is_two_folders(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^clip: an RGB-D network needs two folders or videos: RGB,"
    ):
        clip_requests(["clip"], replace(TINY, modality="rgbd"))


def test_a_video_is_a_clip_and_shows_what_its_frames_show(tmp_path: Path) -> None:
    video = write_video(tmp_path / "wave.mp4", 9, options={"g": "4", "bf": "2"})
    ((stream,), (other,)) = (r.streams for r in clip_requests([str(video)] * 2, TINY))
    assert stream.frames.tolist() == [0, 2, 4, 7] == other.frames.tolist()
    assert [number_of(frame) for frame in stream.decode()] == [0, 2, 4, 7]
