"""engine/cuda_graph.py. A capture is acted out on the CPU: fixed memory for what goes in and comes
out, and the captured program run anew at each replay. The real one is left to the `gpu` tests."""

import copy
import dataclasses

import pytest
import torch
from test_compilation import batch_for, network, step_of
from torch import Tensor, nn

from engine.accumulation import Shares
from engine.cuda_graph import GraphedForward, capture_training
from engine.distributed import Ranks, place
from engine.loop import Precision, TrainStep, predict
from engine.losses import LossConfig
from engine.rehearsal import trial
from pipelines.batch import Batch

CPU = torch.device("cpu")
ALONE = Ranks(0, 0, 1)
DOUBLE = Precision.choose("fp64", CPU)


class Captures:
    """Stands for torch.cuda.make_graphed_callables."""

    def __init__(self, problem: str = "") -> None:
        self.problem = problem
        self.replays = 0

    def __call__(self, module: nn.Module, static: tuple[Tensor, ...], **options: object) -> None:
        assert options == {"allow_unused_input": True, "capture_error_mode": "thread_local"}
        assert not torch.is_autocast_cache_enabled()
        if self.problem:
            raise RuntimeError(self.problem)
        program, outputs = module.forward, [torch.zeros_like(o) for o in module.forward(*static)]

        class Overwritten(torch.autograd.Function):
            @staticmethod
            def forward(ctx, output, fixed):
                return fixed.detach().copy_(output)

            @staticmethod
            def backward(ctx, gradient):
                return gradient, None

        def replay(*tensors: Tensor) -> tuple[Tensor, ...]:
            self.replays += 1
            for fixed, tensor in zip(static, tensors, strict=True):
                assert fixed.data_ptr() != tensor.data_ptr(), "the loader's own memory"
                fixed.copy_(tensor)
            found = program(*static)
            return tuple(
                Overwritten.apply(output, fixed) if output.requires_grad else output
                for output, fixed in zip(found, outputs, strict=True)
            )

        module.forward = replay


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> Captures:
    acted = Captures()
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", acted)
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
    assert captures.replays == 3
    step = steps[1]
    step(batch.part(0, 2), 7, 0.9)
    assert captures.replays == 3, "another shape"
    with torch.no_grad():
        output = predict(graphed.eval(), batch, 0.5, DOUBLE)
    assert captures.replays == 3, "evaluation"
    fields = [field.name for field in dataclasses.fields(output)]
    found = predict(graphed.train(), batch, 0.5, DOUBLE)
    assert captures.replays == 4 and type(found) is type(output)
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
    assert captures.replays == 4
    torch.testing.assert_close(metrics[1], metrics[0], rtol=1e-9, atol=1e-9)


def on_gpu(model: nn.Module, batch: Batch, precision: Precision) -> str | None:
    """As engine/training.py asks for it on a GPU."""
    ranks = Ranks(0, 0, 1, torch.device("cuda"))
    return capture_training(model, ranks, lambda: trial(model, batch, LossConfig(), precision))


def test_what_cannot_be_captured_stays_as_it_was_and_says_why(monkeypatch):
    model, batch = network("decoupled", DOUBLE), batch_for("decoupled")
    before = copy.deepcopy(model.state_dict())
    options = {"capture_error_mode": "thread_local", "allow_unused_input": True}
    acted = Captures("operation not permitted when stream is capturing\nmore")
    monkeypatch.setattr(
        torch.cuda, "make_graphed_callables",
        lambda module, static, capture_error_mode, allow_unused_input: acted(
            module, static, **options
        ),
    )  # fmt: skip
    problem = on_gpu(model, batch, DOUBLE)
    assert problem == "RuntimeError: operation not permitted when stream is capturing"
    assert "forward" not in vars(model)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_torch_that_captures_only_alone_is_told_apart(monkeypatch):
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", lambda module, static: module)
    model = network("decoupled", DOUBLE)
    problem = on_gpu(model, batch_for("decoupled"), DOUBLE)
    assert problem and problem.startswith("this torch captures only while no other thread uses")
    assert "forward" not in vars(model)


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
