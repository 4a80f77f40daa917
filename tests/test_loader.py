"""Batches: held to the plain twin, the same on any number of ranks, threads and clips at a time."""

import gc
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from clips import DEPTH_NAME, rgb_frames, write_clip
from lists import TINY, TURNS, assert_like_twin, open_source, request, twin, write_list
from pipelines import reference
from pipelines.batch import Batch
from pipelines.config import DataConfig
from pipelines.depth_boxes import depth_boxes
from pipelines.loader import THREADS, Loader
from pipelines.plan import eval_plan, train_plan
from pipelines.source import ClipRequest, ClipSource

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ClipSource:
    """7 JPEG clips of 64x48."""
    return open_source(write_list(tmp_path_factory.mktemp("rgb")))


def load(
    plan: Iterable[list[ClipRequest]], config: DataConfig, max_batch: int = 4, threads: int = 1
) -> list[Batch]:
    return list(Loader(config, CPU, torch.float32, max_batch, threads).batches(plan))


def pixels_of(batch: Batch) -> np.ndarray:
    """(B, T, H, W, 3) uint8: normalising is undone exactly."""
    pixels = batch.clip.permute(0, 2, 3, 4, 1).float().cpu() * 128 + 127.5
    assert torch.equal(pixels, pixels.round())
    return pixels.to(torch.uint8).numpy()


def clip_of(batch: Batch, i: int) -> tuple[Tensor, ...]:
    """Everything that belongs to the i-th clip of the batch."""
    branches = [indices[i] for indices in batch.branch_indices]
    return (batch.index[i], batch.clip[i], batch.motion[i], batch.label[i], *branches)


def by_clip(batches: Iterable[Batch]) -> list[tuple[Tensor, ...]]:
    """The clips of several batches, in the order of the list."""
    clips = [clip_of(batch, i) for batch in batches for i in range(len(batch.index))]
    return sorted(clips, key=lambda parts: int(parts[0]))


def assert_same(a: list[tuple[Tensor, ...]], b: list[tuple[Tensor, ...]]) -> None:
    """Bit for bit."""
    for parts, others in zip(a, b, strict=True):
        assert all(map(torch.equal, parts, others)), int(parts[0])


