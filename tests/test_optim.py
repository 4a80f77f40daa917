"""engine/optim.py: the published learning-rate and temperature curves, to the digit."""

import copy
import math
import sys
import types

import pytest
import torch
from torch import nn

from engine import optim
from engine.optim import (
    LearningRate,
    OptimConfig,
    build_optimizer,
    resume_optimizer,
    scheduled_lr,
    temperature_at,
)


def test_warm_up_is_linspace_and_reaches_the_full_rate():
    config = OptimConfig(lr=0.01)
    curve = [scheduled_lr(config, epoch, 100) for epoch in range(3)]
    assert curve == pytest.approx([1e-8, (1e-8 + 0.01) / 2, 0.01], rel=1e-12)


def test_cosine_after_the_warm_up_is_the_published_formula():
    config = OptimConfig(lr=0.01, min_lr=1e-5)
    for epoch in range(3, 100):
        expected = 1e-5 + (0.01 - 1e-5) * (1 + math.cos(math.pi * (epoch - 3) / 97)) / 2
        assert scheduled_lr(config, epoch, 100) == pytest.approx(expected, rel=1e-12)
    assert scheduled_lr(config, 3, 100) == 0.01


def test_timms_cosine_comes_one_epoch_late_as_in_umdrs_log():
    config = OptimConfig(lr=0.01, min_lr=1e-5, warmup=5, schedule="timm_cosine")
    curve = [scheduled_lr(config, epoch, 100) for epoch in range(100)]
    assert f"{curve[99]:.5e}" == "1.98565e-05"  # as its author's log has it for epoch 100 of 100
    rise = (0.01 - 1e-6) / 5
    assert curve[:6] == pytest.approx([1e-6, *(1e-6 + rise * t for t in range(5))], rel=1e-12)
    expected = 1e-5 + (0.01 - 1e-5) * (1 + math.cos(math.pi * 5 / 100)) / 2
    assert curve[6] == pytest.approx(expected, rel=1e-12)


def test_timms_steps_are_a_tenth_every_ten_epochs_one_epoch_late():
    config = OptimConfig(lr=0.01, warmup=5, schedule="timm_step")
    curve = [scheduled_lr(config, epoch, 100) for epoch in range(32)]
    assert curve[6:11] == [0.01] * 5
    assert curve[11:21] == pytest.approx([1e-3] * 10, rel=1e-12)
    assert curve[31] == pytest.approx(1e-5, rel=1e-12)


def test_umdrs_sgd_looks_ahead_and_spares_norms_and_biases():
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    frozen = nn.Linear(2, 2).requires_grad_(False)
    model.append(frozen)
    config = OptimConfig(weight_decay=5e-4, decay_norms=False, nesterov=True)
    spared, decayed = build_optimizer(model, config).param_groups
    assert (spared["weight_decay"], decayed["weight_decay"]) == (0.0, 5e-4)
    assert spared["nesterov"] and decayed["nesterov"]
    assert [p.shape for p in decayed["params"]] == [(2, 3)]
    assert len(spared["params"]) == 3


def test_temperature_is_linear_over_thirty_epochs_then_constant():
    assert temperature_at(0, 0.04, 0.07, 30) == 0.04
    assert temperature_at(10, 0.04, 0.07, 30) == pytest.approx(0.04 + 0.03 * 10 / 29, rel=1e-12)
    assert temperature_at(29, 0.04, 0.07, 30) == pytest.approx(0.07, rel=1e-12)
    assert temperature_at(99, 0.04, 0.07, 30) == pytest.approx(0.07, rel=1e-12)
    assert temperature_at(5, 1.0, 1.0, 1) == 1.0


def test_schedule_by_step_counts_steps():
    config = OptimConfig(lr=1.0, min_lr=0.0, warmup=5, schedule_by="step")
    rate = LearningRate(build_optimizer(nn.Linear(2, 2), config), config)
    assert rate.set(epoch=0, epochs=2, step=4, steps=25) == 1.0
    assert rate.set(epoch=1, epochs=2, step=15, steps=25) == pytest.approx(0.5)


def plateau_curve(top1: list[float], state_after: int | None = None) -> list[float]:
    """Rates of the epochs; saved and restored into fresh objects after `state_after` of them."""
    config = OptimConfig(lr=0.1, schedule="plateau", patience=1, cooldown=0, warmup=2)
    optimizer = build_optimizer(nn.Linear(2, 2), config)
    rate, curve = LearningRate(optimizer, config), []
    for epoch, value in enumerate(top1):
        curve.append(rate.set(epoch, len(top1), step=epoch, steps=len(top1)))
        rate.end_epoch(epoch, value)
        if epoch == state_after:
            states = rate.state_dict(), optimizer.state_dict()
            optimizer = build_optimizer(nn.Linear(2, 2), config)
            rate = LearningRate(optimizer, config)
            rate.load_state_dict(states[0])
            optimizer.load_state_dict(states[1])
    return curve


