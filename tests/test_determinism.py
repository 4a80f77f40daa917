"""engine/determinism.py: what runs on a GPU runs again bit for bit.

Seen here: what torch is told, and that no step asks for an operation that cannot be repeated. That
a GPU then repeats it is left to the `gpu` tests.
"""

import dataclasses
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from engine import compilation
from engine.averaging import WeightAverage
from engine.compilation import compile_training
from engine.determinism import make_deterministic, replace_pools
from engine.distributed import Ranks, place
from engine.loop import Precision, TrainStep
from engine.losses import LossConfig
from engine.mixing import MixConfig, Mixing
from engine.optim import OptimConfig, build_optimizer
from models import gathered_pool
from models.blocks import max_pool_3x3x3
from models.gathered_pool import gathered_max_pool_3x3x3
from models.spatial import SpatialInception, gather_pools
from pipelines.batch import Batch
from pipelines.motion import _batch_maps
from runs import assert_bit_equal, final_state, lines_of, without_times
from test_compilation import batch_for, network

CUDA = torch.device("cuda")
NETWORKS = ["decoupled", "decoupled_fusion", "umdr", "umdr_fusion"]

NOT_REPEATABLE = {
    "avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward",
    "adaptive_max_pool2d_backward", "fractional_max_pool2d_backward",
    "fractional_max_pool3d_backward", "max_pool3d_with_indices_backward", "max_unpool2d",
    "max_unpool3d", "upsample_linear1d_backward", "upsample_bilinear2d_backward",
    "_upsample_bilinear2d_aa_backward", "upsample_bicubic2d_backward",
    "_upsample_bicubic2d_aa_backward", "upsample_trilinear3d_backward",
    "reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward",
    "nll_loss2d_forward", "nll_loss2d_backward", "_ctc_loss_backward", "_embedding_bag_backward",
    "_embedding_bag_dense_backward", "put", "put_", "histc", "bincount", "kthvalue", "median",
    "nanmedian", "grid_sampler_2d_backward", "grid_sampler_3d_backward", "scatter_reduce",
    "scatter_reduce_", "index_reduce", "index_reduce_", "cumsum", "cumsum_",
}  # fmt: skip
"""aten's names of what torch.use_deterministic_algorithms is documented to refuse on GPUs, in this
release or an earlier one; NLLLoss stands there for that of images alone."""


@pytest.fixture
def torch_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is undone
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    cudnn, settings = torch.backends.cudnn, torch.utils.deterministic
    before = cudnn.deterministic, cudnn.benchmark, settings.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
    cudnn.deterministic, cudnn.benchmark, settings.fill_uninitialized_memory = before


@pytest.fixture
def gpu_acted_out(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, str | None]]:
    """What torch was told when the process began to use its GPU."""
    seen: list[tuple[bool, str | None]] = []

    def set_device(_: int) -> None:
        workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
        seen.append((torch.are_deterministic_algorithms_enabled(), workspace))

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    return seen


@pytest.mark.parametrize(("wanted", "told"), [(False, (False, None)), (True, (True, ":4096:8"))])
def test_torch_is_told_before_the_gpu_is_used(torch_as_it_was, gpu_acted_out, wanted, told):
    assert Ranks(0, 0, 1).on("auto", wanted).device == torch.device("cuda", 0)
    assert gpu_acted_out == [told]
    assert torch.backends.cudnn.deterministic == wanted


def test_on_the_cpu_nothing_has_to_be_told(torch_as_it_was):
    assert Ranks(0, 0, 1).on("cpu", True).device.type == "cpu"
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def pools(model: nn.Module) -> set[Any]:
    return {module.pool for module in model.modules() if isinstance(module, SpatialInception)}


@pytest.mark.parametrize("name", NETWORKS)
def test_only_a_deterministic_gpu_has_other_pools(torch_as_it_was, name):
    model = network(name, Precision.choose("fp32", torch.device("cpu"))).to("meta")
    replace_pools(model, CUDA)
    assert pools(model) == {max_pool_3x3x3}
    make_deterministic()
    replace_pools(model, torch.device("cpu"))
    assert pools(model) == {max_pool_3x3x3}
    replace_pools(model, CUDA)
    assert pools(model) == {gathered_max_pool_3x3x3}