def threads() -> list[str]:
    """Those of loaders that are alive (a progress bar or torch's compiler may have their own)."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith(("in_background", THREADS))]


def test_a_batch_holds_what_was_asked_for(source: ClipSource) -> None:
    requests = [source.train_request(3, i) for i in (5, 0, 2)]
    (batch,) = load([requests], source.config)
    assert batch.index.tolist() == [5, 0, 2] and batch.label.tolist() == [2, 0, 2]
    assert batch.label.dtype == batch.index.dtype == torch.int64
    for branch, indices in enumerate(batch.branch_indices):
        expected = np.stack([r.branch_indices[branch] for r in requests])
        assert indices.dtype == torch.int64 and indices.tolist() == expected.tolist()
    expected = np.stack([twin(r, source.config) for r in requests])
    assert_like_twin(pixels_of(batch), expected)
    maps = np.stack([reference.motion_maps(pixels, 2) for pixels in pixels_of(batch)])
    assert batch.motion is not None and batch.motion.shape == (3, 1, 4, 32, 32)
    assert np.abs(batch.motion[:, 0].numpy() - maps).mean() < 1e-5


def test_clips_are_channels_last_in_memory_without_a_copy(source: ClipSource) -> None:
    (batch,) = load([[source.eval_request(0), source.eval_request(1)]], source.config)
    assert batch.clip.shape == (2, 3, 4, 32, 32) and batch.clip.dtype == torch.float32
    assert batch.clip.is_contiguous(memory_format=torch.channels_last_3d)


def test_a_window_of_zero_makes_no_maps(source: ClipSource) -> None:
    (batch,) = load([[source.eval_request(0)]], replace(source.config, motion_window=0))
    assert batch.motion is None


def test_float64_clips_hold_the_same_values(source: ClipSource) -> None:
    plan = [[source.eval_request(0)]]
    (single,) = load(plan, source.config)
    (double,) = Loader(source.config, CPU, torch.float64, 1, 1).batches(plan)
    assert double.clip.dtype == torch.float64 and torch.equal(double.clip, single.clip.double())


@pytest.mark.parametrize("encoding", ["metric", "wrapped_jet"])
def test_depth_batches_look_as_in_the_twin(tmp_path: Path, encoding: str) -> None:
    config = write_list(tmp_path, 3, "depth", depth_encoding=encoding, resize=(72, 54))
    source = open_source(config)
    if encoding == "wrapped_jet":
        boxes = depth_boxes(source.index, config, log=lambda _: None, processes=1)
        source = ClipSource(source.index, config, 0, boxes)
    requests = [source.train_request(1, i) for i in range(3)]
    (batch,) = load([requests], config)
    assert_like_twin(pixels_of(batch), np.stack([twin(r, config) for r in requests]))


def test_a_clip_is_the_same_in_any_batch_on_any_rank_with_any_threads(source: ClipSource) -> None:
    """Seven steps of 6 clips: position i of a step is on rank i % ranks."""

    def train(share: int, ranks: int, threads: int) -> list[tuple[Tensor, ...]]:
        plans = [train_plan(source, 0, share * ranks, 0, 7, rank, ranks) for rank in range(ranks)]
        batches = [load(plan, source.config, share, threads) for plan in plans]
        places = [(step, i) for step in range(7) for i in range(6)]
        return [clip_of(batches[i % ranks][step], i // ranks) for step, i in places]

    alone = train(share=6, ranks=1, threads=1)
    for share, ranks, threads in ((6, 1, 3), (3, 2, 1), (2, 3, 2)):
        assert_same(train(share, ranks, threads), alone)
    one_by_one = load(train_plan(source, 0, 1, 0, 42, 0, 1), source.config, 1)
    assert_same([clip_of(batch, 0) for batch in one_by_one], alone)


def test_batches_from_step_k_are_those_of_an_uninterrupted_run(source: ClipSource) -> None:
    whole = load(train_plan(source, 0, 3, 0, 6, 0, 1), source.config)
    for k in range(6):
        rest = load(train_plan(source, 0, 3, k, 6, 0, 1), source.config)
        places = [(step, i) for step in range(6 - k) for i in range(3)]
        assert len(rest) == 6 - k
        assert_same([clip_of(rest[step], i) for step, i in places],
                    [clip_of(whole[k + step], i) for step, i in places])  # fmt: skip


@pytest.mark.parametrize("ranks", [1, 2, 3, 9])
def test_evaluation_gives_each_clip_once_on_any_number_of_ranks(
    source: ClipSource, ranks: int
) -> None:
    """Nine ranks are more than there are clips: two of them have no batch."""
    plans = [eval_plan(source, 2, rank, ranks) for rank in range(ranks)]
    batches = [load(plan, source.config, max_batch=2) for plan in plans]
    assert [len(rank) for rank in batches].count(0) == max(ranks - 7, 0)
    alone = load([[source.eval_request(i)] for i in range(7)], source.config)
    assert_same(by_clip(batch for rank in batches for batch in rank), by_clip(alone))


def test_a_batch_in_hand_is_not_overwritten_by_later_ones(source: ClipSource) -> None:
    plan = [[source.train_request(epoch, i) for i in (0, 1)] for epoch in range(12)]
    held, copies = [], []
    for i, batch in enumerate(Loader(source.config, CPU, torch.float32, 2, 1).batches(plan)):
        if i % 3 == 0:
            held.append(batch.clip)
            copies.append((batch.clip.clone(), batch.motion.clone(), batch.motion))
    for clip, (clip_copy, motion_copy, motion) in zip(held, copies, strict=True):
        assert torch.equal(clip, clip_copy) and torch.equal(motion, motion_copy)


def test_two_plans_may_run_side_by_side(source: ClipSource) -> None:
    loader = Loader(source.config, CPU, torch.float32, 2, 1)
    plans = [[[source.train_request(epoch, i)] for i in range(5)] for epoch in (0, 1)]
    both = list(zip(*(loader.batches(plan) for plan in plans), strict=True))
    for plan, batches in zip(plans, zip(*both, strict=True), strict=True):
        assert_same(by_clip(batches), by_clip(load(plan, source.config)))


def broken_plan(folder: Path) -> list[list[ClipRequest]]:
    """Three batches of two clips each, in files of their own."""
    return [
        [
            request(write_clip(folder / f"c{index}", rgb_frames(4, seed=index)), index=index)
            for index in (2 * batch, 2 * batch + 1)
        ]
        for batch in range(3)
    ]


def test_a_truncated_jpeg_stops_the_batch_it_is_in_and_no_earlier_one(tmp_path: Path) -> None:
    plan = broken_plan(tmp_path)
    bad = Path(plan[1][1].streams[0].paths[2])
    end = bad.stat().st_size - 300
    bad.write_bytes(bad.read_bytes()[:end])
    batches = Loader(TINY, CPU, torch.float32, 2, 1).batches(plan)
    assert next(batches).index.tolist() == [0, 1]
    with pytest.raises(ValueError) as raised:
        next(batches)
    message = str(raised.value)
    assert message.startswith(f"{bad}: damaged at byte {end}: the file ends there")
    assert message.endswith("; restore it or take its clip off the list (clip c3, l:1)")
    assert not threads()


def test_a_file_that_vanishes_during_the_run_is_named(tmp_path: Path) -> None:
    plan = broken_plan(tmp_path)

    def vanish():
        yield from plan[:2]
        Path(plan[2][0].streams[0].paths[1]).unlink()
        yield plan[2]

    with pytest.raises(ValueError, match="No such file or directory; restore it or take"):
        load(vanish(), TINY)


def test_8_bit_png_where_16_bit_is_promised_is_named(tmp_path: Path) -> None:
    config = replace(TINY, modality="depth", depth_encoding="metric")
    grey = rgb_frames(4)[..., 0]
    paths = write_clip(tmp_path, grey, DEPTH_NAME)
    with pytest.raises(ValueError, match=f"{paths[0]}: 8-bit L PNG where data.depth_encoding"):
        load([[request(paths)]], config)


def test_an_error_of_the_plan_itself_is_raised_as_it_is(source: ClipSource) -> None:
    def plan():
        yield [source.eval_request(0)]
        raise KeyError("no plan")

    with pytest.raises(KeyError, match="no plan"):
        load(plan(), source.config)


def test_stopping_early_leaves_no_thread_behind(source: ClipSource) -> None:
    endless = train_plan(source, 0, 2, 0, 10**9, 0, 1)
    batches = Loader(source.config, CPU, torch.float32, 2, 2).batches(endless)
    next(batches)
    assert threads()
    batches.close()
    assert not threads()
    for _ in Loader(source.config, CPU, torch.float32, 2, 2).batches(endless):
        break
    gc.collect()
    assert not threads()


def test_a_program_that_fails_between_batches_ends_by_itself(source: ClipSource) -> None:
    script = f"""
        import sys, torch
        sys.path.insert(0, "tests")
        from dataclasses import replace
        from lists import TINY, open_source
        from pipelines.loader import THREADS, Loader
        from pipelines.plan import train_plan
        source = open_source(replace(TINY, root={source.config.root!r}))
        plan = train_plan(source, 0, 2, 0, 10**9, 0, 1)
        batches = Loader(source.config, torch.device("cpu"), torch.float32, 2, 2).batches(plan)
        next(batches)
        raise RuntimeError("of the training step")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], timeout=300, capture_output=True,
        text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "RuntimeError: of the training step"


