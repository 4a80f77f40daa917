"""UMDR's RGB-D network reproduces numbers recorded from the published one."""

import copy
import json

import pytest
import torch
from torch import Tensor, nn

from fixture_rules import DATA, assert_digest, filled, ints24, random_video, record, unit
from models import build_model
from models.upstream import load_published, to_published

FLOATS = [torch.float32, torch.float64]
TOLERANCE = {torch.float32: 5e-4, torch.float64: 1e-8}
PREFIX = {"rgb": "Modalit_rgb.", "depth": "Modalit_depth.", "complement": ""}


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    """With the weights of the filling rule; the fixture's two halves have names of their own."""
    model = build_model("umdr_fusion", num_classes=60, num_frames=32, dropout=0.0)
    for part, prefix in PREFIX.items():
        half = model.get_submodule(part)
        names = to_published(half, prefix)
        load_published(half, {n: filled(n, e) for n, e in names.items()}, prefix=prefix)
    return model.eval()


def test_the_names_shapes_and_order_of_the_head_are_the_published_ones() -> None:
    with torch.device("meta"):
        head = build_model("umdr_fusion", num_classes=60, num_frames=32).complement
    found = [[name, list(entry.shape)] for name, entry in to_published(head).items()]
    published = json.loads((DATA / "umdr_fusion_keys.json").read_text())
    assert found == [[name, shape] for name, shape, _, _ in published]
    assert sum(p.numel() for p in head.parameters()) == pytest.approx(23.7e6, rel=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_two_modalities_give_the_recorded_scores(plain, dtype, device) -> None:
    expected = record("umdr_fusion_ntu60_T32")
    shape = (expected["batch"], 3, 32, expected["size"], expected["size"])
    clips = [random_video(expected[f"{m}_seed"], shape) for m in ("rgb", "depth")]
    clips = tuple(clip.to(device, dtype) for clip in clips)
    model, seen = copy.deepcopy(plain).to(device, dtype), {}

    def keep(_module: nn.Module, inputs: tuple, _output: object) -> None:
        for what, pair in zip(("spatial", "temporal"), inputs, strict=True):
            seen.update({f"{what}_{letter}": t for letter, t in zip("MK", pair, strict=True)})

    model.complement.register_forward_hook(keep)
    with torch.no_grad():
        output = model(clips, temperature=0.04)
    found = seen | dict(zip(("logit_M", "logit_K", "out_M", "out_K"),
                            (*output.alone, *output.branch_logits), strict=True))  # fmt: skip
    for key, tensor in found.items():
        assert_digest(tensor, expected["fp64"][key], TOLERANCE[dtype], key)
    total, mean, unimodal, *_ = output.heads()
    torch.testing.assert_close(total, sum(output.alone) + sum(output.branch_logits))
    torch.testing.assert_close(4 * mean, total)
    torch.testing.assert_close(unimodal, sum(output.alone))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_head_alone_gives_the_recorded_scores(plain, dtype) -> None:
    def random(seed: int, *shape: int) -> Tensor:
        count = int(torch.tensor(shape).prod())
        return torch.from_numpy(unit(ints24(seed, count)).astype("float32")).view(shape).to(dtype)

    head = copy.deepcopy(plain.complement).to(dtype)
    frames = random(7, 2, 32, 512), random(8, 2, 32, 512)
    class_tokens = random(9, 2, 512), random(10, 2, 512)
    rgb, depth = head(frames, class_tokens)
    expected = record("umdr_fusion_head_only")
    assert_digest(rgb, expected["out_M64"], TOLERANCE[dtype], "RGB")
    assert_digest(depth, expected["out_K64"], TOLERANCE[dtype], "depth")
