"""benchmarks/: the straightforward network is the engine's, the benchmark runs, the gate closes."""

import gc
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import compare, forms, step
from benchmarks.alternatives import ALTERNATIVES
from benchmarks.ceilings import step_flop
from benchmarks.records import summary
from benchmarks.straightforward import StraightforwardNetwork
from engine.distributed import Ranks, place
from engine.loop import Precision, TrainStep
from engine.losses import LossConfig
from engine.optim import OptimConfig, build_optimizer
from models import build_model

SMALL = {
    "num_classes": 5, "num_frames": 8, "branch_frames": (2, 4, 6), "num_blocks": 2, "width": 8,
    "dim": 64, "dropout": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"knn_ratio": 0}, {"recoupling": False}])
def test_the_straightforward_network_computes_what_the_engines_does(training, options):
    torch.manual_seed(0)
    ours = build_model("decoupled", **{**SMALL, **options}).double()
    for parameter in ours.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    plain = StraightforwardNetwork(**{**SMALL, **options}).double()
    plain.load_state_dict(ours.state_dict())
    clip, motion = torch.randn(2, 3, 8, 32, 32).double(), torch.rand(2, 1, 8, 32, 32).double()
    indices = [torch.stack([torch.randperm(8)[:f].sort().values for _ in "ab"]) for f in (2, 4, 6)]
    outputs = [model.train(training)(clip, motion, indices, 0.5) for model in (ours, plain)]
    torch.testing.assert_close(outputs[1].logits, outputs[0].logits, rtol=1e-10, atol=1e-10)
    for output in outputs:
        parts = [output.logits, *output.branch_logits, *(pair.student for pair in output.recoupled)]
        sum(part.square().sum() for part in parts).backward()
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
    for name, parameter in ours.named_parameters():
        scale = parameter.grad.abs().max().item()
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=0, atol=1e-9 * scale)
    state = plain.state_dict()
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_the_step_benchmark_measures_both_forms_on_the_same_batch(tmp_path, capsys):
    out = tmp_path / "step.json"
    options = (
        "--size 32 --frames 8 --width 8 --dim 64 --num-blocks 1 --batch 2 --warmup 1 --steps 3"
    )
    assert (
        step.main([*options.split(), "--device", "cpu", "--threads", "1", "--json", str(out)]) == 0
    )
    result = json.loads(out.read_text())
    assert {"command", "commit", "machine", "versions", "setting"} <= result.keys()
    entries = result["entries"]
    assert list(entries) == ["straightforward", "chosen"]
    for entry in entries.values():
        seconds = entry["seconds"]
        assert seconds["n"] == 3 and 0 < seconds["q1"] <= seconds["median"] <= seconds["q3"]
        assert entry["clips_per_s"] == pytest.approx(2 / seconds["median"])
        assert entry["memory_bytes"] > 0
    # Dropout is drawn apart, so the first losses agree only roughly.
    losses = [entry["first_loss"] for entry in entries.values()]
    assert losses[1] == pytest.approx(losses[0], rel=0.2)
    assert "straightforward" in capsys.readouterr().out
    assert all(rate > 0 for rate in result["ceilings"].values())


def small_setting() -> forms.Setting:
    return forms.Setting(size=64, batch=2, frames=8, width=8, dim=64, num_blocks=1)


