"""Which frames make a clip and which clips make a batch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.sampling import (
    BRANCHES,
    FRAMES,
    ORDER,
    VIEW,
    branch_indices,
    clip_rng,
    epoch_of_step,
    epoch_order,
    sample_frames,
    steps_before_epoch,
    stream_clips,
)

counts = st.integers(1, 300)
seeds = st.integers(0, 2**31)


def segment(i: int, num_available: int, num_frames: int) -> range:
    start = num_available * i // num_frames
    return range(start, max(start + 1, num_available * (i + 1) // num_frames))


@given(counts, counts, seeds)
def test_a_random_frame_of_every_segment_is_taken(n: int, num_frames: int, seed: int) -> None:
    frames = sample_frames(n, num_frames, np.random.default_rng(seed))
    assert frames.dtype == np.int64 and frames.shape == (num_frames,)
    assert all(frame in segment(i, n, num_frames) for i, frame in enumerate(frames))
    assert frames[0] >= 0 and frames[-1] < n and (np.diff(frames) >= 0).all()


@given(counts, counts)
def test_evaluation_takes_the_floor_of_the_segments_mean(n: int, num_frames: int) -> None:
    expected = [int(np.mean(segment(i, n, num_frames))) for i in range(num_frames)]
    assert sample_frames(n, num_frames, None).tolist() == expected


@pytest.mark.parametrize(
    ("num_available", "num_frames", "expected"),
    [
        (10, 3, [1, 4, 7]),  # 0-2, 3-5, 6-9: the mean 7.5 becomes 7
        (8, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (5, 8, [0, 0, 1, 1, 2, 3, 3, 4]),  # short clips repeat frames
        (1, 3, [0, 0, 0]),
    ],
)
def test_evaluation_frames_of_known_clips(
    num_available: int, num_frames: int, expected: list[int]
) -> None:
    assert sample_frames(num_available, num_frames, None).tolist() == expected


def test_training_reaches_every_frame_of_a_segment() -> None:
    drawn = [sample_frames(80, 16, np.random.default_rng(seed))[3] for seed in range(200)]
    assert set(drawn) == {15, 16, 17, 18, 19}


def test_evaluation_branches_see_fixed_frames_of_64() -> None:
    few, half, most = branch_indices(64, (16, 32, 48), None)
    assert few.tolist() == list(range(1, 64, 4))
    assert half.tolist() == list(range(0, 64, 2))
    assert most.tolist() == [64 * i // 48 for i in range(48)]


def test_branches_follow_the_segment_rule_in_training() -> None:
    branches = branch_indices(64, (16, 48), np.random.default_rng(1))
    assert [len(branch) for branch in branches] == [16, 48]
    for branch in branches:
        assert all(frame in segment(i, 64, len(branch)) for i, frame in enumerate(branch))


@pytest.mark.parametrize(("num_available", "num_frames"), [(0, 8), (8, 0)])
def test_no_frames_are_an_error(num_available: int, num_frames: int) -> None:
    with pytest.raises(ValueError, match=f"cannot sample {num_frames} of {num_available} frames"):
        sample_frames(num_available, num_frames, None)


@given(seeds, st.integers(0, 200), st.integers(0, 10**6))
def test_a_clips_draws_are_a_function_of_seed_epoch_and_index(
    seed: int, epoch: int, index: int
) -> None:
    first, again = (clip_rng(seed, epoch, index, FRAMES).random(4) for _ in range(2))
    assert (first == again).all()
    others = [
        clip_rng(seed + 1, epoch, index, FRAMES),
        clip_rng(seed, epoch + 1, index, FRAMES),
        clip_rng(seed, epoch, index + 1, FRAMES),
        *(clip_rng(seed, epoch, index, purpose) for purpose in (VIEW, BRANCHES, ORDER)),
    ]
    assert all((other.random(4) != first).all() for other in others)


@given(seeds, st.integers(0, 50), st.integers(1, 40))
def test_every_epoch_visits_every_clip_once(seed: int, epoch: int, num_clips: int) -> None:
    assert sorted(epoch_order(seed, epoch, num_clips)) == list(range(num_clips))
    visited = stream_clips(seed, num_clips, epoch * num_clips, (epoch + 1) * num_clips)
    assert visited == [(epoch, index) for index in epoch_order(seed, epoch, num_clips)]


def test_epochs_have_orders_of_their_own() -> None:
    assert epoch_order(0, 0, 50).tolist() != epoch_order(0, 1, 50).tolist()


@given(seeds, st.integers(1, 20), st.integers(1, 50), st.integers(1, 8))
def test_batches_of_any_size_tile_the_stream(
    seed: int, num_clips: int, batch: int, num_batches: int
) -> None:
    stream = stream_clips(seed, num_clips, 0, batch * num_batches)
    assert len(stream) == batch * num_batches
    for k in range(num_batches):
        start, stop = k * batch, (k + 1) * batch
        assert stream_clips(seed, num_clips, start, stop) == stream[start:stop]


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 12))
def test_an_epochs_first_step_is_the_first_that_belongs_to_it(
    num_clips: int, batch: int, epoch: int
) -> None:
    step = steps_before_epoch(epoch, batch, num_clips)
    assert epoch_of_step(step, batch, num_clips) >= epoch
    assert step == 0 or epoch_of_step(step - 1, batch, num_clips) < epoch


def test_a_step_belongs_to_the_epoch_of_its_first_clip() -> None:
    # 10 clips in batches of 4: the third batch holds the clips 8, 9 of epoch 0 and 0, 1 of epoch 1.
    assert [epoch_of_step(step, 4, 10) for step in range(6)] == [0, 0, 0, 1, 1, 2]
    assert [steps_before_epoch(epoch, 4, 10) for epoch in range(4)] == [0, 3, 5, 8]
    assert [epoch for epoch, _ in stream_clips(0, 10, 8, 12)] == [0, 0, 1, 1]
