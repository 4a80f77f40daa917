"""UMDR's published checkpoints: weights and the optimizer's two groups, there and back."""

from collections import OrderedDict
from typing import Any

import pytest
import torch

from engine.optim import OptimConfig, build_optimizer, resume_optimizer
from engine.published_checkpoint import to_ours, to_published
from models import build_model
from models.upstream import published_parameters
from models.upstream import to_published as published_state
from tests.published import differences

SMALL = {"num_classes": 5, "num_frames": 8, "num_blocks": 3, "width": 8, "dim": 64}


def content() -> dict[str, Any]:
    """As a trainer with timm's optimizer leaves it: first what does not decay, then the rest."""
    torch.manual_seed(0)
    model = build_model("umdr", **SMALL)
    parameters = dict(model.named_parameters())
    ordered = [parameters[key] for key in published_parameters(model)]
    groups = [[p for p in ordered if p.dim() <= 1], [p for p in ordered if p.dim() > 1]]
    optimizer = torch.optim.SGD(
        [{"params": groups[0], "weight_decay": 0.0}, {"params": groups[1], "weight_decay": 5e-4}],
        lr=0.01, momentum=0.9, nesterov=True,
    )  # fmt: skip
    for parameter in ordered:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return {
        "model": OrderedDict(published_state(model)), "optimizer": optimizer.state_dict(),
        "epoch": 7, "bestacc": 0.5,
    }  # fmt: skip


def test_there_and_back_is_the_original() -> None:
    published = content()
    assert list(differences(to_published(to_ours(published)), published)) == []


def test_each_momentum_goes_on_with_its_parameter() -> None:
    published = content()
    ours = to_ours(published)
    assert ours["config"]["model"]["name"] == "umdr"
    model = build_model("umdr", **SMALL)
    model.load_state_dict(ours["model"])
    optimizer = build_optimizer(model, OptimConfig(decay_norms=False, nesterov=True))
    resume_optimizer(optimizer, ours["optimizer"])
    # In the first step the momentum is the gradient, and with Nesterov w has moved by 1.9 of it.
    torch.manual_seed(0)
    before = dict(build_model("umdr", **SMALL).named_parameters())
    for key, parameter in model.named_parameters():
        momentum = optimizer.state[parameter]["momentum_buffer"]
        assert momentum.shape == parameter.shape
        moved = (before[key] - parameter) / 0.019
        torch.testing.assert_close(moved, momentum, rtol=1e-3, atol=1e-3)


def test_a_run_of_ours_becomes_a_published_file_with_two_groups() -> None:
    ours = to_ours(content())
    del ours["published"]
    back = to_published(ours)
    spared, decayed = back["optimizer"]["param_groups"]
    assert (spared["weight_decay"], decayed["weight_decay"]) == (0.0, 5e-4)
    assert spared["params"] + decayed["params"] == list(range(len(back["optimizer"]["state"])))
    for number, entry in back["optimizer"]["state"].items():
        expected = content()["optimizer"]["state"][number]["momentum_buffer"]
        assert torch.equal(entry["momentum_buffer"], expected)


def test_other_groups_are_refused() -> None:
    published = content()
    published["optimizer"]["param_groups"][0]["weight_decay"] = 5e-4
    with pytest.raises(ValueError, match="of 2 groups"):
        to_ours(published)
