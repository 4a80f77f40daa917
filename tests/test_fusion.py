"""models/fusion.py: shapes, what reaches what, and the promises of its options."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import build_model
from models.fusion import Interaction
from models.upstream import load_published, published_names, published_parameters, to_published

KEYS = json.loads((Path(__file__).parent / "data" / "decoupled_fusion_keys.json").read_text())
SMALL = {
    "num_classes": 5,
    "num_frames": 8,
    "branch_frames": (2, 4, 6),
    "num_blocks": 2,
    "width": 8,
    "dim": 64,
}


def small(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_model("decoupled_fusion", **{**SMALL, **options})


def inputs(batch: int = 3) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    clips = torch.rand(batch, 3, 8, 32, 32), torch.rand(batch, 3, 8, 32, 32)
    return clips, (torch.rand(batch, 1, 8, 32, 32), torch.rand(batch, 1, 8, 32, 32))


def test_outputs_have_their_shapes_and_heads_their_names() -> None:
    model = small()
    output = model(*inputs())
    assert output.logits.shape == (3, 5)
    assert [logits.shape for logits in output.branch_logits] == [(3, 5)] * 2
    assert [token.shape for token in output.modality_tokens] == [(3, 64)] * 2
    assert output.decoded.shape == (3, 64)
    assert [score.shape for score in output.modality_logits] == [(3,)] * 2
    assert len(output.recoupled) == 2
    rgb, depth = output.branch_logits
    expected = {
        "sum": output.logits + rgb + depth,
        "fused": output.logits,
        "rgb + depth": rgb + depth,
        "rgb": rgb,
        "depth": depth,
    }
    assert model.head_names == tuple(expected)
    for found, wanted in zip(output.heads(), expected.values(), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("published_reshape", [False, True])
def test_every_parameter_takes_part(published_reshape) -> None:
    model = small(published_reshape=published_reshape)
    output = model(*inputs())
    parts = [*output.heads(), output.decoded, *output.modality_logits]
    parts += [pair.student for pair in output.recoupled]
    sum(part.square().sum() for part in parts).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_each_modality_reaches_the_scores_of_the_other() -> None:
    model = small().eval()
    (rgb, depth), motion = inputs()
    with torch.no_grad():
        before = model((rgb, depth), motion).branch_logits
        other_depth = model((rgb, depth.flip(2)), motion).branch_logits
        other_rgb = model((rgb.flip(2), depth), motion).branch_logits
    assert (before[0] - other_depth[0]).abs().max() > 1e-6
    assert (before[1] - other_rgb[1]).abs().max() > 1e-6


@pytest.mark.parametrize("published_reshape", [False, True])
def test_the_clean_interaction_keeps_frames_apart_and_the_published_one_mixes_them(
    published_reshape,
) -> None:
    torch.manual_seed(0)
    module = Interaction(8, dropout=0.0).eval()
    rgb, depth = torch.randn(1, 6, 8), torch.randn(1, 6, 8)
    moved = rgb.clone()
    moved[:, 2] += 1
    with torch.no_grad():
        change = module(moved, depth, published_reshape) - module(rgb, depth, published_reshape)
    frames = change.abs().amax((0, 2)) > 0
    assert frames[2]
    assert bool(frames[[0, 1, 3, 4, 5]].any()) is published_reshape


def test_the_interaction_is_two_linear_maps_of_each_frames_unit_vector() -> None:
    torch.manual_seed(0)
    module = Interaction(4, dropout=0.0).double().eval()
    rgb, depth = torch.randn(2, 3, 4).double(), torch.randn(2, 3, 4).double()
    for b in range(2):
        for t in range(3):
            joint = torch.cat((rgb[b, t], depth[b, t]))
            hidden = module.reduce.weight[:, :, 0, 0] @ (joint / joint.norm())
            hidden = F.relu(hidden / (1 + 1e-5) ** 0.5)  # fresh running statistics: 0 and 1
            expected = module.out.weight[:, :, 0, 0] @ hidden
            torch.testing.assert_close(module(rgb, depth)[b, t], expected)


def test_a_batch_of_one_is_evaluated_and_refused_in_training() -> None:
    model = small()
    with pytest.raises(ValueError, match="cannot train on a batch of one clip"):
        model(*inputs(batch=1))
    clips, motion = inputs()
    model.eval()
    with torch.no_grad():
        whole = model(clips, motion).logits
        alone = model([clip[:1] for clip in clips], [maps[:1] for maps in motion]).logits
    torch.testing.assert_close(alone, whole[:1])


def test_branch_indices_are_those_of_both_modalities() -> None:
    model = small().eval()
    clips, motion = inputs()
    defaults = [branch.evaluation_indices.expand(3, -1) for branch in model.rgb.branches]
    others = [torch.zeros_like(indices) for indices in defaults]
    with torch.no_grad():
        expected = model(clips, motion).branch_logits
        same = model(clips, motion, defaults).branch_logits
        changed = model(clips, motion, others).branch_logits
    for wanted, found, other in zip(expected, same, changed, strict=True):
        assert torch.equal(wanted, found)
        assert not torch.allclose(wanted, other)


def test_the_temperature_divides_every_score() -> None:
    model = small().eval()
    clips, motion = inputs()
    with torch.no_grad():
        plain = model(clips, motion).heads()
        cold = model(clips, motion, temperature=0.5).heads()
    for wanted, found in zip(plain, cold, strict=True):
        torch.testing.assert_close(found, 2 * wanted)


def test_names_shapes_and_order_are_the_published_ones() -> None:
    with torch.device("meta"):
        model = build_model("decoupled_fusion", num_classes=60)
    found = [
        [name, list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
        for name, tensor in to_published(model).items()
    ]
    assert found == [entry[:3] for entry in KEYS]
    names = published_names(model)
    in_order = [names[key] for key in published_parameters(model)]
    assert in_order == [name for name, _, _, kind in KEYS if kind == "param"]


def test_loading_a_published_checkpoint_turns_the_published_reshape_on() -> None:
    model = small()
    state = {name: tensor.clone() for name, tensor in to_published(small(num_blocks=2)).items()}
    assert not model.published_reshape
    load_published(model, state)
    assert model.published_reshape
    loaded = to_published(model)
    assert list(loaded) == list(state)
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_a_new_classifier_leaves_all_three_out() -> None:
    model = small()
    state = to_published(small(num_classes=9))
    left = load_published(model, state, new_classifier=True)
    assert left == ["classifier.weight"] + [
        f"heads.{i}.{layer}.{leaf}"
        for i in range(2)
        for layer in ("norm", "linear")
        for leaf in ("weight", "bias")
    ]


def test_no_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 1, not 0"):
        small(num_classes=0)
