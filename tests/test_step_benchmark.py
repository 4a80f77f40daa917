"""benchmarks/: the straightforward network is the engine's, the benchmark runs, the gate closes."""

import functools
import gc
import itertools
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

import pytest
import torch

from benchmarks import ceilings, compare, forms, kernels, step
from benchmarks.alternatives import ALTERNATIVES
from benchmarks.records import summary
from engine.distributed import Ranks, place
from engine.loop import Precision, TrainStep
from engine.losses import LossConfig, training_loss
from engine.optim import OptimConfig, build_optimizer
from models import build_model

SMALL = {
    "num_classes": 5, "num_frames": 8, "branch_frames": (2, 4, 6), "num_blocks": 2, "width": 8,
    "dim": 64, "dropout": 0.0,
}  # fmt: skip
SMALL_UMDR = SMALL | {"num_blocks": 4, "branch_frames": (4, 9, 16)}
"""Kernels of 2, 3 and 4 frames; the longer branches see frames twice."""


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("decoupled", SMALL),
        ("decoupled", SMALL | {"knn_ratio": 0}),
        ("decoupled", SMALL | {"recoupling": False}),
        ("umdr", SMALL_UMDR),
    ],
)
def test_the_straightforward_network_computes_what_the_engines_does(network, options, training):
    torch.manual_seed(0)
    ours = build_model(network, **options).double()
    for parameter in ours.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    plain = forms.STRAIGHTFORWARD[network](**options).double()
    plain.load_state_dict(ours.state_dict())
    clip, motion = torch.randn(2, 3, 8, 32, 32).double(), torch.rand(2, 1, 8, 32, 32).double()
    indices = [
        torch.stack([torch.cat([torch.randperm(8) for _ in "ab"])[:f].sort().values for _ in "ab"])
        for f in options["branch_frames"]
    ]
    config = LossConfig(teacher_gradient=True)
    outputs = [model.train(training)(clip, motion, indices, 0.5) for model in (ours, plain)]
    losses = [training_loss(output, torch.tensor([1, 3]), config, 9)[0] for output in outputs]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-10, atol=0)
    parts = [[out.logits, *out.branch_logits, *sum(out.recoupled, ())] for out in outputs]
    torch.testing.assert_close(parts[1], parts[0], rtol=1e-10, atol=1e-10)
    for loss, found in zip(losses, parts, strict=True):
        (loss + sum(part.square().sum() for part in found)).backward()
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
    for name, parameter in ours.named_parameters():
        scale = parameter.grad.abs().max().item()
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=0, atol=1e-9 * scale)
    state = plain.state_dict()
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-10, atol=1e-10)


@pytest.fixture
def measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the device can do, which takes seconds of large products otherwise."""
    monkeypatch.setattr(ceilings, "REPEATS", 1)


@pytest.mark.usefixtures("forked_cases", "measured_once")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "blocks", "more"), [("decoupled", 1, " --profile"), ("umdr", 3, "")]
)
def test_the_step_benchmark_measures_both_forms_on_the_same_batch(
    tmp_path, capsys, network, blocks, more
):
    out = tmp_path / "step.json"
    options = f"--network {network} --num-blocks {blocks} --size 32 --frames 8 --width 8 --dim 64"
    options += f" --batch 2 --warmup 1 --steps 3 --device cpu --threads 1{more}"
    assert step.main([*options.split(), "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert {"command", "commit", "machine", "versions", "setting"} <= result.keys()
    assert (result["setting"]["network"], result["setting"]["frames"]) == (network, 8)
    entries = result["entries"]
    assert list(entries) == ["straightforward", "chosen"]
    for entry in entries.values():
        seconds = entry["seconds"]
        assert seconds["n"] == 3 and 0 < seconds["q1"] <= seconds["median"] <= seconds["q3"]
        assert entry["clips_per_s"] == pytest.approx(2 / seconds["median"])
        assert entry["memory_bytes"] > 0
        assert entry["settings"].keys() == {"tf32_matmul", "tf32_cudnn", "cudnn_benchmark"}
    # Dropout is drawn apart, so the first losses agree only roughly.
    losses = [entry["first_loss"] for entry in entries.values()]
    assert losses[1] == pytest.approx(losses[0], rel=0.2)
    printed = capsys.readouterr().out
    assert "of wall" in printed and "straightforward" in printed
    assert all(figure > 0 for part in ("ceilings", "wall") for figure in result[part].values())
    assert result["wall"]["merged_gb"] < result["wall"]["gb"]

    if more:
        found = entries["straightforward"]["profile"]
        names = {kernel["name"] for kernel in found["kernels"]}
        assert any("convolution" in name for name in names)  # mkldnn_convolution, on this CPU
        assert printed.startswith("straightforward: ") and "\nchosen: " in printed


def dies(setting: forms.Setting) -> forms.Step:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def runs_out_of_memory(setting: forms.Setting) -> forms.Step:
    left = iter(range(2))

    def step() -> torch.Tensor:
        if next(left, None) is None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nand more")
        return torch.ones(())

    return step


def quick(setting: forms.Setting) -> forms.Step:
    return lambda: torch.ones(())


def acted(form: str, setting: forms.Setting, threads: int, profile: bool, pipe: Connection) -> None:
    """`serve` of forms that are none, in a GPU's process without a GPU."""
    made = {"dies": dies, "full": runs_out_of_memory, "quick": quick, "last": quick}
    with mock.patch.dict(forms.FORMS, made):
        step.serve(form, replace(setting, device="cpu"), threads, profile, pipe)


