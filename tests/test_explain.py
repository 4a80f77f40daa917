"""engine/explain.py: what is shown equals what the network computes, and points where it looks."""

import pytest
import torch
from torch import Tensor, nn

from engine.explain import Explanation, Recording
from models.decoupled import DecoupledNetwork
from models.fusion import FusionNetwork
from models.umdr import UmdrNetwork
from models.umdr_fusion import UmdrFusionNetwork
from pipelines.batch import Batch

TINY = {"num_frames": 4, "branch_frames": (2, 3), "num_blocks": 2, "width": 8, "dim": 64}


def network(**options: object) -> DecoupledNetwork:
    torch.manual_seed(0)
    model = DecoupledNetwork(**{"num_classes": 3, **TINY, **options})
    return model.double().eval().requires_grad_(False)


def batch_of(clip: Tensor) -> Batch:
    """A batch with motion maps; branch frames that are not those of evaluation."""
    clips = len(clip)
    motion = torch.rand((clips, 1, *clip.shape[2:]), dtype=clip.dtype)
    branches = (torch.tensor([[1, 3]] * clips), torch.tensor([[0, 2, 3]] * clips))
    label = torch.zeros(clips, dtype=torch.int64)
    return Batch(clip, motion, label, branches, label)


def random_clips(clips: int = 2, size: int = 32) -> Tensor:
    torch.manual_seed(1)
    pixels = torch.randint(0, 256, (clips, 3, 4, size, size)).double()
    return (pixels - 127.5) / 128


def explain(model: nn.Module, batch: Batch, classes: list[int]) -> list[Explanation]:
    recording = Recording(model, "rgb", batch.clip.shape[-1])
    with recording:
        output = model(batch.clip, batch.motion, batch.branch_indices)
    return [clip[0] for clip in recording.explanations(batch, output, torch.tensor(classes))]


def test_frames_and_motion_maps_are_those_the_network_sees() -> None:
    batch = batch_of(random_clips())
    explanations = explain(network(), batch, [0, 1])
    for b, explanation in enumerate(explanations):
        assert (explanation.modality, explanation.frames.shape) == ("rgb", (4, 32, 32, 3))
        clip = torch.from_numpy(explanation.frames).permute(3, 0, 1, 2)
        assert torch.equal((clip.double() - 127.5) / 128, batch.clip[b])
        torch.testing.assert_close(torch.from_numpy(explanation.motion), batch.motion[b, 0].float())


def test_attention_is_that_of_the_class_token_in_the_last_block() -> None:
    model, batch = network(), batch_of(random_clips())
    tokens, _ = model.recoupling(model.spatial(batch.clip, batch.motion))
    explanations = explain(model, batch, [0, 1])
    for k, branch in enumerate(model.branches):
        indices = batch.branch_indices[k]
        seen = torch.stack([tokens[b, indices[b]] for b in range(2)])
        frames = branch.inception(seen + branch.position[:, 1:])
        first = (branch.class_token + branch.position[:, :1]).expand(2, -1, -1)
        last = branch.blocks[1]
        entering = last.attention_norm(branch.blocks[0](torch.cat((first, frames), 1)))
        shares = last.attention.weights(entering)[:, :, 0].mean(1)
        for b, explanation in enumerate(explanations):
            shown = explanation.attention[k]
            assert shown.frames.tolist() == indices[b].tolist()
            assert shown.on_itself + shown.weights.sum() == pytest.approx(1)
            torch.testing.assert_close(torch.from_numpy(shown.weights), shares[b, 1:].float())


def test_recoupling_weights_are_those_of_the_module() -> None:
    model, batch = network(), batch_of(random_clips())
    tokens = model.spatial(batch.clip, batch.motion)
    for b, explanation in enumerate(explain(model, batch, [2, 2])):
        for shown, module in (
            (explanation.frame_weight, model.recoupling.frame_weight),
            (explanation.channel_weight, model.recoupling.channel_weight),
        ):
            torch.testing.assert_close(torch.from_numpy(shown), module(tokens)[b].float())


