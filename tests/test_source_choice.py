"""data.source=auto: what is there; of several, the fastest by a measurement made once."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from lists import write_list
from pipelines import source_choice
from pipelines.config import DataConfig
from pipelines.source_choice import choose_source
from test_sources import pack

CPU = torch.device("cpu")


def both(tmp_path: Path, **options: object) -> DataConfig:
    """Folders with a pack of the same clips beside them."""
    config = write_list(tmp_path / "data", 3, **options)
    pack(config, tmp_path / "pack")
    for shard in (tmp_path / "pack").glob("shard*"):
        shutil.copy(shard, tmp_path / "data")
    return config


def test_the_faster_one_is_taken_and_why_is_said(tmp_path, monkeypatch):
    config, said = both(tmp_path), []
    speeds = {"frames": 30.0, "pack": 20.0}
    monkeypatch.setattr(source_choice, "_clips_per_s", lambda c, source, d, t: speeds[source])
    assert choose_source(config, CPU, 1, said.append) == "frames"
    assert said == ["data.source=auto: frames, 30.0 clips/s on this machine (20.0 from pack)"]
    speeds["pack"] = 99.0  # what was measured is remembered, for this machine and data set
    assert choose_source(config, CPU, 1, said.append) == "frames"
    assert choose_source(config, CPU, 2, said.append) == "pack"  # threads are another setting
    assert choose_source(replace(config, source="pack"), CPU, 1, said.append) == "pack"


@pytest.mark.parametrize(
    ("modality", "encoding"), [("rgb", "color"), ("rgbd", "wrapped_jet"), ("rgbd", "metric")]
)
def test_measuring_reads_real_clips_of_each(tmp_path, modality, encoding):
    config, said = both(tmp_path, modality=modality, depth_encoding=encoding), []
    assert choose_source(config, CPU, 1, said.append) in ("frames", "pack")
    (line,) = said
    assert "clips/s on this machine" in line and "frames" in line and "pack" in line
    assert not [path for path in (tmp_path / "data").iterdir() if path.name == "few.txt"]


def test_a_single_source_is_taken_without_a_word(tmp_path):
    said: list[str] = []
    config = write_list(tmp_path, 3)
    assert choose_source(config, CPU, 1, said.append) == "frames"
    packed = pack(config, tmp_path / "pack")
    assert choose_source(packed, CPU, 1, said.append) == "pack"
    assert not said


@pytest.mark.slow
def test_a_run_keeps_the_source_it_began_with(train, tiny_config, tmp_path):
    short = ("train.epochs=1", "train.global_batch=12")
    first = train(*short)
    assert first.returncode == 0, first.stderr
    saved = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert saved["data"]["source"] == "frames"
    again = train(*short)
    assert again.returncode == 0, again.stderr
    other = train(*short, "data.source=pack")
    assert other.returncode == 1 and "data.source = frames, not pack" in other.stderr
