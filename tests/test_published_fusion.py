"""Published checkpoints of the fusion network: converted, started from, evaluated as they are."""

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.published import differences, is_parameter, published_file, trusted
from torch import nn

from engine import checkpoint, convert
from engine.clip_scores import ClipScores
from engine.config import Config, ModelConfig, TrainConfig
from engine.initial import initialise
from engine.published_checkpoint import to_ours, to_published
from models import build_model
from models.upstream import to_published as published_state
from pipelines.config import DataConfig

KEYS = json.loads((Path(__file__).parent / "data" / "decoupled_fusion_keys.json").read_text())
TINY = {"num_classes": 8, "num_frames": 8, "branch_frames": (2, 4, 6), "num_blocks": 1}


def test_each_momentum_stays_with_its_parameter_at_full_size():
    state = OrderedDict((name, torch.zeros(()).expand(shape)) for name, shape, _, _ in KEYS)
    parameters = [name for name, _, _, kind in KEYS if kind == "param"]
    assert parameters == [name for name in state if is_parameter(name)]
    momenta = {}
    for i, name in enumerate(parameters):
        state[name] = torch.tensor(float(i)).expand(state[name].shape)
        momenta[i] = {"momentum_buffer": state[name]}
    optimizer = {"state": momenta, "param_groups": [{"lr": 0.1, "params": list(momenta)}]}
    content = {"model": state, "optimizer": optimizer, "epoch": 1, "bestacc": 0.0}
    ours = to_ours(content)
    assert ours["config"]["model"]["name"] == "decoupled_fusion"
    with torch.device("meta"):
        network = build_model("decoupled_fusion", num_classes=60)
    for i, (name, parameter) in enumerate(network.named_parameters()):
        weight = ours["model"][name]
        momentum = ours["optimizer"]["state"][i]["momentum_buffer"]
        assert weight.shape == momentum.shape == parameter.shape, name
        assert weight.flatten()[0] == momentum.flatten()[0], name
    assert not list(differences(to_published(ours), content))


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_there_and_back_is_bit_for_bit_the_same_file(tmp_path, wrapper):
    first, ours, back = (tmp_path / name for name in ("a.pth.tar", "b.pt", "c.pth.tar"))
    torch.save(published_file(network="decoupled_fusion", wrapper=wrapper), first)
    assert convert.main([str(first), str(ours)]) == 0
    assert checkpoint.load(ours)["config"]["model"]["published_reshape"] is True
    assert convert.main([str(ours), str(back)]) == 0
    assert not list(differences(trusted(first), trusted(back)))


@pytest.fixture
def tiny_config(tiny_config: dict) -> dict:
    tiny_config["data"] |= {"modality": "rgbd", "depth_encoding": "metric"}
    tiny_config["model"]["name"] = "decoupled_fusion"
    tiny_config["train"]["temperature"] = [1.0, 1.0]
    return tiny_config


def fresh() -> nn.Module:
    return build_model("decoupled_fusion", **TINY, width=8, dim=64)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A published file of the network of `tiny_config`."""
    path = tmp_path / "model_best.pth.tar"
    torch.save({"model": published_state(fresh()), "epoch": 1, "bestacc": 0.5}, path)
    return path


def test_the_reshape_follows_the_weights_that_are_loaded(tmp_path, published):
    clean = tmp_path / "clean.pt"
    checkpoint.save(clean, {"model": fresh().state_dict(), "config": {"model": {}}})
    network = fresh()
    for path, published_reshape in ((published, True), (clean, False)):
        checkpoint.load_model(network, checkpoint.load(path), path)
        assert network.published_reshape is published_reshape
    data = DataConfig("", "", "", num_classes=8, num_frames=8, branch_frames=(2, 4, 6))
    model = ModelConfig("decoupled_fusion", {"num_blocks": 1, "width": 8, "dim": 64})
    for path, published_reshape in ((published, True), (clean, False)):
        initialise(network, Config(data, TrainConfig("", init_from=str(path)), model))
        assert network.published_reshape is published_reshape


@pytest.mark.slow
def test_published_weights_keep_the_reshape_in_evaluation_and_in_a_run_that_starts_from_them(
    train, tmp_path, published
):
    def scores(path: Path) -> ClipScores:
        out = tmp_path / f"scores of {path.stem}"
        options = ("--checkpoint", str(path), "--out", str(out))
        done = train(*options, script="engine/evaluate.py")
        assert done.returncode == 0, done.stderr
        return ClipScores.load(out)

    mislabelled = {**checkpoint.load(published)}
    mislabelled["config"]["model"]["published_reshape"] = False
    checkpoint.save(tmp_path / "clean.pt", mislabelled)
    found, other = scores(published), scores(tmp_path / "clean.pt")
    assert np.abs(found.logits - other.logits).max() > 1e-3

    done = train(f"train.init_from={published}", "train.epochs=1")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    assert checkpoint.load(run / "last.pt")["config"]["model"]["published_reshape"] is True
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = next(line for line in logged if line["kind"] == "eval")
    hits = (scores(run / "last.pt").logits.argmax(2) == found.labels).mean(1)
    assert hits.tolist() == [head["top1"] for head in last["heads"].values()]
    again = train(f"train.init_from={published}", "train.epochs=1")
    assert again.returncode == 0, again.stderr
