"""Motion maps of a batch against the plain twin."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from clips import rgb_frames
from pipelines import reference
from pipelines.motion import INT16_WINDOW, _batch_maps, motion_maps

WINDOWS = [2, 3, 10, INT16_WINDOW, INT16_WINDOW + 1, 40]
"""Both integer widths, and the whole clip."""


def batch(num_clips: int = 2, num_frames: int = 40) -> torch.Tensor:
    return torch.from_numpy(np.stack([rgb_frames(num_frames, seed=i) for i in range(num_clips)]))


def twin(pixels: torch.Tensor, window: int) -> np.ndarray:
    return np.stack([reference.motion_maps(clip.numpy(), window) for clip in pixels])[:, None]


@pytest.mark.parametrize("window", WINDOWS)
def test_the_maps_of_a_batch_are_the_twins(window: int) -> None:
    maps = motion_maps(batch(), window)
    assert maps.shape == (2, 1, 40, 48, 64) and maps.dtype == torch.float32
    np.testing.assert_allclose(maps, twin(batch(), window), atol=3e-6)


@pytest.mark.parametrize("window", WINDOWS)
def test_the_form_for_gpus_gives_the_same_maps(window: int) -> None:
    maps = _batch_maps(batch(), window)
    np.testing.assert_allclose(maps, twin(batch(), window)[:, 0, window - 1 :], atol=3e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("window", WINDOWS)
def test_maps_made_on_the_gpu_stay_there_and_are_the_twins(window: int) -> None:
    maps = motion_maps(batch().cuda(), window)
    assert maps.is_cuda
    np.testing.assert_allclose(maps.cpu(), twin(batch(), window), atol=3e-6)


@pytest.mark.gpu
def test_maps_on_the_gpu_never_wait_for_it() -> None:
    pixels = batch().cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        motion_maps(pixels, 10)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_noise_over_the_full_range_stays_within_int16() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 2, (1, 40, 16, 16, 3), dtype=np.uint8) * 255
    pixels[0, ::2, 0], pixels[0, 1::2, 0] = 0, 255
    pixels[0, :20, 1], pixels[0, 20:, 1] = 0, 255  # the largest sum there is
    for window in WINDOWS:
        expected = twin(torch.from_numpy(pixels), window)
        np.testing.assert_allclose(
            motion_maps(torch.from_numpy(pixels), window), expected, atol=3e-6
        )


@pytest.mark.parametrize("maps_of", [motion_maps, _batch_maps])
def test_still_and_evenly_brightening_clips_have_no_motion(maps_of) -> None:
    still = torch.full((1, 12, 8, 8, 3), 77, dtype=torch.uint8)
    brighter = still + torch.arange(12, dtype=torch.uint8)[:, None, None, None]
    for pixels in (still, brighter):
        assert (maps_of(pixels, 4) == 0).all()


def test_the_first_window_minus_1_maps_are_zero_and_later_ones_see_only_their_window() -> None:
    pixels = batch(1)
    maps = motion_maps(pixels, 10)
    assert (maps[:, :, :9] == 0).all()
    late = motion_maps(pixels[:, 20:30], 10)
    assert torch.equal(late[:, :, 9], maps[:, :, 29])


def test_the_pixels_are_not_changed() -> None:
    pixels = batch(1)
    motion_maps(pixels, 5)
    assert torch.equal(pixels, batch(1))


@pytest.mark.parametrize("window", [0, 1, 41])
def test_a_window_that_does_not_fit_the_clip_is_an_error(window: int) -> None:
    with pytest.raises(ValueError, match=f"data.motion_window is {window}; .* 2 and the 40 frames"):
        motion_maps(batch(1), window)


THREADS_STARTED = """
import os, threading, cv2, torch
from pipelines.motion import motion_maps

def count():
    return len(os.listdir("/proc/self/task"))

def work():
    before = count()
    motion_maps(pixels, 4)
    print(count() - before)

torch.set_num_threads(2)
cv2.setNumThreads(0)
pixels = torch.zeros(1, 64, 64, 64, 3, dtype=torch.uint8)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def test_maps_start_no_threads_that_would_slow_down_the_training_step() -> None:
    """OpenMP's: torch's own zeros of this size would start one."""
    done = subprocess.run([sys.executable, "-c", THREADS_STARTED], capture_output=True, text=True)
    assert done.stdout == "0\n", done.stderr
