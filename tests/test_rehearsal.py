"""engine/rehearsal.py: 16-bit arithmetic that is wrong stops a run before its first step."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.distributed import Ranks, place
from engine.loop import Precision
from engine.losses import LossConfig
from engine.rehearsal import check_precision
from models.blocks import FlatConv
from models.registry import build_model
from pipelines.batch import Batch
from test_compilation import batch_for

CPU = torch.device("cpu")


def network(name: str = "decoupled") -> nn.Module:
    torch.manual_seed(0)
    model = build_model(
        name, num_classes=3, num_frames=4, branch_frames=(3,), width=8, dim=64,
        num_blocks=3 if name.startswith("umdr") else 1,
    )  # fmt: skip
    return place(model, Ranks(0, 0, 1))


def check(model: nn.Module, precision: str, name: str = "decoupled") -> None:
    check_precision(model, batch_for(name, 3), LossConfig(), Precision.choose(precision, CPU))


@pytest.mark.parametrize(
    ("name", "precision"),
    [("decoupled", "bf16"), ("decoupled", "fp16"), ("decoupled_fusion", "bf16"),
     ("umdr", "bf16"), ("umdr", "fp16"), ("umdr_fusion", "bf16"), ("umdr_fusion", "fp16")],
)  # fmt: skip
def test_right_arithmetic_passes_and_the_network_is_as_it_was(name, precision):
    model = network(name).eval()
    before = copy.deepcopy(model.state_dict())
    check(model, precision, name)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def wrong_in_16_bit(conv: FlatConv, planes: Tensor) -> Tensor:
    """As some releases of cuDNN did: plausible numbers of another convolution."""
    out = FlatConv.forward(conv, planes)
    return out.roll(1, 3) if torch.is_autocast_enabled("cpu") else out


def not_a_number_in_16_bit(conv: FlatConv, planes: Tensor) -> Tensor:
    out = FlatConv.forward(conv, planes)
    return out * float("nan") if torch.is_autocast_enabled("cpu") else out


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight):
        return weight.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.flip(0)


def wrong_backward_in_16_bit(conv: FlatConv, planes: Tensor) -> Tensor:
    if not torch.is_autocast_enabled("cpu"):
        return FlatConv.forward(conv, planes)
    weight = WrongGradient.apply(conv.weight).squeeze(conv.flat_axis)
    return F.conv2d(planes, weight, padding=1)


@pytest.mark.parametrize(
    ("fault", "finding"),
    [
        (wrong_in_16_bit, "output of spatial.inception3b.conv_a.conv is off by "),
        (not_a_number_in_16_bit, "output of spatial.inception3b.conv_a.conv is off by nan"),
        (wrong_backward_in_16_bit, "weight gradient of spatial.inception3b.conv_a.conv is off by "),
    ],
)
def test_a_wrong_convolution_is_found_and_named(fault, finding):
    model = network()
    conv = model.spatial.inception3b.conv_a.conv
    conv.forward = fault.__get__(conv)
    with pytest.raises(ValueError) as error:
        check(model, "bf16")
    text = str(error.value)
    assert text.startswith("train.precision: bfloat16 disagrees with fp32 on this machine (torch ")
    assert finding in text and "Set train.precision=fp32" in text
    check(model, "fp32")  # nothing to compare


def test_frozen_halves_are_checked_as_they_are_trained_beside():
    """In evaluation mode, and no gradients reach them."""
    model = network("umdr_fusion").train()
    seen: list[bool] = []
    norm = model.depth.spatial.inception4b.point.norm
    norm.register_forward_pre_hook(lambda module, inputs: seen.append(module.training))
    check(model, "bf16", "umdr_fusion")
    assert set(seen) == {False} and len(seen) == 2
    conv = model.rgb.spatial.inception3b.conv_a.conv
    conv.forward = wrong_in_16_bit.__get__(conv)
    with pytest.raises(ValueError, match=r"output of rgb\.spatial\.inception3b\.conv_a\.conv is"):
        check(model, "bf16", "umdr_fusion")


def test_a_batch_is_cut_to_some_of_its_clips_in_every_part():
    batch = batch_for("decoupled_fusion", 3)
    cut = batch.part(1, 3)
    assert [len(part) for part in (cut.label, cut.index, *cut.branch_indices)] == [2, 2, 2]
    for stream, whole in zip(cut.streams, batch.streams, strict=True):
        assert all(torch.equal(a, b[1:]) for a, b in zip(stream, whole, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [0, 2])
def test_a_run_in_bf16_starts_with_the_check(train, tmp_path, ranks):
    done = train("train.precision=bf16", "train.epochs=1", ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "result.json").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_this_gpus_16_bit_arithmetic_is_right(precision):
    device = torch.device("cuda")
    model = place(
        build_model("decoupled", num_classes=3), Ranks(0, 0, 1).on("cuda")
    )  # full size: other sizes take other kernels
    generator = torch.Generator().manual_seed(0)
    clip = torch.randn(2, 64, 224, 224, 3, generator=generator).permute(0, 4, 1, 2, 3).to(device)
    motion = torch.rand(2, 1, 64, 224, 224, generator=generator).to(device)
    label = torch.tensor([0, 1])
    indices = tuple(torch.arange(f, device=device).repeat(2, 1) for f in (16, 32, 48))
    batch = Batch(clip, motion, label.to(device), indices, label)
    check_precision(model, batch, LossConfig(), Precision.choose(precision, device))
