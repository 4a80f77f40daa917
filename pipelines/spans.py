"""Named ranges of the program's time, for profilers to show. Measures nothing itself."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import torch
from torch.autograd import profiler

NOTHING: AbstractContextManager[None] = nullcontext()


def span(name: str) -> AbstractContextManager[None]:
    """What runs within is called `name` in the traces of torch's profiler (`train.profile`) and, on
    a machine with a GPU, of NVIDIA's.

    Both, as neither sees the other's: a trace of torch holds no NVTX ranges, and Nsight sees those
    of torch only where torch is told to send them. A microsecond where nobody looks: torch's range
    alone, kept open at all times, would take 20, more than some of what it would be put around.
    """
    if profiler._is_profiler_enabled or _has_nvtx():
        return _shown(name)
    return NOTHING


@contextmanager
def _shown(name: str) -> Iterator[None]:
    nvtx = _has_nvtx()
    with profiler.record_function(name) if profiler._is_profiler_enabled else NOTHING:
        if nvtx:
            torch.cuda.nvtx.range_push(name)
        try:
            yield
        finally:
            if nvtx:
                torch.cuda.nvtx.range_pop()


@cache
def _has_nvtx() -> bool:
    """torch built without CUDA raises an error at each range."""
    return torch.cuda.is_available()
