import torch

from models.recoupling import Recoupling


def test_the_weights_are_those_of_the_full_channel_by_channel_scores() -> None:
    torch.manual_seed(0)
    module = Recoupling(num_frames=12, dim=64).double()
    tokens = torch.randn(3, 12, 64, dtype=torch.float64)
    channels = tokens.transpose(1, 2)  # (B, D, T)
    scores = module.query(channels) @ module.key(channels).transpose(1, 2) / 8  # (B, D, D)
    channel_weight = torch.sigmoid(scores.mean(1))
    torch.testing.assert_close(module.channel_weight(tokens), channel_weight)

    hidden = torch.nn.functional.gelu(module.squeeze(channels.mean(1)))
    frame_weight = torch.sigmoid(module.norm(module.excite(hidden)))
    weighted, student = module(tokens)
    expected = channels * channel_weight[:, :, None] * frame_weight[:, None, :]
    torch.testing.assert_close(weighted, expected.transpose(1, 2))
    torch.testing.assert_close(student, module.student(frame_weight))
