"""Memory of large CPU tensors, used again once the tensors are gone. Knows nothing of clips."""

import math
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Recycler:
    """Makes tensors of memory that earlier tensors gave back; as much as lived at one time is kept.

    Large memory fresh from the system costs a page fault every 4 kB: 26 of the 105 ms of processor
    time that a clip of 64x224x224 takes on the CPU. Not for several threads at once.
    """

    def __init__(self) -> None:
        self._free: list[NDArray[np.uint8]] = []

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """As torch.empty. The memory returns when no tensor, view or autograd node needs it."""
        num_bytes = math.prod(shape) * dtype.itemsize
        large = (i for i, block in enumerate(self._free) if len(block) >= num_bytes)
        place = next(large, None)
        block = np.empty(num_bytes, np.uint8) if place is None else self._free.pop(place)
        part = block[:num_bytes]
        # A tensor's storage holds the array it was made of: when `part` goes, all users are gone.
        weakref.finalize(part, self._free.append, block).atexit = False
        return torch.from_numpy(part).view(dtype).view(shape)
