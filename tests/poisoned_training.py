"""engine/train.py, unchanged, where step POISON sees NaN pixels on the last rank alone."""

import os
import sys

from engine.loop import TrainStep
from engine.train import main
from engine.training import Training

step = TrainStep.__call__
fit = Training.fit
trainings: list[Training] = []


def poisoned_fit(self: Training) -> object:
    trainings.append(self)
    return fit(self)


def poisoned_step(self: TrainStep, batch: object, *schedule: object) -> object:
    (training,) = trainings
    ranks = training.ranks
    last = ranks.rank == ranks.world_size - 1
    if last and training.progress.step + 1 == int(os.environ["POISON"]):
        batch.clip[0].fill_(float("nan"))
    return step(self, batch, *schedule)


Training.fit = poisoned_fit
TrainStep.__call__ = poisoned_step
sys.exit(main())