@pytest.mark.parametrize("name", ALTERNATIVES)
def test_what_was_tried_for_speed_computes_the_same(name):
    setting, precision = small_setting(), Precision.choose("fp64", torch.device("cpu"))
    batch, losses = forms.make_batch(setting, channels_last=True), []
    for change in (None, ALTERNATIVES[name]):
        model = place(forms.engine_network(setting), Ranks(0, 0, 1), torch.float64)
        if change:
            change(model)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        config = OptimConfig(lr=1e-3)
        step = TrainStep(
            model.train(), build_optimizer(model, config), LossConfig(), config.clip_norm, precision
        )
        losses.append([step(batch, 5, 0.5)["loss"].item() for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)


@pytest.fixture
def collecting() -> Iterator[None]:
    """Python collects garbage by itself again."""
    yield
    gc.collect()  # of a form's steps, which never end
    gc.enable()
    gc.unfreeze()


@pytest.mark.parametrize("name", ["torch_sgd", "averaged", "accumulated", "collected_apart"])
def test_a_form_of_an_option_takes_the_chosen_forms_step(collecting, name):
    """The loss of the first is as dropout is drawn; later ones are of other weights."""
    losses = []
    for form in ("chosen", name):
        step = forms.FORMS[form](small_setting())
        torch.manual_seed(3)
        losses.append([step().item() for _ in range(2)])
    assert losses[1][1] < losses[1][0]
    if name != "accumulated":  # whose batch norm sees half a batch
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert gc.isenabled() == (name != "collected_apart")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("graphed", "this form cannot be made here: CUDA graphs are for GPUs, and this run is on the"),
     ("apex_sgd", "optim.fused is apex, which is for GPUs; set optim.fused=torch")],
)  # fmt: skip
def test_a_form_that_a_machine_cannot_run_says_why(name, reason):
    with pytest.raises(ValueError, match=reason):
        forms.FORMS[name](small_setting())


def test_the_arithmetic_of_a_step_is_the_published_count():
    """Three times 73.2 GMAC forward; the first convolution (7.6) sends nothing back to pixels."""
    setting = forms.Setting(size=224)
    assert step_flop(setting) / 1e12 == pytest.approx(2e-3 * (3 * 73.2 - 7.6), rel=0.003)


def test_the_spread_is_the_quartiles():
    assert summary([5.0, 1.0, 2.0, 4.0, 3.0]) == {"median": 3.0, "q1": 2.0, "q3": 4.0, "n": 5}
    assert summary([7.0]) == {"median": 7.0, "q1": 7.0, "q3": 7.0, "n": 1}


def result_file(path: Path, what: str = "step", **seconds: tuple[float, float, float]) -> str:
    entries = {
        name: {"seconds": {"q1": q1, "median": median, "q3": q3, "n": 9}}
        for name, (q1, median, q3) in seconds.items()
    }
    path.write_text(json.dumps({"what": what, "setting": {}, "entries": entries}))
    return str(path)


@pytest.mark.parametrize(
    ("after", "status"),
    [
        ((0.99, 1.0, 1.01), 0),
        ((1.04, 1.05, 1.06), 0),  # at the threshold
        ((1.05, 1.06, 1.07), 1),
        ((0.9, 1.2, 1.3), 0),  # beyond the threshold, but not beyond the spread
        ((0.4, 0.5, 0.6), 0),
    ],
)
def test_only_what_is_slower_beyond_threshold_and_spread_closes_the_gate(tmp_path, after, status):
    before = result_file(tmp_path / "a.json", chosen=(0.98, 1.0, 1.02), other=(1, 1, 1))
    now = result_file(tmp_path / "b.json", chosen=after, other=(1, 1, 1))
    assert compare.main([before, now]) == status
    assert compare.main([before, now, "--threshold", "2"]) == 0


def test_results_of_other_benchmarks_or_settings_are_not_compared(tmp_path, capsys):
    before = result_file(tmp_path / "a.json", chosen=(1, 1, 1))
    other = result_file(tmp_path / "b.json", what="loader", chosen=(1, 1, 1))
    assert compare.main([before, other]) == 2
    assert "what differs: step before, loader after" in capsys.readouterr().err
    fewer = result_file(tmp_path / "c.json", other=(1, 1, 1))
    assert compare.main([before, fewer]) == 2
    assert "only one of the two has chosen, other" in capsys.readouterr().err
    (tmp_path / "d.json").write_text("{}")
    assert compare.main([before, str(tmp_path / "d.json")]) == 2
    assert "d.json: is no result of a benchmark" in capsys.readouterr().err
