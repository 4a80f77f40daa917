"""engine/batch_norm.py: several ranks normalise as one process with the whole batch would."""

import os
import sys
import types

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from engine.batch_norm import GlobalBatchNorm
from engine.distributed import synchronise_batch_norm
from forked import free_port


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-3, momentum=0.01), nn.ReLU(),
        nn.Flatten(2), nn.BatchNorm1d(4),
    ).double()  # fmt: skip


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 3, 5, 5, generator=generator, dtype=torch.float64) + 3
    return x, torch.randn(6, 4, 9, generator=generator, dtype=torch.float64)


def gradients_and_statistics(model: nn.Module, x: Tensor, weight: Tensor) -> list[Tensor]:
    """Input gradient, then parameter gradients, then running statistics, after two steps."""
    for _ in range(2):
        x.grad = None
        model.zero_grad()
        (model(x.requires_grad_()) * weight).sum().backward()
    return [x.grad, *(p.grad for p in model.parameters()), *(b.double() for b in model.buffers())]


def one_rank(rank: int, world_size: int, port: int, out: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    model = GlobalBatchNorm.convert(network())
    share = slice(rank * 6 // world_size, (rank + 1) * 6 // world_size)
    x, weight = inputs()
    tensors = gradients_and_statistics(model, x[share], weight[share])
    parameters = len(list(model.parameters()))
    for gradient in tensors[1 : parameters + 1]:
        dist.all_reduce(gradient)
    torch.save(tensors, f"{out}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_equal_one_process(world_size, tmp_path):
    given = world_size, free_port(), str(tmp_path)
    mp.start_processes(one_rank, given, nprocs=world_size, start_method="forkserver")
    expected = gradients_and_statistics(network(), *inputs())
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world_size)]
    torch.testing.assert_close(
        torch.cat([tensors[0] for tensors in ranks]), expected[0], rtol=1e-12, atol=1e-12
    )
    for tensors in ranks:
        torch.testing.assert_close(tensors[1:], expected[1:], rtol=1e-12, atol=1e-12)


def test_alone_and_in_evaluation_it_is_the_norm_it_replaces():
    plain, converted = network(), GlobalBatchNorm.convert(network())
    assert plain.state_dict().keys() == converted.state_dict().keys()
    x, weight = inputs()
    expected = gradients_and_statistics(plain, x, weight)
    torch.testing.assert_close(gradients_and_statistics(converted, x, weight), expected)
    torch.testing.assert_close(converted.eval()(x), plain.eval()(x))
    assert converted[1].eps == 1e-3 and converted[1].momentum == 0.01


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 0, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0)])
@pytest.mark.parametrize("clips", [1, 3])
def test_the_layout_in_memory_changes_no_number(clips, order):
    """`order`: axes of (B, C, H, W) from the outermost in memory to the innermost."""
    generator = torch.Generator().manual_seed(2)
    shape = (clips, 4, 8, 6)
    there = [order.index(axis) for axis in range(4)]
    x, weight = (
        torch.randn([shape[axis] for axis in order], generator=generator).double().permute(there)
        for _ in range(2)
    )
    assert x.shape == shape
    plain = nn.BatchNorm2d(4).double()
    expected = gradients_and_statistics(plain, x, weight)
    found = gradients_and_statistics(GlobalBatchNorm.convert(nn.BatchNorm2d(4).double()), x, weight)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_gpus_take_torchs_norm_where_apex_is_installed_too(monkeypatch):
    """Apex's copies every layer to channel planes and back."""
    modules = {name: types.ModuleType(name) for name in ("apex", "apex.parallel")}
    modules["apex.parallel"].convert_syncbn_model = lambda model: pytest.fail("Apex was asked")
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    model = network()
    model[1].weight.requires_grad_(False)
    made = synchronise_batch_norm(model, torch.device("cuda"))
    assert [type(made[place]) for place in (1, 4)] == [nn.SyncBatchNorm] * 2
    assert not made[1].weight.requires_grad and made[1].bias.requires_grad
    assert made[4].weight.requires_grad
