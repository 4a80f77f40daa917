"""python -m pipelines.check: every kind of damage to a prepared set is found and named."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import write_generic, write_ntu
from pipelines import check, prepare

SAMPLES = ("S001C001P001R001A001", "S001C002P003R002A060")
RGB = f"Images/{SAMPLES[0]}_rgb/000002.jpg"
DEPTH = f"nturgb+d_depth_masked/{SAMPLES[0]}/MDepth-00000002.png"


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    source, out = write_ntu(tmp_path / "in", SAMPLES), tmp_path / "out"
    prepare.main(["ntu60", "--source", str(source), "--out", str(out)])
    return out


def damage(path: Path, content: bytes) -> None:
    path.unlink()  # the download has the same file under its own name
    path.write_bytes(content)


def found(out: Path) -> dict[str, list]:
    return check.check(str(out), jobs=2, progress=False).damaged


def test_a_sound_set_passes_with_its_counts(prepared, capsys, tmp_path):
    report = tmp_path / "report.json"
    assert check.main([str(prepared), "--json", str(report)]) == 0
    assert f"{prepared}: 4 clips, 20 frames" in capsys.readouterr().out
    facts = json.loads(report.read_text())
    assert (facts["clips"], facts["frames"], facts["damaged"]) == (4, 20, {})


@pytest.mark.parametrize("file", [RGB, DEPTH])
@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda data: data[: len(data) // 2], "damaged"),
        (lambda data: b"", "damaged at byte 0: the file is empty"),
        (lambda data: b"<html>" + data[6:], "damaged or no image"),
        (lambda data: data + b"\0", "can be decoded, but is not what was prepared"),
    ],
)
def test_a_damaged_frame_is_named_with_what_is_wrong(prepared, capsys, file, change, what):
    damage(prepared / file, change((prepared / file).read_bytes()))
    assert check.main([str(prepared)]) == 1
    assert f"  {file}: {what}" in capsys.readouterr().out
    assert list(found(prepared)) == [str(Path(file).parent)]


def test_a_frame_replaced_by_a_sound_one_is_found(prepared):
    Image.fromarray(np.zeros((240, 320, 3), np.uint8)).save(prepared / RGB)
    expected = [(RGB, "can be decoded, but is not what was prepared")]
    assert found(prepared) == {str(Path(RGB).parent): expected}


def test_a_missing_frame_and_one_too_many_are_found(prepared):
    folder = (prepared / RGB).parent
    (prepared / RGB).unlink()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / "000006.jpg")
    assert found(prepared)[str(Path(RGB).parent)] == [
        (RGB, "No such file or directory"),
        (RGB.replace("000002", "000006"), "one frame more than the 5 that were prepared"),
    ]


def test_a_changed_or_missing_list_is_found(prepared):
    train, valid = "dataset_splits/@CS/train.txt", "dataset_splits/@CV/valid.txt"
    with (prepared / train).open("a") as file:
        file.write("one_more 5 0\n")
    (prepared / valid).unlink()
    assert found(prepared) == {
        train: [(train, "changed since it was written")],
        valid: [(valid, "No such file or directory")],
    }


def test_a_preparation_that_has_not_ended_is_no_sound_set(prepared):
    (prepared / "prepare.json").unlink()
    assert list(found(prepared)) == ["prepare.json"]


def test_a_damaged_video_is_found(tmp_path):
    source, out = write_generic(tmp_path / "in", ["wave/a.mp4", "nod/b.mp4"]), tmp_path / "out"
    prepare.main(["generic", "--source", str(source), "--out", str(out), "--as", "videos"])
    assert found(out) == {}
    path = out / "rgb/wave/a.mp4"
    path.write_bytes(path.read_bytes()[:-200])
    assert list(found(out)) == ["rgb/wave/a.mp4"]


def test_what_was_damaged_and_deleted_is_prepared_again(prepared, tmp_path):
    (prepared / RGB).unlink()
    (prepared / DEPTH).unlink()
    arguments = ["ntu60", "--source", str(tmp_path / "in"), "--out", str(prepared)]
    assert prepare.main(arguments) == 0
    assert found(prepared) == {}


def test_a_folder_that_was_never_prepared_is_an_error_in_one_line(tmp_path, capsys):
    assert check.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/manifest.jsonl: No such file or directory; give a folder made by "
        "python -m pipelines.prepare\n"
    )
