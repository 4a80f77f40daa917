import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import build_model
from models.upstream import (
    is_unused,
    load_published,
    published_names,
    published_options,
    published_parameters,
    to_published,
)

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


def test_the_options_are_read_off_the_published_shapes() -> None:
    state = {name: torch.empty(shape, device="meta") for name, shape, _, _ in KEYS}
    assert published_options(state) == (
        "decoupled",
        {"num_classes": 60, "num_frames": 64, "branch_frames": (16, 32, 48), "num_blocks": 6,
         "recoupling": True, "motion_attention": True, "width": 64, "dim": 512},
    )  # fmt: skip


def test_the_options_of_a_fusion_network_are_those_of_its_halves() -> None:
    halves = {name: torch.empty(shape, device="meta") for name, shape, _, _ in KEYS
              if "mlp_head" not in name}  # fmt: skip
    state = {"fusion_model.efc.weight": torch.empty(25, 256, 1, 1, device="meta")}
    for half in ("Modalit_rgb.", "Modalit_depth."):
        state |= {half + name: tensor for name, tensor in halves.items()}
    name, options = published_options(state)
    assert name == "decoupled_fusion"
    assert (options["num_classes"], options["num_blocks"], options["num_frames"]) == (25, 6, 64)
    assert options["published_reshape"] is True


@pytest.mark.parametrize("options", [SMALL, {"recoupling": False}, {"motion_attention": False}])
def test_a_network_built_with_the_options_read_off_takes_the_weights(options) -> None:
    state = checkpoint(**options)
    name, found = published_options(state)
    assert load_published(build_model(name, **{"num_frames": 8, **found}), state) == []


def test_a_state_dict_of_something_else_has_no_options() -> None:
    with pytest.raises(ValueError, match=r"no such entry as 'dtn.mlp_head_small.1.weight'"):
        published_options({"fc.weight": torch.zeros(2, 2)})


def test_copies_of_the_temporal_modules_in_later_blocks_are_passed_over() -> None:
    state = checkpoint()
    stage = "dtn.multi_scale_transformers"
    copies = {name.replace(f"{stage}.0.", f"{stage}.1."): tensor for name, tensor in state.items()
              if name.startswith(f"{stage}.0.Mixed_")}  # fmt: skip
    assert len(copies) == 3 * 6 * 6 and all(map(is_unused, copies))
    assert not any(map(is_unused, state))
    assert is_unused("module.Modalit_rgb." + next(iter(copies)))
    assert load_published(small(), state | copies) == []
