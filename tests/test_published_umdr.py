"""UMDR's published checkpoints: weights, the optimizer's two groups and the command line, there and
back; those of its fusion joined with the networks that they complete."""

import argparse
import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.published import differences, trusted
from torch import nn

from engine import checkpoint
from engine.convert import main
from engine.optim import OptimConfig, build_optimizer, resume_optimizer
from engine.published_checkpoint import to_ours, to_published
from models import build_model
from models.upstream import published_parameters
from models.upstream import to_published as published_state

SMALL = {"num_classes": 5, "num_frames": 8, "num_blocks": 3, "width": 8, "dim": 64}


def content(part: nn.Module | None = None) -> dict[str, Any]:
    """As a trainer with timm's optimizer leaves it: first what does not decay, then the rest.
    `part`: of another network than the unimodal one."""
    torch.manual_seed(0)
    model = build_model("umdr", **SMALL) if part is None else part
    parameters = dict(model.named_parameters())
    ordered = [parameters[key] for key in published_parameters(model)]
    groups = [[p for p in ordered if p.dim() <= 1], [p for p in ordered if p.dim() > 1]]
    optimizer = torch.optim.SGD(
        [{"params": groups[0], "weight_decay": 0.0}, {"params": groups[1], "weight_decay": 5e-4}],
        lr=0.01, momentum=0.9, nesterov=True,
    )  # fmt: skip
    for parameter in ordered:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return {
        "model": OrderedDict(published_state(model)), "optimizer": optimizer.state_dict(),
        "epoch": 7, "bestacc": 0.5, "scheduler": {"base_values": [0.01, 0.01], "metric": None},
        "scaler": {"scale": 65536.0}, "model_ema": None,
        "args": argparse.Namespace(type="M", lr=0.01, loss={"name": "SoftCE"}),
    }  # fmt: skip


@pytest.fixture(scope="module")
def original() -> dict[str, Any]:
    return content()


@pytest.fixture
def published(original: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(original)


def test_there_and_back_is_the_original(published, original) -> None:
    assert list(differences(to_published(to_ours(published)), original)) == []


def test_each_momentum_goes_on_with_its_parameter(published) -> None:
    ours = to_ours(published)
    assert ours["config"]["model"]["name"] == "umdr"
    model = build_model("umdr", **SMALL)
    model.load_state_dict(ours["model"])
    optimizer = build_optimizer(model, OptimConfig(decay_norms=False, nesterov=True))
    resume_optimizer(optimizer, ours["optimizer"])
    # In the first step the momentum is the gradient, and with Nesterov w has moved by 1.9 of it.
    torch.manual_seed(0)
    before = dict(build_model("umdr", **SMALL).named_parameters())
    for key, parameter in model.named_parameters():
        momentum = optimizer.state[parameter]["momentum_buffer"]
        assert momentum.shape == parameter.shape
        moved = (before[key] - parameter) / 0.019
        torch.testing.assert_close(moved, momentum, rtol=1e-3, atol=1e-3)


def test_a_run_of_ours_becomes_a_published_file_with_two_groups(published, original) -> None:
    ours = to_ours(published)
    del ours["published"]
    back = to_published(ours)
    spared, decayed = back["optimizer"]["param_groups"]
    assert (spared["weight_decay"], decayed["weight_decay"]) == (0.0, 5e-4)
    assert spared["params"] + decayed["params"] == list(range(len(back["optimizer"]["state"])))
    for number, entry in back["optimizer"]["state"].items():
        expected = original["optimizer"]["state"][number]["momentum_buffer"]
        assert torch.equal(entry["momentum_buffer"], expected)


def test_other_groups_are_refused(published) -> None:
    published["optimizer"]["param_groups"][0]["weight_decay"] = 5e-4
    with pytest.raises(ValueError, match="of 2 groups"):
        to_ours(published)


def test_a_file_goes_there_and_back_with_its_command_line(tmp_path: Path, original) -> None:
    torch.save(original, tmp_path / "a.pth.tar")
    assert main([str(tmp_path / "a.pth.tar"), str(tmp_path / "b.pt")]) == 0
    assert checkpoint.load(tmp_path / "b.pt")["published"]["entries"]["args"].lr == 0.01
    assert main([str(tmp_path / "b.pt"), str(tmp_path / "c.pth.tar")]) == 0
    assert list(differences(trusted(tmp_path / "c.pth.tar"), original)) == []


FUSION = {"spatial_depth": 1, "temporal_depth": 2}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, original: dict[str, Any]) -> dict[str, Path]:
    """The published files of a fusion and of its two networks, the depth one in our form."""
    folder = tmp_path_factory.mktemp("published")
    names = {key: folder / f"{key}.pth.tar" for key in ("fusion", "rgb", "depth")}
    torch.save(original, names["rgb"])
    torch.manual_seed(3)
    depth = build_model("umdr", **SMALL)
    shared = {key: SMALL[key] for key in ("num_classes", "num_frames")}
    options = {"name": "umdr", "num_blocks": 3, "width": 8, "dim": 64, "knn_ratio": 0.5}
    state = {"config": {"data": shared, "model": options}, "model": depth.state_dict()}
    checkpoint.save(names["depth"], state | {"progress": {"epoch": 1, "best_top1": 0.5}})
    fusion = build_model("umdr_fusion", **SMALL, **FUSION)
    torch.save(content(fusion.complement), names["fusion"])
    return names


