from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import ModelOutput, build_model
from models.blocks import ConvUnit

SMALL = {
    "num_classes": 5,
    "num_frames": 8,
    "branch_frames": (2, 4, 6),
    "num_blocks": 2,
    "width": 8,
    "dim": 64,
    "dropout": 0.0,
}


def small(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_model("decoupled", **{**SMALL, **options})


def videos(batch: int, size: int = 32, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """clip (B, 3, 8, size, size) and motion (B, 1, 8, size, size)"""
    generator = torch.Generator().manual_seed(1)
    clip = torch.randn(batch, 3, 8, size, size, generator=generator, dtype=dtype)
    motion = torch.rand(batch, 1, 8, size, size, generator=generator, dtype=dtype)
    return clip, motion


def indices_of(*clips: tuple[tuple[int, ...], ...]) -> list[Tensor]:
    """One tuple of frames per branch, for each clip -> one (B, f) tensor per branch."""
    return [torch.tensor(rows) for rows in zip(*clips, strict=True)]


EARLY = ((0, 1), (0, 1, 2, 3), (0, 1, 2, 3, 4, 5))
LATE = ((6, 7), (4, 5, 6, 7), (2, 3, 4, 5, 6, 7))


@pytest.mark.parametrize(
    ("num_classes", "parameters"),
    [(25, 38_142_957), (40, 38_166_042), (60, 38_196_822), (249, 38_487_693)],
)
def test_the_published_network_has_the_published_number_of_parameters(
    num_classes, parameters
) -> None:
    with torch.device("meta"):
        model = build_model("decoupled", num_classes=num_classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_the_output_holds_merged_and_branch_logits_and_both_recoupling_vectors() -> None:
    model = small()
    output = model(*videos(3))
    assert output.logits.shape == (3, 5)
    assert [logits.shape for logits in output.branch_logits] == [(3, 5)] * 3
    assert torch.equal(output.logits, torch.stack(output.branch_logits).max(0).values)
    assert output.recoupled[0].student.shape == output.recoupled[0].teacher.shape == (3, 64)
    assert output.recoupled[0].student.requires_grad
    assert not output.recoupled[0].teacher.requires_grad


def test_every_parameter_learns() -> None:
    model = small()
    output = model(*videos(2))
    loss = sum(logits.square().sum() for logits in output.branch_logits)
    (loss + output.recoupled[0].student.square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_the_teacher_is_the_mean_class_token_of_the_branches() -> None:
    model = small().eval()
    tokens = []
    for branch in model.branches:
        branch.register_forward_hook(lambda _module, _inputs, output: tokens.append(output))
    output = model(*videos(2))
    torch.testing.assert_close(output.recoupled[0].teacher, sum(tokens) / 3)


def test_temperature_divides_the_logits() -> None:
    model = small().eval()
    plain, sharp = model(*videos(2)), model(*videos(2), temperature=0.04)
    torch.testing.assert_close(sharp.logits, plain.logits / 0.04)


@pytest.mark.parametrize("size", [32, 96])
def test_a_batch_of_one_gives_what_the_clip_gives_in_a_batch_of_two(size) -> None:
    model = small().double().eval()
    clip, motion = videos(2, size, torch.float64)
    indices = indices_of(EARLY, LATE)
    both = model(clip, motion, indices)
    for i in range(2):
        alone = model(clip[i : i + 1], motion[i : i + 1], [rows[i : i + 1] for rows in indices])
        torch.testing.assert_close(alone.logits[0], both.logits[i], rtol=1e-10, atol=1e-12)


def test_a_batch_of_one_trains() -> None:
    output = small().train()(*videos(1, 64))
    output.logits.sum().backward()
    assert output.logits.isfinite().all()


def test_each_clip_of_a_batch_is_seen_through_its_own_branch_indices() -> None:
    model = small().double().eval()
    clip, motion = (video.repeat(2, 1, 1, 1, 1) for video in videos(1, dtype=torch.float64))
    mixed = model(clip, motion, indices_of(EARLY, LATE)).logits
    early = model(clip, motion, indices_of(EARLY, EARLY)).logits
    late = model(clip, motion, indices_of(LATE, LATE)).logits
    torch.testing.assert_close(mixed, torch.stack((early[0], late[1])))
    assert (early[0] - late[0]).abs().max() > 1e-3


def test_without_indices_each_branch_sees_the_middle_of_each_segment() -> None:
    model = small().eval()
    middles = ((1, 5), (0, 2, 4, 6), (0, 1, 2, 4, 5, 6))
    by_default = model(*videos(1)).logits
    assert torch.equal(by_default, model(*videos(1), indices_of(middles)).logits)


def test_a_clip_without_motion_maps_counts_as_still() -> None:
    model = small().eval()
    model.spatial.motion_attention.weight.data = torch.tensor([[[0.8], [0.6]]])
    clip, motion = videos(2)
    without = model(clip).logits
    torch.testing.assert_close(without, model(clip, torch.zeros_like(motion)).logits)
    assert (without - model(clip, motion).logits).abs().max() > 1e-4


def test_a_network_without_motion_attention_takes_any_size_and_ignores_the_maps() -> None:
    model = small(motion_attention=False).eval()
    clip, motion = videos(2, size=45)
    assert torch.equal(model(clip).logits, model(clip, motion).logits)


def test_a_network_without_recoupling_returns_no_recoupling_vectors() -> None:
    output = small(recoupling=False)(*videos(2))
    assert output.recoupled == ()


@pytest.mark.parametrize("branch_frames", [(3,), (2, 8), (1, 2, 4, 8)])
def test_any_number_of_branches_runs(branch_frames) -> None:
    output = small(branch_frames=branch_frames)(*videos(2))
    assert len(output.branch_logits) == len(branch_frames)


def test_batch_norm_momentum_reaches_every_batch_norm() -> None:
    norms = [m for m in small(batch_norm_momentum=0.2).modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 3 + 6 * 6 + 3 * 6
    assert {norm.momentum for norm in norms} == {0.2}


def test_the_forward_pass_never_looks_at_a_value() -> None:
    """Meta tensors hold none: an `.item()`, or a branch on data, would raise."""
    with torch.device("meta"):
        model = small()
        clip, motion = torch.empty(2, 3, 8, 32, 32), torch.empty(2, 1, 8, 32, 32)
        indices = [torch.empty(2, frames, dtype=torch.int64) for frames in (2, 4, 6)]
        for given in (indices, None):
            output = model(clip, motion, given)
            output.logits.sum().backward()
    assert output.logits.shape == (2, 5)


def test_a_channels_last_clip_stays_so_through_the_spatial_network() -> None:
    model = small().to(memory_format=torch.channels_last_3d)
    checked = []

    def check(_module: nn.Module, _inputs: tuple[Tensor, ...], planes: Tensor) -> None:
        checked.append(planes.is_contiguous(memory_format=torch.channels_last))

    for module in model.modules():
        if isinstance(module, ConvUnit):
            module.register_forward_hook(check)
    clip, motion = videos(2, size=64)
    model(clip.contiguous(memory_format=torch.channels_last_3d), motion)
    assert len(checked) == 3 + 6 * 6 + 3 * 6
    assert all(checked)


def test_the_memory_layout_changes_neither_loss_nor_gradients() -> None:
    def run(layout: torch.memory_format) -> tuple[Tensor, list[Tensor]]:
        model = small().double().to(memory_format=layout)
        clip, motion = videos(2, 64, torch.float64)
        loss = model(clip.contiguous(memory_format=layout), motion).logits.square().sum()
        loss.backward()
        return loss, [p.grad for p in model.parameters() if p.grad is not None]

    loss, gradients = run(torch.contiguous_format)
    other_loss, other_gradients = run(torch.channels_last_3d)
    torch.testing.assert_close(other_loss, loss, rtol=1e-10, atol=0)
    for gradient, other in zip(gradients, other_gradients, strict=True):
        torch.testing.assert_close(other, gradient, rtol=1e-7, atol=1e-9 * gradient.norm().item())


def test_bf16_autocast_is_finite_and_near_fp32() -> None:
    model = small(knn_ratio=0).eval()  # k-NN would let rounding choose other neighbours
    clip, motion = videos(4)
    exact = model(clip, motion)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(clip, motion)
    assert rounded.logits.dtype == torch.float32
    error = (rounded.logits - exact.logits).abs().max() / exact.logits.abs().max()
    assert error < 0.03
    student = rounded.recoupled[0].student.float()
    torch.testing.assert_close(student, exact.recoupled[0].student, rtol=0, atol=0.02)


def test_bf16_autocast_trains_with_knn_attention() -> None:
    model = small().train()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(*videos(4), temperature=0.04)
        loss = output.logits.float().logsumexp(1).sum() + output.recoupled[0].student.float().sum()
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_conversion_to_sync_batch_norm_finds_every_norm_and_keeps_the_keys() -> None:
    model = small()
    keys = list(model.state_dict())
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert list(converted.state_dict()) == keys
    assert not any(isinstance(module, nn.BatchNorm2d) for module in converted.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"branch_frames": (2, 4, 9)}, "branch_frames must be from 1 to num_frames = 8"),
        ({"branch_frames": (6, 4, 2)}, "branch_frames must be in ascending order"),
        ({"branch_frames": ()}, "branch_frames must be at least one number"),
        ({"num_frames": 0}, "num_frames must be at least 1, not 0"),
        ({"num_classes": -1}, "num_classes must be at least 0, not -1"),
        ({"num_blocks": 0}, "num_blocks must be at least 1, not 0"),
        ({"knn_ratio": 1.5}, "knn_ratio must be from 0 to 1, not 1.5"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, not 1.0"),
        ({"width": 18}, "width must be a multiple of 4, not 18"),
        ({"dim": 100}, "dim must be a multiple of 64, not 100"),
        ({"batch_norm_momentum": 0.0}, "batch_norm_momentum must be above 0 and at most 1"),
    ],
)
def test_an_impossible_option_is_named(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)


def call(model: nn.Module, **changes: Any) -> ModelOutput:
    clip, motion = videos(2)
    given = {"clip": clip, "motion": motion, "branch_indices": indices_of(EARLY, LATE)}
    return model(**{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip": torch.zeros(2, 3, 7, 32, 32)}, r"clip must be \(B, 3, 8, H, W\)"),
        ({"clip": torch.zeros(2, 3, 8, 32, 48)}, "must be multiples of 32 for motion attention"),
        ({"motion": torch.zeros(2, 8, 32, 32)}, r"motion must be \(2, 1, 8, 32, 32\)"),
        ({"branch_indices": indices_of(EARLY)}, r"must be \[\(2, 2\), \(2, 4\), \(2, 6\)\]"),
        ({"branch_indices": indices_of(EARLY, LATE)[:2]}, "branch_indices must be"),
    ],
)
def test_a_shape_that_does_not_fit_is_named(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(small(), **changes)
