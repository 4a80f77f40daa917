"""engine/flops.py and engine/speed.py: arithmetic per clip, and the figures of a log line."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from engine import flops, speed
from engine.config import Config, ModelConfig, TrainConfig
from engine.distributed import Ranks
from engine.flops import clip_flop, matrix_rate, step_flop
from engine.loop import Precision
from engine.losses import LossConfig
from engine.speed import Speed, bar_text
from models.output import ModelOutput
from models.registry import build_model
from pipelines.batch import Batch
from pipelines.config import DataConfig
from test_compilation import SIZE, batch_for
from test_loop import tiny_batch

CPU = torch.device("cpu")
META = torch.device("meta")
ALONE = Ranks(0, 0, 1)


class OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(7, 5, bias=False)

    def forward(self, clip: Tensor, **_: object) -> ModelOutput:
        return ModelOutput(self.linear(clip))


def test_a_product_counts_two_per_multiply_add_forward_and_once_more_for_its_weights():
    label = torch.zeros(3, dtype=torch.int64)
    batch = Batch(torch.zeros(3, 7), None, label, (), label)
    # The gradient of the pixels is not asked for.
    assert step_flop(OneLayer().to(META), batch, LossConfig()) == 2 * (2 * 3 * 7 * 5)


def config(name: str, frames: tuple[int, ...], num_frames: int, **options: object) -> Config:
    data = DataConfig(
        root="", train_list="", eval_list="", layout="ntu", num_classes=3, num_frames=num_frames,
        branch_frames=frames, modality="rgbd" if name.endswith("_fusion") else "rgb",
    )  # fmt: skip
    model = ModelConfig(name, {"width": 8, "dim": 64, "num_blocks": 1, **options})
    return Config(data, TrainConfig("run"), model)


@pytest.mark.parametrize("name", ["decoupled", "umdr"])
def test_a_clip_costs_the_same_in_any_batch(name):
    tiny = config(name, (2, 4, 6), 8, num_blocks=3)
    counts = [clip_flop(tiny, tiny_batch(CPU, clips)) for clips in (1, 2, 4)]
    assert counts[0] > 1e7 and counts == [counts[0]] * 3


def test_two_modalities_cost_more_than_twice_one():
    """The fusion network; its parts start from two networks and join them."""
    both = clip_flop(config("decoupled_fusion", (3,), 4), batch_for("decoupled_fusion"))
    one = clip_flop(config("decoupled", (3,), 4), batch_for("decoupled"))
    assert both > 2 * one


def test_frozen_halves_cost_their_forward_pass_alone():
    options = {"num_blocks": 3, "spatial_depth": 1, "temporal_depth": 1}
    with META:
        network = build_model("umdr_fusion", num_classes=3, num_frames=4, branch_frames=(3,),
                              width=8, dim=64, **options)  # fmt: skip
        clip, tokens, token = (
            torch.empty(shape) for shape in ((1, 3, 4, SIZE, SIZE), (1, 4, 64), 64)
        )
        forward, complement = (
            flop_of(lambda: network((clip, clip))),
            flop_of(lambda: network.complement((tokens, tokens), (token[None], token[None]))),
        )
    step = clip_flop(config("umdr_fusion", (3,), 4, **options), batch_for("umdr_fusion"))
    assert forward + complement < step <= forward + 2 * complement


def flop_of(action: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops()


def test_the_rate_of_matrix_products_is_measured_once(monkeypatch):
    monkeypatch.setattr(flops, "CPU_SIDE", 16)
    matrix_rate.cache_clear()
    found = matrix_rate(CPU, torch.float32)
    assert found > 0 and matrix_rate(CPU, torch.float32) == found
    assert matrix_rate.cache_info().misses == 1
    matrix_rate.cache_clear()


class TwoRanks(Ranks):
    """The first of two; the second one took longer to wait and less to compute."""

    def gather(self, value: object) -> list:
        other = {"data": 4.0, "forward": 2.0, "backward": 1.0, "sync": 0.5, "optimizer": 0.5}
        return [value, (other, 0, 0)]


def test_the_figures_are_means_over_ranks_and_add_up():
    ours = {"data": 0.0, "forward": 3.0, "backward": 2.0, "sync": 2.5, "optimizer": 0.5}
    rates = Speed(TwoRanks(0, 0, 2), global_batch=12)
    rates.clip_flop, rates.peak = 5e9, 60e9
    assert rates.figures(ours, steps=4) == {
        "clips_per_s": 6.0, "clips_per_s_per_rank": 3.0, "data_wait": 0.25, "data_wait_max": 0.5,
        "step_s": 2.0, "data_s": 0.5, "forward_s": 0.625, "backward_s": 0.375, "sync_s": 0.375,
        "optimizer_s": 0.125, "flop_use": 0.5,
    }  # fmt: skip


def test_one_rank_has_no_sync_and_without_a_measured_rate_there_is_no_share_of_it():
    figures = Speed(ALONE, 6).figures({"forward": 1.0, "other": 0.5}, steps=3)
    assert figures["clips_per_s"] == 12.0
    assert not {"sync_s", "flop_use", "gpu_used_gib"} & figures.keys()


def test_the_progress_bar_shows_the_line():
    line = {
        "loss": 1.25, "top1": 0.5, "lr": 0.01, "skipped": 2, "clips_per_s": 120.0,
        "clips_per_s_per_rank": 60.0, "step_s": 0.5, "data_s": 0.05, "forward_s": 0.1,
        "backward_s": 0.3, "sync_s": 0.025, "optimizer_s": 0.025, "gpu_used_gib": 31.25,
        "flop_use": 0.43,
    }  # fmt: skip
    assert bar_text(line, Ranks(0, 0, 2)) == (
        "loss 1.250, top-1 50.0%, lr 0.01, 120 clips/s (2 x 60), data 10%, fwd 20%, bwd 60%, "
        "sync 5%, opt 5%, 2 skipped, 31.2 GiB, 43% of FLOP/s"
    )


def test_a_network_whose_shapes_alone_do_not_run_is_trained_without_the_figure(monkeypatch):
    def needs_numbers(*_: object) -> float:
        return torch.empty(3, device=META).sum().item()

    monkeypatch.setattr(speed, "clip_flop", needs_numbers)
    rates = Speed(ALONE, 6)
    said = rates.prepare(config("decoupled", (3,), 4), batch_for("decoupled"),
                         Precision.choose("fp32", CPU))  # fmt: skip
    assert said.startswith("flop_use is not logged: ") and "meta" in said
    assert "flop_use" not in rates.figures({"forward": 1.0}, steps=1)