def test_each_half_of_an_rgbd_network_explains_itself_after_they_have_seen_each_other() -> None:
    torch.manual_seed(0)
    model = FusionNetwork(3, **TINY).double().eval().requires_grad_(False)
    rgb, depth = batch_of(random_clips()), batch_of(random_clips().flip(4))
    clips, maps = (rgb.clip, depth.clip), (rgb.motion, depth.motion)
    batch = Batch(clips, maps, rgb.label, rgb.branch_indices, rgb.index)
    recording = Recording(model, "rgbd", 32)
    with recording:
        output = model(clips, maps, rgb.branch_indices)
    explanations = recording.explanations(batch, output, torch.tensor([2, 0]))
    seen = [half.spatial(c, m) for half, c, m in zip((model.rgb, model.depth), clips, maps,
                                                     strict=True)]  # fmt: skip
    shared = model.spatial_interaction(*seen)
    for b, by_modality in enumerate(explanations):
        assert [explanation.modality for explanation in by_modality] == ["rgb", "depth"]
        assert (by_modality[0].frames == by_modality[1].frames[:, :, ::-1]).all()
        for half, tokens, explanation in zip((model.rgb, model.depth), seen, by_modality,
                                             strict=True):  # fmt: skip
            expected = half.recoupling.frame_weight(tokens + shared)[b].float()
            torch.testing.assert_close(torch.from_numpy(explanation.frame_weight), expected)
            assert explanation.activation.any() and explanation.motion.any()
            assert [shown.frames.tolist() for shown in explanation.attention] == [[1, 3], [0, 2, 3]]


UMDR = TINY | {"branch_frames": (2, 6), "num_blocks": 3}


def test_umdr_shows_the_weights_of_its_last_stage_and_frames_seen_twice() -> None:
    torch.manual_seed(0)
    model = UmdrNetwork(3, **UMDR).double().eval().requires_grad_(False)
    maps = batch_of(random_clips())
    branches = (maps.branch_indices[0], torch.tensor([[0, 0, 1, 2, 2, 3]] * 2))
    batch = Batch(maps.clip, None, maps.label, branches, maps.index)
    seen: list[Tensor] = []
    last = model.spatial.recouplings[-1]
    with last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        explanations = explain(model, batch, [0, 1])
    for b, explanation in enumerate(explanations):
        expected = last.frame_weight(seen[0])[b].float()
        torch.testing.assert_close(torch.from_numpy(explanation.frame_weight), expected)
        assert explanation.channel_weight is None and explanation.motion is None
        assert explanation.activation.any()
        assert explanation.attention[1].frames.tolist() == [0, 0, 1, 2, 2, 3]


def test_umdrs_frozen_halves_explain_themselves() -> None:
    torch.manual_seed(0)
    model = UmdrFusionNetwork(3, **UMDR).double().eval().requires_grad_(False)
    clip = random_clips()
    branches = tuple(b.evaluation_indices.expand(2, -1) for b in model.rgb.branches)
    label = torch.zeros(2, dtype=torch.int64)
    batch = Batch((clip, clip.flip(4)), None, label, branches, label)
    recording = Recording(model, "rgbd", 32)
    with recording:
        output = model(batch.clip)
    for by_modality in recording.explanations(batch, output, torch.tensor([2, 0])):
        assert [explanation.modality for explanation in by_modality] == ["rgb", "depth"]
        assert all(e.activation.any() and len(e.attention) == 2 for e in by_modality)


def test_a_network_without_recoupling_or_maps_shows_none() -> None:
    batch = batch_of(random_clips())
    batch = Batch(batch.clip, None, batch.label, batch.branch_indices, batch.index)
    (first, _) = explain(network(recoupling=False, motion_attention=False), batch, [0, 0])
    assert first.frame_weight is first.channel_weight is first.motion is None
    assert len(first.attention) == 2


def test_recording_changes_no_output_and_leaves_no_hook() -> None:
    model, batch = network(), batch_of(random_clips())
    before = model(batch.clip, batch.motion, batch.branch_indices)
    recording = Recording(model, "rgb", 32)
    with recording:
        during = model(batch.clip, batch.motion, batch.branch_indices)
    assert torch.equal(before.logits, during.logits)
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks and before.logits.requires_grad is False