def test_where_there_is_no_triton_the_run_says_what_to_install(monkeypatch):
    model = network("umdr", Precision.choose("fp32", torch.device("cpu"))).to("meta")
    monkeypatch.setattr("models.spatial.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"needs Triton, .* pip install triton"):
        gather_pools(model)


def test_a_compiler_that_chooses_by_the_clock_is_not_used(torch_as_it_was, monkeypatch):
    monkeypatch.setattr(compilation, "_is_repeatable", lambda: False)
    make_deterministic()
    problem = compile_training(nn.Linear(1, 1), Ranks(0, 0, 1), lambda: torch.zeros(()))
    assert problem and problem.startswith("this torch's compiler chooses by the clock, and ")


class Operations(TorchDispatchMode):
    """Names of all operations that are asked for within it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func._schema.name.removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


def operations_of_steps(name: str, gathered: bool) -> set[str]:
    """Of motion maps as GPUs make them, of steps with and without mixing, and of the average."""
    precision = Precision.choose("fp32", torch.device("cpu"))
    model = network(name, precision).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
        if isinstance(module, SpatialInception) and gathered:
            module.pool = gathered_max_pool_3x3x3
    average = WeightAverage(model, 0.9)
    optimizer = build_optimizer(model, OptimConfig(lr=1e-3))
    step = TrainStep(model, optimizer, LossConfig(), 1.0, precision, skip=True)
    mixing = Mixing(MixConfig(mixup=0.8, shufflemix=0.3, shufflemix_share=0.5), 0, 3, paired=True)
    batch = batch_for(name)
    with Operations() as seen:
        _batch_maps(torch.zeros(1, 4, 8, 8, 3, dtype=torch.uint8), 3)
        for given in (batch, mixing(batch, 0)):
            step(given, 5, 0.5)
            average.update(0)
    return seen.names


@pytest.mark.parametrize("name", NETWORKS)
def test_no_step_asks_for_what_torch_cannot_repeat(monkeypatch, name):
    def compute_nothing(_: object, tensors: tuple[torch.Tensor, ...], *__: Any, **___: Any) -> None:
        for made in tensors[1:]:
            made.zero_()

    monkeypatch.setattr(gathered_pool, "_launch", compute_nothing)
    backward = {"max_pool3d_with_indices_backward"} if name != "umdr_fusion" else set()
    assert operations_of_steps(name, gathered=False) & NOT_REPEATABLE == backward
    asked = operations_of_steps(name, gathered=True)
    assert not asked & NOT_REPEATABLE
    assert {"rgbd_motion::gathered_max_pool", "topk", "_fused_sgd_", "nll_loss_forward"} <= asked


@pytest.mark.gpu
@pytest.mark.parametrize("name", NETWORKS)
def test_on_a_gpu_the_same_steps_give_the_same_bits(torch_as_it_was, name):
    found = []
    ranks = Ranks(0, 0, 1).on("cuda", True)
    precision = Precision.choose("auto", ranks.device)
    batch = moved(batch_for(name, 4), ranks.device)
    for _ in "ab":
        model = place(network(name, precision), ranks, precision.weights)
        assert pools(model) == {gathered_max_pool_3x3x3}
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.1
        optimizer = build_optimizer(model, OptimConfig(lr=1e-3))
        step = TrainStep(model.train(), optimizer, LossConfig(), 1.0, precision)
        torch.manual_seed(3)
        losses = [step(batch, 5, 0.5)["loss"].item() for _ in range(4)]
        found.append((losses, model.state_dict()))
    assert found[0][0] == found[1][0]
    for key, tensor in found[0][1].items():
        assert torch.equal(tensor, found[1][1][key]), key


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device."""

    def there(leaf: Any) -> Any:
        return leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf

    fields = (getattr(batch, field.name) for field in dataclasses.fields(batch))
    return Batch(*(tree_map(there, value) for value in fields))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "options",
    [("train.compile=off",), ("train.compile=off", "train.cuda_graph=on"), ("train.compile=on",)],
    ids=["plain", "captured", "compiled"],
)
def test_on_a_gpu_a_resumed_run_ends_bit_equal_to_the_uninterrupted_one(train, tmp_path, options):
    options = (*options, "train.device=cuda", "train.deterministic=true", "train.save_every=2",
               "train.keep=9", "data.resize=[96,72]", "data.crop=64", "data.size=64")  # fmt: skip
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    resumed.mkdir()
    for run in (whole, resumed):
        done = train(*options, f"train.run_dir={run}")
        assert done.returncode == 0, done.stderr
        assert "not compiled" not in done.stdout and "not captured" not in done.stdout
        if run == whole:  # in the middle of the first epoch, as if it had been killed then
            shutil.copy(whole / "step_00000002.pt", resumed / "last.pt")
    assert_bit_equal(final_state(resumed), final_state(whole))
    logs = [list(map(without_times, lines_of(run, "train"))) for run in (whole, resumed)]
    assert logs[1] == logs[0][2:]
