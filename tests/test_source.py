"""From a clip's place in its list to the request for it."""

from dataclasses import replace

import numpy as np
import pytest

from lists import TINY
from pipelines.depth import DepthBoxes
from pipelines.folders import Frames
from pipelines.index import Clip, ClipIndex
from pipelines.source import ClipRequest, ClipSource
from pipelines.view import View

CLIPS = tuple(Clip(f"c{i}_rgb", 10 + i, i % 3, line=2 * i + 1) for i in range(5))
MEDIA = tuple(Frames(f"/nowhere/Images/c{i}/{{frame:06d}}.jpg", first=1) for i in range(5))
INDEX = ClipIndex(CLIPS, "/nowhere", {"rgb": MEDIA}, "/nowhere/list.txt", left_out=0)


def as_tuple(request: ClipRequest) -> tuple:
    branches = tuple(indices.tolist() for indices in request.branch_indices)
    streams = [(stream.paths, stream.view) for stream in request.streams]
    return (request.index, request.label, streams, branches)


def test_evaluation_takes_the_middle_frames_and_the_fixed_view_of_files_that_need_not_exist() -> (
    None
):
    request = ClipSource(INDEX, TINY, seed=0).eval_request(2)
    # 12 frames, segments 0-2, 3-5, 6-8, 9-11, and files numbered from 1.
    (stream,) = request.streams
    assert stream.paths == tuple(f"/nowhere/Images/c2/{n:06d}.jpg" for n in (2, 5, 8, 11))
    assert (request.index, request.label) == (2, 2)
    assert stream.view == View(angle=0, left=8, top=2, flip=False) and stream.boxes is None
    assert [indices.tolist() for indices in request.branch_indices] == [[0, 2], [0, 1, 2]]
    assert request.origin == "clip c2_rgb, /nowhere/list.txt:5"


def test_a_request_depends_on_seed_epoch_and_index_and_on_nothing_that_was_asked_before() -> None:
    source = ClipSource(INDEX, TINY, seed=3)
    later = [as_tuple(source.train_request(epoch, i)) for epoch in (4, 1) for i in (3, 0, 2)]
    fresh = [
        as_tuple(ClipSource(INDEX, TINY, seed=3).train_request(epoch, i))
        for epoch in (4, 1)
        for i in (3, 0, 2)
    ]
    assert later == fresh


@pytest.mark.parametrize("seed, epoch", [(3, 1), (4, 0)])
def test_another_epoch_or_seed_draws_anew(seed: int, epoch: int) -> None:
    def draw(seed: int, epoch: int) -> list[tuple]:
        source = ClipSource(INDEX, TINY, seed)
        return [as_tuple(source.train_request(epoch, i)) for i in range(5)]

    assert draw(seed, epoch) != draw(3, 0)


def test_training_draws_one_frame_of_each_segment() -> None:
    source = ClipSource(INDEX, TINY, seed=0)
    numbers = np.array([
        [int(path[-10:-4]) - 1 for path in source.train_request(epoch, 2).streams[0].paths]
        for epoch in range(40)
    ])  # fmt: skip
    assert (numbers // 3 == [0, 1, 2, 3]).all()
    assert [len(np.unique(column)) for column in numbers.T] == [3, 3, 3, 3]


def test_frames_do_not_depend_on_how_views_are_drawn() -> None:
    still = replace(TINY, rotate=0.0, flip=0.0, crop_offset=(0, 1))
    for i in range(5):
        a, b = (ClipSource(INDEX, config, 0).train_request(0, i) for config in (TINY, still))
        assert a.streams[0].paths == b.streams[0].paths
        assert all(map(np.array_equal, a.branch_indices, b.branch_indices))


def test_each_frame_brings_its_own_box() -> None:
    centres = tuple(
        np.stack([np.arange(c.num_frames) + 200] * 2, 1).astype(np.int16) for c in CLIPS
    )
    boxes = DepthBoxes(centres, ((424, 512),) * 5, from_neighbour=0, from_centre=0)
    config = replace(TINY, modality="depth", depth_encoding="wrapped_jet")
    index = replace(INDEX, media={"depth": MEDIA})
    (stream,) = ClipSource(index, config, 0, boxes).train_request(0, 1).streams
    frames = [int(path[-10:-4]) - 1 for path in stream.paths]
    assert stream.boxes is not None
    assert stream.boxes.tolist() == [[40 + f, 80 + f, 320, 240] for f in frames]
