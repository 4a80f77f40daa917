"""Videos with times, for decoders that need them."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.video import decode_frames
from pipelines.video_copy import copy_with_times
from pipelines.video_index import probe
from videos import number_of, write_kind, write_packed, write_with_hidden_frames


@pytest.mark.parametrize("kind", ["h264_avi_bframes", "mpeg4_bframes", "h264_open_gop"])
def test_the_copy_has_the_same_frames_and_times_for_dali(tmp_path: Path, kind: str) -> None:
    path, copy = str(write_kind(tmp_path, kind, 30)), str(tmp_path / "copy.mp4")
    copy_with_times(path, copy)
    before, after = probe(path), probe(copy)
    assert after.plain and after.dali_gpu and not after.variable_rate
    assert after.num_frames == before.num_frames == 30
    asked = [29, 0, 13, 14, 15]
    np.testing.assert_array_equal(
        decode_frames(copy, after, asked), decode_frames(path, before, asked)
    )


def test_packed_b_frames_are_unpacked(tmp_path: Path) -> None:
    copy = str(tmp_path / "copy.mp4")
    copy_with_times(str(write_packed(tmp_path / "divx.avi", 12)), copy)
    info = probe(copy)
    assert info.plain and info.num_frames == 12
    frames = decode_frames(copy, info, range(12))
    assert [number_of(frame) for frame in frames] == list(range(12))


def test_pictures_that_are_never_shown_have_no_time(tmp_path: Path) -> None:
    path = str(write_with_hidden_frames(tmp_path / "hidden.webm", "libvpx"))
    with pytest.raises(
        ValueError, match=r"hidden\.webm: its packets are not one frame each; encode"
    ):
        copy_with_times(path, str(tmp_path / "copy.mp4"))
