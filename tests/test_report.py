"""Pictures of a run."""

from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from engine.report import contact_sheet, time_split
from pipelines.batch import Batch, one_or_each

RED, BLUE = (255, 0, 0), (0, 0, 255)
HOT = matplotlib.colormaps["inferno"](1.0, bytes=True)[:3]
"""The colour of the strongest motion."""


def batch_of(*colours: tuple[int, int, int], motion: bool) -> Batch:
    """Two clips of 8 frames; of each modality all frames have one colour, and all maps are 2."""
    clips, maps = [], []
    for colour in colours:
        values = (torch.tensor(colour) - 127.5) / 128
        clips.append(values[None, :, None, None, None].expand(2, 3, 8, 16, 16))
        maps.append(torch.full((2, 1, 8, 16, 16), 2.0))
    label = torch.zeros(2, dtype=torch.int64)
    return Batch(one_or_each(clips), one_or_each(maps) if motion else None, label, (), label)


def rows_of(sheet: Path) -> list[tuple[int, ...]]:
    """The colours of the first picture of each row, from above."""
    image = np.asarray(Image.open(sheet).convert("RGB"))
    column = [tuple(pixel) for pixel in image[:, image.shape[1] // 16].tolist()]
    starts = [pixel for before, pixel in pairwise(column) if pixel != before]
    return [pixel for pixel in starts if pixel in (RED, BLUE, HOT)]


@pytest.mark.parametrize(
    "colours, motion, clip_rows",
    [
        ([RED], False, [RED]),
        ([RED], True, [RED, HOT]),
        ([RED, BLUE], False, [RED, BLUE]),
        ([RED, BLUE], True, [RED, BLUE, HOT, HOT]),
    ],
)
def test_a_contact_sheet_shows_frames_and_maps_of_each_modality_of_each_clip(
    tmp_path: Path, colours: list, motion: bool, clip_rows: list
) -> None:
    contact_sheet(batch_of(*colours, motion=motion), ["a", "b"], tmp_path / "sheet.png")
    assert rows_of(tmp_path / "sheet.png") == clip_rows * 2


@pytest.mark.parametrize("count", [0, 1, 5000])
def test_the_picture_of_a_steps_time_has_its_parts_in_their_proportions(
    tmp_path: Path, count: int
) -> None:
    lines = [
        {"step": step + 1, "step_s": 1.0, "data_s": 0.25, "forward_s": 0.75, "clips_per_s": 8.0}
        for step in range(count)
    ]
    older = {"step": 1, "clips_per_s": 3.0}
    time_split([older, *lines], tmp_path / "time.png")
    image = np.asarray(Image.open(tmp_path / "time.png").convert("RGB"))
    colours = [(np.asarray(matplotlib.colors.to_rgb(name)) * 255).round() for name in ("C0", "C1")]
    left = image[:, : image.shape[1] // 2]
    data, forward = ((left == colour).all(-1).sum() for colour in colours)
    if count > 1:
        assert forward == pytest.approx(3 * data, rel=0.1)
