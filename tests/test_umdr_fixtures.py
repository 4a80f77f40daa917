"""UMDR reproduces numbers recorded from the published network, forward and backward."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.straightforward_umdr import StraightforwardUmdrNetwork
from engine.batch_norm import GlobalBatchNorm
from engine.losses import LossConfig, training_loss
from fixture_rules import (
    Choices,
    assert_digest,
    assert_gradients,
    compute_once,
    filled,
    published_gradients,
    random_video,
    record,
)
from models import ModelOutput, build_model, temporal
from models.temporal import segment_middles
from models.upstream import load_published, published_names, to_published

FLOATS = [torch.float32, torch.float64]
SIZE, BATCH = 96, 2
STAGES = {
    "stem": ("spatial.inception3b", "in", 0),
    "SMS_layers.0": ("spatial.recouplings.0", "in", 0),
    "SMS_layers.1": ("spatial.recouplings.0", "out", 0),
    "SMS_layers.2": ("spatial.recouplings.1", "in", 0),
    "SMS_layers.3": ("spatial.recouplings.1", "out", 0),
    "SMS_layers.4": ("spatial.inception5c", "out", None),
    "SMS_layers.5": ("spatial.recouplings.2", "in", 0),
    "SMS_layers.6": ("spatial.recouplings.2", "out", 0),
}


Build = Callable[[int, int, torch.dtype], nn.Module]


def temperature(epoch: int) -> float:
    return float(np.linspace(0.04, 0.07, 30)[epoch])


@pytest.fixture(scope="module")
def network() -> Build:
    """Builds UMDR of so many classes and frames with the weights of the filling rule."""
    weights: dict[tuple[int, int], dict[str, Tensor]] = {}

    def build(num_classes: int, num_frames: int, dtype: torch.dtype) -> nn.Module:
        model = build_model("umdr", num_classes=num_classes, num_frames=num_frames, dropout=0.0)
        shape = num_classes, num_frames
        if shape not in weights:
            weights[shape] = {name: filled(name, e) for name, e in to_published(model).items()}
        load_published(model, weights[shape])
        return model.to(dtype)

    return build


def video(num_frames: int, dtype: torch.dtype) -> Tensor:
    return random_video(405, (BATCH, 3, num_frames, SIZE, SIZE)).to(dtype)


def recoupling(output: ModelOutput, softness: float = 0.6) -> Tensor:
    """As released: a cross-entropy whose gradient also reaches the teachers."""
    losses = [
        -((pair.teacher / softness).softmax(1) * (pair.student / softness).log_softmax(1))
        .sum(1)
        .mean()
        for pair in output.recoupled
    ]
    return torch.stack(losses).mean()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name, epoch", [("umdr_ntu60_T32", 0), ("umdr_nv25_T16", 20)])
def test_evaluation_gives_the_recorded_stages_logits_students_and_losses(
    network, name, epoch, dtype, device
) -> None:
    expected = record(name)
    frames, classes = expected["T"], expected["args"].get("num_classes", 60)
    model = network(classes, frames, dtype).to(device).eval()
    assert [b.inception.kernel for b in model.branches] == expected["temporal_kernels"]
    for branch, indices in zip(model.branches, expected["branch_index"], strict=True):
        assert branch.evaluation_indices[0].tolist() == indices
    stages = watch_stages(model, frames)
    compute_once(model.spatial)
    with torch.no_grad():
        clip = video(frames, dtype).to(device)
        output = model(clip, temperature=temperature(epoch))

    tolerance = 1e-8 if dtype == torch.float64 else 5e-4
    names = ("logits", "xs", "xm", "xl")
    found = dict(zip(names, (output.logits, *output.branch_logits), strict=True))
    found |= {f"temp_out{i}": pair.student for i, pair in enumerate(output.recoupled)}
    for key, tensor in found.items():
        assert_digest(tensor, expected["fp64"][key], tolerance, key)
    rough = max(tolerance, 1e-6)  # accumulated in float32 even in the record of float64
    loss = recoupling(output, expected["args"].get("temper", 0.6)).item()
    assert loss == pytest.approx(expected["fp64"]["rcm_loss"], rel=rough)
    assert stages.keys() == expected["stages"].keys()
    for stage, digest in expected["stages"].items():
        assert_digest(stages[stage], digest, 5e-4, stage)
    if frames == 32:
        expected = record("umdr_grad_eval_fp32")  # soft labels, another temperature
        with torch.no_grad():
            classification, rcm = losses(model, expected, dtype)
        assert classification.item() == pytest.approx(expected["CE"], rel=5e-4)
        assert rcm.item() == pytest.approx(expected["rcm"], rel=5e-4)


def watch_stages(model: nn.Module, frames: int) -> dict[str, Tensor]:
    """A dict that the next forward pass fills: published stage -> tensor in published layout."""
    stages: dict[str, Tensor] = {}

    def keep(stage: str, module: str, side: str, place: int | None) -> None:
        def hook(_module: nn.Module, inputs: Any, output: Any) -> None:
            value = inputs if side == "in" else output
            value = value if place is None else value[place]
            stages[stage] = value.unflatten(0, (BATCH, frames)).transpose(1, 2)

        model.get_submodule(module).register_forward_hook(hook)

    for stage, where in STAGES.items():
        keep(stage, *where)
    model.spatial.register_forward_hook(lambda _m, _i, out: stages.update(LinearMap=out[0]))
    return stages


SENSITIVE = {
    "stem.3.bn.weight": 3e-3,
    "SMS_layers.1.q.weight": 1e-2,
    "SMS_layers.1.TM_project.0.weight": 1e-2,
}
"""Gradients that float32 misses by more than the fixtures allow: by up to 1.2e-3, 7.4e-3 and 5.6e-3
with one and with two threads, which round differently. So does the network as it is written down,
by 1.3e-3, 5.0e-3 and 3.9e-3: the test below."""


@pytest.mark.slow
def test_a_training_step_has_the_recorded_losses_and_gradients(
    network, monkeypatch, device
) -> None:
    exact, noisy = record("umdr_grad_train_fp64"), record("umdr_grad_train_fp32")
    choices = Choices()
    monkeypatch.setattr(temporal, "top_softmax", choices.top_softmax)
    # The published loss was accumulated in float32 even in the record of float64.
    model = network(60, 32, torch.float64)
    check_training_step(model, exact, device, loss=1e-8, rough=1e-6)
    # In float32 some attention rows have a tie so near that another key gets in. With the choices
    # of float64 all else is held to the float32 tolerances.
    choices.replay()
    model = network(60, 32, torch.float32)
    check_training_step(model, exact, device, loss=1e-3, rough=1e-3, noisy=noisy)
    assert choices.differing < 100


@pytest.mark.slow
def test_plain_operations_miss_the_same_gradients_in_float32(network) -> None:
    """The bounds that `SENSITIVE` leaves are too narrow for any order of float32's sums."""
    exact, noisy = record("umdr_grad_train_fp64"), record("umdr_grad_train_fp32")
    whole = network(60, 32, torch.float32)
    names = published_names(whole)
    middles = [torch.tensor(segment_middles(32, f)).expand(BATCH, -1) for f in (16, 32, 48)]

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = StraightforwardUmdrNetwork(60, dropout=0.0)
            self.network.load_state_dict(whole.state_dict())

        def forward(self, clip: Tensor, temperature: float) -> ModelOutput:
            return self.network(clip.contiguous(), None, middles, temperature)

    off: dict[torch.dtype, dict[str, float]] = {}
    for dtype in FLOATS:
        model = Plain().to(dtype).train()
        classification, rcm = losses(model, exact, dtype)
        (classification + exact["distill_lamdb"] * rcm).backward()
        found = {names[key]: p.grad for key, p in model.network.named_parameters()}
        norms = exact["grad_norm"].items()
        off[dtype] = {name: abs(found[name].norm().item() / norm - 1) for name, norm in norms}
    assert max(off[torch.float64].values()) < 1e-6
    beyond = {
        name for name, norm in exact["grad_norm"].items()
        if off[torch.float32][name] > max(1e-3, 3 * abs(noisy["grad_norm"][name] / norm - 1))
    }  # fmt: skip
    assert beyond and beyond <= SENSITIVE.keys()


