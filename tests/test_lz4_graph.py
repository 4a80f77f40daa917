"""Packed depth on the GPU: the same bits as on the CPU."""

from pathlib import Path

import numpy as np
import pytest
import torch
from nvidia.dali import fn, pipeline_def

from packs import write_pack
from pipelines.lz4_graph import inflate_depth, inflate_shapes
from pipelines.pack_format import PackedClip, TrackInfo, depth_track


@pipeline_def(num_threads=1, prefetch_queue_depth=1)
def depth_graph(feed):
    encoded, shape = fn.external_source(feed, num_outputs=2)
    return inflate_depth(encoded, shape)


def test_each_frame_has_the_shape_of_its_clip() -> None:
    infos = [TrackInfo("lz4", 9, 48, 64), TrackInfo("lz4", 5, 7, 3)]
    shapes = inflate_shapes(infos, 2)
    assert shapes.dtype == np.int32
    assert shapes.tolist() == [[48, 64, 1], [48, 64, 1], [7, 3, 1], [7, 3, 1]]


def test_frames_that_are_no_lz4_are_a_defect() -> None:
    with pytest.raises(AssertionError):
        inflate_shapes([TrackInfo("jpeg", 9, 48, 64)], 2)


@pytest.mark.gpu
@pytest.mark.parametrize("content", ["smooth", "noise", "empty"])
def test_the_gpu_inflates_what_the_cpu_does_bit_for_bit(tmp_path: Path, content: str) -> None:
    """Clips of different sizes in one batch, odd ones among them, frames in any order."""
    rng = np.random.default_rng(0)
    clips = {}
    for name, (height, width) in {"a": (424, 512), "b": (48, 64), "c": (7, 3)}.items():
        rows = np.arange(height)[:, None] + np.arange(width)
        depth = {
            "smooth": lambda rows=rows: 1000 + rows + 7 * np.arange(6)[:, None, None],
            "noise": lambda rows=rows: rng.integers(0, 2**16, (6, *rows.shape)),
            "empty": lambda rows=rows: np.zeros((6, *rows.shape)),
        }[content]()
        clips[name] = depth.astype(np.uint16)
    pack = write_pack(
        tmp_path, (PackedClip(n, {"depth": depth_track(d)}) for n, d in clips.items())
    )
    frames = [5, 0, 0, 3]

    def feed():
        encoded = [data for name in clips for data in pack.encoded(name, "depth", frames)]
        return encoded, inflate_shapes([pack.info(name, "depth") for name in clips], len(frames))

    (inflated,) = depth_graph(feed, batch_size=12, device_id=torch.cuda.current_device()).run()
    for place, name in enumerate(clips):
        expected = pack.depth_frames(name, frames)
        for i in range(len(frames)):
            frame = np.asarray(inflated.as_cpu()[place * len(frames) + i])
            assert frame.dtype == np.uint16
            np.testing.assert_array_equal(frame[..., 0], expected[i])
