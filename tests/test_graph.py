"""The DALI graphs: decoding held to Pillow, the whole recipe to the plain twin.

The recipe's graph runs here on DALI's CPU backend, and in the tests marked gpu where it belongs.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from nvidia.dali import fn, pipeline_def
from nvidia.dali.types import DALIDataType
from PIL import Image

from clips import DEPTH_NAME, depth_frames, rgb_frames, write_clip
from lists import TINY, TURNS, assert_like_twin, request, request_of, stream_of, twin
from pipelines import reference, transforms
from pipelines.config import DataConfig
from pipelines.graph import decode_arrays, decode_graph, run, view_arrays, view_graph
from pipelines.media import Way
from pipelines.source import ClipRequest

DEVICES = ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)]
DEPTH = replace(TINY, modality="depth", resize=(72, 54))
METRIC = replace(DEPTH, depth_encoding="metric", depth_range_mm=(2000, 2400))
JET = replace(DEPTH, depth_encoding="wrapped_jet")
PIPELINE = {"batch_size": 16, "num_threads": 1, "prefetch_queue_depth": 2}


def decode(plan: Iterable[list[ClipRequest]], config: DataConfig = TINY) -> list[list[np.ndarray]]:
    """The decoded frames of each batch."""
    graph = partial(decode_graph, device_id=None, **PIPELINE)
    batches = run(graph, decode_arrays, plan, config, config.modality, Way.FILES)
    return [[np.asarray(frames[i]) for i in range(len(frames))] for _, (frames,) in batches]


def view(
    plan: Iterable[list[ClipRequest]],
    config: DataConfig,
    device: str = "cpu",
    dtype: DALIDataType = DALIDataType.FLOAT,
) -> tuple[np.ndarray, ...]:
    """Per modality, pixels and normalised pixels (frames of all batches, size, size, 3)."""
    graph = partial(view_graph, device=device, dtype=dtype,
                    device_id=0 if device == "gpu" else None, **PIPELINE)  # fmt: skip
    plan, seen = list(plan), []
    for modality in config.modalities:
        batches = [
            outputs for _, outputs in run(graph, view_arrays, plan, config, modality, Way.FILES)
        ]
        for part in zip(*batches, strict=True):
            seen.append(np.concatenate([b.as_cpu().as_array() for b in part]))
    return tuple(seen)


def png_clip(folder: Path, seed: int = 0, size: tuple[int, int] = (64, 48)) -> list[str]:
    """Frames that every decoder reads alike, the GPU's JPEG decoder too."""
    return write_clip(folder, rgb_frames(4, *size, seed=seed), "{:06d}.png")


def test_decoded_jpeg_equals_pillow_bit_for_bit(tmp_path: Path) -> None:
    paths = write_clip(tmp_path, rgb_frames(4))
    Image.open(paths[1]).convert("L").save(paths[1])  # a grey file among colour
    Image.open(paths[2]).save(paths[2], subsampling=0, progressive=True)
    (frames,) = decode([[request(paths)]])
    for frame, path in zip(frames, paths, strict=True):
        np.testing.assert_array_equal(frame, reference.read_color(path))


def test_the_orientation_that_a_camera_noted_is_ignored_as_published(tmp_path: Path) -> None:
    (path,) = write_clip(tmp_path, rgb_frames(1))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.open(path).save(path, exif=exif)
    assert decode([[request([path])]])[0][0].shape == (48, 64, 3)


def test_decoded_16_bit_depth_is_exact(tmp_path: Path) -> None:
    depth = np.arange(2**16, dtype=np.uint16).reshape(1, 256, 256)
    paths = write_clip(tmp_path, depth, DEPTH_NAME)
    np.testing.assert_array_equal(decode([[request(paths)]], METRIC)[0][0][..., 0], depth[0])


def test_batches_of_any_size_come_in_order_and_an_empty_plan_has_none(tmp_path: Path) -> None:
    paths = png_clip(tmp_path)
    plan = [[request(paths, index=i) for i in range(size)] for size in (2, 4, 1, 3)]
    graph = partial(decode_graph, device_id=None, **PIPELINE)
    batches = run(graph, decode_arrays, iter(plan), TINY, "rgb", Way.FILES)
    got = [(requests, len(f)) for requests, (f,) in batches]
    assert got == [(requests, 4 * len(requests)) for requests in plan]
    assert decode([]) == []


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [
    {},                                          # 64x48 -> 48x36 -> 32
    {"resize": (64, 48)},                        # no resize
    {"resize": (72, 72), "crop": 64, "size": 64},
    {"resize": (64, 48), "crop": 30},            # 30 -> 32, as THU-READ's 200 -> 224
])  # fmt: skip
def test_colour_clips_look_as_in_the_twin(tmp_path: Path, shape: dict, device: str) -> None:
    config = replace(TINY, **shape)
    requests = [request(png_clip(tmp_path / str(i), i), turn) for i, turn in enumerate(TURNS)]
    pixels, _ = view([requests[:2], requests[2:]], config, device)
    assert_like_twin(pixels, np.concatenate([twin(r, config) for r in requests]))


