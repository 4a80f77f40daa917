import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.blocks import (
    FlatConv,
    Inception,
    InceptionWidths,
    halved,
    max_pool_3x3x3,
    same_padding,
    scaled,
)


def padded(video: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """(B, C, T, H, W) with the zeros of "same" padding written out, the odd one at the end."""
    pads: list[int] = []  # of the last axis first
    for axis in (2, 1, 0):
        size, step = video.shape[2 + axis], stride[axis]
        total = max(kernel[axis] - (size % step or step), 0)
        pads += [total // 2, total - total // 2]
    return F.pad(video, pads)


def planes_to_video(planes: Tensor, num_frames: int) -> Tensor:
    return planes.reshape(-1, num_frames, *planes.shape[1:]).transpose(1, 2)


def test_same_padding_puts_the_odd_zero_at_the_end() -> None:
    assert same_padding(224, kernel=7, stride=2) == (2, 3)
    assert same_padding(225, kernel=7, stride=2) == (3, 3)
    assert same_padding(112, kernel=3, stride=2) == (0, 1)
    assert same_padding(28, kernel=3, stride=1) == (1, 1)
    assert same_padding(14, kernel=2, stride=2) == (0, 0)
    assert same_padding(7, kernel=2, stride=2) == (0, 1)
    assert same_padding(5, kernel=1, stride=2) == (0, 0)


def test_scaled_widths_are_multiples_of_four_and_never_vanish() -> None:
    assert [scaled(width, 1) for width in (16, 24, 112, 192)] == [16, 24, 112, 192]
    assert [scaled(width, 0.25) for width in (16, 24, 112, 192)] == [4, 8, 28, 48]
    assert scaled(16, 1 / 64) == 4


@settings(max_examples=40)
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    kernel=st.sampled_from([(1, 1, 1), (1, 2, 2), (1, 3, 3), (1, 7, 7), (3, 1, 1)]),
    stride=st.sampled_from([1, 2]),
    channels_last=st.booleans(),
)
def test_a_flat_convolution_is_the_padded_3d_convolution(
    height, width, kernel, stride, channels_last
) -> None:
    torch.manual_seed(height * width)
    conv = FlatConv(3, 4, kernel, stride).double()
    planes = torch.randn(2, 3, height, width, dtype=torch.float64)
    if channels_last:
        planes = planes.contiguous(memory_format=torch.channels_last)

    if kernel[0] > 1:  # a kernel over time: the planes' height is time
        video, flat, strides = planes[:, :, :, None], 3, (stride, 1, stride)
    else:
        video, flat, strides = planes[:, :, None], 2, (1, stride, stride)
    expected = F.conv3d(padded(video, kernel, strides), conv.weight, stride=strides)
    torch.testing.assert_close(conv(planes), expected.squeeze(flat))


@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("height", range(1, 10))
@pytest.mark.parametrize("width", [1, 4, 7])
def test_a_halving_pool_of_nonnegative_planes_is_the_zero_padded_one(height, width, kernel) -> None:
    torch.manual_seed(0)
    planes = torch.randn(2, 3, height, width).relu()
    sizes, strides = (1, kernel, kernel), (1, 2, 2)
    expected = F.max_pool3d(padded(planes[:, :, None], sizes, strides), sizes, strides)
    assert torch.equal(halved(planes, kernel), expected.squeeze(2))


@settings(max_examples=40)
@given(frames=st.integers(1, 5), height=st.integers(1, 6), width=st.integers(1, 6))
def test_the_3x3x3_pool_pads_with_zeros_in_space_and_time(frames, height, width) -> None:
    torch.manual_seed(frames * height * width)
    planes = torch.randn(2 * frames, 3, height, width) - 1
    for given_planes, nonnegative in ((planes, False), (planes.relu(), True)):
        video = F.pad(planes_to_video(given_planes, frames), (1, 1, 1, 1, 1, 1))
        expected = F.max_pool3d(video, 3, stride=1)
        found = max_pool_3x3x3(given_planes, frames, nonnegative)
        assert torch.equal(planes_to_video(found, frames), expected)


@pytest.mark.parametrize("nonnegative", [True, False])
@pytest.mark.parametrize("frames", [1, 2, 7])
def test_the_3x3x3_pool_of_single_pixels_is_the_3d_one_with_its_gradients(
    frames, nonnegative
) -> None:
    torch.manual_seed(frames)
    levels = torch.randint(0 if nonnegative else -4, 4, (2 * frames, 5, 1, 1)).double()  # with ties
    sent = torch.randn(2 * frames, 5, 1, 1, dtype=torch.float64)
    results = []
    for pool in (max_pool_3x3x3, pool_of_volumes):
        planes = levels.clone().requires_grad_()
        pooled = pool(planes, frames, nonnegative)
        pooled.backward(sent)
        results.append((pooled, planes.grad))
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)


def pool_of_volumes(planes: Tensor, num_frames: int, nonnegative: bool) -> Tensor:
    """With the border's zeros written out only where they can be the largest."""
    zeros = 0 if nonnegative else 1
    video = F.pad(planes_to_video(planes, num_frames), (zeros,) * 6)
    return F.max_pool3d(video, 3, stride=1, padding=1 - zeros).transpose(1, 2).flatten(0, 1)


def test_the_3x3x3_pool_never_mixes_two_clips() -> None:
    clips = torch.rand(2, 4, 3, 5, 5)
    both = max_pool_3x3x3(clips.flatten(0, 1), 4, nonnegative=True)
    alone = max_pool_3x3x3(clips[1], 4, nonnegative=True)
    assert torch.equal(both[4:], alone)


def test_an_inception_module_concatenates_its_four_paths_in_order() -> None:
    torch.manual_seed(0)
    widths = InceptionWidths(4, 8, 12, 4, 8, 16)
    module = Inception(6, widths, (1, 3, 3), momentum=0.1).eval()
    planes = torch.randn(3, 6, 5, 5)
    pooled = torch.randn(3, 6, 5, 5)
    point, conv_a, conv_b, last = module.join(planes, pooled).split([4, 12, 8, 16], 1)
    assert widths.total == 40
    assert torch.equal(point, module.point(planes))
    assert torch.equal(conv_a, module.conv_a(module.reduce_a(planes)))
    assert torch.equal(conv_b, module.conv_b(module.reduce_b(planes)))
    assert torch.equal(last, module.pooled(pooled))
    assert point.min() >= 0


def test_batch_norm_has_the_published_epsilon_and_the_given_momentum() -> None:
    module = Inception(6, InceptionWidths(4, 4, 4, 4, 4, 4), (1, 3, 3), momentum=0.25)
    assert module.conv_a.norm.eps == 1e-3
    assert module.conv_a.norm.momentum == 0.25
