"""engine/averaging.py: the running average of the weights, by its formula and by torch's."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from engine import checkpoint
from engine.averaging import WeightAverage, decay_at
from engine.config import Config, as_dict, from_tree, model_options
from engine.initial import initialise
from engine.run import Progress
from engine.trained import open_trained
from models.registry import build_model


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.3)).double()


def train_one_step(model: nn.Module, step: int) -> None:
    """Other weights, statistics and counts."""
    draw = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype)
        model.train()(torch.randn(5, 3, generator=draw, dtype=torch.float64))


def test_the_decay_rises_from_a_tenth_to_what_was_asked_for():
    assert [decay_at(0.9, step) for step in (0, 1, 2)] == [1 / 10, 2 / 11, 3 / 12]
    assert decay_at(0.9, 79) == pytest.approx(80 / 89)
    assert decay_at(0.9, 80) == 0.9 and decay_at(0.9, 10**9) == 0.9


def test_an_average_is_the_formula_for_weights_and_statistics_and_counts_are_copied():
    model = network()
    average = WeightAverage(model, 0.25)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for step, decay in enumerate((1 / 10, 2 / 11, 0.25, 0.25)):
        train_one_step(model, step)
        average.update(step)
        for name, tensor in model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor
    expected["1.num_batches_tracked"] = torch.tensor(4)
    torch.testing.assert_close(average.network.state_dict(), expected, rtol=1e-12, atol=1e-12)
    assert not average.network.training
    assert not any(parameter.requires_grad for parameter in average.network.parameters())


def test_once_the_decay_is_constant_it_is_torchs_own_average():
    model = network()
    ours = WeightAverage(model, 0.9)
    torchs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    torchs.n_averaged += 1  # or its first update would be a copy
    for step in range(100, 105):
        train_one_step(model, step)
        ours.update(step)
        torchs.update_parameters(model)
    found, expected = ours.network.state_dict(), torchs.module.state_dict()
    del expected["1.num_batches_tracked"]  # which torch decays too
    assert found.pop("1.num_batches_tracked") == 5
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.gpu
def test_an_update_never_waits_for_the_device():
    model = network().cuda()
    average = WeightAverage(model, 0.9)
    average.update(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        average.update(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def config(tiny_config: dict) -> Config:
    return from_tree(tiny_config, "tiny.yaml")


def saved_run(config: Config, path: Path) -> dict[str, dict]:
    """A checkpoint whose average is twice the weights; both state dicts by name."""
    model = build_model(config.model.name, **model_options(config)).state_dict()
    weights = {"model": model, "ema": {name: 2 * tensor for name, tensor in model.items()}}
    progress = dataclasses.asdict(Progress(epoch=1))
    checkpoint.save(path, {"config": as_dict(config), "progress": progress, **weights})
    return weights


def test_what_was_evaluated_is_what_a_checkpoint_is_used_for(config, tmp_path):
    path = tmp_path / "best.pt"
    weights = saved_run(config, path)
    for options, name in (({}, "ema"), ({"raw": True}, "model")):
        state = open_trained(path, **options).network.state_dict()
        torch.testing.assert_close(dict(state), weights[name], rtol=0, atol=0)


def test_a_run_starts_from_the_average_of_another(config, tmp_path):
    path = tmp_path / "best.pt"
    weights = saved_run(config, path)
    train = dataclasses.replace(config.train, init_from=str(path))
    started = build_model(config.model.name, **model_options(config))
    initialise(started, dataclasses.replace(config, train=train))
    torch.testing.assert_close(dict(started.state_dict()), weights["ema"], rtol=0, atol=0)


def test_a_run_goes_on_from_the_weights_themselves(config, tmp_path):
    path = tmp_path / "last.pt"
    weights = saved_run(config, path)
    model = build_model(config.model.name, **model_options(config))
    average = copy.deepcopy(model)
    state = checkpoint.load(path)
    checkpoint.load_model(model, state, path)
    checkpoint.load_model(average, state, path, averaged=True)
    torch.testing.assert_close(dict(model.state_dict()), weights["model"], rtol=0, atol=0)
    torch.testing.assert_close(dict(average.state_dict()), weights["ema"], rtol=0, atol=0)
