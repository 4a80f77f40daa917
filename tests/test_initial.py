"""engine/initial.py: a new run starts from another's weights, all of them but what is named."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tests.published import SMALL, published_file, small_network
from torch import nn

from engine import checkpoint
from engine.config import Config, ModelConfig, TrainConfig
from engine.initial import initialise, resizable
from models import build_model
from models.upstream import to_published
from pipelines.config import DataConfig

DATA = DataConfig(root="", train_list="", eval_list="", num_classes=5, num_frames=8,
                  branch_frames=(2, 4, 6))  # fmt: skip
OPTIONS = {key: SMALL[key] for key in ("num_blocks", "width", "dim")}


def config(num_classes: int = 5, **train: str) -> Config:
    data = dataclasses.replace(DATA, num_classes=num_classes)
    return Config(data, TrainConfig("runs/x", **train), ModelConfig("decoupled", OPTIONS))


def saved(path: Path, form: str, **options) -> nn.Module:
    """A network with random weights, saved in one of the two forms."""
    network = small_network(**options)
    if form == "published":
        torch.save({"model": to_published(network, "module."), "epoch": 1, "bestacc": 0.0}, path)
    else:
        checkpoint.save(path, {"model": network.state_dict()})
    return network


@pytest.fixture(params=["ours", "published"])
def form(request) -> str:
    return request.param


def test_all_weights_are_taken_over(tmp_path, form):
    expected = saved(tmp_path / "x", form).state_dict()
    network = small_network()
    lines = initialise(network, config(init_from=str(tmp_path / "x")))
    assert lines == [f"the network starts from {tmp_path / 'x'}"]
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, expected[key]), key


def test_a_classifier_of_another_size_is_left_out_by_name(tmp_path, form):
    expected = saved(tmp_path / "x", form, num_classes=9).state_dict()
    network = small_network()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    (line,) = initialise(network, config(init_from=str(tmp_path / "x")))
    names = [f"heads.{i}.linear.{leaf}" for i in range(3) for leaf in ("bias", "weight")]
    heads = "heads.0.linear, heads.1.linear, heads.2.linear"
    assert line == f"the network starts from {tmp_path / 'x'} without {heads}"
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, (before if key in names else expected)[key]), key


def test_resizable_is_what_depends_on_the_number_of_classes():
    assert resizable(config()) == {
        f"heads.{i}.linear.{leaf}" for i in range(3) for leaf in ("bias", "weight")
    }


@pytest.mark.parametrize(
    ("options", "detail"),
    [
        ({"dim": 128}, r"spatial.token_linear.weight is \(128, 128\) there and \(64, 128\) here"),
        ({"recoupling": False}, r"recoupling.excite.weight is missing there"),
        ({"num_blocks": 4}, r"branches.0.blocks.3.attention.out.bias is not known here"),
        ({"branch_frames": (2, 4, 8)}, r"branches.2.position is \(1, 9, 64\) there"),
    ],
)
def test_any_other_difference_is_an_error_that_changes_nothing(tmp_path, form, options, detail):
    saved(tmp_path / "x", form, **options)
    network = small_network()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    message = rf"x: does not fit the network that train.init_from fills \({detail}"
    with pytest.raises(ValueError, match=message):
        initialise(network, config(init_from=str(tmp_path / "x")))
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


def test_a_network_of_other_frames_starts_without_what_depends_on_them(tmp_path):
    options = {"num_classes": 5, "num_blocks": 3, "width": 8, "dim": 64}
    torch.manual_seed(1)
    before, after = (build_model("umdr", num_frames=frames, **options) for frames in (8, 16))
    checkpoint.save(tmp_path / "x", {"model": before.state_dict()})
    torch.manual_seed(2)
    expected = build_model("umdr", num_frames=16, **options).state_dict()
    after.load_state_dict(expected)
    data = dataclasses.replace(DATA, num_frames=16, branch_frames=(8, 16, 24))
    model = ModelConfig("umdr", {k: options[k] for k in ("num_blocks", "width", "dim")})
    train = TrainConfig("runs/x", init_from=str(tmp_path / "x"))
    with pytest.raises(ValueError, match=r"query.weight is .* set train.init_any_frames=true"):
        initialise(after, Config(data, train, model))
    train = dataclasses.replace(train, init_any_frames=True)
    (line,) = initialise(after, Config(data, train, model))
    left = line.removeprefix(f"the network starts from {tmp_path / 'x'} without ").split(", ")
    parts = ("query", "key", "squeeze", "excite", "norm", "student.weight")
    assert left[:6] == [f"spatial.recouplings.0.{part}" for part in parts]
    assert {f"branches.2.{part}" for part in ("position", "inception.conv_a.conv")} <= {*left}
    for key, tensor in after.state_dict().items():
        is_left = before.state_dict()[key].shape != tensor.shape
        assert is_left == key.startswith(tuple(left)), key
        assert torch.equal(tensor, expected[key] if is_left else before.state_dict()[key]), key


class Halves(nn.Module):
    """What matters here of a fusion network: two networks without heads, and more."""

    def __init__(self) -> None:
        super().__init__()
        self.rgb, self.depth = small_network(), small_network()
        self.rgb.heads = self.depth.heads = nn.ModuleList()
        self.more = nn.Linear(2, 2)


def test_halves_of_a_fusion_network_start_from_unimodal_checkpoints(tmp_path, form):
    rgb = saved(tmp_path / "rgb", form, num_classes=9).state_dict()
    depth = saved(tmp_path / "depth", "published").state_dict()
    network = Halves()
    paths = {f"init_{half}": str(tmp_path / half) for half in ("rgb", "depth")}
    lines = initialise(network, config(**paths))
    assert lines == [
        f"the {half} network starts from {tmp_path / half}, without its heads"
        for half in ("rgb", "depth")
    ]
    heads = [key for key in rgb if key.startswith("heads.")]
    assert len(heads) == 12
    for half, expected in ((network.rgb, rgb), (network.depth, depth)):
        own = half.state_dict()
        assert own.keys() == {key for key in expected if key not in heads}
        assert all(torch.equal(tensor, expected[key]) for key, tensor in own.items())


def test_nothing_but_the_heads_is_left_out_of_a_half(tmp_path):
    saved(tmp_path / "rgb", "ours", recoupling=False)
    with pytest.raises(ValueError, match=r"train.init_rgb fills \(recoupling.excite.weight is mis"):
        initialise(Halves(), config(init_rgb=str(tmp_path / "rgb")))


def test_a_missing_file_is_named_with_its_key(tmp_path):
    with pytest.raises(ValueError) as error:
        initialise(small_network(), config(init_from=str(tmp_path / "x.pt")))
    assert str(error.value).startswith(f"{tmp_path / 'x.pt'}: no such file; train the network")
    assert "train.init_from=" in str(error.value)


def test_a_trained_published_file_needs_no_conversion(tmp_path):
    torch.save(published_file(copies=True), tmp_path / "x.pth.tar")
    network = small_network()
    initialise(network, config(init_from=str(tmp_path / "x.pth.tar")))
    weight = published_file(copies=True)["model"]["Conv3d_1a_7x7.conv3d.weight"]
    assert torch.equal(network.spatial.conv1.conv.weight, weight)
