"""Memory that is used again, but never while somebody may still read it."""

import torch

from pipelines.recycler import Recycler


def test_memory_is_used_again_once_its_tensor_is_gone() -> None:
    recycler = Recycler()
    first = recycler.empty((2, 3), torch.float32)
    place = first.data_ptr()
    assert first.shape == (2, 3) and first.dtype == torch.float32 and first.is_contiguous()
    del first
    assert recycler.empty((3, 2), torch.float32).data_ptr() == place


def test_memory_is_not_used_again_while_a_view_of_it_lives() -> None:
    recycler = Recycler()
    view = recycler.empty((2, 3, 4), torch.uint8).permute(2, 0, 1)[1:]
    array = recycler.empty((24,), torch.uint8).numpy()
    places = {view.untyped_storage().data_ptr(), array.ctypes.data}
    assert len(places) == 2
    assert recycler.empty((24,), torch.uint8).data_ptr() not in places


def test_memory_is_not_used_again_while_a_backward_pass_needs_it() -> None:
    recycler = Recycler()
    clip = recycler.empty((4,), torch.float32).copy_(torch.arange(4.0))
    weight = torch.ones(4, requires_grad=True)
    loss = (weight * clip).sum()
    del clip
    recycler.empty((4,), torch.float32).fill_(100)
    loss.backward()
    assert weight.grad is not None and weight.grad.tolist() == [0, 1, 2, 3]


def test_large_memory_serves_smaller_tensors_but_small_memory_no_larger_ones() -> None:
    recycler = Recycler()
    small, large = recycler.empty((4,), torch.int16), recycler.empty((64,), torch.int16)
    place = large.data_ptr()
    del small, large
    assert recycler.empty((32,), torch.float32).data_ptr() == place
