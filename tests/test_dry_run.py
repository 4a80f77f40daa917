"""What a dry run counts and draws, for one modality and for both."""

from pathlib import Path

import pytest
import torch

from engine.dry_run import empty_batch
from lists import open_source, write_list
from pipelines.batch import Batch
from pipelines.loader import Loader


def as_shapes(batch: Batch) -> list[tuple]:
    tensors = [tensor for stream in batch.streams for tensor in stream if tensor is not None]
    tensors += [batch.label, *batch.branch_indices]
    return [(tensor.shape, tensor.dtype) for tensor in tensors]


@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("modality", ["rgb", "depth", "rgbd"])
def test_memory_is_counted_for_batches_shaped_as_the_loaders(
    tmp_path: Path, modality: str, window: int
) -> None:
    config = write_list(tmp_path, 3, modality, depth_encoding="metric", motion_window=window)
    requests = [open_source(config).eval_request(i) for i in range(3)]
    (batch,) = Loader(config, torch.device("cpu"), torch.float32, 3, 1).batches([requests])
    empty = empty_batch(3, config)
    assert as_shapes(empty) == as_shapes(batch)
    for part in ("clip", "motion"):
        assert type(getattr(empty, part)) is type(getattr(batch, part))
