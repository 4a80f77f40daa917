import torch

from models.registry import build_model
from models.spatial import MotionAttention, SpatialNetwork, frames_of


def test_motion_attention_is_the_published_sum_and_starts_as_a_doubling() -> None:
    torch.manual_seed(0)
    attention = MotionAttention()
    features, motion = torch.randn(6, 5, 4, 4), torch.rand(6, 1, 4, 4)
    torch.testing.assert_close(attention(features, motion), 2 * features)

    a, b = 0.7, -1.6
    attention.weight.data = torch.tensor([[[a], [b]]])
    expected = features + (a * features + b * features * (1 + motion))
    torch.testing.assert_close(attention(features, motion), expected)
    torch.testing.assert_close(attention(features, None), attention(features, 0 * motion))


def test_a_motion_gain_lets_the_maps_speak_from_the_start() -> None:
    features, motion = torch.randn(6, 5, 4, 4), torch.rand(6, 1, 4, 4)
    torch.testing.assert_close(MotionAttention(4.0)(features, motion), features * (6 + 4 * motion))
    network = build_model("decoupled", num_classes=2, width=4, dim=64, num_blocks=1, motion_gain=4)
    assert network.spatial.motion_attention.weight.flatten().tolist() == [1.0, 4.0]


def test_motion_maps_are_pooled_to_an_eighth_a_sixteenth_and_a_thirty_second() -> None:
    network = SpatialNetwork(width=4, dim=64, motion_attention=True, momentum=0.1)
    motion = torch.zeros(2, 1, 3, 64, 96)
    motion[1, 0, 2, 40, 70] = 1.0
    pyramid = network.motion_pyramid(motion)
    assert [tuple(level.shape) for level in pyramid] == [(6, 1, 8, 12), (6, 1, 4, 6), (6, 1, 2, 3)]
    for level, cell in zip(pyramid, (8, 16, 32), strict=True):
        assert level.nonzero().tolist() == [[5, 0, 40 // cell, 70 // cell]]


def test_the_pool_after_motion_attention_keeps_negative_features_apart_from_padding() -> None:
    network = SpatialNetwork(width=4, dim=64, motion_attention=True, momentum=0.1)
    pools = {name: getattr(network, f"inception{name}").nonnegative_input for name in NAMES}
    assert pools == dict(zip(NAMES, (True, False) * 3, strict=True))
    network = SpatialNetwork(width=4, dim=64, motion_attention=False, momentum=0.1)
    assert all(getattr(network, f"inception{name}").nonnegative_input for name in NAMES)


NAMES = ("3b", "3c", "4b", "4c", "5b", "5c")


def test_published_widths_come_out_at_width_64_and_a_quarter_of_them_at_16() -> None:
    with torch.device("meta"):
        full = SpatialNetwork(width=64, dim=512, motion_attention=True, momentum=0.1)
        small = SpatialNetwork(width=16, dim=128, motion_attention=True, momentum=0.1)

    def totals(network: SpatialNetwork) -> list[int]:
        modules = [getattr(network, f"inception{name}") for name in NAMES]
        return [sum(module.conv_a.conv.weight.shape[:2]) for module in modules]

    assert full.token_linear.weight.shape == (512, 1024)
    assert small.token_linear.weight.shape == (128, 256)
    assert totals(full) == [224, 320, 304, 336, 480, 576]
    assert totals(small) == [56, 80, 76, 84, 120, 144]


def test_frames_of_a_channels_last_clip_is_a_view_in_frame_order() -> None:
    clip = torch.randn(2, 3, 4, 5, 6).contiguous(memory_format=torch.channels_last_3d)
    frames = frames_of(clip)
    assert frames.data_ptr() == clip.data_ptr()
    assert frames.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(frames[6], clip[1, :, 2])
