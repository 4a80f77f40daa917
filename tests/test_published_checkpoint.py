"""engine/published_checkpoint.py: nothing of a published checkpoint is lost or misplaced."""

import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.published import (
    KEYS,
    SMALL,
    differences,
    is_parameter,
    published_file,
    small_network,
    with_copies,
)

from engine.published_checkpoint import is_published, to_ours, to_published
from models import build_model
from models.upstream import published_names
from models.upstream import to_published as published_state


@pytest.mark.parametrize("copies", [False, True])
def test_each_momentum_stays_with_its_parameter(copies):
    """At full size, from the published key list alone: weight and momentum number i hold i."""
    shapes = {name: shape for name, shape, _, _ in KEYS}
    shapes = with_copies(shapes) if copies else shapes
    state = OrderedDict((name, torch.zeros(()).expand(shape)) for name, shape in shapes.items())
    parameters = [name for name in shapes if is_parameter(name)]
    momenta = {}
    for i, name in enumerate(parameters):
        state[name] = torch.tensor(float(i)).expand(shapes[name])
        momenta[i] = {"momentum_buffer": state[name]}
    optimizer = {"state": momenta, "param_groups": [{"lr": 0.1, "params": list(momenta)}]}
    ours = to_ours({"model": state, "optimizer": optimizer, "epoch": 1, "bestacc": 0.0})

    with torch.device("meta"):
        network = build_model("decoupled", num_classes=60)
    names = [name for name, _ in network.named_parameters()]
    assert ours["optimizer"]["param_groups"][0]["params"] == list(range(len(names)))
    assert list(ours["optimizer"]["state"]) == list(range(len(names)))
    for i, name in enumerate(names):
        weight = ours["model"][name]
        momentum = ours["optimizer"]["state"][i]["momentum_buffer"]
        assert weight.shape == momentum.shape == network.get_parameter(name).shape
        assert weight.flatten()[0] == momentum.flatten()[0], name
    assert len(ours["published"]["unused"]) == len(shapes) - len(KEYS)


def test_weights_get_the_names_of_the_table():
    content = published_file(wrapper="module.")
    ours = to_ours(content)["model"]
    names = published_names(small_network())
    assert list(ours) == list(small_network().state_dict())
    for key, published in names.items():
        assert ours[key] is content["model"][f"module.{published}"]


def test_the_options_of_the_network_are_read_off_the_shapes():
    config = to_ours(published_file(recoupling=False, motion_attention=False))["config"]
    assert config == {
        "data": {"num_classes": 5, "branch_frames": (2, 4, 6)},
        "model": {"name": "decoupled", "num_blocks": 3, "recoupling": False,
                  "motion_attention": False, "width": 8, "dim": 64},
    }  # fmt: skip
    assert to_ours(published_file())["config"]["data"]["num_frames"] == 8


def test_epoch_and_accuracy_become_the_progress():
    ours = to_ours(published_file())
    assert ours["progress"] == {"epoch": 37, "best_top1": pytest.approx(0.8958)}
    assert type(ours["progress"]["best_top1"]) is float
    assert type(ours["optimizer"]["param_groups"][0]["lr"]) is float


@settings(max_examples=25)
@given(
    wrapper=st.sampled_from(["", "module."]),
    copies=st.booleans(),
    optimizer=st.sampled_from([True, False, None]),
    number=st.sampled_from([float, np.float64, np.float32]),
    extra=st.dictionaries(
        st.sampled_from(["arch", "scheduler", "args"]),
        st.recursive(
            st.integers() | st.floats() | st.text(max_size=3) | st.none(),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
            max_leaves=5,
        ),
    ),
    options=st.sampled_from(
        [{}, {"recoupling": False}, {"motion_attention": False}, {"num_blocks": 1}]
    ),
)
def test_there_and_back_is_the_original(wrapper, copies, optimizer, number, extra, options):
    content = published_file(
        1, wrapper=wrapper, copies=copies, optimizer=bool(optimizer), number=number, extra=extra,
        **options,
    )  # fmt: skip
    if optimizer is None:
        content["optimizer"] = None
    content["model"][f"{wrapper}LinearMap.1.bias"][0] = math.nan
    assert is_published(content)
    assert list(differences(to_published(to_ours(content)), content)) == []


def test_a_checkpoint_of_our_own_run_becomes_a_published_one():
    network = small_network()
    parameters = list(network.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    for i, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, float(i))
    optimizer.step()
    state = {
        "config": {
            "data": {key: SMALL[key] for key in ("num_classes", "num_frames", "branch_frames")},
            "model": {"name": "decoupled", "num_blocks": 3, "width": 8, "dim": 64},
        },
        "progress": {"epoch": 4, "step": 99, "best_top1": 0.75, "best_epoch": 2},
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    published = to_published(state)
    assert list(published) == ["model", "optimizer", "epoch", "bestacc"]
    assert (published["epoch"], published["bestacc"]) == (4, 0.75)
    assert list(differences(published["model"], published_state(network))) == []
    # momentum i of the published file is the gradient of published parameter i
    places = {id(parameter): i for i, parameter in enumerate(parameters)}
    ours = {published: key for key, published in published_names(network).items()}
    in_order = [ours[name] for name in published["model"] if is_parameter(name)]
    for i, key in enumerate(in_order):
        momentum = published["optimizer"]["state"][i]["momentum_buffer"]
        assert (momentum == places[id(network.get_parameter(key))]).all()
    again = to_ours(published)
    assert list(differences(again["optimizer"], state["optimizer"])) == []
    assert all(torch.equal(again["model"][key], t) for key, t in state["model"].items())


def broken(change) -> dict:
    content = published_file()
    change(content)
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model"].pop("LinearMap.1.bias"), r"'LinearMap.1.bias' is missing"),
        (
            lambda c: c["model"].update({"crossFusion.0.weight": torch.zeros(1)}),
            r"'crossFusion.0.weight' is not known",
        ),
        (
            lambda c: c["model"].update({"dtn.cls_token_small": torch.zeros(1, 1, 3)}),
            r"'dtn.cls_token_small' is \(1, 1, 3\) instead of \(1, 1, 64\)",
        ),
        (lambda c: c["model"].clear(), r"no such entry as 'dtn.mlp_head_small.1.weight'"),
        (lambda c: c["model"].move_to_end("LinearMap.0.weight"), r"in another order"),
        (
            lambda c: c["optimizer"]["param_groups"][0]["params"].pop(),
            r"optimizer of 1 groups with \d+ parameters in all",
        ),
        (lambda c: c["optimizer"]["param_groups"].append({"params": []}), r"of 2 groups"),
    ],
)
def test_another_network_or_optimizer_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        to_ours(broken(change))


def test_copies_are_unused_in_later_blocks_only():
    content = published_file()
    stage = "dtn.multi_scale_transformers"
    content["model"][f"{stage}.0.Mixed_huge.b0.bn.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"Mixed_huge.b0.bn.weight' is not known"):
        to_ours(content)
