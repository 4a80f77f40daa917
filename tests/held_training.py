"""engine/train.py, unchanged, that holds still behind the steps in HOLD, on every rank, until the
test lets it go: tests/holding.py is the test's side."""

import os
import sys
import time
from pathlib import Path

from engine.loop import TrainStep
from engine.signals import StopRequest
from engine.train import main
from engine.training import Training

FOLDER = Path(os.environ["HOLD_IN"])
HOLD = [int(step) for step in os.environ["HOLD"].split(",")]
RANK = os.environ.get("RANK", "0")

fit, step, hear = Training.fit, TrainStep.__call__, StopRequest.hear
trainings: list[Training] = []


def noted_fit(self: Training) -> object:
    trainings.append(self)
    return fit(self)


def held_step(self: TrainStep, batch: object, *schedule: object) -> object:
    done = trainings[-1].progress.step
    if done in HOLD:
        (FOLDER / f"held_{done}_{RANK}").touch()
        while not (FOLDER / f"go_{done}").exists():
            time.sleep(0.005)
    return step(self, batch, *schedule)


def noted_hear(self: StopRequest, number: int) -> None:
    hear(self, number)
    (FOLDER / f"heard_{number}_{RANK}").touch()


Training.fit, TrainStep.__call__, StopRequest.hear = noted_fit, held_step, noted_hear
sys.exit(main())
