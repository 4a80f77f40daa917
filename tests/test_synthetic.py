"""The sample data set: what its files hold, that opposite gestures share their frames, and that
writing is repeatable."""

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipelines import synthetic
from pipelines.synthetic import EVAL, TRAIN, Options, Summary, plan_clips, write_dataset
from pipelines.synthetic_drawing import draw_background, draw_depth, draw_rgb
from pipelines.synthetic_scene import (
    CAMERA_YAW,
    GESTURES,
    Part,
    Scene,
    body_parts,
    draw_camera,
    draw_performer,
    draw_scene,
    hand_at,
)

TINY = {
    "train_clips": 8,
    "eval_clips": 2,
    "frames": (3, 5),
    "size": (64, 48),
    "depth_size": (80, 60),
    "progress": False,
}


def write(out: Path, workers: int = 1, **changes) -> Summary:
    return write_dataset(out, workers=workers, **{**TINY, **changes})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    return write(tmp_path_factory.mktemp("sample") / "data")


def digests(root: Path) -> dict[str, str]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return image


def times(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}


def lines(path: Path) -> list[tuple[str, int, int]]:
    rows = (line.split(" ") for line in path.read_text().splitlines())
    return [(name, int(frames), int(label)) for name, frames, label in rows]


def scene(label: int, seed: int = 0, num_frames: int = 12) -> Scene:
    rng = np.random.default_rng([seed, 1])
    performer = draw_performer(rng)
    camera = draw_camera(rng, rng, CAMERA_YAW[seed % 3])
    return draw_scene(rng, label, num_frames, performer, camera)


