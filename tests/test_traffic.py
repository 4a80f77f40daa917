"""operations.py and traffic.py of the benchmarks: bytes and arithmetic, counted by hand beside."""

import functools
import json
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import traffic
from benchmarks.ceilings import wall
from benchmarks.forms import LOSS, Setting, engine_network, make_batch
from benchmarks.networks import SHAPES, Network
from benchmarks.operations import Operation, merged, recorded, step_operations
from benchmarks.traffic import CHANGES, Rates, network_operations, setting_operations, table
from engine import flops
from models import video_networks
from models.blocks import max_pool_3x3x3
from models.output import ModelOutput
from test_video_networks import few_blocks

SMALL = Setting("decoupled", size=32, batch=2, frames=8, width=8, dim=64, num_blocks=1)


class OneBlock(Network):
    """With one block in each branch: the others are as it is."""

    def options(self) -> dict[str, Any]:
        return {**super().options(), "num_blocks": 1}


ONE_BLOCK = OneBlock(**vars(SHAPES["small"]["decoupled"]))


@functools.cache
def counted(setting: Setting | Network, precision: str, *changes: str) -> list[Operation]:
    """Of a step, each counted once in this file."""
    if isinstance(setting, Setting):
        return setting_operations(setting, precision)
    return network_operations(setting, precision, [CHANGES[name] for name in changes])


N = 4 * 6 * 5 * 7
"""Numbers in the tensors below."""


def tensor(**options) -> torch.Tensor:
    return torch.zeros(4, 6, 5, 7, **options)


