"""Bad clips: named and fatal by default, or left out of the epoch on every rank alike."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from lists import write_list
from pipelines.config import DataConfig
from pipelines.damage import find_damage
from pipelines.index import scan


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def quarantine(config: DataConfig, **options: object) -> DataConfig:
    return replace(config, on_error="quarantine", max_bad=0.5, **options)


def test_bad_clips_are_left_out_and_named_with_what_is_wrong(tmp_path: Path) -> None:
    config = quarantine(write_list(tmp_path))
    cut(tmp_path / "rgb/c1/000003.jpg")
    (tmp_path / "rgb/c4/000002.jpg").unlink()
    index = scan(config, "train")
    assert [clip.name for clip in index.clips] == ["c0", "c2", "c3", "c5", "c6"]
    assert [m.folder for m in index.media["rgb"]] == [
        f"{tmp_path}/rgb/{c.name}" for c in index.clips
    ]
    first, second = index.quarantined
    assert first.startswith(f"{tmp_path}/list.txt:2: c1: {tmp_path}/rgb/c1/000003.jpg: damaged")
    assert second.startswith(f"{tmp_path}/list.txt:5: c4: 9 frames listed, 2 found")
    assert index.left_out == 0


def test_either_modality_quarantines_the_clip(tmp_path: Path) -> None:
    config = quarantine(write_list(tmp_path, 4, "rgbd", depth_encoding="metric"))
    Image.new("L", (96, 72)).save(tmp_path / "depth/c2/MDepth-00000002.png")
    index = scan(config, "train")
    assert [clip.name for clip in index.clips] == ["c0", "c1", "c3"]
    assert "c2: " in index.quarantined[0] and "promises 16-bit grey PNG" in index.quarantined[0]


def test_more_than_the_allowed_share_stops(tmp_path: Path) -> None:
    config = write_list(tmp_path, 7)
    for i in (1, 5):
        cut(tmp_path / f"rgb/c{i}/000000.jpg")
    assert len(scan(quarantine(config), "train")) == 5
    with pytest.raises(ValueError) as error:
        scan(replace(quarantine(config), max_bad=0.2), "train")
    assert str(error.value).startswith(
        f"{tmp_path}/list.txt: 2 of 7 clips are bad, more than data.max_bad = 0.2; mend them or "
        f"raise it; the first is line 2: {tmp_path}/rgb/c1/000000.jpg: damaged"
    )


def test_a_line_that_says_nothing_stops_in_any_case(tmp_path: Path) -> None:
    config = quarantine(write_list(tmp_path))
    with (tmp_path / "list.txt").open("a") as file:
        file.write("c1 5 99\n")
    with pytest.raises(ValueError, match="label 99 is outside"):
        scan(config, "train")


def test_only_changed_clips_are_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quarantine(write_list(tmp_path))
    cut(tmp_path / "rgb/c1/000003.jpg")
    scan(config, "train")
    looked_at: list[str] = []

    def look(path: str, in_mm: bool) -> tuple[str, str] | None:
        looked_at.append(Path(path).parent.name)
        return None

    monkeypatch.setattr("pipelines.damage.problem", look)
    assert [clip.name for clip in scan(config, "train").clips][1] == "c2" and not looked_at
    path = tmp_path / "rgb/c3/000001.jpg"
    data = path.read_bytes()
    path.write_bytes(data)  # in place: the folder itself does not change
    os.utime(path, ns=(1, 1 << 62))
    scan(config, "train")
    assert set(looked_at) == {"c3"}


def test_several_processes_find_the_same(tmp_path: Path) -> None:
    config = write_list(tmp_path)
    cut(tmp_path / "rgb/c1/000003.jpg")
    index = scan(config, "train")
    wanted = {
        i: (index.media["rgb"][i], clip.num_frames, False) for i, clip in enumerate(index.clips)
    }

    class Forgetful(dict):
        put = dict.__setitem__

    one, two = (find_damage(wanted, str(tmp_path), Forgetful(), n) for n in (1, 2))
    assert one == two and list(one) == [1]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [0, 2])
def test_a_run_goes_on_without_them_and_says_so(train, dataset, tiny_config, tmp_path, ranks):
    root = tmp_path / "own"
    root.mkdir()
    for entry in dataset.iterdir():
        (root / entry.name).symlink_to(entry)
    (root / "Images").unlink()
    (root / "Images").mkdir()
    clips = sorted((dataset / "Images").iterdir())
    listed = [line.split()[0] for line in (dataset / "train.txt").read_text().splitlines()]
    for clip in clips:
        (root / "Images" / clip.name).symlink_to(clip)
    bad = root / "Images" / listed[3]
    bad.unlink()
    bad.mkdir()
    for frame in (dataset / "Images" / listed[3]).iterdir():
        (bad / frame.name).write_bytes(frame.read_bytes()[:200])
    tiny_config["data"]["root"] = str(root)
    done = train("data.on_error=quarantine", "data.max_bad=0.1", "train.epochs=1", ranks=ranks)
    assert done.returncode == 0, done.stderr
    assert "22 clips" in done.stdout and "1 quarantined (quarantine.txt)" in done.stdout
    (line,) = (tmp_path / "run/quarantine.txt").read_text().splitlines()
    assert f"train.txt:4: {listed[3]}: " in line and "damaged" in line
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["steps"] == 4  # ceil(22 / 6)
    stopped = train("train.epochs=1", "train.run_dir=other", ranks=ranks)
    assert stopped.returncode != 0 and listed[3] in stopped.stderr
