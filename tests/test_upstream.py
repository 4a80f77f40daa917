import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import build_model
from models.upstream import load_published, published_names, published_parameters, to_published

KEYS = json.loads((Path(__file__).parent / "data" / "decoupled_keys.json").read_text())
SMALL = {
    "num_classes": 5,
    "num_frames": 8,
    "branch_frames": (2, 4, 6),
    "num_blocks": 2,
    "width": 8,
    "dim": 64,
}


def small(**options: Any) -> nn.Module:
    return build_model("decoupled", **{**SMALL, **options})


def checkpoint(**options: Any) -> dict[str, Tensor]:
    """Published state dict of a small network with random weights."""
    return {name: tensor.clone() for name, tensor in to_published(small(**options)).items()}


@pytest.fixture(scope="module")
def full() -> nn.Module:
    with torch.device("meta"):
        return build_model("decoupled", num_classes=60)


def test_names_shapes_dtypes_and_order_are_the_published_ones(full) -> None:
    found = [
        [name, list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
        for name, tensor in to_published(full).items()
    ]
    assert found == [entry[:3] for entry in KEYS]


def test_parameters_and_buffers_are_the_published_ones_in_the_order_of_the_optimizer(full) -> None:
    names = published_names(full)
    in_order = [names[key] for key in published_parameters(full)]
    assert in_order == [name for name, _, _, kind in KEYS if kind == "param"]
    buffers = [names[key] for key, _ in full.named_buffers() if key in names]
    assert sorted(buffers) == sorted(name for name, _, _, kind in KEYS if kind == "buffer")


@pytest.mark.parametrize(
    "options",
    [{}, {"recoupling": False}, {"motion_attention": False}, {"num_blocks": 1}],
)
def test_what_is_saved_loads_into_a_fresh_model(options) -> None:
    state = checkpoint(**options)
    model = small(**options)
    assert load_published(model, state) == []
    loaded = to_published(model)
    assert list(loaded) == list(state)
    assert all(torch.equal(loaded[name], state[name]) for name in state)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state, "epoch": 7},
        lambda state: {"state_dict": state},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
    ],
)
def test_wrappers_around_a_published_state_dict_are_taken_off(wrap) -> None:
    state = checkpoint()
    model = small()
    load_published(model, wrap(state))
    assert torch.equal(model.heads[0].linear.weight, state["dtn.mlp_head_small.1.weight"])


def test_a_prefix_selects_one_network_of_a_fusion_checkpoint() -> None:
    rgb, depth = small(), small()
    state = {**to_published(rgb, "Modalit_rgb."), **to_published(depth, "Modalit_depth.")}
    model = small()
    load_published(model, state, prefix="Modalit_depth.")
    own, expected = model.state_dict(), depth.state_dict()
    assert all(torch.equal(own[key], expected[key]) for key in expected)


def test_a_new_classifier_leaves_the_heads_as_initialised_and_names_them() -> None:
    state = checkpoint(num_classes=9)
    model = small()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    left = load_published(model, state, new_classifier=True)
    assert left == [
        f"heads.{i}.{layer}.{leaf}"
        for i in range(3)
        for layer in ("norm", "linear")
        for leaf in ("weight", "bias")
    ]
    after = model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in left)
    weight = state["Conv3d_1a_7x7.conv3d.weight"]
    assert torch.equal(after["spatial.conv1.conv.weight"], weight)


def test_a_new_classifier_needs_no_published_heads() -> None:
    state = {name: tensor for name, tensor in checkpoint().items() if "mlp_head" not in name}
    assert len(load_published(small(), state, new_classifier=True)) == 12


def test_an_unknown_name_says_which_row_to_add() -> None:
    state = checkpoint()
    state["dtn.extra.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"'dtn.extra.weight' .* add a row for 'dtn.extra'"):
        load_published(small(), state)


def test_a_name_of_ours_without_a_row_says_so() -> None:
    model = small()
    model.spatial.extra = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"no row for our 'spatial.extra.weight'"):
        to_published(model)


def test_a_missing_entry_is_named() -> None:
    state = checkpoint()
    del state["LinearMap.1.bias"]
    with pytest.raises(ValueError, match=r"lacks 1 of .* 'LinearMap.1.bias'"):
        load_published(small(), state)


def test_other_classes_need_a_new_classifier() -> None:
    with pytest.raises(ValueError, match=r"'dtn.mlp_head_small.1.weight' .* new_classifier=True"):
        load_published(small(), checkpoint(num_classes=9))


def test_other_options_of_the_network_are_told_from_missing_rows() -> None:
    with pytest.raises(ValueError, match=r"'dtn.rcm.q.weight' .* build the model with"):
        load_published(small(recoupling=False), checkpoint())


def test_a_failed_load_changes_nothing() -> None:
    model = small()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(ValueError):
        load_published(model, checkpoint(num_classes=9))
    after = model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_only_networks_of_three_branches_were_published() -> None:
    with pytest.raises(ValueError, match="have 3 branches, this one 2"):
        to_published(small(branch_frames=(2, 4)))
    with pytest.raises(ValueError, match="no published layout is known for Linear"):
        to_published(nn.Linear(1, 1))
