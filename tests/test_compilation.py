"""engine/compilation.py: compiled or not, the same results; and where it cannot be, why.

The backend `aot_eager` traces as the compiler does, forward and backward, and runs what it traced
without generated code: a minute less per network.
"""

import pytest
import torch
from torch import Tensor, nn

import trunks
from engine import compilation
from engine.compilation import CompiledForward, compile_training, is_wanted
from engine.distributed import Ranks, place
from engine.loop import Precision, TrainStep, predict
from engine.losses import LossConfig
from engine.optim import OptimConfig, build_optimizer
from engine.rehearsal import trial
from models.output import ModelOutput
from models.registry import build_model
from pipelines.batch import Batch

CPU = torch.device("cpu")
ALONE = Ranks(0, 0, 1)
OPTIONS = {
    "num_classes": 3, "num_frames": 4, "branch_frames": (3,), "width": 4, "dim": 64,
    "num_blocks": 1, "dropout": 0.0,
}  # fmt: skip

SIZE = 64
SMALLEST = 32
"""Leaves planes of 1 x 1 at the end."""


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")


def network(name: str, precision: Precision) -> nn.Module:
    torch.manual_seed(0)
    more: dict[str, int] = {"num_blocks": 3} if name.startswith("umdr") else {}
    more |= {"spatial_depth": 1, "temporal_depth": 1} if name == "umdr_fusion" else {}
    return build_model(name, **OPTIONS | more).to(precision.weights)


def batch_for(name: str, num_clips: int = 2, size: int = SIZE) -> Batch:
    generator = torch.Generator().manual_seed(1)
    streams = []
    for _ in range(2):
        levels = torch.randint(0, 256, (num_clips, 4, size, size, 3), generator=generator)
        clip = ((levels - 127.5) / 128).permute(0, 4, 1, 2, 3)
        streams.append((clip, torch.rand(num_clips, 1, 4, size, size, generator=generator)))
    clips, maps = zip(*streams, strict=True)
    paired = name.endswith("_fusion")
    indices = (torch.arange(3).repeat(num_clips, 1),)
    label = torch.arange(num_clips) % 3
    return Batch(clips if paired else clips[0], maps if paired else maps[0], label, indices, label)


def step_of(model: nn.Module, precision: Precision) -> TrainStep:
    config = OptimConfig(lr=1e-3)
    return TrainStep(model.train(), build_optimizer(model, config), LossConfig(), 1.0, precision)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["decoupled", "decoupled_fusion", "umdr", "umdr_fusion"])
def test_a_compiled_network_trains_as_the_plain_one(traced_only, monkeypatch, name):
    if name.endswith("_fusion"):
        trunks.thin(monkeypatch)
    precision, batch = Precision.choose("fp64", CPU), batch_for(name, size=SMALLEST)
    plain, compiled = network(name, precision), network(name, precision)
    names = list(compiled.state_dict())
    assert compile_for(compiled, batch, precision) is None
    assert isinstance(compiled.forward, CompiledForward)
    assert list(compiled.state_dict()) == names
    steps = [step_of(model, precision) for model in (plain, compiled)]
    for epoch, temperature in ((5, 0.5), (6, 0.7), (7, 0.9)):  # as the schedule moves it
        losses = [step(batch, epoch, temperature)["loss"].item() for step in steps]
        assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    for key, tensor in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[key], tensor, rtol=1e-9, atol=1e-9)
    for model in (plain, compiled):
        model.eval()
    one = batch.part(0, 1)
    with torch.no_grad():
        outputs = [predict(model, one, 1.0, precision) for model in (plain, compiled)]
    torch.testing.assert_close(outputs[1].logits, outputs[0].logits, rtol=1e-9, atol=1e-9)


def compile_for(model: nn.Module, batch: Batch, precision: Precision) -> str | None:
    return compile_training(model, ALONE, lambda: trial(model, batch, LossConfig(), precision))


class Counted(nn.Module):
    """Remembers how often it ran uncompiled; a compiled program has no such memory."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.runs = 0

    def forward(self, clip: Tensor, temperature: float = 1.0, **_: object) -> ModelOutput:
        if not torch.compiler.is_compiling():
            self.runs += 1
        return ModelOutput(self.linear(clip) / temperature)


def unlike_any_video(clip: Tensor) -> Batch:
    """A batch of `Counted`."""
    label = torch.zeros(len(clip), dtype=torch.int64)
    return Batch(clip, None, label, (), label)


def test_it_is_compiled_once_for_the_shapes_and_any_temperature_of_training(traced_only):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = Counted()
    clip = torch.randn(5, 4)
    assert compile_for(model, unlike_any_video(clip), Precision.choose("fp32", CPU)) is None
    model.train()
    for temperature in (0.04, 0.05, 0.06):
        found = model(clip, temperature=temperature).logits
        torch.testing.assert_close(found, model.linear(clip) / temperature)
    assert model.runs == 0
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    model(clip[:2])
    assert model.runs == 1, "another shape"
    model.eval()
    model(clip)
    assert model.runs == 2, "evaluation"
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


def test_generated_code_computes_the_same():
    model = Counted()
    clip = torch.randn(5, 4)
    assert compile_for(model, unlike_any_video(clip), Precision.choose("fp32", CPU)) is None
    torch.testing.assert_close(
        model.train()(clip, temperature=0.5).logits, model.linear(clip) / 0.5
    )
    assert model.runs == 0


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["decoupled", "umdr"])
def test_clips_of_32_pixels_train_compiled_on_a_gpu(name):
    """Their last maps are planes of 1 x 1."""
    ranks = Ranks(0, 0, 1).on("cuda")
    precision = Precision.choose("bf16", ranks.device)
    model = place(network(name, precision), ranks, precision.weights).train()
    batch = batch_for(name, size=SMALLEST)
    assert isinstance(batch.clip, Tensor) and isinstance(batch.motion, Tensor)
    indices = tuple(index.cuda() for index in batch.branch_indices)
    label = batch.label.cuda()
    batch = Batch(batch.clip.cuda(), batch.motion.cuda(), label, indices, batch.index)
    problem = compile_training(model, ranks, lambda: trial(model, batch, LossConfig(), precision))
    assert problem is None and isinstance(model.forward, CompiledForward)


class Uncompilable(Counted):
    def forward(self, clip: Tensor, **options: object) -> ModelOutput:
        print("a side effect in the middle")
        torch._dynamo.graph_break()
        return super().forward(clip, **options)


def test_what_cannot_be_compiled_stays_as_it_was_and_says_why(traced_only):
    model = Uncompilable()
    clip = torch.randn(5, 4)
    problem = compile_for(model, unlike_any_video(clip), Precision.choose("fp32", CPU))
    assert problem and problem.startswith("Unsupported: ") and "\n" not in problem
    assert "forward" not in vars(model)
    assert model.train()(clip).logits.shape == (5, 3)


@pytest.mark.slow
def test_without_a_working_compiler_training_goes_on_plainly(train, tmp_path):
    env = {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
           "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}  # fmt: skip
    done = train("train.compile=on", "train.epochs=1", env=env, fork=False)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("train.compile:"))
    assert line.startswith("train.compile: not compiled, ") and "no-such-compiler" in line


def test_auto_compiles_for_gpus_only():
    assert [is_wanted("auto", torch.device(kind)) for kind in ("cpu", "cuda")] == [False, True]
    assert [is_wanted(choice, CPU) for choice in ("on", "off")] == [True, False]