def check_training_step(
    model: nn.Module, exact: dict[str, Any], device: torch.device, *, loss: float, rough: float,
    noisy: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    expected = noisy or exact
    # On the CPU torch's own sums over channels-last float32 numbers are off by up to 4e-4.
    dtype = next(model.parameters()).dtype
    model = model.to(device)
    if device.type == "cpu":
        model = GlobalBatchNorm.convert(model)
    model.train()
    classification, rcm = losses(model, expected, dtype)
    (classification + expected["distill_lamdb"] * rcm).backward()
    assert classification.item() == pytest.approx(expected["CE"], rel=loss)
    assert rcm.item() == pytest.approx(expected["rcm"], rel=rough)
    assert_gradients(published_gradients(model), exact, noisy, exact=1e-6, sensitive=SENSITIVE)


def losses(model: nn.Module, expected: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The program's own, before the recoupling loss's weight: classification, recoupling."""
    epoch = expected["args"].get("epoch", 0)
    clip = video(32, dtype).to(next(model.parameters()).device)
    output = model(clip, temperature=temperature(epoch))
    hot = F.one_hot(torch.tensor(expected["target"], device=clip.device), 60).to(dtype)
    share = expected["mixup_lam"]
    label = share * hot + (1 - share) * hot.flip(0)
    config = LossConfig(
        label_smoothing=expected["smoothing"], recoupling_weight=1.0, recoupling_scale=1 / 3,
        recoupling_temperature=0.6, recoupling_delay=0, teacher_gradient=True,
    )  # fmt: skip
    total, _ = training_loss(output, (label,), config, epoch)
    classification, _ = training_loss(replace(output, recoupled=()), (label,), config, epoch)
    return classification, total - classification
