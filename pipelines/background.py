"""Running an iterator ahead of its consumer in one thread. Knows nothing of clips."""

import atexit
from collections.abc import Generator
from contextlib import closing
from queue import SimpleQueue
from threading import Event, Semaphore, Thread, current_thread
from typing import TypeVar

Item = TypeVar("Item")

BACKGROUND = "in_background"
"""The name of such threads."""


def in_background(items: Generator[Item, None, None], ahead: int) -> Generator[Item, None, None]:
    """Yields the items (never None) in order while a thread makes up to `ahead` more.

    What the thread raises is raised here, after the items before it. Closing or dropping the
    returned generator ends the thread, at the latest when the item in work is done; so does the
    end of the program.
    """
    made: SimpleQueue[Item | BaseException | None] = SimpleQueue()
    room, stopped = Semaphore(ahead - 1), Event()

    def make() -> None:
        try:
            with closing(items):
                for item in items:
                    made.put(item)
                    del item  # its memory is the consumer's to give back
                    room.acquire()
                    if stopped.is_set():
                        return
            made.put(None)
        except BaseException as error:  # of any kind: it is the consumer's to judge
            made.put(error)

    thread = Thread(target=make, name=BACKGROUND, daemon=True)

    def stop() -> None:
        stopped.set()
        room.release()
        if thread is not current_thread():  # the garbage collector runs where it pleases
            thread.join()

    # The program may end with the generator half consumed, held by a traceback: nothing then waits
    # for a daemon thread, and this ends it while the interpreter is still whole.
    atexit.register(stop)
    thread.start()
    try:
        while (item := made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            room.release()
            yield item
            del item
    finally:
        atexit.unregister(stop)
        stop()
