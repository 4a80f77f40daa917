"""models/video_networks.py: torchvision's networks answer as ours do, on the pixels they know."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import video
from torchvision.models.video.mvit import MSBlockConfig, MViT
from torchvision.models.video.swin_transformer import SwinTransformer3d
from torchvision.ops import StochasticDepth

from engine import checkpoint
from engine.batch_norm import GlobalBatchNorm
from engine.clip_scores import ClipScores
from engine.config import load, model_options
from engine.distributed import Ranks, place
from engine.dry_run import memory
from engine.explain import Recording
from engine.export import export
from engine.initial import initialise
from engine.loop import Precision
from engine.losses import LossConfig, training_loss
from engine.predict import recognise
from engine.rehearsal import check_precision, without_trace
from engine.trained import Trained, open_trained
from models import build_model, video_networks
from models.video_networks import PUBLISHED, VideoNetwork
from pipelines.batch import Batch
from pipelines.index import scan

WEIGHTS = {
    "r3d_18": video.R3D_18_Weights, "mvit_v2_s": video.MViT_V2_S_Weights,
    "swin3d_t": video.Swin3D_T_Weights,
}  # fmt: skip


def levels(num_clips: int, num_frames: int, size: int) -> Tensor:
    """(B, T, H, W, 3) uint8"""
    shape = (num_clips, num_frames, size, size, 3)
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)


def as_loaded(pixels: Tensor) -> Tensor:
    """What the loader makes of them."""
    return ((pixels - 127.5) / 128).permute(0, 4, 1, 2, 3)


def small_network(num_classes: int) -> nn.Module:
    """A residual block's worth of R3D-18."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(3, 8, 3, padding=1, bias=False), nn.BatchNorm3d(8), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool3d(2), nn.Flatten(), nn.Linear(64, num_classes),
    )  # fmt: skip


