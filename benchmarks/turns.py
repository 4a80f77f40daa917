"""Benchmark cases in processes of their own that take turns, so that a busy machine slows all of
them alike; and what these processes use. Knows no case."""

import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch

Case = TypeVar("Case")

Serve = Callable[..., None]
"""Given a case, what all share, and a pipe: sends READY once it is set up, an answer for each True
that arrives, one more for the False that ends it, and the text of what stopped it in place of any
of them."""

READY = True

LONGEST_END_S = 60
"""Time for a process to end after its last answer, before it is killed."""


@dataclass(frozen=True)
class Child:
    """The process of a case, and this side's end of its pipe."""

    process: BaseProcess
    pipe: Connection


@contextmanager
def started(
    cases: Sequence[Case], serve: Serve, *shared: Any, one_by_one: bool = False
) -> Iterator[Mapping[Case, Child]]:
    """Starts a process for each case; at the end of the context all of them have ended.

    `one_by_one`: each is started when the one before has been set up or has stopped, so that no two
    compile, or have the memory that this takes, at the same time.
    """
    context = multiprocessing.get_context("spawn")
    children: dict[Case, Child] = {}
    try:
        for case in cases:
            ours, theirs = context.Pipe()
            # Not daemons: those may not start worker processes. They end with the pipe.
            process = context.Process(target=serve, args=(case, *shared, theirs))
            process.start()
            theirs.close()
            children[case] = Child(process, ours)
            if one_by_one:
                ours.poll(None)
        yield children
    finally:
        for child in children.values():
            child.pipe.close()
        for child in children.values():
            child.process.join(LONGEST_END_S)
            child.process.kill()  # does nothing where it has ended
            child.process.join()


def take_turns(
    children: Mapping[Case, Child], turns: int
) -> tuple[dict[Case, list[Any]], dict[Case, str]]:
    """The answers of each case, `turns` and the last one, and what stopped other cases."""
    answers: dict[Case, list[Any]] = {case: [] for case in children}
    stopped: dict[Case, str] = {}
    for question in [None, *[True] * turns, False]:
        for case in list(answers):
            try:
                answer = _ask(children[case], question)
            except ValueError as error:
                stopped[case] = str(error)
                del answers[case]
            else:
                if question is not None:
                    answers[case].append(answer)
    return answers, stopped


def _ask(child: Child, question: bool | None) -> Any:
    """The answer to a question, or to None what a case says unasked. Raises ValueError with what
    stopped it."""
    try:
        if question is not None:
            with suppress(OSError):  # it may have said what stopped it before it was asked
                child.pipe.send(question)
        answer = child.pipe.recv()
    except (EOFError, OSError):  # OSError: it ended in the middle of an answer
        raise ValueError(_how_it_ended(child.process)) from None
    if isinstance(answer, str):
        raise ValueError(answer)
    return answer


def _how_it_ended(process: BaseProcess) -> str:
    process.join(LONGEST_END_S)
    status = process.exitcode
    if status is None or status >= 0:
        return f"its process ended without a word (exit status {status})"
    hint = "; the system does so where memory runs out" if -status == signal.SIGKILL else ""
    return f"its process was ended by signal {-status} ({signal.strsignal(-status)}{hint})"


def in_brief(error: Exception) -> str:
    """What the case is said to have been stopped by."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def processes() -> list[int]:
    """This process and those it started."""
    return [os.getpid(), *(child.pid for child in multiprocessing.active_children() if child.pid)]


def cpu_seconds() -> float:
    """Processor time of all threads of the case's processes so far. By the clock of each process
    (clock_getcpuclockid): the ticks in /proc miss threads that sleep often."""
    return sum(time.clock_gettime((~process << 3) | 2) for process in processes())


def settle() -> None:
    """Waits until the batches ahead are made: the next case's turn is its own."""
    before, spent = cpu_seconds(), 1.0
    while spent > 0.01:
        time.sleep(0.1)
        now = cpu_seconds()
        before, spent = now, now - before


def wait_for(device: str) -> None:
    """Until a GPU has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def give_back_memory(device: str) -> None:
    """Returns the GPU memory that torch keeps for later to the driver: processes share it."""
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
