"""engine/losses.py against the formulas of CVPR'22, section on unimodal training."""

import numpy as np
import pytest
import torch

from engine.losses import LossConfig, recoupling_loss, training_loss
from models.output import FusionOutput, ModelOutput, Recoupled


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def smoothed_cross_entropy(logits: np.ndarray, label: np.ndarray, smoothing: float) -> float:
    classes = logits.shape[1]
    target = np.full(logits.shape, smoothing / classes)
    target[np.arange(len(label)), label] += 1 - smoothing
    return float(-(target * np.log(softmax(logits))).sum(1).mean())


@pytest.fixture
def output() -> tuple[ModelOutput, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = [torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(4)]
    student, teacher = (
        torch.randn(4, 9, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    pair = Recoupled(student, teacher)
    return ModelOutput(logits[0], tuple(logits[1:]), (pair,)), torch.tensor([0, 5, 2, 2])


def kl(output: ModelOutput, temperature: float) -> float:
    total = 0.0
    for student, teacher in output.recoupled:
        p, q = (softmax(x.numpy() / temperature) for x in (teacher, student))
        total += float((p * np.log(p / q)).sum(1).mean())
    return total


def test_the_loss_is_the_published_sum(output):
    record, label = output
    config = LossConfig(recoupling_scale=6.0, recoupling_temperature=0.4)
    total, parts = training_loss(record, label, config, epoch=2)
    merged = smoothed_cross_entropy(record.logits.numpy(), label.numpy(), 0.1)
    branches = sum(
        smoothed_cross_entropy(x.numpy(), label.numpy(), 0.1) for x in record.branch_logits
    )
    expected = merged + 0.5 * branches + 6.0 * kl(record, 0.4)
    assert total.item() == pytest.approx(expected, rel=1e-12)
    assert parts["merged"].item() == pytest.approx(merged, rel=1e-12)
    assert parts["branches"].item() == pytest.approx(branches, rel=1e-12)
    assert parts["recoupling"].item() == pytest.approx(kl(record, 0.4), rel=1e-12)


@pytest.mark.parametrize(("epoch", "counts"), [(0, False), (1, False), (2, True)])
def test_the_recoupling_loss_waits_two_epochs_but_keeps_its_parameters_in_the_graph(
    output, epoch, counts
):
    record, label = output
    student = record.recoupled[0].student.requires_grad_()
    total, _ = training_loss(record, label, LossConfig(), epoch)
    (gradient,) = torch.autograd.grad(total, student)
    assert bool(gradient.abs().sum() > 0) is counts


def test_the_recoupling_loss_is_a_mean_over_clips_so_batch_splits_do_not_change_it(output):
    record, _ = output
    student, teacher = record.recoupled[0]
    halves = [recoupling_loss(student[i : i + 2], teacher[i : i + 2], 0.5) for i in (0, 2)]
    whole = recoupling_loss(student, teacher, 0.5)
    assert (sum(halves) / 2).item() == pytest.approx(whole.item(), rel=1e-12)


def test_a_network_without_branches_or_recoupling_has_cross_entropy_only(output):
    record, label = output
    total, parts = training_loss(ModelOutput(record.logits), label, LossConfig(), epoch=9)
    assert total.item() == pytest.approx(
        smoothed_cross_entropy(record.logits.numpy(), label.numpy(), 0.1), rel=1e-12
    )
    assert list(parts) == ["merged"]


def test_sixteen_bit_outputs_are_compared_in_float32(output):
    record, label = output
    low = ModelOutput(*(x.bfloat16() for x in (record.logits,)))
    total, _ = training_loss(low, label, LossConfig(), epoch=0)
    assert total.dtype == torch.float32


@pytest.fixture
def fusion_output() -> tuple[FusionOutput, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    output = FusionOutput(
        logits=draw(4, 6),
        branch_logits=(draw(4, 6), draw(4, 6)),
        recoupled=(Recoupled(draw(4, 9), draw(4, 9)), Recoupled(draw(4, 9), draw(4, 9))),
        modality_tokens=(draw(4, 9), draw(4, 9)),
        decoded=draw(4, 9),
        modality_logits=(draw(4), draw(4)),
    )
    return output, torch.tensor([0, 5, 2, 2])


def test_the_fusion_loss_is_the_published_sum_of_eight_terms(fusion_output):
    output, label = fusion_output
    config = LossConfig(branch_weight=1.0, recoupling_delay=0, recoupling_scale=4.0)
    total, parts = training_loss(output, label, config, epoch=0)
    cross_entropies = [
        smoothed_cross_entropy(logits.numpy(), label.numpy(), 0.1)
        for logits in (output.logits, *output.branch_logits)
    ]
    decoded = output.decoded.numpy()
    squares = [((decoded - token.numpy()) ** 2).mean() for token in output.modality_tokens]
    rgb, depth = (1 / (1 + np.exp(-score.numpy())) for score in output.modality_logits)
    modality = -np.log(rgb).mean() - np.log(1 - depth).mean()
    assert parts["reconstruction"].item() == pytest.approx(sum(squares), rel=1e-12)
    assert parts["modality"].item() == pytest.approx(modality, rel=1e-12)
    expected = sum(cross_entropies) + 4.0 * kl(output, 0.5) + sum(squares) + modality
    assert total.item() == pytest.approx(expected, rel=1e-12)


def test_the_fusion_terms_have_their_weights(fusion_output):
    output, label = fusion_output
    plain, parts = training_loss(output, label, LossConfig(), epoch=0)
    config = LossConfig(reconstruction_weight=0.0, modality_weight=3.0)
    weighted, _ = training_loss(output, label, config, epoch=0)
    expected = plain - parts["reconstruction"] + 2 * parts["modality"]
    assert weighted.item() == pytest.approx(expected.item(), rel=1e-12)


def test_soft_labels_are_a_weighted_mean_of_the_losses(output):
    record, label = output
    hot = torch.nn.functional.one_hot(label, record.logits.shape[1]).double()
    soft = 0.7 * hot + 0.3 * hot.flip(0)
    mixed, _ = training_loss(record, (soft,), LossConfig(), epoch=0)
    losses = [training_loss(record, y, LossConfig(), epoch=0)[0] for y in (label, label.flip(0))]
    assert mixed.item() == pytest.approx((0.7 * losses[0] + 0.3 * losses[1]).item(), rel=1e-12)


def test_modalities_mixed_apart_learn_their_own_labels_and_what_both_make_the_mean(fusion_output):
    output, label = fusion_output
    hot = torch.nn.functional.one_hot(label, 6).double()
    rgb, depth = 0.7 * hot + 0.3 * hot.flip(0), 0.2 * hot + 0.8 * hot.flip(0)
    config = LossConfig(branch_weight=1.0)
    _, parts = training_loss(output, (rgb, depth), config, epoch=0)

    def loss(logits: torch.Tensor, soft: torch.Tensor) -> float:
        smooth = 0.9 * soft + 0.1 / 6
        return -(smooth * logits.log_softmax(1)).sum(1).mean().item()

    of_rgb, of_depth = output.branch_logits
    branches = loss(of_rgb, rgb) + loss(of_depth, depth)
    assert parts["branches"].item() == pytest.approx(branches, rel=1e-12)
    merged = loss(output.logits, (rgb + depth) / 2)
    assert parts["merged"].item() == pytest.approx(merged, rel=1e-12)


def test_the_merged_logits_can_be_left_out(output):
    record, label = output
    total, parts = training_loss(
        record, label, LossConfig(merged_weight=0.0, recoupling_delay=9), epoch=0
    )
    assert total.item() == pytest.approx(0.5 * parts["branches"].item(), rel=1e-12)


def test_the_recoupling_loss_leaves_its_teacher_alone_unless_asked():
    student, teacher = (torch.randn(3, 8, dtype=torch.float64, requires_grad=True) for _ in "st")
    recoupling_loss(student, teacher, 0.6).backward()
    detached, student.grad = student.grad, None
    assert teacher.grad is None
    recoupling_loss(student, teacher, 0.6, teacher_gradient=True).backward()
    torch.testing.assert_close(student.grad, detached)
    assert teacher.grad is not None and teacher.grad.abs().max() > 0
