"""UMDR reproduces numbers recorded from the published network, forward and backward."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fixture_rules import (
    assert_digest,
    assert_gradients,
    filled,
    published_gradients,
    random_video,
    record,
)
from torch import Tensor, nn

from models import ModelOutput, build_model
from models.upstream import load_published, to_published

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


def temperature(epoch: int) -> float:
    return float(np.linspace(0.04, 0.07, 30)[epoch])


def network(num_classes: int, num_frames: int, dtype: torch.dtype) -> nn.Module:
    """With the weights of the filling rule."""
    model = build_model("umdr", num_classes=num_classes, num_frames=num_frames, dropout=0.0)
    entries = {name: filled(name, entry) for name, entry in to_published(model).items()}
    load_published(model, entries)
    return model.to(dtype)


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
def test_evaluation_gives_the_recorded_stages_logits_and_students(name, epoch, dtype) -> None:
    expected = record(name)
    frames, classes = expected["T"], expected["args"].get("num_classes", 60)
    model = network(classes, frames, dtype).eval()
    assert [b.inception.kernel for b in model.branches] == expected["temporal_kernels"]
    for branch, indices in zip(model.branches, expected["branch_index"], strict=True):
        assert branch.evaluation_indices[0].tolist() == indices
    stages = watch_stages(model, frames)
    with torch.no_grad():
        output = model(video(frames, dtype), temperature=temperature(epoch))

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


@pytest.mark.slow
@pytest.mark.parametrize("mode, dtype", [
    ("eval", torch.float32), ("train", torch.float32), ("train", torch.float64),
])  # fmt: skip
def test_losses_and_gradients_with_soft_labels_are_the_recorded_ones(mode, dtype) -> None:
    precise = dtype == torch.float64
    expected = record(f"umdr_grad_{mode}_{'fp64' if precise else 'fp32'}")
    model = network(60, 32, dtype).train(mode == "train")
    epoch = expected["args"].get("epoch", 0)
    output = model(video(32, dtype), temperature=temperature(epoch))

    smooth = torch.full((BATCH, 60), expected["smoothing"] / 60, dtype=dtype)
    smooth[range(BATCH), expected["target"]] += 1 - expected["smoothing"]
    weight = expected["mixup_lam"]
    label = weight * smooth + (1 - weight) * smooth.flip(0)
    heads = zip((1, 0.5, 0.5, 0.5), (output.logits, *output.branch_logits), strict=True)
    classification = sum(share * F.cross_entropy(logits, label) for share, logits in heads)
    rcm = recoupling(output)
    (classification + expected["distill_lamdb"] * rcm).backward()

    tolerance = 1e-8 if precise else {"eval": 5e-4, "train": 1e-3}[mode]
    assert classification.item() == pytest.approx(expected["CE"], rel=tolerance)
    assert rcm.item() == pytest.approx(expected["rcm"], rel=max(tolerance, 1e-6))
    if mode == "train":
        exact = record("umdr_grad_train_fp64")
        assert_gradients(published_gradients(model), exact, None if precise else expected)
