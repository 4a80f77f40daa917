"""engine/clips.py: the clips of a run opened, counted and read, for both modalities at once."""

from pathlib import Path

from lists import write_list

from engine.clips import open_clips
from engine.config import Config, TrainConfig
from engine.distributed import Ranks
from engine.loop import Precision


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