@pytest.mark.parametrize(
    ("action", "name", "num_bytes"),
    [
        (lambda: F.relu(tensor()), "relu", 4 * 2 * N),
        (lambda: tensor(dtype=torch.bfloat16).relu_(), "relu_", 2 * 2 * N),
        (lambda: tensor() + tensor()[:1].expand(4, -1, -1, -1), "add", 4 * (2 * N + N // 4)),
        (lambda: torch.cat([tensor(), tensor()], 1), "cat", 4 * 4 * N),
        (lambda: tensor().to(torch.bfloat16), "_to_copy", (4 + 2) * N),
        (lambda: tensor().copy_(tensor()), "copy_", 4 * 2 * N),
        (lambda: tensor().zero_(), "zero_", 4 * N),
        (lambda: F.max_pool2d(tensor(), 3, 1, 1), "max_pool2d_with_indices", (4 + 4 + 8) * N),
    ],
)
def test_an_operation_moves_what_it_reads_and_writes(action, name, num_bytes):
    found = [each for each in recorded(action) if each.name == name]
    assert [each.num_bytes for each in found] == [num_bytes]


def back(result: torch.Tensor) -> None:
    """A gradient of as many numbers as the result."""
    result.backward(torch.zeros(result.shape, dtype=result.dtype))


def test_views_and_fresh_memory_move_nothing():
    assert recorded(lambda: torch.empty(9).view(3, 3).t().detach()[None].expand(7, 3, 3)) == []


def test_a_convolution_is_counted_there_and_back():
    weight = torch.zeros(8, 6, 3, 3, requires_grad=True)
    there, *_, home = [
        each for each in recorded(lambda: back(F.conv2d(tensor(), weight, padding=1)))
        if each.kind == "convolution"
    ]  # fmt: skip
    inputs, outputs, weights = N, N // 6 * 8, 8 * 6 * 9
    assert there == Operation("convolution", 4 * (inputs + outputs + weights), 2 * outputs * 6 * 9)
    # what is convolved are numbers from the data set: they get no gradient
    assert home == Operation(
        "convolution_backward", 4 * (2 * outputs + inputs + 2 * weights), 2 * outputs * 6 * 9
    )


def test_a_norm_reads_its_input_for_the_statistics_and_again():
    norm, image = nn.BatchNorm2d(6), tensor().requires_grad_()
    found = recorded(lambda: back(norm(image)))
    big = [each.num_bytes // (4 * N) for each in found if each.kind == "norm"]
    assert big == [3, 5]  # 2 in, 1 out; the gradient and the input twice, 1 out


def test_a_pool_of_gradients_does_not_read_what_was_pooled():
    image = tensor(dtype=torch.bfloat16).requires_grad_()
    found = recorded(lambda: back(F.max_pool2d(image, 3, 1, 1)))
    assert [each.num_bytes for each in found if each.kind == "pool"] == [12 * N, 12 * N]


def test_pools_are_16_bit_in_a_16_bit_step_as_they_are_on_gpus():
    class Pooling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 5)

        def forward(self, clip: torch.Tensor, **_: object) -> ModelOutput:
            frames = clip.transpose(1, 2).flatten(0, 1)
            pooled = max_pool_3x3x3(frames, clip.shape[2], nonnegative=True)
            return ModelOutput(self.layer(pooled.unflatten(0, (len(clip), -1)).mean((1, 3, 4))))

    found = step_operations(Pooling, partial(make_batch, SMALL, True), "bf16")
    (pool,) = (each for each in found if each.kind == "pool")
    assert pool.num_bytes == 12 * 2 * 8 * 3 * 32 * 32


@pytest.mark.parametrize(
    ("network", "blocks", "precision"), [("decoupled", 1, "bf16"), ("umdr", 3, "fp32")]
)
def test_the_arithmetic_of_a_step_is_that_of_torchs_counter(network, blocks, precision):
    setting = replace(SMALL, network=network, num_blocks=blocks)
    found = counted(setting, precision)
    meta = torch.device("meta")
    batch = make_batch(setting, True, meta)
    assert sum(each.flop for each in found) == flops.step_flop(
        engine_network(setting).to(meta), batch, LOSS
    )
    assert {each.kind for each in found} == {
        "convolution", "matrix product", "norm", "pool", "optimizer", "element-wise"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("network", "frames", "forward", "first"),
    [("decoupled", 64, 73.2, 7.6), ("umdr", 64, 78.6, 7.6)],
)
def test_the_arithmetic_of_a_step_is_the_published_count(network, frames, forward, first):
    """Three times the GMAC forward; the first convolution sends nothing back to pixels."""
    found = setting_operations(Setting(network, size=224, frames=frames), "fp32")
    expected = 2e-3 * (3 * forward - first)
    assert sum(each.flop for each in found) / 1e12 == pytest.approx(expected, rel=0.003)


def test_counting_takes_no_memory():
    huge = replace(SMALL, size=2240, batch=200)  # 96 GB of pixels in fp32
    assert sum(each.num_bytes for each in setting_operations(huge, "bf16")) > 96e9


def test_the_optimizer_reads_and_writes_every_weight_once():
    found = counted(SMALL, "bf16")
    weights = sum(each.numel() for each in engine_network(SMALL).parameters())
    (update,) = (each for each in found if each.kind == "optimizer" and "sgd" in each.name)
    assert update.num_bytes == 4 * 5 * weights  # weight, gradient, momentum; weight, momentum


def test_least_times_are_of_the_longer_of_arithmetic_and_bytes():
    rates = Rates(gb_per_s=2.0, tflop_per_s=0.5)
    operations = [
        Operation("convolution", 4_000_000_000, 500_000_000_000),  # 2 s of bytes, 1 s of arithmetic
        Operation("mm", 2_000_000_000, 2_000_000_000_000),  # 1 s of bytes, 4 s of arithmetic
        Operation("relu_", 8_000_000_000, 0),
    ]
    rows = table(operations, 2, rates)
    assert rows["all"].least_ms == pytest.approx(5000) and rows["merged"].least_ms == 3000
    assert rows["convolution/convolution"].gb == rows["convolution"].gb == 2.0
    assert rows["matrix product"].tflop == 1.0 and rows["element-wise"].calls == 1
    most = {"matmul_tflop_per_s": 0.1, "matmul_bf16_tflop_per_s": 0.5, "copy_gb_per_s": 2.0}
    assert wall(operations, most) == {
        "tflop": 2.5, "gb": 14.0, "merged_gb": 6.0, "least_seconds": 6.0
    }  # fmt: skip
    assert table(operations, 2, None)["all"].least_ms is None


@pytest.mark.parametrize("name", ["mvit_v2_s", "r3d_18", "swin3d_t"])
def test_torchvisions_networks_can_be_counted(monkeypatch, name):
    monkeypatch.setattr(video_networks, "_torchvision", few_blocks)
    found = network_operations(SHAPES["small"][name], "bf16")
    assert 0 < sum(each.num_bytes for each in merged(found)) < sum(e.num_bytes for e in found)


def test_joined_convolutions_read_their_input_once():
    kept, joined = (
        table(counted(ONE_BLOCK, "bf16", *change), 2, None) for change in ([], ["joined_points"])
    )
    assert joined["convolution"].gb < kept["convolution"].gb
    assert joined["all"].tflop == pytest.approx(kept["all"].tflop)


def test_gathering_pools_keep_places_of_one_byte():
    found = [
        table(counted(ONE_BLOCK, "bf16", *change), 2, None) for change in ([], ["gathered_pool"])
    ]
    # six modules, of 8, 4 and 2 pixels a side; torch's pool copies half of them to have a border
    numbers = 16 * (64 * (192 + 256) + 16 * (480 + 512) + 4 * (512 + 832))
    for name in ("gathered_max_pool", "gathered_max_pool_backward"):
        assert found[1][f"pool/{name}"].gb == pytest.approx(5 * numbers / 1e9)
    gained = found[0]["pool"].gb - found[1]["pool"].gb
    assert gained > 2 * (12 - 5) * numbers / 1e9


def test_the_table_names_the_largest_and_the_file_holds_all(tmp_path, capsys):
    out = tmp_path / "traffic.json"
    options = "--network r3d_18 --frames 8 --size 32 --batch 2 --rates 4300 790"
    assert traffic.main([*options.split(), "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "\n  convolution_backward " in printed and "\nmerged " in printed
    result = json.loads(out.read_text())
    assert result["network"]["frames"] == 8 and result["precision"] == "bf16"
    assert result["rows"]["all"]["least_ms"] > result["rows"]["merged"]["least_ms"] > 0
    assert traffic.main(["--network", "r3d_18", "--change", "joined_points"]) == 1
    assert "this form is for a network with a Inception" in capsys.readouterr().err