def clean_clip(label: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    drawn = scene(label, seed)
    size, background_rng = (64, 48), np.random.default_rng(seed)
    background = draw_background(background_rng, size, drawn.outfit.gloves)
    bodies = [body_parts(drawn, frame) for frame in range(len(drawn.progress))]
    rgb = [draw_rgb(parts, drawn.camera, background) for parts in bodies]
    depth = [draw_depth(parts, drawn.camera, size) for parts in bodies]
    return np.stack(rgb), np.stack(depth)


def test_files_are_those_of_the_lists_in_the_ntu_layout(written: Summary):
    expected = {"train.txt", "eval.txt", "classes.txt", "synthetic.json"}
    for name, num_frames, _ in lines(written.train_list) + lines(written.eval_list):
        depth = f"nturgb+d_depth_masked/{name.removesuffix('_rgb')}"
        for number in range(1, num_frames + 1):
            expected |= {f"Images/{name}/{number:06d}.jpg", f"{depth}/MDepth-{number:08d}.png"}
    assert set(digests(written.root)) == expected
    assert not list(written.root.rglob(".part-*"))


def test_lists_hold_name_frames_and_label(written: Summary):
    train, evaluation = lines(written.train_list), lines(written.eval_list)
    assert [name for name, _, _ in train[:2]] == [
        "S001C001P001R001A001_rgb",
        "S001C001P001R001A002_rgb",
    ]
    assert [name for name, _, _ in evaluation] == [
        "S017C001P041R001A001_rgb",
        "S017C001P041R001A002_rgb",
    ]
    assert [label for _, _, label in train] == list(range(8))
    assert all(3 <= frames <= 5 for _, frames, _ in train + evaluation)
    assert (written.root / "classes.txt").read_text().splitlines() == list(GESTURES)


def test_summary_counts_what_is_on_disk(written: Summary):
    listed = lines(written.train_list) + lines(written.eval_list)
    assert (written.clips, written.written) == (10, 10)
    assert written.frames == sum(frames for _, frames, _ in listed)


def test_frames_have_the_sizes_asked_for_and_depth_is_16_bit_in_reach(written: Summary):
    for path in written.root.rglob("*.jpg"):
        assert read(path).shape == (48, 64, 3)
    for path in written.root.rglob("*.png"):
        depth = read(path)
        assert depth.shape == (60, 80) and depth.dtype == np.uint16
        assert depth[depth > 0].min() > 700 and depth.max() < 4000
        assert 0.7 < np.mean(depth == 0) < 0.95


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pair", range(4))
def test_a_gesture_backwards_is_a_clip_of_its_opposite(pair: int, seed: int):
    rgb, depth = clean_clip(2 * pair, seed)
    opposite_rgb, opposite_depth = clean_clip(2 * pair + 1, seed)
    assert np.array_equal(rgb[::-1], opposite_rgb)
    assert np.array_equal(depth[::-1], opposite_depth)
    assert not np.array_equal(rgb, opposite_rgb)
    assert not np.array_equal(depth, opposite_depth)


@pytest.mark.parametrize("label", range(8))
@pytest.mark.parametrize("seed", range(5))
def test_names_of_gestures_say_what_the_viewer_sees(label: int, seed: int):
    drawn = scene(label, seed, num_frames=30)
    hand = np.array([hand_at(drawn.path, step)[0] for step in drawn.progress])
    right, down, away = hand[-1] - hand[0]
    x, y = (hand - drawn.path.centre)[:, :2].T
    turned = np.unwrap(np.arctan2(y, x))  # y points down: growing angles are clockwise
    seen = {
        "swipe right": right > 0.5,
        "swipe left": right < -0.5,
        "raise": down < -0.5,
        "lower": down > 0.5,
        "push": away < -0.4,
        "pull": away > 0.4,
        "circle clockwise": turned[-1] - turned[0] > 6,
        "circle counter-clockwise": turned[-1] - turned[0] < -6,
    }
    assert seen[GESTURES[label]]


def test_rest_before_and_after_the_gesture_is_alike():
    clips = [scene(0, seed, num_frames=40) for seed in range(400)]
    before = np.mean([np.sum(clip.progress == 0) for clip in clips])
    after = np.mean([np.sum(clip.progress == 1) for clip in clips])
    assert abs(before - after) < 0.5  # of about 5 frames each; standard error 0.25
    assert before > 3


def test_rgb_and_depth_show_the_same_silhouette():
    drawn = scene(4)
    parts = body_parts(drawn, 6)
    white = [Part(part.balls, (255.0, 255.0, 255.0)) for part in parts]
    size = (160, 120)
    rgb = draw_rgb(white, drawn.camera, np.zeros((120, 160, 3), np.uint8))[..., 0] > 90
    depth = draw_depth(parts, drawn.camera, size) > 0
    assert np.sum(rgb & depth) / np.sum(rgb | depth) > 0.95
    half = draw_depth(parts, drawn.camera, (80, 60)) > 0
    assert np.mean(half != depth[::2, ::2]) < 0.02


def test_a_pushing_hand_comes_nearer_in_depth_and_grows_in_rgb():
    _, depth = clean_clip(4, seed=2)
    nearest = [frame[frame > 0].min() for frame in depth]
    assert nearest[0] - nearest[-1] > 300


def test_in_the_complementary_set_each_modality_is_blind_to_one_pair_of_gestures(tmp_path: Path):
    write(tmp_path / "data", complementary=True)
    rgb_seen, depth_seen = set(), set()
    for name, _, label in lines(tmp_path / "data" / "train.txt"):
        folder = tmp_path / "data" / "Images" / name
        brightest = max(cv2.imread(str(file)).max() for file in folder.iterdir())
        rgb_seen |= {label} if brightest > 60 else set()
        folder = tmp_path / "data" / "nturgb+d_depth_masked" / name.removesuffix("_rgb")
        depth = [cv2.imread(str(file), cv2.IMREAD_UNCHANGED) for file in folder.iterdir()]
        depth_seen |= {label} if np.any(depth) else set()
    push, pull = GESTURES.index("push"), GESTURES.index("pull")
    circles = {GESTURES.index("circle clockwise"), GESTURES.index("circle counter-clockwise")}
    assert rgb_seen == set(range(8)) - {push, pull}
    assert depth_seen == set(range(8)) - circles


def test_the_complementary_set_shows_the_other_gestures_as_the_plain_one(
    written: Summary, tmp_path: Path
):
    write(tmp_path / "data", complementary=True)
    plain, other = digests(written.root), digests(tmp_path / "data")
    assert plain.keys() == other.keys()
    changed = {
        file.split("/")[1][16:20]
        for file in plain
        if file[0] in "In" and plain[file] != other[file]
    }
    assert changed == {f"A{label + 1:03d}" for label in (4, 5, 6, 7)}


def test_held_out_performers_and_setups_are_in_no_training_clip():
    train, evaluation = (plan_clips(Options(), split) for split in (TRAIN, EVAL))
    assert not {clip.performer for clip in train} & {clip.performer for clip in evaluation}
    assert not {clip.setup for clip in train} & {clip.setup for clip in evaluation}
    assert len({clip.performer for clip in evaluation}) == 10


def test_names_are_unique_and_classes_balanced():
    clips = [clip for split in (TRAIN, EVAL) for clip in plan_clips(Options(), split)]
    assert len({clip.name for clip in clips}) == 1480
    assert np.bincount([clip.label for clip in clips]).tolist() == [185] * 8


def test_bytes_depend_on_the_seed_and_not_on_the_processes(written: Summary, tmp_path: Path):
    write(tmp_path / "again", workers=2)
    assert digests(tmp_path / "again") == digests(written.root)
    write(tmp_path / "other", seed=1)
    assert digests(tmp_path / "other") != digests(written.root)


def test_a_longer_list_begins_with_the_shorter_one(written: Summary, tmp_path: Path):
    more = write(tmp_path / "more", train_clips=9)
    short, long = digests(written.root), digests(more.root)
    assert lines(more.train_list)[:8] == lines(written.train_list)
    images = {name: digest for name, digest in short.items() if "/" in name}
    assert images.items() <= long.items()


def test_a_second_call_writes_nothing(written: Summary):
    before = times(written.root)
    again = write(written.root)
    assert again.written == 0
    assert times(written.root) == before


def test_a_killed_call_is_completed_by_the_next(written: Summary, tmp_path: Path):
    root = write(tmp_path / "data").root
    images, depth = root / "Images", root / "nturgb+d_depth_masked"
    (images / "S001C001P001R001A003_rgb").rename(images / ".part-S001C001P001R001A003_rgb")
    (depth / "S001C001P001R001A003").rename(depth / ".part-S001C001P001R001A003")
    (depth / "S001C001P001R001A005").rename(depth / ".part-S001C001P001R001A005")
    next((depth / ".part-S001C001P001R001A005").iterdir()).write_bytes(b"half a fil")
    (root / "eval.txt").rename(root / ".part-eval.txt")
    kept = times(images / "S001C001P001R001A001_rgb")
    assert write(root).written == 2
    assert digests(root) == digests(written.root)
    assert times(images / "S001C001P001R001A001_rgb") == kept


def test_a_call_ended_by_sigkill_is_completed_by_the_next(tmp_path: Path):
    root, options = tmp_path / "data", {"train_clips": 60}
    code = (
        "from pipelines.synthetic import write_dataset\n"
        f"write_dataset({str(root)!r}, workers=2, **{TINY | options})"
    )
    started = subprocess.Popen([sys.executable, "-c", code])
    while len(list(root.glob("nturgb+d_depth_masked/S*"))) < 4:
        assert started.poll() is None
        time.sleep(0.005)
    started.kill()
    started.wait()
    assert not (root / "train.txt").exists()
    assert 0 < write(root, workers=2, **options).written < 60
    whole = write(tmp_path / "whole", **options)
    assert digests(root) == digests(whole.root)


def test_other_options_or_other_files_are_not_overwritten(written: Summary, tmp_path: Path):
    before = times(written.root)
    with pytest.raises(ValueError, match=r"synthetic\.json: made with other options"):
        write(written.root, seed=5)
    assert times(written.root) == before
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"holds files but no synthetic\.json"):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    "wrong",
    [{"eval_clips": 0}, {"frames": (5, 4)}, {"frames": (1, 4)}, {"size": (8, 8)}, {"seed": -1}],
)
def test_impossible_options_stop_before_anything_is_written(wrong: dict, tmp_path: Path):
    with pytest.raises(ValueError, match="sample data"):
        write(tmp_path / "data", **wrong)
    assert not (tmp_path / "data").exists()


def test_the_command_writes_and_says_what_it_wrote(tmp_path: Path, capsys):
    arguments = "--clips 1 --eval-clips 1 --frames 2 2 --size 32 24 --depth-size 32 24 --workers 1"
    synthetic.main([str(tmp_path / "data"), *arguments.split()])
    assert "2 clips, 4 RGB and as many depth frames; 2 clips written now" in capsys.readouterr().out


def test_the_command_ends_with_one_line_on_bad_input(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("years of work")
    command = [sys.executable, "-m", "pipelines.synthetic", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1 and str(tmp_path) in ended.stderr
