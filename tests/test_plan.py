"""Which clips make which batch, on any number of ranks."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lists import TINY
from pipelines.folders import Frames
from pipelines.index import Clip, ClipIndex
from pipelines.plan import eval_plan, train_plan
from pipelines.sampling import stream_clips
from pipelines.source import ClipRequest, ClipSource


def source(num_clips: int) -> ClipSource:
    clips = tuple(Clip(f"c{i}", 10, 0, line=i + 1) for i in range(num_clips))
    media = {"rgb": tuple(Frames(f"/nowhere/c{i}/{{frame}}.jpg", 0) for i in range(num_clips))}
    index = ClipIndex(clips, "/nowhere", media, "list.txt", 0)
    return ClipSource(index, TINY, seed=5)


def keys(requests: list[ClipRequest]) -> list[tuple]:
    return [(r.index, [(s.paths, s.view) for s in r.streams]) for r in requests]


@given(num_clips=st.integers(1, 11), batch=st.integers(4, 16), ranks=st.integers(1, 4),
       first=st.integers(0, 7))  # fmt: skip
def test_the_ranks_together_train_on_the_batches_of_one_rank(
    num_clips: int, batch: int, ranks: int, first: int
) -> None:
    clips = source(num_clips)
    alone = list(train_plan(clips, 5, batch, first, first + 3, 0, 1))
    shared = [list(train_plan(clips, 5, batch, first, first + 3, r, ranks)) for r in range(ranks)]
    assert len(alone) == 3
    for step, whole in enumerate(alone):
        parts = [shared[rank][step] for rank in range(ranks)]
        assert {len(part) for part in parts} <= {batch // ranks, -(-batch // ranks)}
        assert [keys(parts[i % ranks])[i // ranks] for i in range(batch)] == keys(whole)


def test_training_is_one_stream_of_epochs_without_gaps_or_repeats() -> None:
    steps = list(train_plan(source(7), 5, 4, 0, 7, 0, 1))
    order = [request.index for requests in steps for request in requests]
    assert order == [clip for _, clip in stream_clips(5, 7, 0, 28)]
    for epoch in range(4):
        assert sorted(order[7 * epoch : 7 * epoch + 7]) == list(range(7))


def test_a_plan_from_step_k_is_the_rest_of_the_plan_from_the_start() -> None:
    whole = list(train_plan(source(7), 5, 3, 0, 9, 0, 1))
    for k in range(10):
        rest = list(train_plan(source(7), 5, 3, k, 9, 0, 1))
        assert list(map(keys, rest)) == list(map(keys, whole[k:]))


def test_a_plan_without_an_end_in_sight_costs_nothing_ahead() -> None:
    assert len(list(islice(train_plan(source(3), 5, 2, 0, 10**9, 0, 1), 5))) == 5


@pytest.mark.parametrize("ranks", [1, 2, 3, 9])
def test_evaluation_meets_each_clip_exactly_once_on_any_number_of_ranks(ranks: int) -> None:
    batches = [list(eval_plan(source(7), 2, rank, ranks)) for rank in range(ranks)]
    met = [request.index for rank in batches for requests in rank for request in requests]
    assert sorted(met) == list(range(7))
    assert all(1 <= len(requests) <= 2 for rank in batches for requests in rank)


def test_a_rank_beyond_the_last_clip_has_no_batches() -> None:
    assert list(eval_plan(source(2), 4, rank=2, world_size=3)) == []
    assert [r.index for r in next(eval_plan(source(2), 4, rank=1, world_size=3))] == [1]
