"""Decoded frames kept in memory: the same batches, and nothing read or decoded twice."""

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lists import open_source, write_list
from pipelines.batch import Batch
from pipelines.config import DataConfig
from pipelines.depth_boxes import depth_boxes
from pipelines.frame_cache import FrameCache
from pipelines.index import scan
from pipelines.loader import Loader
from pipelines.plan import eval_plan, train_plan
from pipelines.source import ClipSource
from test_sources import pack, write_videos

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PLENTY = 10**9


def source_of(config: DataConfig) -> ClipSource:
    index = scan(config, "train")
    boxes = depth_boxes(index, config, processes=1) if config.boxed("depth") else None
    return ClipSource(index, config, 3, boxes)


def three_epochs(
    config: DataConfig, cache: FrameCache | None, device: torch.device = CPU
) -> list[Batch]:
    """11 batches of 2 clips: 7 clips, three times and one more."""
    source = source_of(config)
    loader = Loader(config, device, torch.float32, 2, 2, cache)
    return list(loader.batches(train_plan(source, 0, 2, 0, 11, 0, 1)))


def assert_same(one: list[Batch], other: list[Batch], exact: bool = True) -> None:
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.index, b.index)
        for parts in zip(itertools.chain(*a.streams), itertools.chain(*b.streams), strict=True):
            if exact:
                assert torch.equal(*parts)
            else:
                assert (parts[0] - parts[1]).abs().mean() < 0.01


@pytest.mark.parametrize(
    ("modality", "encoding"),
    [("rgb", "color"), ("depth", "wrapped_jet"), ("rgbd", "metric")],
)
@pytest.mark.parametrize("budget", [0, 150_000, PLENTY])
def test_batches_are_the_same_whatever_fits(tmp_path, modality, encoding, budget):
    config = write_list(tmp_path, 7, modality, depth_encoding=encoding)
    cache = FrameCache(budget)
    assert_same(three_epochs(config, cache), three_epochs(config, None))
    assert cache.reserved <= budget
    assert (len(cache) > 0) == (budget > 0)


def test_from_the_second_epoch_on_nothing_is_read(tmp_path):
    config = write_list(tmp_path, 7)
    expected = three_epochs(config, None)
    source, cache = source_of(config), FrameCache(PLENTY)
    loader = Loader(replace(config, prefetch=1), CPU, torch.float32, 2, 1, cache)
    batches = loader.batches(train_plan(source, 0, 2, 0, 11, 0, 1))
    first = list(itertools.islice(batches, 5))
    shutil.rmtree(tmp_path / "rgb")
    assert_same(first + list(batches), expected)
    assert len(cache) == 7 and cache.misses == 7 and cache.hits == 22 - 7


def test_a_clip_that_comes_twice_in_a_batch_is_kept_once(tmp_path):
    config = write_list(tmp_path, 2)
    source, cache = open_source(config), FrameCache(PLENTY)
    requests = [source.train_request(epoch, 1) for epoch in (0, 1, 2)]
    loader = Loader(config, CPU, torch.float32, 3, 1, cache)
    (batch,) = loader.batches([requests])
    (plain,) = Loader(config, CPU, torch.float32, 3, 1).batches([requests])
    assert_same([batch], [plain])
    assert len(cache) == 1 and cache.reserved == 6 * 48 * 64 * 3


def test_training_and_evaluation_share_it(tmp_path):
    config = write_list(tmp_path, 4)
    source, cache = open_source(config), FrameCache(PLENTY)
    for _ in range(2):
        loader = Loader(config, CPU, torch.float32, 2, 1, cache)
        list(loader.batches(train_plan(source, 0, 2, 0, 2, 0, 1)))
        list(loader.batches(eval_plan(source, 2, 0, 1)))
    assert (cache.misses, cache.hits) == (4, 12) and cache.hit_rate == 0.75


@pytest.mark.parametrize("kind", ["h264", "vp9"])
def test_videos_are_kept_as_frames(tmp_path, kind):
    videos, _ = write_videos(tmp_path, kind)
    with_cache = replace(videos, num_frames=4)
    source, cache = open_source(with_cache), FrameCache(PLENTY)
    plan = list(train_plan(source, 0, 3, 0, 3, 0, 1))
    kept = Loader(videos, CPU, torch.float32, 3, 2, cache).batches(plan)
    assert_same(list(kept), list(Loader(videos, CPU, torch.float32, 3, 2).batches(plan)))
    assert len(cache) == 3


def test_packs_are_kept_too(tmp_path):
    packed = pack(write_list(tmp_path / "f", 7, "rgbd", depth_encoding="metric"), tmp_path / "p")
    cache = FrameCache(PLENTY)
    assert_same(three_epochs(packed, cache), three_epochs(packed, None))
    assert len(cache) == 14


def test_a_damaged_frame_is_named(tmp_path):
    config = write_list(tmp_path)
    bad = tmp_path / "rgb/c3/000007.jpg"  # perhaps not among the sampled, but of the whole clip
    bad.write_bytes(bad.read_bytes()[:300])
    with pytest.raises(ValueError, match=str(bad)):
        three_epochs(config, FrameCache(PLENTY))


def test_admission_is_by_bytes_and_for_good():
    cache = FrameCache(100)
    assert cache.admit((2, 5, 5, 1), 1) and not cache.admit((2, 5, 5, 1), 2)
    assert cache.admit((1, 5, 5, 2), 1) and not cache.admit((1, 1, 1, 1), 1)
    cache.put("a", np.zeros(1))
    assert cache.get("a") is not None and cache.get("b") is None
    assert cache.hit_rate == 0.5


@pytest.mark.slow
def test_a_run_logs_its_hits_and_ends_with_the_same_weights(train, tmp_path):
    from engine import checkpoint

    for run, options in (("kept", ["data.cache=host"]), ("plain", [])):
        done = train(f"train.run_dir={run}", *options)
        assert done.returncode == 0, done.stderr
    kept, plain = (
        checkpoint.load(tmp_path / run / "last.pt")["model"] for run in ("kept", "plain")
    )
    assert all(torch.equal(tensor, plain[key]) for key, tensor in kept.items())
    assert '"cache_hits": 0.' in (tmp_path / "kept/metrics.jsonl").read_text()
    refused = train("data.cache=gpu", "train.run_dir=gpu")
    assert refused.returncode == 1 and "data.cache=gpu, but there is no GPU" in refused.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("where", ["host", "gpu"])
@pytest.mark.parametrize("modality", ["rgb", "rgbd"])
def test_kept_frames_give_the_gpus_batches(tmp_path: Path, where: str, modality: str) -> None:
    config = write_list(tmp_path, 7, modality, depth_encoding="metric", cache=where)
    plain = three_epochs(replace(config, cache="none"), None, CUDA)
    kept = three_epochs(config, FrameCache(PLENTY), CUDA)
    # On the host frames are decoded by the CPU's JPEG decoder, a shade apart from the GPU's.
    assert_same(kept, plain, exact=where == "gpu")