@pytest.mark.usefixtures("forked_cases", "measured_once")
def test_what_stops_a_form_is_a_row_and_the_forms_after_it_are_measured_and_written(
    tmp_path, capsys, monkeypatch
):
    """As on a GPU: one form after the other."""
    out, order, written = tmp_path / "step.json", ["dies", "quick", "full", "last"], []
    on_gpu = replace(small_setting(), device="cuda", together=2, warmup=1, steps=3)
    monkeypatch.setattr(step, "chosen_setting", lambda options: replace(on_gpu, device="cpu"))
    monkeypatch.setattr(step, "default_forms", lambda device: order)
    monkeypatch.setattr(step, "serve", acted)
    measure, write = step.measure, step.write
    monkeypatch.setattr(step, "measure", lambda setting, *rest: measure(on_gpu, *rest))
    monkeypatch.setattr(step, "write", lambda *given: written.append(given) or write(*given))
    assert step.main(["--json", str(out)]) == 1
    result = json.loads(out.read_text())
    assert list(result["entries"]) == ["quick", "last"] and len(written) == len(order)
    assert result["errors"].keys() == {"dies", "full"}
    assert "ended by signal 9" in result["errors"]["dies"]
    assert result["errors"]["full"].startswith("OutOfMemoryError: CUDA out of memory. Tried to")
    printed = capsys.readouterr().out
    for form, why in result["errors"].items():
        assert f"{form:<32}not measured: {why}" in printed


def test_a_profile_counts_calls_and_time_per_step():
    matrix = torch.randn(300, 300)
    found = kernels.profile_step(lambda: (matrix @ matrix) @ matrix, torch.device("cpu"), steps=4)
    (product,) = (kernel for kernel in found.kernels if kernel.name == "aten::mm")
    assert product.calls == 2
    assert 0 < product.ms <= found.busy_ms <= found.step_ms
    assert found.kernels[0] == max(found.kernels, key=lambda kernel: kernel.ms)
    text = kernels.as_text("form", kernels.Profile(10.0, 7.5, (kernels.Kernel("k", 3.0, 5.0),)))
    assert text.splitlines() == [
        "form: 10.00 ms a step under the profiler, gaps 25%", "    5.000 ms 50.0%       3 x  k"
    ]  # fmt: skip


@pytest.mark.parametrize(("network", "frames"), [("decoupled", 64), ("umdr", 32)])
def test_clips_are_as_long_as_the_network_was_published_with(monkeypatch, network, frames):
    seen: list[forms.Setting] = []
    monkeypatch.setattr(step, "setting_operations", lambda setting, _: seen.append(setting) or [])
    monkeypatch.setattr(step, "rates", lambda device: {"matmul_tflop_per_s": 1, "copy_gb_per_s": 1})
    monkeypatch.setattr(step, "measure", lambda *_: [])
    assert step.main(["--network", network, "--device", "cpu"]) == 0
    assert (seen[0].network, seen[0].frames) == (network, frames)
    assert forms.Setting(network=network, frames=32).branch_frames == (
        (8, 16, 24) if network == "decoupled" else (16, 32, 48)
    )