@pytest.mark.parametrize("device", DEVICES)
def test_clips_of_several_sizes_in_one_batch_look_as_in_the_twin(
    tmp_path: Path, device: str
) -> None:
    sizes = ((64, 48), (80, 50), (48, 48))
    requests = [
        request(png_clip(tmp_path / str(i), i, size), turn)
        for i, (size, turn) in enumerate(zip(sizes, TURNS, strict=True))
    ]
    pixels, _ = view([requests], TINY, device)
    assert_like_twin(pixels, np.concatenate([twin(r, TINY) for r in requests]))


@pytest.mark.parametrize("device", DEVICES)
def test_an_upright_view_without_resize_is_an_exact_copy(tmp_path: Path, device: str) -> None:
    config = replace(TINY, resize=(64, 48))
    clip = request(png_clip(tmp_path), TURNS[0])
    np.testing.assert_array_equal(view([[clip]], config, device)[0], twin(clip, config))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config", [METRIC, JET], ids=lambda config: config.depth_encoding)
def test_depth_looks_as_in_the_twin(tmp_path: Path, config: DataConfig, device: str) -> None:
    """With boxes of several sizes where the encoding has them."""
    boxes = np.array([[0, 0, 72, 54], [10, 5, 72, 54], [40, 9, 56, 54], [50, 40, 46, 32]])
    requests = [
        request(write_clip(tmp_path / str(i), depth_frames(4, 96, 72, seed=i), DEPTH_NAME),
                turn, boxes if config is JET else None)
        for i, turn in enumerate(TURNS)
    ]  # fmt: skip
    pixels, _ = view([requests], config, device)
    assert_like_twin(pixels, np.concatenate([twin(r, config) for r in requests]))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("config", [METRIC, JET], ids=lambda config: config.depth_encoding)
def test_both_modalities_look_as_in_the_twin(
    tmp_path: Path, config: DataConfig, paired: bool, device: str
) -> None:
    """16:9 beside 4:3; without pairing, depth in a view of its own."""
    config = replace(config, modality="rgbd", paired_view=paired)
    boxes = np.array([[0, 0, 72, 54], [10, 5, 72, 54], [40, 9, 56, 54], [50, 40, 46, 32]])
    requests = []
    for i, turn in enumerate(TURNS):
        rgb = png_clip(tmp_path / f"rgb{i}", i, (96, 54))
        depth = write_clip(tmp_path / f"d{i}", depth_frames(4, 96, 72, seed=i), DEPTH_NAME)
        own = boxes if config.boxed("depth") else None
        depth_turn = turn if paired else TURNS[i - 1]
        streams = stream_of(rgb, turn), stream_of(depth, depth_turn, own)
        requests.append(request_of(*streams, index=i))
    seen = view([requests[:2], requests[2:]], config, device)
    for stream, (pixels, clip) in enumerate(zip(seen[::2], seen[1::2], strict=True)):
        expected = np.concatenate([twin(r, config, stream) for r in requests])
        assert_like_twin(pixels, expected)
        np.testing.assert_array_equal(clip.astype(np.float64), (pixels - 127.5) / 128)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [DALIDataType.FLOAT, DALIDataType.FLOAT16])
def test_normalised_clips_are_exact(tmp_path: Path, dtype: DALIDataType, device: str) -> None:
    pixels, clip = view([[request(png_clip(tmp_path), TURNS[1])]], TINY, device, dtype)
    assert clip.dtype == (np.float32 if dtype == DALIDataType.FLOAT else np.float16)
    np.testing.assert_array_equal(clip.astype(np.float64), (pixels - 127.5) / 128)


@pytest.mark.parametrize("device", DEVICES)
def test_every_distance_has_the_colour_of_the_twin(device: str) -> None:
    depth = np.arange(2**16, dtype=np.uint16).reshape(1, 256, 256, 1)

    @pipeline_def(batch_size=1, num_threads=1, device_id=0 if device == "gpu" else None)
    def colours():
        mm = fn.external_source(lambda: depth, layout="HWC", device=device)
        return transforms.wrapped_jet(mm), transforms.metric_grey(mm, (2000, 2400))

    jet, grey = (output.as_cpu().as_array()[0] for output in colours().run())
    np.testing.assert_array_equal(jet, reference.jet(reference.wrap(depth[0, ..., 0])))
    np.testing.assert_array_equal(grey, reference.metric(depth[0, ..., 0], 2000, 2400))


def test_a_fault_that_is_in_no_file_is_reported_by_dali_itself(tmp_path: Path) -> None:
    paths = write_clip(tmp_path, depth_frames(1, 96, 72), DEPTH_NAME)
    outside = request(paths, boxes=np.array([[90, 60, 72, 54]]))
    with pytest.raises(RuntimeError, match="slice"):
        view([[outside]], JET)
