"""engine/clips.py: the clips of a run opened, counted and read, for both modalities at once."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from engine.clips import check_batch, open_clips
from engine.config import Config, ModelConfig, TrainConfig
from engine.distributed import Ranks
from engine.loop import Precision
from lists import write_list


def test_an_rgbd_run_boxes_its_depth_says_so_and_reads_both(tmp_path: Path) -> None:
    data = write_list(tmp_path, 3, "rgbd", rgb_size=(96, 54), depth_encoding="wrapped_jet")
    config = Config(data, TrainConfig(run_dir="", global_batch=3))
    ranks = Ranks(0, 0, 1)
    clips = open_clips(config, ranks, Precision.choose("fp32", ranks.device))
    training, evaluation = clips.counts().splitlines()
    assert training.startswith(f"training: 3 clips of {tmp_path}/list.txt; depth frames without")
    assert evaluation.startswith("evaluation: 3 clips of")
    boxes = [stream.boxes for stream in clips.train.train_request(0, 0).streams]
    assert boxes[0] is None and boxes[1] is not None and boxes[1].shape == (4, 4)
    (batch,) = clips.train_batches(0, 1)
    assert [tensor.shape for tensor in batch.clip] == [(3, 3, 4, 32, 32)] * 2
    assert [tensor.shape for tensor in batch.motion] == [(3, 1, 4, 32, 32)] * 2


@pytest.mark.parametrize(
    ("network", "branches", "problem"),
    [
        ("decoupled", (2, 4), ""),
        ("decoupled", (1, 2), "the batch norms of a branch of one frame"),
        ("decoupled_fusion", (2, 4), "the fusion network's batch norms"),
        ("umdr", (2, 4), ""),
        ("umdr", (1, 2), "the batch norms of a branch of one frame"),
        ("umdr_fusion", (1, 2), ""),  # frozen
        ("r3d_18", (), ""),
    ],
)
def test_a_single_clip_is_refused_where_batch_norms_see_one_value(
    tmp_path, network, branches, problem
) -> None:
    data = replace(write_list(tmp_path, 3), branch_frames=branches)
    for batch, refused in ((1, bool(problem)), (2, False)):
        config = Config(data, TrainConfig("", global_batch=batch), ModelConfig(network))
        text = f"single clip at a time to some of 1 ranks, in which {problem} see one value per"
        with pytest.raises(ValueError, match=text) if refused else nullcontext():
            check_batch(config, Ranks(0, 0, 1))
