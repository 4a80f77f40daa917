"""Checkpoints of a number each, saved as a run saves its own, and a disk that fails."""

import errno
import os
from pathlib import Path

import torch

from engine import checkpoint
from engine.run import RunDirectory
from engine.saver import Saver


def state(value: float) -> dict:
    return {"model": {"weight": torch.full((1000,), float(value))}, "progress": {"step": 0}}


def value_of(path: Path) -> float:
    weight = checkpoint.load(path)["model"]["weight"]
    assert torch.equal(weight, weight[:1].expand_as(weight))
    return weight[0].item()


def names(run: RunDirectory) -> list[str]:
    return sorted(path.name for path in run.path.iterdir() if path.name != "lock")


def saved(run: RunDirectory, *steps: int, keep: int = 3, best: int = 0) -> Saver:
    """A saver that has saved these steps, each with its number in it."""
    saver = Saver(run, keep)
    for step in steps:
        saver.save(state(step), step, is_best=step == best)
    saver.finish()
    return saver


class FullDisk:
    """Takes the place of os.replace, which the files of every save go through; fails while full."""

    def __init__(self, number: int = errno.ENOSPC):
        self.number = number
        self.passes = 0
        """Calls that get through before it is full; negative: all."""

    def __call__(self, source: Path, target: Path) -> None:
        if self.passes == 0:
            raise OSError(self.number, os.strerror(self.number), str(source))
        self.passes -= 1
        os.rename(source, target)