def test_plateau_divides_the_rate_by_ten_after_patience_and_survives_a_restart():
    top1 = [0.9, 0.9, 0.2, 0.3, 0.3, 0.3, 0.3, 0.3]
    expected = [1e-8, 0.1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01]
    assert plateau_curve(top1) == pytest.approx(expected)
    for epoch in range(len(top1)):
        assert plateau_curve(top1, state_after=epoch) == pytest.approx(expected), epoch


def test_plateau_stops_falling_at_the_smallest_rate():
    """As published: 1e-5."""
    curve = plateau_curve([0.9] * 20)
    assert curve[2] == pytest.approx(0.1) and curve[-1] == pytest.approx(1e-5)


def test_sgd_decays_every_parameter_and_keeps_momentum():
    layer = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    optimizer = build_optimizer(layer, OptimConfig(lr=0.5, momentum=0.9, weight_decay=0.1))
    for _ in range(2):
        layer.weight.grad = torch.full((1, 3), 2.0)
        optimizer.step()
    # v1 = 2 + .1 * 1 = 2.1, w1 = 1 - 1.05; v2 = .9 * 2.1 + 2 + .1 * w1, w2 = w1 - .5 * v2
    first = 1 - 0.5 * 2.1
    second = first - 0.5 * (0.9 * 2.1 + 2 + 0.1 * first)
    assert layer.weight.tolist() == [pytest.approx([second] * 3, rel=1e-6)]


def test_adamw_is_there_for_small_networks():
    optimizer = build_optimizer(nn.Linear(2, 2), OptimConfig(name="adamw", lr=0.003))
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults["lr"] == 0.003


class ApexSGD(torch.optim.SGD):
    """In place of Apex's, which needs a GPU: its groups know nothing of torch's kernels."""

    def __init__(self, params, lr, momentum, weight_decay):
        super().__init__(params, lr, momentum, weight_decay=weight_decay)
        for group in self.param_groups:
            for key in ("fused", "foreach", "maximize", "differentiable"):
                del group[key]

    def step(self):
        for group in self.param_groups:
            group.update(fused=None, foreach=None, maximize=False, differentiable=False)
        super().step()


@pytest.fixture
def apex(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apex, installed."""
    modules = {name: types.ModuleType(name) for name in ("apex", "apex.optimizers")}
    modules["apex.optimizers"].FusedSGD = ApexSGD
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize(
    ("fused", "device", "expected"),
    [("auto", "cuda", True), ("auto", "cpu", False), ("torch", "cuda", False),
     ("apex", "cuda", True)],
)  # fmt: skip
def test_apex_is_used_on_gpus_where_it_is_installed(apex, fused, device, expected):
    found = optim._apex_sgd(OptimConfig(fused=fused), torch.device(device))
    assert (found is ApexSGD) == expected


@pytest.mark.parametrize(
    ("device", "message"),
    [("cpu", "optim.fused is apex, which is for GPUs; set optim.fused=torch"),
     ("cuda", "optim.fused is apex, but NVIDIA Apex cannot be imported .*; install it from")],
)  # fmt: skip
def test_apex_that_cannot_be_used_is_refused_only_where_asked_for(monkeypatch, device, message):
    monkeypatch.setitem(sys.modules, "apex", None)  # as if not installed
    with pytest.raises(ValueError, match=message):
        optim._apex_sgd(OptimConfig(fused="apex"), torch.device(device))
    assert optim._apex_sgd(OptimConfig(), torch.device(device)) is None


def one_step(optimizer: torch.optim.Optimizer, layer: nn.Linear) -> None:
    layer.weight.grad = torch.full_like(layer.weight, 2.0)
    optimizer.step()


@pytest.mark.parametrize("first", ["apex", "torch"])
def test_a_run_goes_on_with_the_kernels_of_the_machine_it_is_on(first):
    """Same momentum; the state's own groups know other kernels or none."""
    layers = [nn.Linear(3, 1, bias=False) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    config = OptimConfig(lr=0.5)
    torchs = build_optimizer(layers[0], config)
    other = ApexSGD(layers[1].parameters(), 0.5, 0.9, 3e-4)
    before, after = (other, torchs) if first == "apex" else (torchs, other)
    layer, going_on = (layers[1], layers[0]) if first == "apex" else (layers[0], layers[1])
    one_step(before, layer)
    going_on.load_state_dict(layer.state_dict())
    resume_optimizer(after, copy.deepcopy(before.state_dict()))
    if first == "apex":
        assert after.param_groups[0]["fused"] is True
    one_step(before, layer)
    one_step(after, going_on)
    torch.testing.assert_close(going_on.weight, layer.weight)
