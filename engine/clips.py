"""The clips of a run: both lists opened, and batches of them in the run's one global order."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from engine.accumulation import Shares
from engine.config import Config
from engine.distributed import Ranks, RunError
from engine.loop import Precision
from engine.warn import warn
from engine.watchdog import EVALUATION, STEP, WAIT
from pipelines.batch import Batch
from pipelines.config import DataConfig
from pipelines.cores import usable_cores
from pipelines.depth_boxes import depth_boxes
from pipelines.frame_cache import GIGABYTE, FrameCache
from pipelines.index import scan
from pipelines.loader import Loader
from pipelines.media import PackedVideo, VideoFile
from pipelines.plan import eval_plan, train_plan
from pipelines.sampling import steps_before_epoch, stream_clips
from pipelines.source import ClipSource
from pipelines.source_choice import choose_source


@dataclass(frozen=True)
class Clips:
    """Training and evaluation clips as one rank reads them."""

    train: ClipSource
    evaluation: ClipSource
    config: Config
    ranks: Ranks
    dtype: torch.dtype
    """Of the pixels: float16 holds them exactly, so 16-bit training moves half the bytes."""

    cache: FrameCache | None = None
    """Decoded frames that training and evaluation share (data.cache)."""

    def steps_before(self, epoch: int) -> int:
        """Steps of all epochs before `epoch`: a step belongs to the epoch of its first clip."""
        return steps_before_epoch(epoch, self.config.train.global_batch, len(self.train))

    def train_batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """This rank's share of the global batches `first_step` to `last_step - 1`."""
        train = self.config.train
        plan = train_plan(
            self.train, train.seed, train.global_batch, first_step, last_step,
            self.ranks.rank, self.ranks.world_size,
        )  # fmt: skip
        most = shares(self.config, self.ranks).largest
        return self._loader(training_data(self.config), most).batches(plan)

    def eval_batches(self) -> Iterator[Batch]:
        """This rank's share of the evaluation list; every clip is on exactly one rank."""
        size = self.config.train.eval_batch
        plan = eval_plan(self.evaluation, size, self.ranks.rank, self.ranks.world_size)
        return self._loader(self.config.data, size).batches(plan)

    def names_at(self, rank: int, position: tuple[int, int, int]) -> list[str]:
        """Names of the clips that `rank` has at a position of engine/watchdog.py."""
        step, doing, batch = position
        train, ranks = self.config.train, self.ranks.world_size
        if doing in (WAIT, STEP):
            first = step * train.global_batch
            clips = stream_clips(train.seed, len(self.train), first, first + train.global_batch)
            return [self.train.index.clips[clip].name for _, clip in clips[rank::ranks]]
        if doing != EVALUATION:
            return []
        places = range(rank, len(self.evaluation), ranks)
        shown = places[batch * train.eval_batch : (batch + 1) * train.eval_batch]
        return [self.evaluation.index.clips[clip].name for clip in shown]

    def train_name(self, index: int) -> str:
        """The name of a training clip, by its place in the list."""
        return self.train.index.clips[index].name

    def quarantined(self) -> tuple[str, ...]:
        """Clips left out of either list for damage: `list:line: name: what is wrong`."""
        return self.train.index.quarantined + self.evaluation.index.quarantined

    def counts(self) -> str:
        """How many clips of each list there are, and what was left out or mended."""
        lines = []
        for name, source in (("training", self.train), ("evaluation", self.evaluation)):
            line = f"{name}: {len(source)} clips of {source.index.list_path}"
            if source.index.left_out:
                line += f", {source.index.left_out} left out (fewer than data.min_frames)"
            if source.index.quarantined:
                line += f", {len(source.index.quarantined)} quarantined (quarantine.txt)"
            if source.boxes is not None:
                line += (
                    f"; depth frames without a contour: {source.boxes.from_neighbour} took the "
                    f"nearest frame's box, {source.boxes.from_centre} the centre"
                )
            lines.append(line)
        return "\n".join(lines)

    def _loader(self, data: DataConfig, max_batch: int) -> Loader:
        threads = loading_threads(data)
        return Loader(data, self.ranks.device, self.dtype, max_batch, threads, self.cache)


