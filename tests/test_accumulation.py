"""engine/accumulation.py and the step over it: parts of a batch add up to it, on any ranks."""

import copy
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from engine.accumulation import Shares
from engine.distributed import Ranks, place
from engine.loop import Precision, TrainStep
from engine.losses import LossConfig, training_loss
from forked import free_port
from models.output import ModelOutput, Recoupled
from pipelines.batch import Batch

DOUBLE = Precision.choose("fp64", torch.device("cpu"))
LOSS = LossConfig()
EPOCH = LOSS.recoupling_delay
RATE = 0.1


class Small(nn.Module):
    """Every kind of loss, and a batch norm if wanted."""

    def __init__(self, batch_norm: bool) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6) if batch_norm else nn.Identity()
        self.logits = nn.Linear(6, 3)

    def forward(self, clip: Tensor, temperature: float = 1.0, **_: object) -> ModelOutput:
        """clip (B, 4)"""
        hidden = self.norm(self.hidden(clip)).tanh()
        logits = self.logits(hidden) / temperature
        return ModelOutput(logits, (2 * logits,), (Recoupled(hidden, clip.mean(1, keepdim=True)),))


def small(batch_norm: bool) -> nn.Module:
    torch.manual_seed(0)
    return Small(batch_norm).double()


def clips(*places: int) -> Batch:
    """Of the seven that there are."""
    values = torch.randn(7, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    label = torch.arange(7) % 3
    chosen = list(places)
    return Batch(values[chosen] + 1, None, label[chosen], (), torch.tensor(chosen))


def step_of(model: nn.Module, shares: Shares | None) -> TrainStep:
    return TrainStep(
        model, torch.optim.SGD(model.parameters(), RATE), LOSS, 0.0, DOUBLE, shares=shares
    )


@given(batch=st.integers(1, 40), ranks=st.integers(1, 8), micro_batch=st.integers(0, 9))
def test_ranks_take_equally_many_micro_batches_that_hold_the_global_batch(
    batch: int, ranks: int, micro_batch: int
) -> None:
    shares = Shares(batch, ranks, micro_batch)
    own = [len(range(rank, batch, ranks)) for rank in range(ranks)]  # as pipelines/plan.py deals
    assert (max(own), min(own)) == (shares.largest, shares.smallest)
    sizes = [shares.sizes(clips) for clips in own]
    assert [sum(parts) for parts in sizes] == own
    assert {len(parts) for parts in sizes} == {shares.num_micro_batches}
    taken = [size for parts in sizes for size in parts]
    assert max(taken) == shares.largest_micro_batch <= (micro_batch or batch)
    assert all(max(parts) - min(parts) <= 1 for parts in sizes)
    assert (min(taken) == 0) == bool(shares.problem())
    assert sum(map(shares.weight, taken)) / ranks == pytest.approx(1)


def test_what_leaves_a_rank_without_clips_is_named_with_its_fix() -> None:
    assert "train.global_batch = 3 leaves some of 4 ranks without a clip; take 4 or more" in (
        Shares(3, 4).problem()
    )
    assert "take 2 or more, or a train.global_batch that 4 divides" in Shares(6, 4, 1).problem()


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 6])
@pytest.mark.parametrize("batch_norm", [None, "evaluating"])
def test_an_accumulated_step_is_the_whole_one_where_no_clip_sees_another(
    batch_norm: str | None, micro_batch: int
) -> None:
    whole, parts = small(bool(batch_norm)), small(bool(batch_norm))
    for model in (whole, parts):
        model.norm.eval()
    expected = step_of(whole, None)
    found = step_of(parts, Shares(7, 1, micro_batch))
    for temperature in (0.5, 0.7):
        metrics = [step(clips(*range(7)), EPOCH, temperature) for step in (expected, found)]
        assert metrics[0].keys() == metrics[1].keys() >= {"loss", "branches", "recoupling", "top1"}
        torch.testing.assert_close(metrics[1], metrics[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(parts.state_dict(), whole.state_dict(), rtol=1e-12, atol=1e-12)


def by_definition(model: nn.Module, groups: list[Batch], temperature: float) -> dict[str, Tensor]:
    """A step whose loss is that of the groups, each through the network alone, weighed by clips."""
    total = sum(len(group.label) for group in groups)
    means: dict[str, Tensor] = {}
    model.zero_grad()
    for group in groups:
        output = model(group.clip, temperature=temperature)
        loss, parts = training_loss(output, group.label, LOSS, EPOCH)
        hits = (output.logits.argmax(1) == group.label).double().mean()
        share = len(group.label) / total
        (share * loss).backward()
        for name, value in {"loss": loss.detach(), **parts, "top1": hits}.items():
            means[name] = means.get(name, torch.zeros(())) + share * value
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= RATE * parameter.grad
    return means


def test_batch_norm_sees_one_micro_batch_after_the_other() -> None:
    model = small(batch_norm=True)
    expected = copy.deepcopy(model)
    step = step_of(model, Shares(7, 1, 3))
    for _ in range(2):
        metrics = step(clips(*range(7)), EPOCH, 0.5)
        groups = [clips(0, 1, 2), clips(3, 4), clips(5, 6)]
        torch.testing.assert_close(metrics, by_definition(expected, groups, 0.5))
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=1e-12, atol=1e-12)
    assert model.norm.num_batches_tracked == 6


MICRO_BATCHES = {0: [range(7)], 2: [(0, 2, 1, 3), (4, 6, 5)], 3: [(0, 2, 1, 3), (4, 6, 5)]}
"""Of ranks with the clips 0, 2, 4, 6 and 1, 3, 5 -> what batch norm sees at a time."""


def one_rank(rank: int, port: int, out: str) -> None:
    """Two steps with each size of micro batch."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    results = []
    for micro_batch in MICRO_BATCHES:
        model = place(small(batch_norm=True), Ranks(rank, rank, 2), torch.float64)
        sent: list[int] = []
        model.register_comm_hook(sent, counted_average)
        step = step_of(model, Shares(7, 2, micro_batch))
        metrics = [step(clips(*range(rank, 7, 2)), EPOCH, 0.5) for _ in range(2)]
        results.append((metrics, model.module.state_dict(), len(sent)))
    torch.save(results, f"{out}/{rank}.pt")
    dist.destroy_process_group()


def counted_average(sent: list[int], bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    sent.append(bucket.index())
    work = dist.all_reduce(bucket.buffer() / 2, async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


def test_unequal_shares_of_two_ranks_give_the_mean_over_the_global_batch(tmp_path):
    given = free_port(), str(tmp_path)
    mp.start_processes(one_rank, given, nprocs=2, start_method="forkserver")
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for groups, one, two in zip(MICRO_BATCHES.values(), *ranks, strict=True):
        expected = small(batch_norm=True)
        for first, second in zip(one[0], two[0], strict=True):
            means = by_definition(expected, [clips(*group) for group in groups], 0.5)
            both = {name: (4 * first[name] + 3 * second[name]) / 7 for name in first}
            torch.testing.assert_close(both, means, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one[1], expected.state_dict(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(two[1], one[1], rtol=0, atol=0)
        assert one[2] == 2, "gradients travel once per step"


def test_a_gradient_is_never_the_memory_that_the_next_one_is_written_to() -> None:
    """As a CUDA graph leaves them: each replay writes its gradients to the same place."""
    model = small(batch_norm=False)
    place = torch.zeros_like(model.logits.bias)

    class Replay(torch.autograd.Function):
        @staticmethod
        def forward(ctx, bias):
            return bias.clone()

        @staticmethod
        def backward(ctx, gradient):
            return place.copy_(gradient).detach()

    bias = model.logits.bias
    whole = copy.deepcopy(model)
    model.logits.forward = lambda x: x @ model.logits.weight.T + Replay.apply(bias)
    step_of(model, Shares(7, 1, 3))(clips(*range(7)), EPOCH, 0.5)
    step_of(whole, None)(clips(*range(7)), EPOCH, 0.5)
    torch.testing.assert_close(bias, whole.logits.bias, rtol=1e-12, atol=1e-12)