def test_a_fusion_is_joined_with_its_two_networks_and_comes_back(files, tmp_path, capsys) -> None:
    halves = ["--rgb", str(files["rgb"]), "--depth", str(files["depth"])]
    assert main([str(files["fusion"]), str(tmp_path / "b.pt"), *halves]) == 0
    assert "umdr_fusion network, 5 classes, branches of 4, 8, 12 frames" in capsys.readouterr().out
    state = checkpoint.load(tmp_path / "b.pt")
    described = state["config"]["data"] | state["config"]["model"]
    assert described == {
        "name": "umdr_fusion", **SMALL, "branch_frames": (4, 8, 12), **FUSION, "knn_ratio": 0.5,
    }  # fmt: skip
    model = build_model(described.pop("name"), **described)
    model.load_state_dict(state["model"])
    expected = {key: checkpoint.load(files[key])["model"] for key in ("rgb", "depth")}
    for key, half in expected.items():
        found = model.get_submodule(key).state_dict()
        assert found.keys() == half.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in half.items())
    assert len(state["optimizer"]["state"]) == len(list(model.complement.parameters()))
    assert main([str(tmp_path / "b.pt"), str(tmp_path / "c.pth.tar")]) == 0
    published = trusted(files["fusion"])
    assert list(differences(trusted(tmp_path / "c.pth.tar"), published)) == []


def test_the_optimizer_of_a_fusion_goes_on(files, tmp_path) -> None:
    halves = ["--rgb", str(files["rgb"]), "--depth", str(files["depth"])]
    assert main([str(files["fusion"]), str(tmp_path / "b.pt"), *halves]) == 0
    state = checkpoint.load(tmp_path / "b.pt")
    model = build_model("umdr_fusion", **SMALL, **FUSION)
    optimizer = build_optimizer(model, OptimConfig(decay_norms=False, nesterov=True))
    resume_optimizer(optimizer, state["optimizer"])
    momenta = trusted(files["fusion"])["optimizer"]["state"]
    published = published_parameters(model)
    split = [k for k in published if model.get_parameter(k).dim() <= 1]
    split += [k for k in published if k not in split]
    for number, key in enumerate(split):
        found = optimizer.state[model.get_parameter(key)]["momentum_buffer"]
        assert torch.equal(found, momenta[number]["momentum_buffer"]), key


@pytest.fixture(scope="module")
def more_files(files: dict[str, Path]) -> dict[str, Path]:
    """`files`, and those of networks that do not fit."""
    networks = {
        "wide": ("umdr", {"width": 16}), "more": ("umdr", {"num_classes": 6}),
        "other": ("decoupled", {"branch_frames": (2, 4, 6)}),
    }  # fmt: skip
    names = {key: files["rgb"].with_name(f"{key}.pth.tar") for key in networks}
    for key, (network, options) in networks.items():
        torch.save(content(build_model(network, **SMALL | options)), names[key])
    return files | names


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "holds only what completes two networks; name them: --rgb FILE --depth FILE"),
        (["rgb"], "holds only what completes two networks; name them"),
        (["rgb", "fusion"], "fusion.pth.tar: holds only what completes two networks; join them"),
        (["rgb", "wide"], "the depth network has width = 16, not 8"),
        (["rgb", "more"], "the depth network has num_classes = 6, not 5"),
        (["rgb", "other"], "the depth network is none of UMDR's"),
    ],
)
def test_a_fusion_needs_two_networks_that_fit(more_files, tmp_path, capsys, given, message) -> None:
    command = [str(more_files["fusion"]), str(tmp_path / "b.pt")]
    for key, name in zip(("--rgb", "--depth"), given, strict=False):
        command += [key, str(more_files[name])]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "b.pt").exists()


def test_a_fusion_alone_is_refused_wherever_a_network_is_read(files) -> None:
    message = r"fusion.pth.tar: holds only what completes two networks; join them: python -m engine"
    with pytest.raises(ValueError, match=message):
        checkpoint.load(files["fusion"])


def test_whole_networks_take_no_others(files, tmp_path, capsys) -> None:
    assert main([str(files["rgb"]), str(tmp_path / "b.pt"), "--rgb", str(files["rgb"])]) == 1
    assert "rgb.pth.tar: is whole, so --rgb and --depth have nothing to add" in (
        capsys.readouterr().err
    )
