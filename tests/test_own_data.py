"""docs/own_data.md: its commands, run as they stand, lead from a folder of clips to a result."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def blocks() -> list[str]:
    return re.findall(r"```bash\n(.*?)```", (ROOT / "docs/own_data.md").read_text(), re.DOTALL)


def own_clips(dataset: Path, out: Path) -> None:
    """Clips as a user has them: a folder per class, frames from 000000.jpg."""
    lines = (dataset / "train.txt").read_text().split("\n")
    clips = [line.split() for line in lines if line]
    for i, (name, frames, _) in enumerate(clips[:12]):
        folder = out / ("wave" if i % 2 else "point") / f"clip_{i:03d}"
        folder.mkdir(parents=True)
        for frame in range(int(frames)):
            shutil.copy(dataset / "Images" / name / f"{frame + 1:06d}.jpg",
                        folder / f"{frame:06d}.jpg")  # fmt: skip


@pytest.mark.slow
def test_the_walk_through_runs_as_written(dataset, tmp_path):
    own_clips(dataset, tmp_path / "my_clips")
    (tmp_path / "engine").symlink_to(ROOT / "engine")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    for block in blocks():
        done = subprocess.run(["bash", "-ec", block], cwd=tmp_path, env=environment,
                              capture_output=True, text=True, timeout=300)  # fmt: skip
        assert done.returncode == 0, done.stderr
    run = tmp_path / "runs/my_gestures"
    result = json.loads((run / "result.json").read_text())
    assert result["epochs"] == 2 and (run / "contact_sheet.png").exists()


def test_it_is_about_twenty_lines():
    assert sum(len(block.strip().splitlines()) for block in blocks()) <= 24
