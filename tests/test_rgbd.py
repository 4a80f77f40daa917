"""RGB and depth of one clip: the same frames, seen so that their pixels correspond."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from clips import MARKER, marker_frames, rgb_frames, write_clip
from lists import TINY, assert_like_twin, open_source, twin, write_list
from pipelines import reference
from pipelines.batch import Batch
from pipelines.config import DataConfig, FrameFiles
from pipelines.depth_boxes import depth_boxes
from pipelines.geometry import view_clip
from pipelines.index import scan
from pipelines.loader import Loader
from pipelines.sampling import DEPTH_VIEW, clip_rng
from pipelines.source import ClipRequest, ClipSource, Stream
from pipelines.view import View, draw_view

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
PNG = FrameFiles("rgb/{name}/{frame:06d}.png")
MARKED = replace(
    TINY, modality="rgbd", rgb=PNG, depth=replace(PNG, pattern="depth/{name}/{frame:06d}.png"),
    num_frames=1, branch_frames=(1,), motion_window=0,
    resize=(96, 72), crop=64, size=64, rotate=0.9, angle=(-45, 45),
)  # fmt: skip
"""Clips of one frame: each draw has a marker at another place."""
PLACES = [(x, y) for x in (0.3, 0.55, 0.7) for y in (0.25, 0.5, 0.7)]
DRAWS = 1600
"""Of which about two in three have the marker inside the crop."""
DEPTH_SIZE = (128, 106)
RGB_SIZES = [(192, 108), (64, 48)]


def load(
    requests: list[ClipRequest], config: DataConfig, device: str = "cpu", threads: int = 1
) -> Batch:
    loader = Loader(config, torch.device(device), torch.float32, len(requests), threads)
    (batch,) = loader.batches([requests])
    return batch


def pixels_of(clip: Tensor) -> NDArray[np.uint8]:
    """(B, 3, T, H, W) normalised -> (B, T, H, W, 3)."""
    return (clip.permute(0, 2, 3, 4, 1) * 128 + 127.5).to(torch.uint8).cpu().numpy()


def frame_numbers(stream: Stream) -> list[int]:
    return [int(Path(path).stem.removeprefix("MDepth-")) for path in stream.paths]


def marked_source(root: Path, rgb_size: tuple[int, int], **options: object) -> ClipSource:
    """One clip with a frame for each of PLACES, the same in RGB and in depth."""
    for modality, size in (("rgb", rgb_size), ("depth", DEPTH_SIZE)):
        write_clip(root / modality / "c", marker_frames(PLACES, *size), "{:06d}.png")
    (root / "list.txt").write_text(f"c {len(PLACES)} 0\n")
    return open_source(replace(MARKED, root=str(root), cache_dir=str(root / "cache"), **options))


def expected_pixel(place: tuple[float, float], view: View, rgb_size: tuple[int, int]) -> NDArray:
    """(x, y) in the output of what RGB shows at this share of its width and height."""
    width, height = rgb_size
    x, y = place[0] * width - 0.5 - width / 2, place[1] * height - 0.5 - height / 2
    cos, sin = np.cos(np.radians(view.angle)), np.sin(np.radians(view.angle))
    x, y = cos * x + sin * y + width / 2, cos * y - sin * x + height / 2
    x = (x + 0.5) / width * MARKED.resize[0] - 0.5 - view.left
    y = (y + 0.5) / height * MARKED.resize[1] - 0.5 - view.top
    return np.array([MARKED.crop - 1 - x if view.flip else x, y])


def is_inside(pixel: NDArray) -> bool:
    """Whether the crop holds the whole spot, and not only its middle."""
    margin = 3 * MARKER * MARKED.resize[0]
    return bool((pixel >= margin).all() and (pixel <= MARKED.crop - 1 - margin).all())


def centroid(pixels: NDArray[np.uint8]) -> NDArray:
    """(H, W, 3) -> (x, y) of its brightness; (0, 0) without any."""
    weight = pixels[..., 0].astype(float)
    y, x = np.indices(weight.shape)
    return np.array([(weight * x).sum(), (weight * y).sum()]) / max(weight.sum(), 1)


def marker_ends(
    source: ClipSource, rgb_size: tuple[int, int], device: str = "cpu"
) -> tuple[NDArray, ...]:
    """Three times (n, 2), x and y: where the marker should be by RGB's geometry, where it is in RGB
    and where in depth, for a thousand draws and more that have it inside the crop."""
    ends = []
    for first in range(0, DRAWS, 100):
        requests = [source.train_request(epoch, 0) for epoch in range(first, first + 100)]
        clips = map(pixels_of, load(requests, source.config, device).clip)
        for request, rgb, depth in zip(requests, *clips, strict=True):
            (number,) = frame_numbers(request.streams[0])
            expected = expected_pixel(PLACES[number], request.streams[0].view, rgb_size)
            if is_inside(expected):
                ends.append([expected, centroid(rgb[0]), centroid(depth[0])])
    return tuple(np.array(ends).swapaxes(0, 1))


def largest(distances: NDArray) -> float:
    """(n, 2) -> pixels."""
    return float(np.hypot(*distances.T).max())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rgb_size", RGB_SIZES)
def test_a_marker_ends_at_one_pixel_in_both_for_a_thousand_draws(
    tmp_path: Path, rgb_size: tuple[int, int], device: str
) -> None:
    source = marked_source(tmp_path, rgb_size)
    expected, rgb, depth = marker_ends(source, rgb_size, device)
    assert len(expected) >= 1000
    assert largest(rgb - depth) < 0.1 and largest(rgb - expected) < 0.1


def test_independent_draws_put_it_at_different_pixels(tmp_path: Path) -> None:
    source = marked_source(tmp_path, RGB_SIZES[0], paired_view=False)
    expected, rgb, depth = marker_ends(source, RGB_SIZES[0])
    assert largest(rgb - expected) < 0.1
    assert np.mean(np.hypot(*(rgb - depth).T) < 1) < 0.02


def test_one_draw_is_not_enough_where_each_turns_by_itself(tmp_path: Path) -> None:
    """Why depth takes over the turn of RGB: 16:9 and 5:4 do not turn alike."""
    view, place = View(angle=30, left=16, top=4), [(0.7, 0.35)]
    ends = {}
    for paired in (True, False):
        frames = [marker_frames(place, *size) for size in (RGB_SIZES[0], DEPTH_SIZE)]
        pixels = [np.empty((1, 64, 64, 3), np.uint8) for _ in frames]
        for own, out in zip(frames, pixels, strict=True):
            turned_as = frames[0] if paired else None
            view_clip(own, view, MARKED, None, None, out, turned_as)
        ends[paired] = [centroid(out[0]) for out in pixels]
    assert largest(np.subtract(*ends[True])[None]) < 0.1
    assert largest(np.subtract(*ends[False])[None]) > 3


@pytest.mark.parametrize("paired", [True, False])
def test_rgb_is_drawn_as_in_a_run_of_its_own(tmp_path: Path, paired: bool) -> None:
    config = write_list(tmp_path, 3, "rgbd", paired_view=paired)
    both, alone = (open_source(replace(config, modality=m), seed=5) for m in ("rgbd", "rgb"))
    for i in range(3):
        for request, single in (
            (both.train_request(2, i), alone.train_request(2, i)),
            (both.eval_request(i), alone.eval_request(i)),
        ):
            assert request.streams[0].paths == single.streams[0].paths
            assert request.streams[0].view == single.streams[0].view
            assert all(map(np.array_equal, request.branch_indices, single.branch_indices))


@pytest.mark.parametrize("paired", [True, False])
def test_both_modalities_show_the_same_frames(tmp_path: Path, paired: bool) -> None:
    source = open_source(write_list(tmp_path, 3, "rgbd", paired_view=paired))
    for request in [source.train_request(e, i) for e in range(5) for i in range(3)]:
        rgb, depth = map(frame_numbers, request.streams)
        assert depth == [number + 1 for number in rgb]  # files of depth count from 1


def test_a_paired_clip_has_one_view(tmp_path: Path) -> None:
    source = open_source(write_list(tmp_path, 3, "rgbd"))
    for i in range(3):
        rgb, depth = (stream.view for stream in source.train_request(1, i).streams)
        assert rgb == depth


def test_without_pairing_the_view_of_depth_has_a_generator_of_its_own(tmp_path: Path) -> None:
    source = open_source(write_list(tmp_path, 3, "rgbd", paired_view=False), seed=4)
    requests = [source.train_request(epoch, i) for epoch in range(5) for i in range(3)]
    drawn = [
        draw_view(source.config, clip_rng(4, epoch, i, DEPTH_VIEW))
        for epoch in range(5)
        for i in range(3)
    ]
    assert [request.streams[1].view for request in requests] == drawn
    assert sum(r.streams[0].view == r.streams[1].view for r in requests) < 3


def test_evaluation_has_one_view_either_way(tmp_path: Path) -> None:
    config = write_list(tmp_path, 1, "rgbd")
    for paired in (True, False):
        source = open_source(replace(config, paired_view=paired))
        assert [s.view for s in source.eval_request(0).streams] == [View(left=8, top=2)] * 2


def test_a_clip_has_the_frames_that_both_modalities_have(tmp_path: Path) -> None:
    config = write_list(tmp_path, 3, "rgbd", frame_slack=2, num_frames=16)
    (tmp_path / "depth/c1/MDepth-00000006.png").unlink()  # its last
    (tmp_path / "rgb/c2/000006.jpg").unlink()
    (tmp_path / "rgb/c2/000005.jpg").unlink()
    source = open_source(config)
    assert [clip.num_frames for clip in source.index.clips] == [5, 5, 5]
    for i in range(3):
        rgb, depth = map(frame_numbers, source.train_request(0, i).streams)
        assert set(rgb) == {0, 1, 2, 3, 4} and set(depth) == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("encoding", ["metric", "wrapped_jet"])
def test_batches_of_both_look_as_in_the_twin(
    tmp_path: Path, encoding: str, paired: bool, device: str
) -> None:
    config = write_list(
        tmp_path, 3, "rgbd", rgb_size=(96, 54), depth_encoding=encoding, paired_view=paired,
        rotate=1.0, rgb=PNG,
    )  # fmt: skip
    for path in (tmp_path / "rgb").glob("*/*.jpg"):  # what every decoder reads alike
        Image.open(path).save(path.with_suffix(".png"))
    index = scan(config, "train")
    boxes = depth_boxes(index, config, processes=1) if encoding == "wrapped_jet" else None
    source = ClipSource(index, config, 0, boxes)
    requests = [source.train_request(1, i) for i in range(3)]
    assert all(request.streams[0].view.angle for request in requests)
    batch = load(requests, config, device)
    for stream, (clip, motion) in enumerate(batch.streams):
        assert clip.device.type == device
        assert clip.is_contiguous(memory_format=torch.channels_last_3d)
        pixels = pixels_of(clip)
        assert_like_twin(pixels, np.stack([twin(r, config, stream) for r in requests]))
        maps = torch.from_numpy(np.stack([reference.motion_maps(p, 2) for p in pixels]))
        assert motion is not None and motion.shape == (3, 1, 4, 32, 32)
        assert (motion[:, 0].cpu() - maps).abs().mean() < (1e-5 if device == "cpu" else 0.01)


def test_frames_of_one_size_give_the_batches_of_each_modality_alone(tmp_path: Path) -> None:
    config = write_list(tmp_path, 3, "rgbd", rgb_size=(96, 72), depth_encoding="metric")
    both = load_clips(config)
    for stream, modality in zip(both.streams, ("rgb", "depth"), strict=True):
        (alone,) = load_clips(replace(config, modality=modality)).streams
        assert all(map(torch.equal, stream, alone))


def load_clips(config: DataConfig, threads: int = 1) -> Batch:
    """The three clips as epoch 7 sees them."""
    source = open_source(config)
    return load([source.train_request(7, i) for i in range(3)], config, threads=threads)


def test_threads_change_nothing(tmp_path: Path) -> None:
    config = write_list(tmp_path, 3, "rgbd", depth_encoding="metric")
    one, three = (load_clips(config, threads) for threads in (1, 3))
    for parts in zip(one.streams, three.streams, strict=True):
        assert all(map(torch.equal, *parts))


def test_a_window_of_zero_makes_no_maps_of_either(tmp_path: Path) -> None:
    config = write_list(tmp_path, 3, "rgbd", depth_encoding="metric", motion_window=0)
    batch = load_clips(config)
    assert batch.motion is None and [maps for _, maps in batch.streams] == [None, None]


@pytest.mark.parametrize("folder, words", [("rgb", "damaged"), ("depth", "8-bit RGB PNG where")])
def test_a_bad_frame_of_either_modality_is_named(tmp_path: Path, folder: str, words: str) -> None:
    """Of depth it is a sound image, of another kind than its own encoding promises."""
    config = write_list(tmp_path, 3, "rgbd", depth_encoding="metric")
    for bad in (tmp_path / folder / "c1").iterdir():
        if folder == "rgb":
            bad.write_bytes(bad.read_bytes()[:-300])
        else:
            Image.fromarray(rgb_frames(1)[0]).save(bad)
    with pytest.raises(ValueError) as raised:
        load_clips(config)
    assert str(raised.value).startswith(f"{tmp_path / folder / 'c1'}/")
    assert f": {words}" in str(raised.value) and "(clip c1, " in str(raised.value)
