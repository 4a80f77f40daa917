"""Memory of the host: blocks that a step frees are kept for the next one."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Option numbers of glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory in the process, for tensors of the next step to reuse.

    By default it returns large blocks to the system, and each step pays anew for the first touch
    of every page: a tenth of a training step on the CPU. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, -1)  # return nothing
        mallopt(M_MMAP_MAX, 0)  # no block comes from the system as a mapping of its own
