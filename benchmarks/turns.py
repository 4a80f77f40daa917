"""Benchmark cases in processes of their own that take turns, so that a busy machine slows all of
them alike; and what these processes use. Knows no case."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

Case = TypeVar("Case")

Serve = Callable[..., None]
"""Given a case, what all share, and a pipe: sends an answer for each True that arrives, one more
for the False that ends it, and the text of what stopped it in place of any of them."""


@contextmanager
def started(
    cases: Sequence[Case], serve: Serve, *shared: Any
) -> Iterator[Mapping[Case, Connection]]:
    """A process for each case, and the pipes to them; they end with it."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[Case, Connection] = {}
    try:
        for case in cases:
            pipes[case], theirs = context.Pipe()
            # Not daemons: those may not start worker processes. They end with the pipe.
            context.Process(target=serve, args=(case, *shared, theirs)).start()
            theirs.close()
        yield pipes
    finally:
        for pipe in pipes.values():
            pipe.close()


def take_turns(
    pipes: Mapping[Case, Connection], turns: int
) -> tuple[dict[Case, list[Any]], dict[Case, str]]:
    """The answers of each case, `turns` and the last one, and what stopped other cases."""
    answers: dict[Case, list[Any]] = {case: [] for case in pipes}
    stopped: dict[Case, str] = {}
    for turn in range(turns + 1):
        for case in list(answers):
            try:
                answers[case].append(_ask(pipes[case], turn < turns))
            except ValueError as error:
                stopped[case] = str(error)
                del answers[case]
    return answers, stopped


def _ask(pipe: Connection, question: bool) -> Any:
    try:
        with suppress(BrokenPipeError):  # it may have said what stopped it before it was asked
            pipe.send(question)
        answer = pipe.recv()
    except (EOFError, ConnectionResetError):
        raise ValueError("its process ended without a word") from None
    if isinstance(answer, str):
        raise ValueError(answer)
    return answer


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
