"""benchmarks/turns.py: cases are set up one after another, and one that dies ends no other."""

import os
import signal
import struct
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from benchmarks import turns
from benchmarks.turns import READY, in_brief, started, take_turns


def serve(case: str, folder: Path, pipe: Connection) -> None:
    """A case that sets up in its turn and then does what its name says."""
    busy = folder / "busy"
    try:
        busy.touch(exist_ok=False)  # another case is setting up: FileExistsError
        time.sleep(0.1)
        if case == "killed while it is set up":
            busy.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        if case == "out of memory":
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
    except Exception as error:
        pipe.send(in_brief(error))
        return
    finally:
        busy.unlink(missing_ok=True)
    pipe.send(READY)
    if case == "leaves before it is asked":
        pipe.send("ValueError: why")
        return
    while pipe.recv():
        if case == "exits in its turn":
            os._exit(3)
        if case == "killed within an answer":
            os.write(pipe.fileno(), struct.pack("!i", 100) + b"10 of 100.")
            os.kill(os.getpid(), signal.SIGKILL)
        pipe.send((case,))
    pipe.send(("end",))


def stay(case: str, pipe: Connection) -> None:
    """Does not end by itself."""
    pipe.send(READY)
    time.sleep(3600)


KILLED = "its process was ended by signal 9 (Killed; the system does so where memory runs out)"


@pytest.mark.usefixtures("forked_cases")
@pytest.mark.slow
def test_cases_are_set_up_one_by_one_and_one_that_dies_ends_no_other(tmp_path):
    stops = {
        "killed while it is set up": KILLED,
        "out of memory": "OutOfMemoryError: CUDA out of memory.",
        "leaves before it is asked": "ValueError: why",
        "exits in its turn": "its process ended without a word (exit status 3)",
        "killed within an answer": KILLED,
    }
    with started(["first", *stops, "last"], serve, tmp_path, one_by_one=True) as children:
        answers, stopped = take_turns(children, 2)
    assert answers == {case: [(case,), (case,), ("end",)] for case in ("first", "last")}
    assert stopped == stops
    assert not any(child.process.is_alive() for child in children.values())


@pytest.mark.usefixtures("forked_cases")
def test_a_case_that_does_not_end_is_killed(monkeypatch):
    monkeypatch.setattr(turns, "LONGEST_END_S", 0.1)
    with started(["case"], stay) as children:
        assert children["case"].pipe.recv() is READY
    assert children["case"].process.exitcode == -signal.SIGKILL