def training_data(config: Config) -> DataConfig:
    """What is read for training: with a teacher both modalities."""
    return replace(config.data, modality="rgbd") if config.train.teacher else config.data


def loading_threads(data: DataConfig) -> int:
    """Decoding threads of one rank."""
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return data.workers or max(usable_cores() // local_ranks, 1)


def shares(config: Config, ranks: Ranks) -> Shares:
    """Which part of the global batch each rank takes at a time."""
    return Shares(config.train.global_batch, ranks.world_size, config.train.micro_batch)


def check_batch(config: Config, ranks: Ranks) -> None:
    """Raises ValueError if the ranks cannot train on their shares of the global batch."""
    taken = shares(config, ranks)
    if problem := taken.problem():
        raise ValueError(problem)
    norms = _norms_over_clips(config)
    if norms and 1 in taken.sizes(taken.smallest):
        key = "micro_batch" if taken.smallest > 1 else "global_batch"
        least = 4 if taken.smallest > 1 else 2 * ranks.world_size
        raise ValueError(
            f"train.{key} = {getattr(config.train, key)} leaves a single clip at a time to some of "
            f"{ranks.world_size} ranks, in which {norms} see one value per channel; take {least} "
            "or more"
        )


def _norms_over_clips(config: Config) -> str:
    """Which of the network's batch norms see one value per channel and clip in training, if any.
    None of UMDR's fusion: its halves, where they are, are frozen."""
    if config.model.name == "decoupled_fusion":
        return "the fusion network's batch norms"
    if config.model.name in ("decoupled", "umdr") and 1 in config.data.branch_frames:
        return "the batch norms of a branch of one frame"
    return ""


def open_clips(config: Config, ranks: Ranks, precision: Precision) -> Clips:
    """Scan both lists on rank 0 and hand the result to all ranks.

    Raises RunError on all ranks with every problem of the lists and folders.
    """
    data, reading = config.data, training_data(config)
    source = ranks.from_main(
        lambda: choose_source(reading, ranks.device, loading_threads(data), log=print)
    )
    data, reading = replace(data, source=source), replace(reading, source=source)
    config = replace(config, data=data)
    seed = config.train.seed
    sources = ranks.from_main(lambda: [_open(reading, "train", seed), _open(data, "eval", seed)])
    on_gpu = ranks.device.type == "cuda"
    sixteen_bit = on_gpu and precision.compute in (torch.float16, torch.bfloat16)
    dtype = torch.float16 if sixteen_bit else torch.float32
    cache = None
    if data.cache == "gpu" and not on_gpu:
        raise RunError("data.cache=gpu, but there is no GPU: set data.cache=host")
    if data.cache != "none":
        cache = FrameCache(int(data.cache_gb * GIGABYTE))
    if on_gpu and data.cache != "host":  # for which the CPU decodes
        ranks.from_main(lambda: _warn_of_refusals(sources, ranks.device.index))
    return Clips(sources[0], sources[1], config, ranks, dtype, cache)


def _warn_of_refusals(sources: Sequence[ClipSource], device_id: int) -> None:
    """Says what NVDEC of this GPU does not decode of the lists, each line once."""
    firsts = [media[0] for source in sources for media in source.index.media.values()]
    videos = [first for first in firsts if isinstance(first, (VideoFile, PackedVideo))]
    for line in dict.fromkeys(video.by_dali.refusal(device_id) for video in videos):
        if line:
            warn(line)


def class_names(data: DataConfig) -> list[str]:
    """One name per class: the lines of classes.txt in the data set's folder, else the numbers."""
    path = Path(data.root) / "classes.txt"
    names = path.read_text().split("\n") if path.is_file() else []
    names = [name.strip() for name in names if name.strip()]
    return names if len(names) == data.num_classes else [str(k) for k in range(data.num_classes)]


def _open(data: DataConfig, which: str, seed: int) -> ClipSource:
    index = scan(data, which)
    boxed = any(map(data.boxed, data.modalities))
    return ClipSource(index, data, seed, depth_boxes(index, data) if boxed else None)
