"""When Python looks for objects that only refer to each other: between steps, not within them."""

import gc
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


def between_steps(items: Iterator[T], every: int) -> Iterator[T]:
    """The same items; Python collects garbage before every `every`-th of them and at no other time
    until they end. 0: whenever it likes, on every rank at another moment.

    What is there at the first item is not looked at again, so that later searches are short.
    """
    if not every:
        yield from items
        return
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        for number, item in enumerate(items):
            if number and number % every == 0:
                gc.collect()
            yield item
    finally:
        gc.enable()
        gc.unfreeze()
