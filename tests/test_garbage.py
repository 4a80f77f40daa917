"""engine/garbage.py: Python collects between steps and not within them."""

import gc
from collections.abc import Iterator

import pytest

from engine.garbage import between_steps

STEPS, CYCLES = 12, 3000
"""A young generation is collected at 700 (Python 3.10 and 3.11) or 2000 new objects."""


class Cycle:
    """Only the collector frees it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    """What other tests left in this process, gigabytes of it, is looked at no more."""
    gc.freeze()
    yield
    gc.unfreeze()


def run(every: int) -> list[tuple[str, int]]:
    """STEPS steps that leave garbage -> (moment, generation) of every collection that began."""
    now, seen = "between", []

    def note(phase: str, info: dict) -> None:
        if phase == "start":
            seen.append((now, info["generation"]))

    gc.callbacks.append(note)
    try:
        for _ in between_steps(iter(range(STEPS)), every):
            now = "within"
            for _ in range(CYCLES):
                Cycle()
            now = "between"
    finally:
        gc.callbacks.remove(note)
    return seen


@pytest.mark.parametrize(("every", "collections"), [(1, 1 + 11), (4, 1 + 2), (100, 1)])
def test_no_collection_begins_within_a_step(every, collections):
    """But before the first, and before every `every`-th."""
    seen = run(every)
    assert {moment for moment, _ in seen} == {"between"}
    assert sum(generation == 2 for _, generation in seen) == collections


def test_without_it_python_collects_within_steps():
    assert sum(moment == "within" for moment, _ in run(0)) >= STEPS


def test_afterwards_python_collects_as_before_however_the_steps_end():
    def fails() -> Iterator[int]:
        yield 1
        raise OSError

    for items, error in ((iter(range(3)), None), (fails(), OSError)):
        frozen = gc.get_freeze_count()
        steps = between_steps(items, 2)
        next(steps)
        assert not gc.isenabled() and gc.get_freeze_count() > frozen
        if error:
            with pytest.raises(error):
                next(steps)
        else:
            steps.close()
        assert gc.isenabled() and gc.get_freeze_count() == 0


def test_what_is_left_behind_is_collected_between_steps():
    kept = []
    for _ in between_steps(iter(range(3)), 1):
        kept.append(sum(isinstance(thing, Cycle) for thing in gc.get_objects()))
        for _ in range(10):
            Cycle()
    assert kept == [0, 0, 0]
