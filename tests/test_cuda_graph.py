"""engine/cuda_graph.py. A capture is acted out on the CPU: fixed memory for what goes in and comes
out, and the captured work done anew at each replay. The real one is left to the `gpu` tests."""

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import create_autospec

import pytest
import torch
from torch import Tensor, nn

from engine import cuda_graph
from engine.accumulation import Shares
from engine.cuda_graph import GraphedForward, capture_training
from engine.distributed import Ranks, place
from engine.loop import Precision, TrainStep, predict
from engine.losses import LossConfig
from engine.rehearsal import trial
from pipelines.batch import Batch
from test_compilation import batch_for, network, step_of

CPU = torch.device("cpu")
ALONE = Ranks(0, 0, 1)
DOUBLE = Precision.choose("fp64", CPU)


class Acted:
    """Stands for a Recording: the work done anew at each replay, its results copied to where those
    of the capture lie."""

    def __init__(self, captures: "Captures", work: cuda_graph.Work):
        self.captures, self.work = captures, work
        self.outputs = [None if o is None else torch.zeros_like(o) for o in work()]

    def replay(self) -> None:
        self.captures.replays += 1
        with torch.enable_grad():  # as when it was captured
            found = self.work()
        for fixed, output in zip(self.outputs, found, strict=True):
            if fixed is not None and output is not None:
                fixed.copy_(output.detach())


class Captures:
    """Stands for captures; counts the replays of both passes."""

    def __init__(self) -> None:
        self.problem = ""
        self.replays = 0

    def record(self, *works: cuda_graph.Work) -> list[Acted]:
        assert not torch.is_autocast_cache_enabled()
        if self.problem:
            raise RuntimeError(self.problem)
        return [Acted(self, work) for work in works]


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> Captures:
    acted = Captures()
    monkeypatch.setattr(cuda_graph, "record", acted.record)
    monkeypatch.setattr(cuda_graph, "warm_up", lambda *works: [work() for work in works])
    return acted


@pytest.mark.parametrize("name", ["decoupled", "decoupled_fusion", "umdr", "umdr_fusion"])
def test_a_captured_network_trains_as_the_plain_one(captures, name):
    batch = batch_for(name, 3)
    plain, graphed = network(name, DOUBLE), network(name, DOUBLE)
    names = list(graphed.state_dict())
    graphed.forward = GraphedForward(graphed)
    assert list(graphed.state_dict()) == names
    steps = [step_of(model, DOUBLE) for model in (plain, graphed)]
    for epoch, temperature in ((5, 0.5), (6, 0.7), (7, 0.9)):  # as the schedule moves it
        losses = [step(batch, epoch, temperature) for step in steps]
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-9, atol=1e-9)
    assert captures.replays == 6, "forward and backward"
    step = steps[1]
    step(batch.part(0, 2), 7, 0.9)
    assert captures.replays == 6, "another shape"
    with torch.no_grad():
        output = predict(graphed.eval(), batch, 0.5, DOUBLE)
    assert captures.replays == 6, "evaluation"
    fields = [field.name for field in dataclasses.fields(output)]
    found = predict(graphed.train(), batch, 0.5, DOUBLE)
    assert captures.replays == 7 and type(found) is type(output)
    for field in fields:
        assert type(getattr(found, field)) is type(getattr(output, field)), field


def test_micro_batches_of_one_shape_are_replays(captures):
    plain, graphed = network("decoupled", DOUBLE).eval(), network("decoupled", DOUBLE)
    graphed.load_state_dict(plain.state_dict())
    for module in (plain.train(), graphed.train()):
        for norm in module.modules():
            if "BatchNorm" in type(norm).__name__:
                norm.eval()
    graphed.forward = GraphedForward(graphed)
    batch, metrics = batch_for("decoupled", 4), []
    for model, shares in ((plain, None), (graphed, Shares(4, 1, 2))):
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        step = TrainStep(model, optimizer, LossConfig(), 1.0, DOUBLE, shares=shares)
        metrics.append([step(batch, 5, 0.5) for _ in range(2)])
    assert captures.replays == 8
    torch.testing.assert_close(metrics[1], metrics[0], rtol=1e-9, atol=1e-9)


def on_gpu(model: nn.Module, batch: Batch, precision: Precision) -> str | None:
    """As engine/training.py asks for it on a GPU."""
    ranks = Ranks(0, 0, 1, torch.device("cuda"))
    return capture_training(model, ranks, lambda: trial(model, batch, LossConfig(), precision))


def test_what_cannot_be_captured_stays_as_it_was_and_says_why(captures):
    model, batch = network("decoupled", DOUBLE), batch_for("decoupled")
    before = copy.deepcopy(model.state_dict())
    captures.problem = "operation not permitted when stream is capturing\nmore"
    problem = on_gpu(model, batch, DOUBLE)
    assert problem == "RuntimeError: operation not permitted when stream is capturing"
    assert "forward" not in vars(model)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_captures_leave_the_loaders_threads_alone_and_share_one_pool(monkeypatch):
    asked = []

    @contextmanager
    def graph(recorded: object, **options: object) -> Iterator[None]:
        asked.append(options)
        yield

    monkeypatch.setattr(torch.cuda, "graph", create_autospec(torch.cuda.graph, side_effect=graph))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    found = cuda_graph.record(lambda: (torch.ones(1),), lambda: (None,))
    assert [recording.outputs for recording in found] == [(torch.ones(1),), (None,)]
    assert asked == [{"pool": "pool", "capture_error_mode": "thread_local"}] * 2


def test_on_the_cpu_it_is_said_to_be_for_gpus():
    problem = capture_training(network("decoupled", DOUBLE), ALONE, lambda: torch.zeros(()))
    assert problem == "CUDA graphs are for GPUs, and this run is on the CPU"


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("micro_batch", [0, 2])
def test_a_captured_network_trains_on_a_gpu_as_the_plain_one(precision, micro_batch):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    ranks = Ranks(0, 0, 1).on("cuda")
    chosen = Precision.choose(precision, ranks.device)
    batch = moved(batch_for("decoupled", 4), ranks.device)
    shares, losses = Shares(4, 1, micro_batch), []
    for is_captured in (False, True):
        model = place(network("decoupled", chosen), ranks, chosen.weights).train()
        if is_captured:
            assert on_gpu(model, shares.split(batch)[0], chosen) is None
            assert isinstance(model.forward, GraphedForward)
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        step = TrainStep(model, optimizer, LossConfig(), 1.0, chosen, shares=shares)
        losses.append([step(batch, 5, t)["loss"].item() for t in (0.5, 0.7, 0.9)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4 if precision == "fp32" else 0.05)


@pytest.mark.gpu
def test_dropout_in_a_graph_is_a_function_of_the_seed():
    ranks = Ranks(0, 0, 1).on("cuda")
    precision = Precision.choose("fp32", ranks.device)
    model = place(network("decoupled", precision), ranks).train()
    dropout = nn.Dropout(0.5)
    plain = model.forward
    model.forward = lambda clip, **options: plain(dropout(clip), **options)
    batch = moved(batch_for("decoupled"), ranks.device)
    assert on_gpu(model, batch, precision) is None
    found = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        found.append(predict(model, batch, 0.5, precision).logits.detach().clone())
    torch.testing.assert_close(found[2], found[0])
    assert not torch.allclose(found[1], found[0])


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch of one modality on a device."""
    assert isinstance(batch.clip, Tensor) and isinstance(batch.motion, Tensor)
    indices = tuple(index.to(device) for index in batch.branch_indices)
    return Batch(
        batch.clip.to(device), batch.motion.to(device), batch.label.to(device), indices, batch.index
    )
