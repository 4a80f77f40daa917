"""engine/loop.py: precision by device, and a step that clips, updates and never waits."""

import json

import pytest
import torch

from engine.loop import Precision, TrainStep, predict
from engine.losses import LossConfig
from engine.metrics import Average
from engine.optim import OptimConfig, build_optimizer
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


def tiny_step(device: torch.device, precision: str, **optim: float) -> TrainStep:
    torch.manual_seed(0)
    model = build_model(
        "decoupled", num_classes=3, num_frames=8, branch_frames=(2, 4, 6), width=8, dim=64,
        num_blocks=1, dropout=0.0,
    )  # fmt: skip
    chosen = Precision.choose(precision, device)
    model = model.to(device, chosen.weights).to(memory_format=torch.channels_last_3d)
    config = OptimConfig(**{"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, **optim})
    optimizer = build_optimizer(model, config)
    return TrainStep(model, optimizer, LossConfig(), config.clip_norm, chosen)


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


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_step_never_waits_for_the_device(precision):
    from engine.distributed import Ranks

    step, batch = tiny_step(CUDA, precision), tiny_batch(CUDA)
    average = Average(Ranks(0, 0, 1, CUDA))
    average.add(4, **step(batch, epoch=5, temperature=0.5))  # kernels are loaded, buffers made
    torch.cuda.set_sync_debug_mode("error")
    try:
        average.add(4, **step(batch, epoch=5, temperature=0.5))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert average.read()["loss"] > 0


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-3), ("bf16", 0.05), ("fp16", 0.05)])
def test_gpu_losses_follow_the_cpu_in_fp64(precision, bound):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    losses = []
    for device, name in ((CPU, "fp64"), (CUDA, precision)):
        step, batch = tiny_step(device, name, lr=1e-3), tiny_batch(device)
        losses.append([step(batch, 5, temperature=1.0)["loss"].item() for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=bound)


@pytest.mark.gpu
@pytest.mark.parametrize("ranks", [0, 1])
def test_a_run_on_the_gpu_alone_and_as_one_nccl_rank(train, tmp_path, ranks):
    done = train("train.device=cuda", ranks=ranks)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["device"].startswith("cuda: ") and result["steps"] == 8
