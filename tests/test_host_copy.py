"""engine/host_copy.py: the state as it was at the call, in memory that is used again."""

import pytest
import torch
from torch import nn

from engine.host_copy import HostCopy


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4)).to(
        memory_format=torch.channels_last_3d
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, 3, 4, 6, 6)).square().mean().backward()
    optimizer.step()
    return model, optimizer


def test_the_copy_is_bit_equal_with_strides_classes_and_attributes():
    model, optimizer = trained()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "x": (1, [2.5, "a"])}
    copy = HostCopy().take(state)()
    assert copy["x"] == (1, [2.5, "a"]) and type(copy["model"]) is type(state["model"])
    assert copy["model"]._metadata == state["model"]._metadata
    pairs = [(copy["model"][key], tensor) for key, tensor in state["model"].items()]
    momenta = (copy["optimizer"]["state"], state["optimizer"]["state"])
    pairs += [(momenta[0][i]["momentum_buffer"], momenta[1][i]["momentum_buffer"]) for i in (0, 1)]
    for ours, theirs in pairs:
        assert torch.equal(ours, theirs) and ours.stride() == theirs.stride()
        assert ours.data_ptr() != theirs.data_ptr()
    assert copy["optimizer"]["param_groups"] == state["optimizer"]["param_groups"]


def test_a_step_after_the_call_changes_nothing_in_the_copy():
    model, optimizer = trained()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    copy = HostCopy().take({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    rate = optimizer.param_groups[0]["lr"]
    optimizer.param_groups[0]["lr"] = 0.0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(torch.equal(copy()["model"][key], tensor) for key, tensor in before.items())
    assert copy()["optimizer"]["param_groups"][0]["lr"] == rate


def test_memory_is_used_again_and_follows_the_state():
    host, weight = HostCopy(), torch.zeros(5)
    first = host.take({"w": weight})()["w"]
    second = host.take({"w": weight + 1, "new": torch.ones(2)})()
    assert second["w"].data_ptr() == first.data_ptr() and second["w"].tolist() == [1.0] * 5
    assert host.take({"w": torch.ones(6)})()["w"].shape == (6,)
    assert host.take({"w": torch.ones(6, dtype=torch.float64)})()["w"].dtype == torch.float64
    assert host.take({"w": torch.ones(2, 3).t()})()["w"].stride() == (1, 3)


def test_a_part_of_a_large_tensor_is_copied_alone():
    large = torch.zeros(1000)
    copy = HostCopy().take({"w": large[:3], "same": large[:1].expand(4)})()
    assert copy["w"].untyped_storage().nbytes() == 12 and copy["same"].tolist() == [0.0] * 4


@pytest.mark.gpu
def test_a_gpus_tensors_are_copied_without_a_wait_in_the_order_of_its_stream():
    host, weight = HostCopy(), torch.zeros(1 << 20, device="cuda")
    host.take({"w": weight})()  # page-locked memory is there from now on
    torch.cuda._sleep(2_000_000_000)  # about a second, behind which the rest is queued
    weight.add_(1)
    taken = host.take({"w": weight, "host": torch.ones(2)})
    weight.add_(1)
    assert not torch.cuda.current_stream().query(), "taking the copy waited for the GPU"
    copy = taken()
    assert copy["w"].is_pinned() and copy["w"].eq(1).all() and copy["host"].tolist() == [1.0, 1.0]
    assert weight.eq(2).all()
