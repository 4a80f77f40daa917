"""engine/watchdog.py: who hangs, and what is said of it."""

import os
import signal
from dataclasses import replace

import pytest
from torch.distributed import TCPStore

from engine.signals import StopRequest
from engine.watchdog import EVALUATED, EVALUATION, STEP, WAIT, Report, Vigil, Watchdog
from forked import run_code

HERE = Report(0, (4, STEP, 0), "", "node1", 100, 99)


def seen(*moments: list[Report], seconds: float = 10.0) -> Vigil:
    """A vigil that has read these reports of all ranks, 10 s apart; beats go on unless negative."""
    vigil = Vigil()
    for beat, reports in enumerate(moments):
        told = {
            rank: replace(report, beat=beat if report.beat >= 0 else report.beat)
            for rank, report in enumerate(reports)
        }
        vigil.see(told, seconds if beat else 0.0)
    return vigil


def test_the_rank_that_waits_for_its_batch_is_behind_those_in_the_step() -> None:
    waits = replace(HERE, position=(4, WAIT, 0))
    vigil = seen(*[[HERE, waits, HERE]] * 7)
    assert vigil.behind(60) == [1] and vigil.behind(61) == [] and vigil.gone(60) == []


def test_among_ranks_in_the_same_step_those_that_wait_for_others_are_not_to_blame() -> None:
    waits = replace(HERE, in_collective=True)
    assert seen(*[[waits, HERE, waits]] * 7).behind(60) == [1]
    assert seen(*[[waits, waits]] * 7).behind(60) == [0, 1], "nobody knows: all are named"


def test_a_rank_that_others_wait_for_may_take_its_time_as_long_as_it_moves() -> None:
    done = replace(HERE, position=(4, EVALUATED, 0))
    slow = [replace(HERE, position=(4, EVALUATION, batch // 5)) for batch in range(30)]
    assert seen(*[[done, batch] for batch in slow]).behind(60) == []
    assert seen(*[[done, slow[0]]] * 7).behind(60) == [1]


@pytest.mark.parametrize("what", ["preparing the run", "saving"])
def test_nobody_is_late_while_a_rank_does_what_takes_as_long_as_it_takes(what: str) -> None:
    busy = replace(HERE, paused=what)
    assert seen(*[[busy, HERE]] * 100).behind(60) == []
    assert seen(*[[busy, HERE]] * 100, *[[HERE, HERE]] * 6).behind(60) == [], "50 s of it"
    stopped = replace(busy, beat=-1)
    assert seen(*[[stopped, HERE]] * 7).gone(60) == [0], "but its process must answer"


def test_a_suspended_job_is_not_late() -> None:
    """Its ranks stand still together, and so does the count."""
    assert seen([HERE, HERE], [HERE, HERE], seconds=10).still == 10


@pytest.fixture
def server() -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def watchdog(server: TCPStore, rank: int, ends: list[int], **options: object) -> Watchdog:
    store = TCPStore("127.0.0.1", server.port, wait_for_workers=False)
    made = Watchdog(rank, 2, store, end=ends.append, **options)
    made.timeout = 5
    made.clips_of = lambda rank, position: [f"clip{i} of rank {rank}" for i in range(6)]
    return made


def test_every_rank_ends_and_one_says_which_rank_hangs_where_with_which_clips(
    server: TCPStore, capsys: pytest.CaptureFixture
) -> None:
    ends: list[list[int]] = [[], []]
    both = [watchdog(server, rank, ends[rank]) for rank in range(2)]
    both[0].at(6, STEP)
    both[1].at(6, WAIT)
    vigils = [Vigil(), Vigil()]
    for beat in range(8):
        for rank in range(2):
            if not ends[rank]:
                both[rank]._look(vigils[rank], beat)
    assert ends == [[1], [1]]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"error: rank 1 ({os.uname().nodename}, process {os.getpid()}) is without progress for 5 s "
        "(train.timeout_s): waits for the batch of step 7, clips clip0 of rank 1, clip1 of rank 1, "
        "clip2 of rank 1, clip3 of rank 1 and 2 more, at engine/watchdog.py:"
    )


def test_a_silent_rank_is_missed_sooner_once_the_run_is_to_stop(
    server: TCPStore, capsys: pytest.CaptureFixture
) -> None:
    ends: list[int] = []
    stop = StopRequest(ends.append)
    stop.defer()
    dog, other = watchdog(server, 0, ends, stop=stop), watchdog(server, 1, ends)
    dog.timeout = 600
    other.at(3, STEP)
    other._look(Vigil(), 0)
    vigil = Vigil()
    for beat in range(8):
        dog._look(vigil, beat)
    stop.hear(signal.SIGTERM)
    for beat in range(8, 12):
        assert not ends, "not before it has been silent for ten seconds"
        dog._look(vigil, beat)
        if ends:
            break
    assert ends == [75]
    assert (
        "rank 1 (" in (text := capsys.readouterr().err) and "is silent for 10 s: in step 4" in text
    )


def test_a_stop_asked_of_one_rank_is_known_to_all(server: TCPStore) -> None:
    asked, learning = StopRequest(), StopRequest()
    for request in (asked, learning):
        request.defer()
    asked.hear(signal.SIGUSR1)
    watchdog(server, 0, [], stop=asked)._look(Vigil(), 0)
    watchdog(server, 1, [], stop=learning)._look(Vigil(), 0)
    assert learning.asked == signal.SIGUSR1


def test_batches_are_progress_as_they_are_asked_for_and_as_they_come() -> None:
    dog, seen = Watchdog(), []

    def make() -> object:
        for item in "ab":
            seen.append((dog.report(0).position, dog.report(0).paused))
            yield item

    assert dog.doing(0, dog.report(0)).startswith("preparing the run, at engine/watchdog.py:")
    for item in dog.steps(make(), 7):
        seen.append((item, dog.report(0).position))
    assert seen == [
        ((7, WAIT, 0), ""), ("a", (7, STEP, 0)), ((8, WAIT, 0), ""), ("b", (8, STEP, 0)),
    ]  # fmt: skip
    dog.pause("saving")
    assert dog.report(0).paused == "saving"
    assert dog.doing(0, dog.report(0)).startswith(
        "saving, before that: waits for the batch of step 10"
    )
    assert list(dog.evaluation(iter("ab"), 8)) == ["a", "b"]
    assert dog.report(0).position == (8, EVALUATED, 0) and not dog.report(0).paused


HANGS = """
import sys, threading, time
from engine.watchdog import Watchdog, STEP
dog = Watchdog()
dog.timeout = 2
dog.start()
dog.at(0, STEP)
threading.Lock().acquire()
lock = threading.Lock(); lock.acquire(); lock.acquire()
"""


def test_a_process_that_hangs_in_c_code_ends() -> None:
    done = run_code(HANGS)
    assert done.returncode == 1
    assert "without progress for 2 s (train.timeout_s): in step 1" in done.stderr
