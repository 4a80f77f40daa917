"""engine/convert.py: one command, both directions, nothing lost."""

from pathlib import Path

import pytest
import torch
import yaml
from tests.published import differences, published_file, trusted

from engine import checkpoint
from engine.convert import main


@pytest.mark.parametrize("wrapper", ["", "module."])
@pytest.mark.parametrize("copies", [False, True])
def test_there_and_back_the_file_holds_what_it_held(tmp_path, capsys, wrapper, copies):
    original = published_file(wrapper=wrapper, copies=copies, extra={"arch": "I3DWTrans"})
    torch.save(original, tmp_path / "a.pth.tar")
    assert main([str(tmp_path / "a.pth.tar"), str(tmp_path / "b.pt")]) == 0
    said = capsys.readouterr().out
    assert "decoupled network, 5 classes, branches of 2, 4, 6 frames, 37 epochs" in said
    assert "best top-1 89.58%" in said
    first = f"{wrapper}dtn.multi_scale_transformers.1.Mixed_small.b0.conv3d.weight"
    assert ("216 of its entries were never used" in said and first in said) is copies
    assert checkpoint.load(tmp_path / "b.pt")["progress"]["epoch"] == 37
    assert main([str(tmp_path / "b.pt"), str(tmp_path / "c.pth.tar")]) == 0
    assert list(differences(trusted(tmp_path / "c.pth.tar"), original)) == []


@pytest.fixture
def config_file(tmp_path) -> Path:
    path = tmp_path / "x.yaml"
    tree = {
        "data": {"root": "/data", "train_list": "a", "eval_list": "b", "num_classes": 5,
                 "num_frames": 8, "branch_frames": [2, 4, 6], "motion_window": 3},
        "model": {"width": 8, "dim": 64, "num_blocks": 3, "knn_ratio": 0.8},
        "train": {"run_dir": "runs/x"},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(tree))
    return path


def test_the_config_can_travel_with_the_weights(tmp_path, config_file):
    torch.save(published_file(), tmp_path / "a.pth.tar")
    command = [str(tmp_path / "a.pth.tar"), str(tmp_path / "b.pt"), "--config", str(config_file)]
    assert main([*command, "data.motion_window=4"]) == 0
    config = checkpoint.load(tmp_path / "b.pt")["config"]
    assert (config["data"]["root"], config["data"]["motion_window"]) == ("/data", 4)
    assert config["model"]["knn_ratio"] == 0.8
    assert main([str(tmp_path / "b.pt"), str(tmp_path / "c.pth.tar")]) == 0
    assert list(differences(trusted(tmp_path / "c.pth.tar"), published_file())) == []


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("a.pth.tar", [], "a.pth.tar: is IN itself; give OUT another name"),
        ("b.pt", ["--config", "x.yaml", "model.dim=128"], "a.pth.tar: is not of the network of "
         "x.yaml: "),
        ("gone/b.pt", [], "gone/b.pt: cannot be saved"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(tmp_path, monkeypatch, capsys, config_file, target, options,
                                    message):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    torch.save(published_file(), "a.pth.tar")
    assert main(["a.pth.tar", target, *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1


def test_a_checkpoint_without_published_counterpart_is_refused(tmp_path, capsys):
    state = {
        "config": {"data": {"num_classes": 5, "num_frames": 8, "branch_frames": [2, 4]},
                   "model": {"name": "decoupled", "width": 8, "dim": 64, "num_blocks": 1}},
        "progress": {"epoch": 0, "best_top1": -1.0}, "model": {},
    }  # fmt: skip
    checkpoint.save(tmp_path / "a.pt", state)
    assert main([str(tmp_path / "a.pt"), str(tmp_path / "b.pth.tar")]) == 1
    assert "a.pt: published networks have 3 branches, this one 2" in capsys.readouterr().err
    assert not (tmp_path / "b.pth.tar").exists()


def test_weights_alone_are_said_to_be_no_run(tmp_path, capsys):
    torch.save(published_file(optimizer=False), tmp_path / "a.pth.tar")
    assert main([str(tmp_path / "a.pth.tar"), str(tmp_path / "b.pt")]) == 0
    assert "no optimizer state: good for train.init_from" in capsys.readouterr().out
