"""UMDR's networks apart from the recorded numbers: sizes, shapes, options, gradients."""

import json

import pytest
import torch

from fixture_rules import DATA
from models import build_model
from models.staged import StageRecoupling, neighbours_pooled
from models.umdr import umdr_branch_frames
from models.upstream import load_published, published_options, to_published

SMALL = {"num_classes": 4, "num_frames": 8, "num_blocks": 3, "width": 8, "dim": 64}


@pytest.mark.parametrize(
    "num_frames, branches, kernels, parameters",
    [
        (16, (8, 16, 24), [2, 4, 4], 37.92e6),
        (32, (16, 32, 48), [4, 5, 6], 38.18e6),
        (64, (16, 32, 48), [4, 5, 6], 38_561_620),
    ],
)
def test_the_published_sizes(num_frames, branches, kernels, parameters) -> None:
    with torch.device("meta"):
        model = build_model("umdr", num_classes=60, num_frames=num_frames)
        output = model(torch.empty(1, 3, num_frames, 224, 224))
    assert model.branch_frames == branches == umdr_branch_frames(num_frames)
    assert [branch.inception.kernel for branch in model.branches] == kernels
    count = sum(p.numel() for p in model.parameters())
    assert count == parameters if num_frames == 64 else count == pytest.approx(parameters, rel=2e-4)
    assert output.logits.shape == (1, 60)
    assert [pair.student.shape for pair in output.recoupled] == [(1, 512)] * 3
    assert [pair.teacher.shape for pair in output.recoupled] == [(1, 512)] * 3


@pytest.mark.parametrize("name", ["umdr", "umdr_fusion"])
def test_a_single_clip_trains(name) -> None:
    torch.manual_seed(0)
    model = build_model(name, **SMALL).train()
    clip = torch.rand(1, 3, 8, 32, 32)
    output = model((clip, clip) if name == "umdr_fusion" else clip)
    parts = [*output.branch_logits, *(pair.student for pair in output.recoupled)]
    torch.stack([part.square().sum() for part in parts]).sum().backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key


def test_the_unimodal_networks_of_the_fusion_stay_as_they_are() -> None:
    torch.manual_seed(0)
    model = build_model("umdr_fusion", **SMALL)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    clips = (torch.rand(2, 3, 8, 32, 32), torch.rand(2, 3, 8, 32, 32))
    model.eval()
    alone = model(clips).alone
    model.train()
    output = model(clips)
    torch.testing.assert_close(output.alone, alone)  # neither dropout nor batch statistics
    output.logits.sum().backward()
    halves = ("rgb.", "depth.")
    for key, parameter in model.named_parameters():
        assert (parameter.grad is None) == key.startswith(halves), key
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_the_fusion_of_what_the_unimodal_networks_say() -> None:
    torch.manual_seed(0)
    model = build_model("umdr_fusion", **SMALL).eval()
    clips = (torch.rand(2, 3, 8, 32, 32), torch.rand(2, 3, 8, 32, 32))
    output = model(clips, temperature=0.5)
    for clip, network, scores in zip(clips, (model.rgb, model.depth), output.alone, strict=True):
        torch.testing.assert_close(network(clip, temperature=0.5).logits, scores)
    assert len(output.heads()) == len(model.head_names)


def test_the_largest_of_neighbouring_channels_is_kept() -> None:
    frames = torch.rand(2, 6, 3, 3)
    expected = torch.stack([frames[:, i : i + 2].amax(1) for i in (0, 2, 4)], 1)
    assert torch.equal(neighbours_pooled(frames), expected)


def test_the_recoupling_module_follows_its_specification_step_by_step() -> None:
    torch.manual_seed(0)
    clips, frames, channels = 2, 4, 6
    module = StageRecoupling(frames, 10).double()
    video = torch.rand(clips, frames, channels, 3, 5, dtype=torch.float64)
    found, student = module(video.flatten(0, 1))
    for clip in range(clips):
        course = video[clip].mean((2, 3)).T  # (C, T)
        query, key = (course @ layer.weight.T for layer in (module.query, module.key))
        mixed = torch.empty_like(video[clip])
        for t in range(frames):
            head = slice(16 * t, 16 * t + 16)
            share = (query[:, head] @ key[:, head].T / 4).softmax(1)
            mixed[t] = torch.einsum("ij,jhw->ihw", share, video[clip, t])
        hidden = torch.nn.functional.gelu(mixed.mean((1, 2, 3)) @ module.squeeze.weight.T)
        score = module.norm(hidden @ module.excite.weight.T)
        expected = video[clip] + score.sigmoid()[:, None, None, None] * mixed
        torch.testing.assert_close(found.unflatten(0, (clips, frames))[clip], expected)
        torch.testing.assert_close(student[clip], module.student(score))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_frames": 1}, "num_frames must be at least 2, not 1"),
        ({"num_blocks": 2}, "num_blocks must be at least 3, not 2"),
        ({"branch_frames": (4, 2)}, "branch_frames must be in ascending order"),
        ({"num_classes": 0}, "num_classes must be at least 1, not 0"),
        ({"dim": 100}, "dim must be a multiple of 64"),
    ],
)
def test_impossible_options_are_named(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        build_model("umdr", **SMALL | options)


def test_a_clip_of_other_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"clip must be \(B, 3, 8, H, W\)"):
        build_model("umdr", **SMALL)(torch.rand(1, 3, 16, 32, 32))


@pytest.mark.parametrize("num_frames", [16, 32, 64])
def test_options_are_read_off_a_published_state(num_frames) -> None:
    options = {
        "num_classes": 25,
        "num_frames": num_frames,
        "num_blocks": 4,
        "width": 16,
        "dim": 128,
    }
    with torch.device("meta"):
        published = to_published(build_model("umdr", **options))
    name, found = published_options(published)
    assert name == "umdr"
    assert found == options | {"branch_frames": umdr_branch_frames(num_frames)}


def test_names_shapes_and_order_are_the_published_ones() -> None:
    keys = json.loads((DATA / "umdr_keys.json").read_text())
    with torch.device("meta"):
        model = build_model("umdr", num_classes=60, num_frames=32)
    found = [[name, list(entry.shape)] for name, entry in to_published(model).items()]
    assert found == [[name, shape] for name, shape, *_ in keys]


def test_a_published_state_lacks_nothing_and_has_nothing_more() -> None:
    model = build_model("umdr", **SMALL)
    state = dict(to_published(model))
    del state["SMS_layers.3.k.weight"]
    with pytest.raises(ValueError, match=r"lacks 1 of the model's entries, .*SMS_layers\.3\.k"):
        load_published(model, state)
    with pytest.raises(ValueError, match=r"published 'extra\.weight' has no counterpart"):
        load_published(model, {**to_published(model), "extra.weight": torch.zeros(1)})