@pytest.mark.parametrize(
    ("size", "stage", "cells"), [(32, "inception3c", 4), (64, "inception4c", 4),
                                 (96, "inception4c", 6), (128, "inception5c", 4)],
)  # fmt: skip
def test_small_clips_take_an_earlier_stage(size, stage, cells) -> None:
    (first,) = explain(network(), batch_of(random_clips(1, size)), [0])
    assert first.stage == stage and first.activation.shape == (4, cells, cells)


class Fixed(nn.Module):
    """In place of a stage of the spatial network: these features, whatever it is shown."""

    def __init__(self, features: Tensor):
        super().__init__()
        self.features = features

    def forward(self, frames: Tensor, num_frames: int) -> Tensor:
        return self.features


def linear_network(features: Tensor) -> DecoupledNetwork:
    """A network in which the score of class k is the mean of channel k of the last features (4, 64,
    h, w) over cells and over the tokens of a branch: all that mixes channels is taken away."""
    model = network(recoupling=False, num_blocks=1, knn_ratio=0.0)
    spatial = model.spatial
    spatial.inception5c = Fixed(features)
    spatial.token_norm = spatial.token_linear = nn.Identity()
    for branch, head in zip(model.branches, model.heads, strict=True):
        block = branch.blocks[0]
        branch.inception = head.norm = block.attention_norm = nn.Identity()
        block.feed_forward.register_forward_hook(lambda module, inputs, out: torch.zeros_like(out))
        eye = torch.eye(64, dtype=torch.float64)
        for weight, value in (
            (branch.position, 0), (branch.class_token, 0), (block.attention.out.bias, 0),
            (block.attention.qkv.weight, torch.cat((0 * eye, 0 * eye, eye))),
            (block.attention.out.weight, eye), (head.linear.weight, eye[:3]), (head.linear.bias, 0),
        ):  # fmt: skip
            weight.data[:] = value
    return model


def test_it_points_at_the_region_that_the_class_depends_on() -> None:
    features = torch.zeros(4, 64, 4, 4, dtype=torch.float64)
    features[3, 0, 0, 3], features[1, 0, 0, 3] = 6.0, 2.0  # class 0: the upper right corner
    features[3, 1, 2, 1] = 1.0  # class 1: a cell on the left, in the last frame
    features[0, 2, 1, 1] = -1.0  # against class 2
    model, batch = linear_network(features), batch_of(random_clips(1, 128))
    output = model(batch.clip, batch.motion, batch.branch_indices)
    # The branches see frames 1, 3 and 0, 2, 3, and their class token too: shares 1/3 and 1/4.
    expected = torch.tensor([[[8, 1, 0], [6, 1, -1]]], dtype=torch.float64) / 16
    expected /= torch.tensor([3, 4])[:, None]
    torch.testing.assert_close(torch.stack(output.branch_logits, 1), expected)
    for k, at in ((0, (slice(None), 0, 3)), (1, (slice(None), 2, 1))):
        (explanation,) = explain(model, batch, [k])
        activation = torch.from_numpy(explanation.activation)
        heads = output.logits[0, k] + sum(branch[0, k] for branch in output.branch_logits)
        torch.testing.assert_close(activation.sum(), heads, check_dtype=False)
        torch.testing.assert_close(activation[at].sum(), activation.sum())
    (against,) = explain(model, batch, [2])
    assert not against.activation.any(), "what speaks against a class is not shown"
    (both,) = explain(model, batch, [0])
    # Merged logits are those of the first branch, which so counts twice: 2/3 + 1/4 of frame 3.
    shares = torch.from_numpy(both.activation[:, 0, 3])
    torch.testing.assert_close(shares * 16, torch.tensor([0, 2 * 2 / 3, 0, 6 * (2 / 3 + 1 / 4)]))


def test_other_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="no explanation is known for Linear, only"):
        Recording(nn.Linear(1, 1), "rgb", 32)
