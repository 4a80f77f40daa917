import math

import pytest
import torch
import torch.nn.functional as F

from models.temporal import (
    KnnAttention,
    TemporalBranch,
    TemporalInception,
    segment_middles,
    top_softmax,
)


def test_a_segment_is_seen_through_its_middle_frame() -> None:
    assert segment_middles(64, 16)[:3] == [1, 5, 9]
    assert segment_middles(64, 48)[:7] == [0, 1, 2, 4, 5, 6, 8]
    assert segment_middles(5, 5) == [0, 1, 2, 3, 4]
    assert segment_middles(7, 2) == [1, 4]


@pytest.mark.parametrize("knn_ratio", [0.0, 0.3, 0.7, 1.0])
def test_knn_attention_is_that_of_a_loop_over_heads_and_queries(knn_ratio) -> None:
    torch.manual_seed(0)
    batch, num_tokens, dim = 2, 9, 64
    attention = KnnAttention(dim, num_tokens, knn_ratio, dropout=0.0).double()
    tokens = torch.randn(batch, num_tokens, dim, dtype=torch.float64)

    query, key, value = attention.qkv(tokens).split(dim, 2)
    mixed = torch.zeros_like(tokens)
    for clip in range(batch):
        for head in range(8):
            part = slice(8 * head, 8 * head + 8)
            for i in range(num_tokens):
                scores = [
                    (query[clip, i, part] @ key[clip, j, part]).item() / math.sqrt(8)
                    for j in range(num_tokens)
                ]
                kept = math.floor(num_tokens * knn_ratio) or num_tokens
                best = sorted(range(num_tokens), key=scores.__getitem__)[-kept:]
                total = sum(math.exp(scores[j]) for j in best)
                for j in best:
                    mixed[clip, i, part] += math.exp(scores[j]) / total * value[clip, j, part]
    torch.testing.assert_close(attention(tokens), attention.out(mixed))


@pytest.mark.parametrize(("knn_ratio", "kept"), [(0.0, 9), (0.3, 2), (0.7, 6)])
def test_the_weights_to_be_looked_at_are_those_of_the_forward_pass(knn_ratio, kept) -> None:
    torch.manual_seed(0)
    attention = KnnAttention(64, 9, knn_ratio, dropout=0.0).double()
    tokens = torch.randn(2, 9, 64, dtype=torch.float64)
    weights = attention.weights(tokens)
    assert weights.shape == (2, 8, 9, 9) and ((weights > 0).sum(-1) == kept).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 8, 9, dtype=torch.float64))
    value = attention.qkv(tokens)[..., 128:].unflatten(2, (8, 8)).transpose(1, 2)
    mixed = (weights @ value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(tokens), attention.out(mixed))


@pytest.mark.parametrize(("num_tokens", "kept"), [(17, 11), (33, 23), (49, 34)])
def test_the_published_branches_keep_11_23_and_34_keys(num_tokens, kept) -> None:
    assert KnnAttention(64, num_tokens, 0.7, dropout=0.0).kept == kept


def test_top_softmax_keeps_exactly_the_top_even_among_equals() -> None:
    scores = torch.zeros(3, 10, dtype=torch.bfloat16)
    weights = top_softmax(scores, 4)
    assert (weights > 0).sum(1).tolist() == [4, 4, 4]
    torch.testing.assert_close(weights.float().sum(1), torch.ones(3))


def test_top_softmax_passes_finite_gradients_to_the_kept_scores_only() -> None:
    scores = torch.tensor([[3.0, -50.0, 1.0, 2.0, -60.0]], requires_grad=True)
    (top_softmax(scores, 3) * torch.arange(5.0)).sum().backward()
    assert scores.grad is not None
    assert (scores.grad != 0).tolist() == [[True, False, True, True, False]]
    assert scores.grad.isfinite().all()


def test_the_temporal_inception_pads_time_with_zeros() -> None:
    torch.manual_seed(0)
    module = TemporalInception(64, momentum=0.1).double().eval()
    tokens = torch.randn(2, 5, 64, dtype=torch.float64) - 1  # mostly negative: padding would show

    def unit(layer, video):
        pad = (layer.conv.weight.shape[2] - 1) // 2
        normed = layer.norm(F.conv3d(video, layer.conv.weight, padding=(pad, 0, 0)).squeeze(4))
        return normed.relu()[..., None]

    video = tokens.transpose(1, 2)[..., None, None]  # (B, D, f, 1, 1)

    def pool(video):
        return F.max_pool3d(F.pad(video, (0, 0, 0, 0, 1, 1)), (3, 1, 1), stride=1)

    paths = (
        unit(module.point, video),
        unit(module.conv_a, unit(module.reduce_a, video)),
        unit(module.conv_b, unit(module.reduce_b, video)),
        unit(module.pooled, pool(video)),
    )
    expected = pool(torch.cat(paths, 1)).squeeze(4).squeeze(3).transpose(1, 2)
    torch.testing.assert_close(module(tokens), expected)


def test_a_branch_sees_exactly_the_frames_of_its_indices() -> None:
    torch.manual_seed(0)
    branch = TemporalBranch(
        num_frames=10,
        branch_frames=4,
        num_blocks=2,
        dim=64,
        knn_ratio=0.7,
        dropout=0.0,
        momentum=0.1,
    ).eval()
    tokens = torch.randn(2, 10, 64, requires_grad=True)
    branch(tokens, torch.tensor([[0, 2, 5, 9], [1, 3, 6, 8]])).sum().backward()
    assert tokens.grad is not None
    seen = tokens.grad.abs().sum(2) > 0
    assert [row.nonzero().flatten().tolist() for row in seen] == [[0, 2, 5, 9], [1, 3, 6, 8]]