def test_memory_does_not_grow_with_the_number_of_batches(source: ClipSource) -> None:
    """A batch holds 0.5 MB of pixels and maps: 50 of them kept would show."""

    def resident_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

    plan = train_plan(source, 0, 8, 0, 80, 0, 1)
    sizes = [resident_mb() for _ in Loader(source.config, CPU, torch.float32, 8, 1).batches(plan)]
    assert sizes[-1] - sizes[29] < 8


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_batches_on_a_gpu_look_as_in_the_twin(tmp_path: Path, dtype: torch.dtype) -> None:
    requests = [
        request(write_clip(tmp_path / str(i), rgb_frames(4, seed=i), "{:06d}.png"), turn, index=i)
        for i, turn in enumerate(TURNS)
    ]
    loader = Loader(TINY, torch.device("cuda"), dtype, 2, 1)
    batches = list(loader.batches([requests[:2], requests[2:]]))
    assert [batch.index.tolist() for batch in batches] == [[0, 1], [2]]
    for batch, share in zip(batches, (requests[:2], requests[2:]), strict=True):
        assert batch.clip.is_cuda and batch.motion.is_cuda and batch.label.is_cuda
        assert batch.clip.dtype == dtype
        assert batch.clip.is_contiguous(memory_format=torch.channels_last_3d)
        expected = np.stack([twin(r, TINY) for r in share])
        assert_like_twin(pixels_of(batch), expected)
        maps = np.stack([reference.motion_maps(pixels, 2) for pixels in pixels_of(batch)])
        assert np.abs(batch.motion[:, 0].cpu().numpy() - maps).mean() < 0.01


@pytest.mark.gpu
def test_a_batch_on_a_gpu_survives_later_ones_while_it_is_held(source: ClipSource) -> None:
    plan = [[source.train_request(epoch, i) for i in (0, 1)] for epoch in range(12)]
    loader = Loader(source.config, torch.device("cuda"), torch.float16, 2, 1)
    held = [(batch, batch.clip.clone()) for batch in loader.batches(plan)]
    assert all(torch.equal(batch.clip, copy) for batch, copy in held)


@pytest.mark.gpu
def test_a_dropped_batch_is_not_overwritten_before_what_was_queued_has_read_it(
    source: ClipSource,
) -> None:
    plan = [[source.train_request(epoch, i) for i in (0, 1)] for epoch in range(12)]
    loader = Loader(source.config, torch.device("cuda"), torch.float16, 2, 1)
    expected = [batch.clip.double().sum().item() for batch in loader.batches(plan)]
    seen = []
    for batch in loader.batches(plan):
        torch.cuda._sleep(10**8)  # the step is tens of milliseconds behind the host
        seen.append(batch.clip.double().sum())
        del batch
    assert [total.item() for total in seen] == expected


@pytest.mark.gpu
def test_a_truncated_jpeg_stops_a_gpu_run_too(tmp_path: Path) -> None:
    plan = broken_plan(tmp_path)
    bad = Path(plan[1][1].streams[0].paths[2])
    bad.write_bytes(bad.read_bytes()[:-300])
    with pytest.raises(ValueError, match=f"{bad}: damaged"):
        list(Loader(TINY, torch.device("cuda"), torch.float16, 2, 1).batches(plan))
