"""Paths of frames: one by one, and many at once as bytes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.folders import FrameList, Frames


def decoded(rows: np.ndarray) -> list[str]:
    return [bytes(row).rstrip(b"\0").decode(errors="surrogateescape") for row in rows]


@given(
    numbers=st.lists(st.integers(0, 1200), min_size=1, max_size=9),
    first=st.integers(0, 2),
    spec=st.sampled_from(["{frame:06d}", "{frame:03d}", "{frame}", "{frame:08d}_{frame}"]),
    folder=st.sampled_from(["/a/b", "/{{x}}/ü y", "/\udcff"]),
)
def test_many_paths_at_once_are_those_one_by_one(numbers, first, spec, folder):
    frames = Frames(f"{folder}/img-{spec}.jpg", first)
    rows = frames.path_bytes(np.array(numbers))
    assert rows.dtype == np.uint8 and rows.ndim == 2
    assert decoded(rows) == [frames.path(number) for number in numbers]


def test_a_list_of_files_pads_the_shorter_names():
    files = FrameList(("/a/1.png", "/a/10.png"))
    rows = files.path_bytes(np.array([1, 0, 1]))
    assert rows.shape == (3, 9) and decoded(rows) == ["/a/10.png", "/a/1.png", "/a/10.png"]
