"""Bad input stops the run on all ranks, within seconds, with one line that names the file."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from runs import write_checkpoint


@pytest.fixture
def broken(dataset: Path, tiny_config: dict, tmp_path: Path) -> Path:
    """A copy of the data set to be damaged; the tiny config points there."""
    copy = tmp_path / "broken"
    shutil.copytree(dataset, copy)
    tiny_config["data"]["root"] = str(copy)
    return copy


def error_lines(done) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("error:")]


def first_clip(root: Path) -> tuple[str, Path, Path]:
    name = (root / "train.txt").read_text().split()[0]
    depth = root / "nturgb+d_depth_masked" / name.removesuffix("_rgb")
    return name, root / "Images" / name, depth


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_missing_folder(train, broken, ranks):
    _, folder, _ = first_clip(broken)
    shutil.rmtree(folder)
    done = train(ranks=ranks)
    assert done.returncode != 0
    (line,) = error_lines(done)
    assert f"{broken / 'train.txt'}:1: " in line and str(folder) in line


def test_a_malformed_line_and_a_wrong_label_are_reported_together(train, broken):
    path = broken / "train.txt"
    lines = path.read_text().splitlines()
    lines[3] = "only_a_name"
    lines[5] = lines[5].rsplit(" ", 1)[0] + " 8"
    path.write_text("\r\n".join(lines))
    done = train()
    assert done.returncode == 1
    assert f"{path}:4: " in done.stderr and f"{path}:6: " in done.stderr
    assert "Traceback" not in done.stderr


def test_too_few_frames(train, broken):
    _, folder, _ = first_clip(broken)
    (folder / "000003.jpg").unlink()
    done = train()
    assert done.returncode == 1
    (line,) = error_lines(done)
    assert "train.txt:1: " in line and "000003.jpg" in line


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_truncated_jpeg(train, broken, ranks):
    """On one rank only: the other must not be left waiting."""
    _, folder, _ = first_clip(broken)
    for path in folder.glob("*.jpg"):
        path.write_bytes(path.read_bytes()[:-400])
    done = train(ranks=ranks)
    assert done.returncode != 0
    lines = error_lines(done)
    (line,) = [line for line in lines if "has lost another rank" not in line]
    assert str(folder) in line and ".jpg" in line
    assert len(lines) <= ranks


def test_an_8_bit_png_where_16_bit_is_promised(train, broken, tiny_config):
    tiny_config["data"] |= {"modality": "depth", "depth_encoding": "metric"}
    _, _, folder = first_clip(broken)
    for path in folder.glob("*.png"):
        Image.new("L", (64, 48), 7).save(path)
    done = train()
    assert done.returncode == 1
    (line,) = error_lines(done)
    assert str(folder) in line and "16" in line


def test_a_checkpoint_of_another_network(train, tiny_config, tmp_path):
    path = write_checkpoint(tiny_config, tmp_path / "first")
    done = train("model.width=12", "--checkpoint", str(path), script="engine/evaluate.py")
    assert done.returncode == 1
    (line,) = error_lines(done)
    assert "last.pt: is a checkpoint of another network" in line


def test_a_run_directory_that_cannot_be_written(train, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    done = train(f"train.run_dir={tmp_path / 'file' / 'run'}")
    assert done.returncode == 1
    (line,) = error_lines(done)
    assert f"{tmp_path / 'file' / 'run'}: cannot be written" in line


def test_a_dry_run_looks_at_the_weights_to_start_from(train, tiny_config, tmp_path):
    done = train("--dry-run", "train.init_from=missing.pt")
    assert done.returncode == 1
    (line,) = error_lines(done)
    assert line.startswith("error: missing.pt: no such file")
    write_checkpoint(tiny_config, tmp_path / "first")
    done = train("--dry-run", "train.init_from=first/last.pt")
    assert "the network starts from first/last.pt" in done.stdout, done.stderr


def test_a_wrong_key_stops_two_ranks_with_one_line(train, tiny_config):
    tiny_config["data"]["num_frame"] = 9
    done = train(ranks=2)
    assert done.returncode != 0
    (line,) = error_lines(done)
    assert line.endswith("tiny.yaml: data: unknown key 'num_frame'; did you mean 'num_frames'?")


def test_a_batch_the_ranks_cannot_share(train):
    done = train("train.global_batch=1", ranks=2)
    assert done.returncode != 0
    (line,) = error_lines(done)
    assert "train.global_batch = 1 leaves some of 2 ranks without a clip; take 2 or more" in line


def test_blank_lines_crlf_and_a_missing_last_newline_are_fine(train, broken):
    path = broken / "eval.txt"
    path.write_bytes(b"\r\n\r\n" + path.read_bytes().strip().replace(b"\n", b"\r\n\r\n"))
    done = train("--dry-run")
    assert done.returncode == 0, done.stderr
    assert "evaluation: 7 clips" in done.stdout
