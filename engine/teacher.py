"""A network that was trained on the other modality and labels its clips for the one in training
(the released UMDR, option `--model-ema`). Which loss its labels go into is losses.py's."""

import dataclasses
from pathlib import Path

import torch

from engine import checkpoint
from engine.accumulation import Shares
from engine.averaging import WeightAverage
from engine.config import Config
from engine.distributed import Ranks
from engine.loop import Precision, predict
from models.temporal import segment_middles
from pipelines.batch import Batch

STREAMS = {"rgb": 0, "depth": 1}
"""The modalities of a batch of both."""


def open_teacher(
    model: torch.nn.Module, config: Config, precision: Precision, ranks: Ranks, *, is_new: bool
) -> "Teacher | None":
    """The teacher of a run, if it has one; that of a new run starts from its file.

    Raises RunError on all ranks where it cannot.
    """
    if not config.train.teacher:
        return None
    teacher = Teacher(model, config, precision)
    if is_new:
        line = ranks.agree(teacher.load)
        if ranks.is_main:
            print(line, flush=True)
    return teacher


class Teacher:
    """Its weights drift towards those of the network that it teaches, by 1 - `train.teacher_decay`
    per step, so that in a run it is the same on all ranks as that network is."""

    def __init__(self, model: torch.nn.Module, config: Config, precision: Precision):
        """`model` where it will stay, outside of DistributedDataParallel, of whose kind it is."""
        self.own = STREAMS[config.data.modality]
        self.path = config.train.teacher
        self.average = WeightAverage(model, config.train.teacher_decay)
        self.network = self.average.network
        self.precision = precision
        device = next(model.parameters()).device
        middles = (segment_middles(config.data.num_frames, f) for f in config.data.branch_frames)
        self.middles = [torch.tensor(frames, device=device) for frames in middles]

    def load(self) -> str:
        """Start from the file `train.teacher`; returns a line that says so.

        Raises ValueError naming the file where it does not fit the network.
        """
        path = Path(self.path)
        if not path.is_file():
            raise ValueError(
                f"{path}: no such file; train.teacher is a checkpoint of the same network, trained "
                "on the other modality (published ones too)"
            )
        checkpoint.load_model(self.network, checkpoint.load(path), path, averaged=True)
        return f"the teacher starts from {path}"

    def stream(self, batch: Batch) -> Batch:
        """What the network in training sees of a batch of both modalities."""
        return batch.stream(self.own)

    def __call__(self, batch: Batch, shares: Shares) -> Batch:
        """A batch of both modalities -> that of the network in training, with the teacher's labels
        for what the other modality's clips show."""
        labels = []
        for part in shares.split(batch.stream(1 - self.own)):  # no more at a time than in training
            seen = tuple(frames.expand(len(part.label), -1) for frames in self.middles)
            part = dataclasses.replace(part, branch_indices=seen)
            with torch.no_grad():
                labels.append(predict(self.network, part, 1.0, self.precision).logits.argmax(1))
        return dataclasses.replace(self.stream(batch), pseudo=torch.cat(labels))

    def update(self) -> None:
        """Take in the weights that a step has led to."""
        self.average.take_in(self.average.decay)
