"""engine/loop.py: precision by device, and a step that clips, updates and never waits."""

import json
import threading
from collections.abc import Callable

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine.config import from_tree
from engine.distributed import Ranks
from engine.divergence import LossWatch
from engine.loop import Precision, TrainStep, predict
from engine.losses import LossConfig
from engine.metrics import Average
from engine.mixing import MixConfig, Mixing
from engine.optim import OptimConfig, build_optimizer
from engine.skipping import StepScaler
from engine.training import Training
from models.output import ModelOutput
from models.registry import build_model
from pipelines.batch import Batch

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def tiny_batch(device: torch.device, num_clips: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(2)
    levels = torch.randint(0, 256, (num_clips, 8, 32, 32, 3), generator=generator)
    clip = ((levels.float() - 127.5) / 128).permute(0, 4, 1, 2, 3)
    motion = torch.rand(num_clips, 1, 8, 32, 32, generator=generator)
    label = torch.arange(num_clips) % 3
    indices = tuple(torch.arange(f).expand(num_clips, f).contiguous() for f in (2, 4, 6))
    on = [tensor.to(device) for tensor in (clip, motion, label, *indices)]
    return Batch(on[0], on[1], on[2], tuple(on[3:]), torch.arange(num_clips))


def tiny_step(
    device: torch.device,
    precision: str,
    *,
    network: str = "decoupled",
    skip: bool = False,
    **optim: float,
) -> TrainStep:
    torch.manual_seed(0)
    model = build_model(
        network, num_classes=3, num_frames=8, branch_frames=(2, 4, 6), width=8, dim=64,
        num_blocks={"decoupled": 1, "umdr": 3}[network], dropout=0.0,
    )  # fmt: skip
    chosen = Precision.choose(precision, device)
    model = model.to(device, chosen.weights).to(memory_format=torch.channels_last_3d)
    config = OptimConfig(**{"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, **optim})
    optimizer = build_optimizer(model, config)
    return TrainStep(model, optimizer, LossConfig(), config.clip_norm, chosen, skip=skip)


def test_the_cpu_trains_in_fp32_unless_told_otherwise():
    auto = Precision.choose("auto", CPU)
    assert (auto.weights, auto.compute, auto.needs_scaler) == (torch.float32,) * 2 + (False,)
    double = Precision.choose("fp64", CPU)
    assert (double.weights, double.compute) == (torch.float64, torch.float64)
    half = Precision.choose("fp16", CPU)
    assert (half.weights, half.compute, half.needs_scaler) == (torch.float32, torch.float16, True)


def test_pixels_survive_every_16_bit_type():
    levels = (torch.arange(256, dtype=torch.float32) - 127.5) / 128
    for dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(levels.to(dtype).float(), levels)


def test_a_step_moves_the_weights_against_the_clipped_gradient():
    step, batch = tiny_step(CPU, "fp64", clip_norm=0.5), tiny_batch(CPU)
    before = [p.detach().clone() for p in step.model.parameters()]
    metrics = step(batch, epoch=5, temperature=1.0)
    moved = torch.cat([
        (b - p.detach()).flatten() for b, p in zip(before, step.model.parameters(), strict=True)
    ])  # fmt: skip
    assert moved.norm().item() == pytest.approx(0.1 * 0.5, rel=1e-5)
    assert {"loss", "merged", "branches", "recoupling", "top1"} == metrics.keys()


def test_fifty_steps_learn_a_batch_by_heart():
    step, batch = tiny_step(CPU, "fp32", lr=0.02, momentum=0.9), tiny_batch(CPU)
    first = step(batch, epoch=0, temperature=1.0)["loss"].item()
    for _ in range(50):
        metrics = step(batch, epoch=0, temperature=1.0)
    assert metrics["loss"].item() < 0.5 * first and metrics["top1"].item() == 1.0


def test_bf16_on_the_cpu_follows_fp32():
    outputs = {}
    for name in ("fp32", "bf16"):
        step = tiny_step(CPU, name)
        outputs[name] = predict(step.model.eval(), tiny_batch(CPU), 1.0, step.precision).logits
    difference = (outputs["bf16"].float() - outputs["fp32"]).norm() / outputs["fp32"].norm()
    assert difference < 0.05


class Faint(torch.nn.Module):
    """The gradient of what its first layer puts out is near 1e-9, where float16 has only 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = torch.nn.Linear(4, 4), torch.nn.Linear(4, 3)

    def forward(self, clip: torch.Tensor, **_: object) -> ModelOutput:
        return ModelOutput(self.last(self.first(clip)) * 1e-8)


def faint_step(precision: str) -> TrainStep:
    model = Faint()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e8)
    return TrainStep(model, optimizer, LossConfig(), 0.0, Precision.choose(precision, CPU))


def moved(step: TrainStep) -> torch.Tensor:
    """What a step does to the first layer's bias."""
    before = step.model.first.bias.detach().clone()
    clip = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    label = torch.arange(5) % 3
    step(Batch(clip, None, label, (), label), epoch=0, temperature=1.0)
    return step.model.first.bias.detach() - before


def test_the_loss_scale_keeps_gradients_that_float16_has_no_number_for():
    expected, found, unscaled = (faint_step(name) for name in ("fp32", "fp16", "fp16"))
    unscaled.scaler = StepScaler("cpu", moving=False, skip=False)
    exact = moved(expected)
    assert exact.abs().min() > 0
    torch.testing.assert_close(moved(found), exact, rtol=0.02, atol=0)
    assert not moved(unscaled).any()


def test_a_step_whose_scaled_gradients_overflow_is_left_out_and_the_scale_halved():
    step = faint_step("fp16")
    step.scaler.load_state_dict({**step.scaler.state_dict(), "scale": 2.0**60})
    assert not moved(step).any()
    assert step.scaler.get_scale() == 2.0**59


@pytest.mark.gpu
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("network", ["decoupled", "umdr"])
def test_a_gpu_step_never_waits_for_the_device(network, precision, skip):
    step, batch = tiny_step(CUDA, precision, network=network, skip=skip), tiny_batch(CUDA)
    mixing = Mixing(MixConfig(0.8, 0.3, 0.5), 0, 3, paired=True)
    ranks = Ranks(0, 0, 1, CUDA)
    average, losses = Average(ranks), LossWatch(step, ranks, 9, 0.0, str)

    def take_step(number: int) -> None:
        means = step(mixing(batch, number), epoch=5, temperature=0.5)
        average.add(4, **means)
        losses.add(number, 0, means["loss"], batch.index)

    take_step(1)  # kernels are loaded, buffers made
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in step.clock.watch(iter(range(2, 5))):
            take_step(2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    means, seen = average.read_with(losses.values())
    losses.judge(seen)
    assert means["loss"] > 0 and step.clock.read()["forward"] > 0


WAITS = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__",
         "__index__", "__array__")  # fmt: skip
"""What brings numbers of a tensor to Python: on a GPU each of them waits for it."""


class CountWaits(TorchDispatchMode):
    """Counts them, in this thread, by where they happen."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        super().__init__()
        self.thread, self.inside = threading.get_ident(), 0
        self.where: list[str] = []
        for name in WAITS:
            monkeypatch.setattr(torch.Tensor, name, self._counted(name))

    def _counted(self, name: str) -> Callable:
        original = getattr(torch.Tensor, name)

        def counted(tensor: torch.Tensor, *args: object, **options: object) -> object:
            if threading.get_ident() != self.thread:
                return original(tensor, *args, **options)
            if not self.inside:
                self.where.append(name)
            self.inside += 1
            try:
                return original(tensor, *args, **options)
            finally:
                self.inside -= 1

        return counted

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket._qualified_op_name in (
            "aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero",
        ) and not self.inside:  # fmt: skip
            self.where.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_training_waits_for_the_device_once_per_log_line_and_in_no_step(
    tiny_config, monkeypatch, on_nan
):
    """On the CPU, by the calls that would wait on a GPU."""
    tiny_config["train"] |= {
        "on_nan": on_nan, "log_every": 3, "epochs": 1, "flop_use": False, "global_batch": 3,
    }  # fmt: skip
    training = Training(from_tree(tiny_config, "test"), Ranks(0, 0, 1))
    counted, by_line = CountWaits(monkeypatch), []
    plain_log = training._log

    def log(*args: object) -> None:
        in_steps = list(counted.where)
        counted.where.clear()
        plain_log(*args)
        by_line.append((in_steps, list(counted.where)))
        counted.where.clear()

    def train_only(*args: object) -> None:
        with counted:
            Training._train_epoch(training, *args)

    monkeypatch.setattr(training, "_log", log)
    monkeypatch.setattr(training, "_train_epoch", train_only)
    training.fit()
    assert by_line == [([], ["tolist"])] * 3  # 23 clips: steps 3, 6 and 8


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-3), ("bf16", 0.05), ("fp16", 0.05)])
@pytest.mark.parametrize("network", ["decoupled", "umdr"])
def test_gpu_losses_follow_the_cpu_in_fp64(network, precision, bound):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    losses = []
    for device, name in ((CPU, "fp64"), (CUDA, precision)):
        step, batch = tiny_step(device, name, network=network, lr=1e-3), tiny_batch(device)
        losses.append([step(batch, 5, temperature=1.0)["loss"].item() for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=bound)


@pytest.mark.gpu
@pytest.mark.parametrize("ranks", [0, 1])
def test_a_run_on_the_gpu_alone_and_as_one_nccl_rank(train, tmp_path, ranks):
    done = train("train.device=cuda", ranks=ranks)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["device"].startswith("cuda: ") and result["steps"] == 8
