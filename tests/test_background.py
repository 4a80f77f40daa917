"""An iterator that runs ahead of its consumer in a thread."""

import gc
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.background import in_background


class Count:
    """Counts up, remembering how far it got and whether it was closed."""

    def __init__(self, stop: int, error_at: int = -1) -> None:
        self.stop, self.error_at = stop, error_at
        self.made, self.closed = 0, False

    def __iter__(self) -> Iterator[int]:
        try:
            while self.made < self.stop:
                if self.made == self.error_at:
                    raise KeyError("broken")
                self.made += 1
                yield self.made
        finally:
            self.closed = True


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "in_background"]


def wait_until(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_items_come_in_order_and_the_thread_ends_with_them(ahead: int) -> None:
    count = Count(20)
    assert list(in_background(iter(count), ahead)) == list(range(1, 21))
    assert count.closed and not threads()


@pytest.mark.parametrize("ahead", [1, 3])
def test_it_runs_ahead_as_far_as_told_and_no_further(ahead: int) -> None:
    count = Count(100)
    items = in_background(iter(count), ahead)
    assert count.made == 0  # nothing begins before the first item is asked for
    for taken in (1, 2, 3):
        assert next(items) == taken
        wait_until(lambda n=taken + ahead: count.made == n)
    time.sleep(0.05)
    assert count.made == 3 + ahead
    items.close()


def test_an_error_arrives_after_the_items_before_it() -> None:
    count = Count(9, error_at=4)
    got = []
    with pytest.raises(KeyError, match="broken"):
        for item in in_background(iter(count), 2):
            got.append(item)
    assert got == [1, 2, 3, 4] and count.closed and not threads()


def test_closing_ends_the_thread_and_closes_what_it_ran() -> None:
    count = Count(10**9)
    items = in_background(iter(count), 2)
    next(items)
    assert threads()
    items.close()
    assert count.closed and not threads()


def test_dropping_ends_the_thread_too() -> None:
    count = Count(10**9)
    items = in_background(iter(count), 2)
    next(items)
    del items
    gc.collect()
    assert count.closed and not threads()


def test_it_may_be_dropped_by_its_own_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the garbage collector does when it happens to run there."""
    ignored: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    held: list[Iterator[int]] = []

    def items() -> Iterator[int]:
        yield 1
        held.clear()
        yield 2

    held.append(in_background(items(), 2))
    assert next(held[0]) == 1
    wait_until(lambda: not threads())
    assert not held and not ignored


def test_an_exception_in_the_consumer_ends_the_thread() -> None:
    def consume() -> None:
        for item in in_background(iter(Count(10**9)), 2):
            raise RuntimeError(f"at {item}")

    with pytest.raises(RuntimeError, match="at 1"):
        consume()
    gc.collect()
    assert not threads()


def test_a_program_that_ends_half_way_ends_at_once_and_with_its_own_status() -> None:
    script = """
        import itertools, sys
        from pipelines.background import in_background
        items = in_background((i for i in itertools.count()), 2)
        next(items)
        sys.exit(7)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], timeout=300, capture_output=True,
        text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (7, "")
