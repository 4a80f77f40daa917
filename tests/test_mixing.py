"""MixUp and ShuffleMix: what is drawn, and what becomes of clips and labels."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from engine.loop import Precision, predict
from engine.losses import LossConfig, training_loss
from engine.mixing import Draw, MixConfig, Mixing, draw, mixed, partner
from models.registry import build_model
from pipelines.batch import Batch

UMDR = MixConfig(mixup=0.8, shufflemix=0.3, shufflemix_share=0.2)
DRAWS = 20_000


def draws(config: MixConfig, num_frames: int = 16, count: int = DRAWS) -> list[Draw]:
    rng = np.random.default_rng(0)
    return [draw(config, num_frames, rng) for _ in range(count)]


def assert_beta(values: list[float], alpha: float) -> None:
    """Kolmogorov's distance from Beta(alpha, alpha), whose distribution function is taken from as
    many draws of torch's; 1.95 sqrt(2 / n) is exceeded by one of a thousand pairs."""
    parameter = torch.tensor(alpha, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        law = torch.distributions.Beta(parameter, parameter)
        expected = np.sort(law.sample((len(values),)).numpy())
    places = np.concatenate((expected, values))
    below = [np.searchsorted(np.sort(v), places, "right") / len(v) for v in (expected, values)]
    assert np.abs(below[0] - below[1]).max() < 1.95 * np.sqrt(2 / len(values))


@pytest.mark.parametrize("alpha", [0.2, 0.8, 2.0])
def test_the_share_of_a_clip_follows_the_beta_law(alpha: float) -> None:
    mixup = draws(MixConfig(mixup=alpha))
    assert_beta([d.label_weight for d in mixup], alpha)
    assert all((d.partner_weight == 1 - d.label_weight).all() for d in mixup)
    shuffled = draws(MixConfig(shufflemix=alpha, shufflemix_share=1.0))
    assert_beta([d.label_weight for d in shuffled], alpha)


def test_shufflemix_takes_the_partners_frames_by_the_rounded_share() -> None:
    taken = np.zeros(16)
    shuffled = draws(MixConfig(shufflemix=0.3, shufflemix_share=1.0))
    for d in shuffled:
        assert set(d.partner_weight) <= {0.0, 1.0}
        assert d.partner_weight.sum() == round((1 - d.label_weight) * 16)
        taken += d.partner_weight
    # Each place equally often, which is half of the time: Beta(a, a) has mean 1 / 2.
    assert taken / DRAWS == pytest.approx(0.5, abs=0.02)


def test_a_batch_takes_shufflemix_with_its_probability() -> None:
    shuffled = [
        len(set(d.partner_weight)) > 1 or d.partner_weight[0] in (0, 1) for d in draws(UMDR)
    ]
    assert np.mean(shuffled) == pytest.approx(0.2, abs=0.01)


def test_nvgestures_mixup_leaves_nearly_all_batches_as_they_are() -> None:
    weights = np.array([d.label_weight for d in draws(MixConfig(mixup=0.001))])
    assert ((weights < 1e-6) | (weights > 1 - 1e-6)).mean() > 0.98


def batch(clips: int = 4, frames: int = 6, modalities: int = 1, motion: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(clips)

    def video(channels: int) -> Tensor:
        shape = (clips, frames, 8, 8, channels)
        return torch.rand(shape, generator=generator).movedim(-1, 1)  # channels_last_3d

    videos = tuple(video(3) for _ in range(modalities))
    maps = tuple(video(1) for _ in range(modalities))
    return Batch(
        clip=videos if modalities > 1 else videos[0],
        motion=(maps if modalities > 1 else maps[0]) if motion else None,
        label=torch.arange(clips) % 5,
        branch_indices=(torch.zeros(clips, 2, dtype=torch.int64),),
        index=torch.arange(clips),
    )


def test_mixup_is_a_weighted_mean_of_clips_maps_and_labels() -> None:
    mixing = Mixing(MixConfig(mixup=0.8), seed=3, num_classes=5, paired=True)
    before = batch()
    after = mixing(before, step=7)
    own = mixing.draw(7, 0, 6).label_weight
    assert 0 < own < 1
    for found, whole in ((after.clip, before.clip), (after.motion, before.motion)):
        torch.testing.assert_close(found, own * whole + (1 - own) * whole[[2, 3, 0, 1]])
    (target,) = after.target
    for clip, other in enumerate((2, 3, 0, 1)):
        expected = torch.zeros(5)
        expected[clip] += own
        expected[other] += 1 - own
        torch.testing.assert_close(target[clip], expected)
    assert after.label is before.label and after.branch_indices is before.branch_indices


def test_shufflemix_replaces_whole_frames_exactly() -> None:
    config = MixConfig(shufflemix=1.0, shufflemix_share=1.0)
    mixing = Mixing(config, seed=0, num_classes=5, paired=True)
    before = batch()
    steps = (s for s in range(99) if 0 < mixing.draw(s, 0, 6).partner_weight.sum() < 6)
    step = next(steps)
    after, replaced = mixing(before, step), mixing.draw(step, 0, 6).partner_weight.astype(bool)
    assert torch.equal(after.clip[:, :, replaced], partner(before.clip)[:, :, replaced])
    assert torch.equal(after.clip[:, :, ~replaced], before.clip[:, :, ~replaced])
    assert after.clip.is_contiguous(memory_format=torch.channels_last_3d)


@given(clips=st.integers(1, 9))
def test_every_clip_has_one_partner_and_is_one(clips: int) -> None:
    others = partner(torch.arange(clips))
    assert sorted(others.tolist()) == list(range(clips))
    if clips > 1:
        assert (others != torch.arange(clips)).all()


@given(pairs=st.integers(1, 4), ranks=st.integers(1, 4))
def test_ranks_with_even_shares_pair_as_one_rank_does(pairs: int, ranks: int) -> None:
    whole = torch.arange(2 * pairs * ranks)
    for rank in range(ranks):
        assert torch.equal(partner(whole[rank::ranks]), partner(whole)[rank::ranks])


def test_modalities_are_mixed_by_one_draw_if_paired_and_each_by_its_own_if_not() -> None:
    both = batch(modalities=2)
    after = Mixing(UMDR, seed=0, num_classes=5, paired=True)(both, step=1)
    assert torch.equal(*after.target)
    after = Mixing(UMDR, seed=0, num_classes=5, paired=False)(both, step=1)
    assert not torch.allclose(*after.target)
    assert after.part(1, 3).target[1].shape == (2, 5)


def test_a_step_is_mixed_alike_whenever_it_comes() -> None:
    mixing = Mixing(UMDR, seed=0, num_classes=5, paired=True)
    first, again = mixing(batch(), step=4), mixing(batch(), step=4)
    assert torch.equal(first.clip, again.clip) and torch.equal(first.target[0], again.target[0])
    assert not torch.equal(first.clip, mixing(batch(), step=5).clip)


SMALL = {"num_frames": 8, "branch_frames": (2, 4, 6), "width": 8, "dim": 64, "num_blocks": 1}


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize(
    ("name", "options"),
    [("decoupled", SMALL), ("decoupled_fusion", SMALL),
     ("r3d_18", {"num_frames": 8, "size": 32})],
)  # fmt: skip
def test_networks_older_than_it_learn_mixed_clips_by_shares_of_their_labels(name, options, paired):
    """The loss of soft labels is that of all classes, each by its share."""
    both = name.endswith("fusion")
    pixels = torch.randn(2, 2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(1))
    label = torch.tensor([1, 3])
    indices = tuple(torch.arange(f).expand(2, f) for f in options.get("branch_frames", ()))
    maps = pixels[:, :, :1].abs() if "branch_frames" in options else None
    clip, motion = (
        videos if videos is None else tuple(videos) if both else videos[0]
        for videos in (pixels, maps)
    )  # fmt: skip
    mixing = Mixing(MixConfig(mixup=0.8), seed=3, num_classes=5, paired=paired)
    mixed_batch = mixing(Batch(clip, motion, label, indices, label), step=7)
    model = build_model(name, num_classes=5, **options).train()
    exact = Precision.choose("fp32", torch.device("cpu"))
    output = predict(model, mixed_batch, 1.0, exact)
    config = LossConfig(label_smoothing=0.0)
    loss, parts = training_loss(output, mixed_batch.target, config, epoch=0)
    log_share = output.logits.log_softmax(1)
    target = torch.stack(mixed_batch.target).mean(0)
    torch.testing.assert_close(parts["merged"], -(target * log_share).sum(1).mean())
    assert target.max() < 1  # indeed mixed
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_without_mixing_a_batch_stays_itself() -> None:
    plain = batch()
    assert Mixing(MixConfig(), seed=0, num_classes=5, paired=True)(plain, step=0) is plain


def test_a_single_clip_is_mixed_with_itself() -> None:
    one = batch(clips=1, motion=False)
    after = Mixing(UMDR, seed=0, num_classes=5, paired=True)(one, step=0)
    torch.testing.assert_close(after.clip, one.clip)
    assert after.motion is None and after.target[0].tolist() == [[1, 0, 0, 0, 0]]


def test_half_precision_stays_half() -> None:
    clip = batch().clip.half()
    found = mixed(clip, Draw(0.25, np.full(6, 0.75)))
    assert found.dtype == torch.float16
    torch.testing.assert_close(found, 0.25 * clip + 0.75 * partner(clip), atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    "values, key",
    [
        ({"mixup": -1.0}, "mixup"),
        ({"shufflemix": -0.1, "shufflemix_share": 0.5}, "shufflemix"),
        ({"shufflemix_share": 1.5}, "shufflemix_share"),
        ({"shufflemix_share": 0.5}, "shufflemix_share"),
        ({"shufflemix": 0.5}, "shufflemix"),
    ],
)
def test_impossible_values_are_named(values: dict[str, float], key: str) -> None:
    assert [found for found, _ in dataclasses.replace(MixConfig(), **values).problems()] == [key]
