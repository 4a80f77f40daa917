"""engine/timing.py: the parts of steps add up to the steps, on the time line of the device."""

import time
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from engine import timing
from engine.timing import LastGradient, StepClock

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which passes only where a test says so."""
    moment = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: moment[0])
    return moment


def slow_items(now: list[float], count: int) -> Iterator[int]:
    for item in range(count):
        now[0] += 2.0
        yield item


def take_step(clock: StepClock, now: list[float], *, last_gradient: bool) -> None:
    with clock.part("forward"):
        now[0] += 3.0
    with clock.part("backward"):
        now[0] += 4.0
        if last_gradient:
            clock.gradients_done()
        now[0] += 0.5
    with clock.part("optimizer"):
        now[0] += 0.25


def test_each_part_has_its_time_and_all_of_them_the_whole(now):
    clock, started = StepClock(CPU), now[0]
    for _ in clock.watch(slow_items(now, 3)):
        take_step(clock, now, last_gradient=True)
        now[0] += 0.125  # a log line
    seconds = clock.read()
    assert seconds == {
        "data": 6.0, "forward": 9.0, "backward": 12.0, "sync": 1.5, "optimizer": 0.75,
        "other": 0.375,
    }  # fmt: skip
    assert sum(seconds.values()) == now[0] - started
    assert clock.read() == {}


def test_one_rank_waits_for_no_other(now):
    clock = StepClock(CPU)
    for _ in clock.watch(slow_items(now, 1)):
        take_step(clock, now, last_gradient=False)
    seconds = clock.read()
    assert "sync" not in seconds and seconds["backward"] == 4.5


def test_what_happens_between_two_epochs_belongs_to_no_step(now):
    clock = StepClock(CPU)
    for _ in range(2):
        for _ in clock.watch(slow_items(now, 1)):
            take_step(clock, now, last_gradient=False)
        now[0] += 1000.0  # evaluation
    assert sum(clock.read().values()) == 2 * (2.0 + 7.75)


class FarLine:
    """A device that has come as far as `reached`; its moments are numbers from a list."""

    def __init__(self) -> None:
        self.queued = 0
        self.reached = 0
        self.free: list[int] = []

    def now(self) -> int:
        self.queued += 1
        return self.queued

    def has_passed(self, moment: int) -> bool:
        return moment <= self.reached

    def seconds(self, start: int, end: int) -> float:
        assert end <= self.reached, "asking for it would wait"
        return float(end - start)

    def give_back(self, moment: int | None) -> None:
        if moment is not None:
            self.free.append(moment)


def test_what_the_device_has_not_reached_is_told_at_the_next_reading():
    clock = StepClock(CPU)
    clock.line = line = FarLine()
    steps = clock.watch(iter(range(2)))
    for _ in range(2):
        next(steps)
        with clock.part("forward"):
            pass
    # start, then other, data, forward of each step
    line.reached = 4
    assert clock.read() == {"other": 1.0, "data": 1.0, "forward": 1.0}
    line.reached = 7
    assert clock.read() == {"other": 1.0, "data": 1.0, "forward": 1.0}
    assert line.free == [1, 2, 3, 4, 5, 6], "all but the one that the next part begins at"


def test_marks_that_nobody_reads_take_no_more_than_their_room(monkeypatch):
    monkeypatch.setattr(timing, "MOST_MARKS", 10)
    clock = StepClock(CPU)
    clock.line = line = FarLine()
    for _ in clock.watch(iter(range(100))):
        line.reached = line.queued
        assert len(clock._marks) <= 11
    assert sum(clock.read().values()) == line.reached - 1


class Branches(nn.Module):
    """Registered in another order than used: the first layer in the forward pass is the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.stem, self.other = (nn.Linear(3, 3) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        return self.head(x) + self.other(x)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_gradient_that_comes_last_is_learned_and_from_then_on_watched_alone(compiled):
    """Compiled, all gradients come out of one program; they are told of one after the other."""
    torch.manual_seed(0)
    network, arrived = Branches(), []
    names = {parameter: name for name, parameter in network.named_parameters()}

    class Told:
        def gradients_done(self) -> None:
            arrived.append("told")

    last = LastGradient(network.parameters(), Told())
    for parameter in network.parameters():  # behind those of LastGradient
        parameter.register_post_accumulate_grad_hook(lambda p: arrived.append(names[p]))
    run = torch.compile(network, backend="aot_eager") if compiled else network
    for _ in range(3):
        arrived.append("pass")
        run(torch.randn(2, 3)).sum().backward()
        last.learned()
    first, *later = "|".join(arrived).split("pass|")[1:]
    assert "told" not in first
    last_name = first.strip("|").split("|")[-1]
    assert compiled or last_name.startswith("stem.")
    for seen in later:
        order = seen.strip("|").split("|")
        assert order.count("told") == 1 and set(order[-2:]) == {"told", last_name}


@pytest.mark.gpu
def test_the_parts_on_a_gpu_are_its_own_time_not_pythons():
    clock = StepClock(CUDA)
    matrix = torch.randn(4096, 4096, device=CUDA)
    for _ in clock.watch(iter(range(3))):
        with clock.part("forward"):
            for _ in range(50):
                matrix @ matrix
        with clock.part("backward"):
            torch.cuda._sleep(1000)
    torch.cuda.synchronize()
    seconds = clock.read()
    assert seconds["forward"] > 10 * seconds["backward"]