def few_blocks(name: str, num_classes: int) -> nn.Module:
    """Of torchvision's transformers a block or two of each kind, which the whole ones repeat."""
    if name == "swin3d_t":
        return SwinTransformer3d(
            [2, 4, 4], 24, depths=[2, 2], num_heads=[2, 4], window_size=[8, 7, 7],
            num_classes=num_classes,
        )  # fmt: skip
    if name == "mvit_v2_s":
        thirds = [3, 3, 3]
        blocks = [
            MSBlockConfig(1, 24, 48, [], thirds, [], [1, 8, 8]),
            MSBlockConfig(2, 48, 48, thirds, thirds, [1, 2, 2], [1, 4, 4]),
            MSBlockConfig(2, 48, 48, [], thirds, [], [1, 1, 1]),
        ]
        return MViT(
            (224, 224), 16, blocks, residual_pool=True, residual_with_cls_embed=False,
            rel_pos_embed=True, proj_after_attn=True, num_classes=num_classes,
        )  # fmt: skip
    return getattr(video, name)(num_classes=num_classes)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision builds the small network under every name."""
    monkeypatch.setattr(
        video_networks, "_torchvision", lambda name, classes: small_network(classes)
    )


@pytest.fixture(scope="module")
def r3d() -> VideoNetwork:
    torch.manual_seed(0)
    return build_model("r3d_18", num_classes=3, num_frames=4, size=32).double()


def test_a_network_sees_the_pixels_that_torchvision_prepares_for_it():
    for name, weights in WEIGHTS.items():
        pixels = levels(2, 3, 32)
        prepare = weights.DEFAULT.transforms(crop_size=(32, 32), resize_size=(32, 32))
        expected = prepare(pixels.permute(0, 1, 4, 2, 3))
        seen = VideoNetwork(name, nn.Identity(), 3, 32)(as_loaded(pixels)).logits
        torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-5)
        assert seen.stride() == as_loaded(pixels).stride()  # channels stay innermost
        in_16_bit = VideoNetwork(name, nn.Identity(), 3, 32)(as_loaded(pixels).bfloat16()).logits
        assert torch.equal(in_16_bit, seen)


def test_the_published_clips_are_torchvisions():
    for name, weights in WEIGHTS.items():
        preset = weights.DEFAULT.transforms()
        assert PUBLISHED[name].size == preset.crop_size[0]
        assert (list(PUBLISHED[name].mean), list(PUBLISHED[name].std)) == (preset.mean, preset.std)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "frames", "size"), [("r3d_18", 4, 32), ("mvit_v2_s", 4, 32), ("swin3d_t", 3, 40)]
)
def test_it_is_torchvisions_network_and_every_parameter_learns(name, frames, size):
    torch.manual_seed(0)
    ours = build_model(name, num_classes=5, num_frames=frames, size=size).eval()
    torch.manual_seed(0)
    theirs = getattr(video, name)(num_classes=5).eval()
    assert list(ours.state_dict()) == [f"network.{key}" for key in theirs.state_dict()]
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    clip = as_loaded(levels(2, frames, size))
    output = ours.train()(clip, temperature=0.5)
    training_loss(output, torch.tensor([0, 4]), LossConfig(), 0)[0].backward()
    assert output.logits.shape == (2, 5) and output.heads() == (output.logits,)
    assert len(ours.head_names) == 1
    assert all(parameter.grad is not None for parameter in ours.parameters())


@pytest.mark.slow
def test_mvit_at_its_published_size_is_torchvisions_to_the_bit():
    torch.manual_seed(0)
    ours = build_model("mvit_v2_s", num_classes=5).eval()
    clip = as_loaded(levels(1, 16, 224))
    with torch.no_grad():
        found = ours(clip).logits
        network = video.mvit_v2_s(num_classes=5).eval()
        network.load_state_dict(ours.network.state_dict())
        assert torch.equal(found, network(torch.addcmul(ours.shift, clip, ours.scale)))


@pytest.mark.slow
def test_batch_statistics_are_those_of_the_global_batch_and_change_no_number(r3d):
    plain = copy.deepcopy(r3d).train()
    placed = place(copy.deepcopy(r3d), Ranks(0, 0, 1), torch.float64).train()
    norms = [module for module in placed.modules() if isinstance(module, GlobalBatchNorm)]
    assert len(norms) == 20 and not any(isinstance(m, nn.BatchNorm3d) for m in placed.modules())
    clip, label = as_loaded(levels(3, 4, 32)).double(), torch.tensor([0, 1, 2])
    for model in (plain, placed):
        training_loss(model(clip), label, LossConfig(), 0)[0].backward()
    for one, two in zip(plain.parameters(), placed.parameters(), strict=True):
        scale = one.grad.abs().max().item()
        torch.testing.assert_close(two.grad, one.grad, rtol=0, atol=1e-9 * scale)
    for key, tensor in plain.state_dict().items():
        torch.testing.assert_close(placed.state_dict()[key], tensor, rtol=1e-9, atol=1e-12)


def test_the_loss_is_cross_entropy_alone(small):
    model = build_model("r3d_18", num_classes=3, num_frames=4, size=32)
    output, label = model(as_loaded(levels(2, 4, 32))), torch.tensor([2, 0])
    loss, parts = training_loss(output, label, LossConfig(label_smoothing=0.2), epoch=9)
    assert list(parts) == ["merged"]
    assert loss.item() == F.cross_entropy(output.logits, label, label_smoothing=0.2).item()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("r3d_18", {"size": 31}, "size must be at least 32, not 31"),
        ("swin3d_t", {"num_frames": 1}, "num_frames must be at least 2, not 1"),
        ("mvit_v2_s", {"size": 100}, "size must be a multiple of 32 and num_frames even, not 100"),
        ("mvit_v2_s", {"num_frames": 15}, "num_frames even, not 224 and 15"),
        ("r3d_18", {"num_classes": 0}, "num_classes must be at least 1, not 0"),
    ],
)
def test_an_impossible_option_is_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_model(name, **{"num_classes": 3, **options})


@pytest.mark.parametrize("shape", [(2, 3, 4, 32, 40), (2, 3, 8, 32, 32), (2, 1, 4, 32, 32), (3, 4)])
def test_clips_of_another_shape_are_refused(small, shape):
    model = build_model("r3d_18", num_classes=3, num_frames=4, size=32)
    with pytest.raises(ValueError, match=r"clip must be \(B, 3, 4, 32, 32\), not \("):
        model(torch.zeros(shape))


def batch(num_clips: int, num_classes: int = 3) -> Batch:
    label = torch.arange(num_clips) % num_classes
    return Batch(as_loaded(levels(num_clips, 4, 32)), None, label, (), label)


def test_the_check_of_16_bit_passes_right_arithmetic_and_names_a_wrong_layer(small):
    model = place(build_model("r3d_18", num_classes=3, num_frames=4, size=32), Ranks(0, 0, 1))
    precision = Precision.choose("bf16", torch.device("cpu"))
    # Without oneDNN, whose bf16 gradients of some 3-D convolutions are infinite on some processors.
    with torch.backends.mkldnn.flags(enabled=False):
        check_precision(model, batch(3), LossConfig(), precision)
        conv = model.network[0]

        def wrong(pixels: Tensor) -> Tensor:
            out = nn.Conv3d.forward(conv, pixels)
            return out.roll(1, 3) if torch.is_autocast_enabled("cpu") else out

        conv.forward = wrong
        with pytest.raises(ValueError, match=r"output of network\.0 is off by"):
            check_precision(model, batch(3), LossConfig(), precision)


def test_nothing_is_drawn_while_16_bit_is_checked():
    network = nn.Sequential(nn.Dropout(0.5), StochasticDepth(0.5, "row"), nn.BatchNorm1d(4))
    rows = torch.arange(32.0).view(8, 4)
    with without_trace(network, dropout=False):
        found = network(rows)
    assert torch.equal(found, nn.BatchNorm1d(4)(rows))  # by the batch's statistics
    assert all(module.training for module in network.modules())
    assert network[2].num_batches_tracked == 0


CONFIG = """
data: {root: r, train_list: t, eval_list: e, num_classes: 3}
model: {name: %s}
train: {run_dir: out}
"""


def test_a_config_that_names_the_network_has_its_clips(tmp_path):
    path = tmp_path / "run.yaml"
    for name, clips in PUBLISHED.items():
        path.write_text(CONFIG % name)
        config = load(path)
        assert (config.data.num_frames, config.data.size) == (clips.num_frames, clips.size)
        assert (config.data.branch_frames, config.data.motion_window) == ((), 0)
        assert config.train.temperature == (1.0, 1.0)
        assert load(path, ["data.modality=depth", "data.num_frames=8"]).data.num_frames == 8


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.modality=rgbd", "data: modality is rgbd, but model.name mvit_v2_s takes rgb or "
         "depth; train one network of each, and fuse their scores by engine/fuse_scores.py"),
        ("data.motion_window=10", "data: motion_window is 10, but model.name mvit_v2_s takes no "
         "motion maps; set it to 0"),
        ("data.size=100", "model: size must be a multiple of 32 and num_frames even, not 100 and "
         "16: the network halves its patches of 2 x 4 x 4 pixels three times"),
        ("model.size=64", "model: 'size' belongs in the data section: data.size"),
        ("model.width=64", "model: unknown key 'width'"),
    ],
)  # fmt: skip
def test_what_the_network_cannot_take_is_one_line(tmp_path, override, message):
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG % "mvit_v2_s")
    with pytest.raises(ValueError) as error:
        load(path, [override])
    assert str(error.value) == f"{path}: {message}"


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_its_memory_is_estimated_without_building_it(tmp_path, name):
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG % name)
    small = ["data.num_frames=4", "data.crop=32", "data.size=32", "train.global_batch=2"]
    text = memory(load(path, small), Ranks(0, 0, 1), Precision.choose("fp32", torch.device("cpu")))
    parameters = {"r3d_18": 33.17, "mvit_v2_s": 34.23, "swin3d_t": 27.85}[name]
    assert f" = {parameters} M parameters" in text and "activations of 2 clips (0.0" in text


def test_a_run_starts_from_torchvisions_file_without_its_classifier(small, tmp_path):
    published = small_network(400)
    torch.save(published.state_dict(), tmp_path / "r3d.pth")
    (tmp_path / "run.yaml").write_text(CONFIG % "r3d_18")
    config = load(tmp_path / "run.yaml", [f"train.init_from={tmp_path / 'r3d.pth'}"])
    torch.manual_seed(5)
    model = build_model("r3d_18", num_classes=3)
    own = model.network[5].weight.clone()
    model.network[0].weight.data.zero_()
    (line,) = initialise(model, config)
    assert line.endswith("r3d.pth without network.5")
    assert torch.equal(model.network[0].weight, published[0].weight)
    assert torch.equal(model.network[5].weight, own)


def test_torchvisions_file_is_evaluated_as_it_is(small, tmp_path):
    path = tmp_path / "r3d.pth"
    torch.save(small_network(3).state_dict(), path)
    state = checkpoint.load(path)
    checkpoint.load_model(build_model("r3d_18", num_classes=3), state, path)
    assert state["progress"] == {"epoch": 0}


def test_no_explanation_is_promised(small):
    with pytest.raises(ValueError, match="no explanation is known for r3d_18, only for CVPR'22's"):
        Recording(build_model("r3d_18", num_classes=3), "rgb", 112)


def test_other_networks_are_not_taken_for_torchvisions():
    assert not video_networks.is_torchvision({})
    assert not video_networks.is_torchvision({"format": 1, "model": {}})
    assert not video_networks.is_torchvision(torch.zeros(1))


@pytest.mark.slow
def test_r3d_18_trains_is_evaluated_and_predicts(tiny_config, train, tmp_path):
    tiny_config["model"] = {"name": "r3d_18"}
    tiny_config["data"] |= {"branch_frames": [], "motion_window": 0, "rotate": 0.0}
    tiny_config["loss"] = {}
    tiny_config["train"] |= {"temperature": [1.0, 1.0], "epochs": 2}
    done = train("optim.lr=0.01", "optim.warmup=0", "loss.label_smoothing=0.0")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    epochs = [line["loss"] for line in lines if line["kind"] == "epoch"]
    assert epochs[0] > epochs[1]
    assert all(line["merged"] == line["loss"] for line in lines if line["kind"] == "epoch")
    assert json.loads((run / "result.json").read_text())["steps"] == 8

    trained = open_trained(run / "last.pt")
    clips = scan(trained.config.data, "eval")
    folders = [str(Path(files.path(0)).parent) for files in clips.media["rgb"]]
    evaluated = train("--checkpoint", str(run / "last.pt"), script="engine/evaluate.py")
    assert evaluated.returncode == 0, evaluated.stderr
    scores = ClipScores.load(run)
    assert scores.heads.tolist() == ["logits"]
    predicted = torch.stack([result.logits for result in recognise(trained, folders, "cpu")])
    assert scores.names.tolist() == [clip.name for clip in clips.clips]
    np.testing.assert_allclose(predicted.numpy(), scores.logits[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_each_network_is_exported_for_any_number_of_clips(tmp_path, monkeypatch, name):
    monkeypatch.setattr(video_networks, "_torchvision", few_blocks)
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG % name)
    config = load(path, ["data.num_frames=4", "data.crop=32", "data.size=32"])
    torch.manual_seed(0)
    network = build_model(name, **model_options(config)).eval().requires_grad_(False)
    trained = Trained(network, config, 1.0, ["a", "b", "c"])
    assert export(trained, tmp_path / "net.pt2")["difference"] < 1e-4
