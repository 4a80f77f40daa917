"""engine/divergence.py: the step that went wrong is named, with its clips, before anything is
saved."""

import pytest
import torch
from torch import Tensor, nn

from engine.distributed import Ranks, RunError
from engine.divergence import LossWatch
from engine.skipping import StepScaler

ALONE = Ranks(0, 0, 1)
NAN, INF = float("nan"), float("inf")


class Step:
    """What a LossWatch sees of a training step."""

    def __init__(self, *, skip: bool = False):
        self.model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.scaler = StepScaler("cpu", moving=False, skip=skip)
        self.trouble = torch.zeros(())


def watch_of(step: Step, max_loss: float = 0.0, ranks: Ranks = ALONE) -> LossWatch:
    return LossWatch(step, ranks, 5, max_loss, "clip{}".format)


def add(losses: LossWatch, step: int, loss: float, trouble: float = 0.0) -> None:
    losses.step.trouble = torch.tensor(trouble)
    losses.add(step, 2, torch.tensor(loss), torch.tensor([step, 10 * step]))


def look(losses: LossWatch) -> None:
    losses.judge(losses.values().tolist())


@pytest.mark.parametrize(
    ("loss", "gradient", "problem"),
    [
        (NAN, NAN, "its loss is nan"),
        (INF, NAN, "its loss is inf"),
        (1.5, NAN, "its gradients are not finite, though its loss is 1.5"),
        (70.5, 0.0, "its loss is 70.5, above train.max_loss = 70"),
    ],
)
def test_the_first_bad_step_since_the_last_look_is_named_with_its_clips(loss, gradient, problem):
    losses = watch_of(Step(), max_loss=70.0)
    add(losses, 6, 69.5)
    look(losses)
    for step, values in ((7, (2.0, 0.0)), (8, (loss, gradient)), (9, (NAN, NAN))):
        add(losses, step, *values)
    with pytest.raises(RunError) as error:
        look(losses)
    lines = str(error.value).splitlines()
    assert lines[0] == f"step 8, epoch 3: {problem}. Nothing is saved after it."
    assert lines[1] == "its clips: clip8, clip80"
    assert "train.on_nan=skip" in lines[2] and "optim.lr" in lines[2]


def test_losses_of_a_look_before_are_forgotten():
    losses = watch_of(Step(), max_loss=1.0)
    for step in range(1, 6):
        add(losses, step, 0.5)
    look(losses)
    losses.own[:, 1:] = NAN  # of steps that are past
    add(losses, 6, 0.5)
    look(losses)
    losses.check()


def test_every_rank_names_the_clips_of_all_and_whose_loss_it_was():
    """Two ranks that hand over what they hold, the second one's loss being the bad one."""

    class Second(Ranks):
        def gather(self, value: object) -> list:
            return [("clip1, clip2", 0.5), value]

        def sum(self, tensor: Tensor) -> Tensor:
            return tensor  # of both; NaN, whatever the other has

    losses = watch_of(Step(), ranks=Second(1, 1, 2))
    add(losses, 3, NAN)
    with pytest.raises(RunError) as error:
        look(losses)
    assert (
        "its clips: clip1, clip2 (rank 0); clip3, clip30 (rank 1, whose own loss is nan)\n"
        in str(error.value)
    )


def test_with_leave_to_skip_bad_steps_pass_until_there_are_twenty_in_a_row():
    step = Step(skip=True)
    losses = watch_of(step)
    for number in range(1, 21):
        step.scaler._counts = torch.tensor([number + 4.0, number, number], dtype=torch.float64)
        add(losses, number, NAN, 0.0)
        if number < 20:
            losses.check() if number % 2 else look(losses)
    with pytest.raises(RunError, match="step 20, epoch 3: 20 steps in a row up to here were left"):
        losses.check()


@pytest.mark.parametrize("what", ["weight", "running_var"])
def test_nothing_is_saved_of_a_network_that_holds_numbers_that_are_none(what):
    step = Step()
    losses = watch_of(step)
    add(losses, 1, 0.5)
    losses.check()
    add(losses, 2, 0.5)
    getattr(step.model[1], what).data[1] = INF
    with pytest.raises(RunError, match="weights or statistics are not finite"):
        losses.check()