def small_setting(network: str = "decoupled") -> forms.Setting:
    blocks = {"decoupled": 1, "umdr": 3}[network]
    return forms.Setting(network, size=64, batch=2, frames=8, width=8, dim=64, num_blocks=blocks)


@pytest.mark.parametrize(
    ("name", "network"),
    [*itertools.product(sorted({*ALTERNATIVES} - {"pixels_mixed"}), ("decoupled", "umdr")),
     ("pixels_mixed", "umdr")],
)  # fmt: skip
def test_what_was_tried_for_speed_computes_the_same(name, network):
    assert losses_with(name, network) == pytest.approx(losses_with("", network), rel=1e-9)


@functools.cache
def losses_with(change: str, network: str) -> list[float]:
    """Of three steps, with one of the alternatives or with none."""
    setting, precision = small_setting(network), Precision.choose("fp64", torch.device("cpu"))
    batch = forms.make_batch(setting, channels_last=True)
    model = place(forms.engine_network(setting), Ranks(0, 0, 1), torch.float64)
    if change:
        ALTERNATIVES[change](model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    config = OptimConfig(lr=1e-3)
    step = TrainStep(
        model.train(), build_optimizer(model, config), LossConfig(), config.clip_norm, precision
    )
    return [step(batch, 5, 0.5)["loss"].item() for _ in range(3)]


@pytest.mark.parametrize("name", [name for name in ALTERNATIVES if name != "torch_batch_norm"])
def test_a_network_without_what_a_form_changes_is_not_measured_as_if_it_had_it(name):
    with pytest.raises(ValueError, match="this form is for a network with a "):
        ALTERNATIVES[name](torch.nn.Linear(1, 1))


@pytest.fixture
def collecting() -> Iterator[None]:
    """Python collects garbage by itself again."""
    yield
    if not gc.isenabled():
        gc.collect()  # of a form's steps, which never end
        gc.enable()
        gc.unfreeze()


@pytest.mark.gpu  # on CPUs bf16 convolutions take minutes
@pytest.mark.parametrize("network", ["decoupled", "umdr"])
def test_the_straightforward_form_in_bf16_rounds(network):
    losses = []
    for form in ("straightforward", "straightforward_bf16"):
        step = forms.FORMS[form](replace(small_setting(network), device="cuda"))
        torch.manual_seed(3)
        losses.append(step().item())
    assert losses[1] != losses[0] and losses[1] == pytest.approx(losses[0], rel=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("network", ["decoupled", "umdr"])
def test_the_form_with_gathering_pools_takes_the_step_without_them(network):
    losses = []
    for form in ("uncompiled_bf16", "uncompiled_gathered_pool_bf16"):
        step = forms.FORMS[form](replace(small_setting(network), device="cuda"))
        torch.manual_seed(3)
        losses.append([step().item() for _ in range(2)])
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


@pytest.mark.parametrize("network", ["decoupled", "umdr"])
@pytest.mark.parametrize("name", ["torch_sgd", "averaged", "accumulated", "collected_apart"])
def test_a_form_of_an_option_takes_the_chosen_forms_step(collecting, name, network):
    """The loss of the first is as dropout is drawn; later ones are of other weights."""
    expected = losses_of_chosen(network)
    step = forms.FORMS[name](small_setting(network))
    found = two_losses(step)
    assert found[1] < found[0]
    if name != "accumulated":  # whose batch norm sees half a batch
        assert found == pytest.approx(expected, rel=1e-5)
    assert gc.isenabled() == (name != "collected_apart")


@functools.cache
def losses_of_chosen(network: str) -> list[float]:
    return two_losses(forms.FORMS["chosen"](small_setting(network)))


def two_losses(step: forms.Step) -> list[float]:
    torch.manual_seed(3)
    return [step().item() for _ in range(2)]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("graphed", "this form cannot be made here: CUDA graphs are for GPUs, and this run is on the"),
     ("gathered_pool_bf16", "the gathering pool is for GPUs, and this network is on the CPU"),
     ("apex_sgd", "optim.fused is apex, which is for GPUs; set optim.fused=torch")],
)  # fmt: skip
def test_a_form_that_a_machine_cannot_run_says_why(name, reason):
    with pytest.raises(ValueError, match=reason):
        forms.FORMS[name](small_setting())


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
