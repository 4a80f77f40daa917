"""engine/skipping.py: a step with bad gradients leaves nothing behind but a count."""

import dataclasses

import pytest
import torch

from engine.loop import TrainStep
from engine.skipping import StepScaler, trouble
from pipelines.batch import Batch
from test_loop import CPU, tiny_batch, tiny_step


@pytest.fixture
def unwritten_memory_is_nan():
    """Of tensors made without a value."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def bad_batch() -> Batch:
    """One clip holds a number that is none."""
    batch = tiny_batch(CPU)
    clip = batch.clip.clone()
    clip[1, 0, 3, 5, 5] = float("nan")
    return dataclasses.replace(batch, clip=clip)


def everything(step: TrainStep) -> list[torch.Tensor]:
    """Weights, statistics and momentum (counts of batches are read by nothing)."""
    kept = [t for t in step.model.state_dict().values() if t.is_floating_point()]
    states = step.optimizer.state_dict()["state"].values()
    kept += [t for state in states for t in state.values() if isinstance(t, torch.Tensor)]
    return [tensor.clone() for tensor in kept]


def take(step: TrainStep, *batches: Batch) -> list[float]:
    return [step(batch, epoch=5, temperature=1.0)["loss"].item() for batch in batches]


@pytest.mark.parametrize("clip_norm", [0.0, 5.0])
def test_a_bad_step_changes_nothing_even_if_it_is_the_first(unwritten_memory_is_nan, clip_norm):
    options = {"lr": 0.01, "momentum": 0.9, "clip_norm": clip_norm}
    good, step = tiny_batch(CPU), tiny_step(CPU, "fp32", skip=True, **options)
    plain = tiny_step(CPU, "fp32", **options)
    take(step, bad_batch(), good)
    before = everything(step)
    take(step, bad_batch(), bad_batch())
    assert all(map(torch.equal, everything(step), before))
    take(step, good)
    take(plain, good, good)
    for found, expected in zip(everything(step), everything(plain), strict=True):
        assert torch.equal(found, expected), "the arithmetic of a run that skips nothing"
    assert step.scaler.counts(CPU).tolist() == [3.0, 0.0, 2.0]


def test_without_leave_to_skip_the_step_says_that_its_gradients_are_bad():
    for clip_norm in (0.0, 5.0):
        step = tiny_step(CPU, "fp32", clip_norm=clip_norm)
        take(step, tiny_batch(CPU))
        assert step.trouble.item() == 0.0
        take(step, bad_batch())
        assert step.trouble.isnan()


@pytest.mark.parametrize("moving", [False, True])
def test_counts_and_scale_travel_in_the_checkpoint(moving):
    precision = "fp16" if moving else "fp32"
    step = tiny_step(CPU, precision, skip=True)
    take(step, bad_batch(), bad_batch())
    state = step.scaler.state_dict()
    assert state["scale"] == (65536.0 / 4 if moving else 1.0) and state["skipped"] == [2.0, 2.0]
    resumed = StepScaler("cpu", moving=moving, skip=True)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    other = tiny_step(CPU, precision, skip=True)
    other.scaler = resumed
    take(other, bad_batch())
    assert resumed.counts(CPU).tolist() == [3.0, 3.0, 3.0]


def test_a_run_that_stopped_goes_on_with_leave_to_skip_and_back():
    never = StepScaler("cpu", moving=False, skip=False)
    assert never.state_dict() == {}
    skipping = StepScaler("cpu", moving=False, skip=True)
    skipping.load_state_dict({})
    assert skipping.state_dict()["scale"] == 1.0
    # As published files, converted, bring it: torch's own, never used.
    skipping.load_state_dict(torch.amp.GradScaler("cpu").state_dict())
    assert skipping.state_dict()["scale"] == 1.0
    never.load_state_dict(skipping.state_dict())
    assert never.state_dict() == {}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_number_in_any_tensor_is_trouble(bad):
    tensors = [torch.full((3, 2), 3e38), torch.zeros(()), torch.ones(5)]
    assert trouble(tensors).item() == 0.0
    tensors[2][4] = bad
    assert trouble(tensors).isnan()
