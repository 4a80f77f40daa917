"""pipelines/roi.py: half the RGB frame around the person whom the masked depth shows."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clips import write_clip
from datasets import masked_depth, write_lossless
from pipelines.depth import box_centre, wrap
from pipelines.prepare import main
from pipelines.roi import PersonCentres, person_centres

SAMPLE = "S001C001P001R001A001"
DEPTH_NAME = "MDepth-{:08d}.png"
KINECT = (512, 424)


def centres_at(*centres: tuple[int, int]) -> PersonCentres:
    return PersonCentres(np.array(centres, np.int16), KINECT, 0, 0)


@pytest.mark.parametrize(
    ("centre", "box"),
    [
        ((256, 212), (480, 270, 1440, 810)),
        ((198, 195), (262, 226, 1222, 766)),  # 198 * 1920 / 512 = 742.5, 195 * 1080 / 424 = 496.7
        ((10, 20), (0, 0, 960, 540)),  # never outside on the left and at the top,
        ((500, 400), (1395, 748, 1920, 1080)),  # cut on the right and at the bottom
    ],
)
def test_the_box_is_960x540_around_the_centre_cut_at_the_borders(centre, box):
    assert centres_at(centre).box(0, 1920, 1080) == box


@given(st.integers(0, 511), st.integers(0, 423))
def test_the_box_is_never_empty_and_never_outside(x, y):
    left, top, right, bottom = centres_at((x, y)).box(0, 1920, 1080)
    assert 0 <= left < right <= 1920 and 0 <= top < bottom <= 1080
    assert right - left <= 960 and bottom - top <= 540
    assert left <= x * 1920 // 512 < right and top <= y * 1080 // 424 < bottom


def test_frames_after_the_last_depth_frame_take_its_box_and_are_counted():
    centres = centres_at((100, 100), (300, 200))
    assert centres.box(5, 1920, 1080) == centres.box(1, 1920, 1080)
    assert centres.borrowed(6) == 4 and centres.borrowed(2) == centres.borrowed(1) == 0


def test_a_frame_without_a_mask_takes_the_nearest_frames_box_and_is_counted(tmp_path):
    empty = np.zeros((106, 128), np.uint16)
    depth = [masked_depth(30, 50), empty, empty, masked_depth(90, 50), empty]
    found = person_centres(write_clip(tmp_path / "depth", depth, DEPTH_NAME, first=1))
    xs = found.centres[:, 0].tolist()
    assert xs == [xs[0], xs[0], xs[3], xs[3], xs[3]] and xs[3] - xs[0] == 60
    assert (found.from_neighbour, found.from_middle) == (3, 0)


def test_a_clip_that_shows_nobody_is_cut_around_its_middle_and_counted(tmp_path):
    depth = [np.zeros((424, 512), np.uint16)] * 3
    found = person_centres(write_clip(tmp_path / "depth", depth, DEPTH_NAME, first=1))
    assert found.box(0, 1920, 1080) == (480, 270, 1440, 810)
    assert (found.from_neighbour, found.from_middle) == (0, 3)


def test_the_stored_frame_is_exactly_the_box(tmp_path):
    """White inside the box and black around it: a box off by one pixel has a grey edge."""
    places = [(200, 150), (300, 250), (460, 380)]
    depth = [masked_depth(x, y, *KINECT) for x, y in places]
    # Erosion and dilation with the published kernels move the middle by half a pixel, cut to 0.
    centres = [box_centre(wrap(frame)) for frame in depth]
    assert centres == places
    boxes = [(270, 112, 1230, 652), (645, 366, 1605, 906), (1245, 697, 1920, 1080)]
    write_clip(tmp_path / "in/nturgb+d_depth_masked" / SAMPLE, depth, DEPTH_NAME, first=1)
    frames = np.zeros((3, 1080, 1920, 3), np.uint8)
    for frame, (left, top, right, bottom) in zip(frames, boxes, strict=True):
        frame[top:bottom, left:right] = 255
        frame[top : (top + bottom) // 2, left : (left + right) // 2] = 100  # which way up it is
    write_lossless(tmp_path / f"in/nturgb+d_rgb/{SAMPLE}_rgb.avi", frames)
    source, out = str(tmp_path / "in"), tmp_path / "out"
    assert main(["ntu60", "--source", source, "--out", str(out), "--quality", "100"]) == 0
    for number in (1, 2, 3):
        image = cv2.imread(str(out / f"Images/{SAMPLE}_rgb/{number:06d}.jpg"), 0)
        assert image.shape == (240, 320)
        assert abs(image[:118, :158].astype(int) - 100).max() <= 3
        assert image[122:].min() >= 252 and image[:, 162:].min() >= 252
