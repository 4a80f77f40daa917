"""engine/fuse_scores.py: fusion by hand-made numbers, and the command from any folder."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.clip_scores import ClipScores
from engine.fuse_scores import METHODS, accuracies, fuse, main, sweep

ROOT = Path(__file__).resolve().parents[1]


def one_head(logits: list[list[float]], labels: list[int], source: str = "s.npz") -> ClipScores:
    names = np.array([f"c{i}" for i in range(len(labels))])
    return ClipScores(
        names, np.array(labels), np.array(["merged"]), np.array([logits], float), source
    )


def by_hand(method: str, clips: list[list[float]], weights: list[float]) -> list[float]:
    """The fused logits of one clip from the logits of each input, one number at a time."""
    share = [w / sum(weights) for w in weights]
    chances = [[math.exp(z) / sum(map(math.exp, clip)) for z in clip] for clip in clips]
    pairs = list(zip(share, chances, clips, strict=True))
    classes = range(len(clips[0]))
    if method == "mean of softmax":
        return [math.log(sum(w * p[k] for w, p, _ in pairs)) for k in classes]
    if method == "mean of logits":
        return [sum(w * z[k] for w, _, z in pairs) for k in classes]
    return [math.log(math.prod(p[k] ** w for w, p, _ in pairs)) for k in classes]


@pytest.mark.parametrize("method", list(METHODS))
def test_fusion_is_that_of_the_formula(method) -> None:
    inputs = [[[1.0, 2.0, -1.0], [0.0, 0.5, 3.0]], [[2.0, 0.0, 1.0], [1.0, 1.0, 1.0]],
              [[-3.0, 0.2, 0.1], [4.0, -4.0, 0.0]]]  # fmt: skip
    weights = [2.0, 1.0, 5.0]
    fused = fuse([one_head(logits, [0, 1]) for logits in inputs], weights)
    expected = [by_hand(method, [logits[n] for logits in inputs], weights) for n in range(2)]
    np.testing.assert_allclose(fused.head(method), expected, rtol=1e-12)


logits = st.lists(st.lists(st.floats(-30, 30), min_size=4, max_size=4), min_size=3, max_size=3)


@given(first=logits, second=logits, weight=st.floats(0.01, 0.99))
def test_a_network_fused_with_itself_is_itself_and_the_product_ranks_as_the_mean(
    first, second, weight
) -> None:
    one, two = one_head(first, [0, 1, 2]), one_head(second, [0, 1, 2])
    same = fuse([one, one], [weight, 1 - weight])
    own = one.logits[0] - np.log(np.exp(one.logits[0]).sum(1, keepdims=True))
    for method, values in (("mean of softmax", own), ("product", own),
                           ("mean of logits", one.logits[0])):  # fmt: skip
        np.testing.assert_allclose(same.head(method), values, atol=1e-9)
    both = fuse([one, two], [weight, 1 - weight])
    apart = both.head("product") - both.head("mean of logits")
    np.testing.assert_allclose(apart, np.repeat(apart[:, :1], 4, axis=1), atol=1e-9)


def test_weight_1_and_0_is_the_first_input_alone() -> None:
    one, two = one_head([[1000.0, 0.0], [0.0, 2.0]], [0, 1]), one_head([[0, 9], [9, 0]], [0, 1])
    for weights, expected in (([1, 0], 1.0), ([0, 3], 0.0)):
        assert [top1 for _, top1, _ in accuracies(fuse([one, two], weights))] == [expected] * 3


def test_top_1_and_top_5_count_the_label_among_the_best() -> None:
    scores = one_head([[5, 4, 3, 2, 1, 0]] * 4, [0, 4, 5, 1])
    assert accuracies(scores) == [("merged", 0.25, 0.75)]


def test_the_sweep_goes_from_the_second_input_to_the_first() -> None:
    # Clip 0: only the first is right, by 1; clip 1: only the second, by 3.
    one = one_head([[1.0, 0.0], [1.0, 0.0]], [0, 1])
    two = one_head([[0.0, 3.0], [0.0, 3.0]], [0, 1])
    rows = sweep(one, two)
    assert [row["weight"] for row in rows] == [i / 10 for i in range(11)]
    # Clip 0 turns right, and clip 1 wrong, where w > 3 (1 - w), between 0.7 and 0.8: always half.
    assert [row["mean of logits"] for row in rows] == [0.5] * 11
    # Clip 1 turns wrong where w > 8 (1 - w), between 0.8 and 0.9: both are right at 0.8.
    rows = sweep(one, replace(two, logits=np.array([[[0.0, 3.0], [0.0, 8.0]]])))
    assert [row["product"] for row in rows] == [0.5] * 8 + [1.0, 0.5, 0.5]


def test_weights_that_cannot_be_are_refused() -> None:
    one = one_head([[0.0, 1.0]], [0])
    for weights, message in (
        ([1.0], "1 weights for 2 inputs"), ([1.0, -1.0], "none may be negative"),
        ([0.0, 0.0], "one must be positive"), ([1.0, math.nan], "none may be negative"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            fuse([one, one], weights)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    rng = np.random.default_rng(3)
    names, labels = np.array([f"v{i}" for i in range(40)]), rng.integers(0, 8, 40)
    for name in ("rgb", "depth"):
        order = rng.permutation(40)
        logits = rng.normal(size=(2, 40, 8)) + 1.5 * np.eye(8)[labels]
        heads = np.array(["merged", "sum"])
        (tmp_path / name).mkdir()
        scores = ClipScores(names[order], labels[order], heads, logits[:, order])
        scores.save(tmp_path / name / "scores.npz")
    return [str(tmp_path / "rgb"), str(tmp_path / "depth" / "scores.npz")]


def test_the_command_prints_every_table_and_writes_the_fusion(files, tmp_path, capsys) -> None:
    assert main([*files, "--weights", "1", "3", "--out", str(tmp_path / "fused")]) == 0
    printed = capsys.readouterr().out
    one, two = map(ClipScores.load, files)
    result = json.loads((tmp_path / "fused" / "fused.json").read_text())
    assert result["weights"] == [0.25, 0.75] and result["clips"] == 40
    assert list(result["inputs"]) == [one.source, two.source]
    fused = ClipScores.load(tmp_path / "fused" / "fused.npz")
    assert fused.heads.tolist() == list(METHODS) and fused.names.tolist() == one.names.tolist()
    for name, top1, top5 in accuracies(fuse([one, two], [1, 3])):
        assert result["fused"][name] == {"top1": top1, "top5": top5}
        assert f"{name:<26}{top1:>8.1%}{top5:>8.1%}" in printed
    assert accuracies(fused) == accuracies(fuse([one, two], [1, 3]))
    assert [row["weight"] for row in result["sweep"]] == [i / 10 for i in range(11)]
    assert "optimistic" in printed and "fused, weights 0.25 0.75" in printed


def test_another_head_is_fused_on_request_and_three_inputs_have_no_sweep(files, capsys) -> None:
    assert main([*files, files[0], "--head", "sum"]) == 0
    assert "top-1 by weight" not in capsys.readouterr().out
    one, two = map(ClipScores.load, files)
    expected = (one.head("sum") + two.ordered_like(one).head("sum")) / 2
    np.testing.assert_allclose(fuse([one, two], None, ["sum"]).head("mean of logits"), expected)


def test_the_published_average_of_four_takes_two_heads_of_the_fusion(files, tmp_path) -> None:
    """As the fusion network's own head `mean`, where its halves are the other two networks."""
    one, two = map(ClipScores.load, files)
    both = two.ordered_like(one)
    completed = np.random.default_rng(4).normal(size=(2, 40, 8))
    alone = [one.head("merged"), both.head("merged")]
    mean = (alone[0] + alone[1] + completed[0] + completed[1]) / 4
    heads = np.array(["mean", "completed rgb", "completed depth"])
    fusion = ClipScores(one.names, one.labels, heads, np.stack([mean, *completed]))
    (tmp_path / "both").mkdir()
    fusion.save(tmp_path / "both" / "scores.npz")
    four = [*files, str(tmp_path / "both"), str(tmp_path / "both")]
    names = ["merged", "merged", "completed rgb", "completed depth"]
    assert main([*four, "--head", *names, "--out", str(tmp_path / "fused")]) == 0
    fused = ClipScores.load(tmp_path / "fused" / "fused.npz")
    assert json.loads((tmp_path / "fused" / "fused.json").read_text())["heads"] == names
    np.testing.assert_allclose(fused.head("mean of logits"), mean, rtol=1e-6, atol=1e-6)


def test_heads_are_one_for_all_or_one_each(files, capsys) -> None:
    assert main([*files, files[0], "--head", "sum", "merged"]) == 1
    error = "error: 2 heads for 3 inputs; give one for each, or one for all\n"
    assert capsys.readouterr().err == error


def test_errors_are_one_line(files, tmp_path, capsys) -> None:
    one = ClipScores.load(files[0])
    replace(one, names=np.array([f"w{i}" for i in range(40)])).save(Path(files[1]))
    assert main(files) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith(f"error: {files[1]}: lacks 40 of the 40")
    assert main([files[0]]) == 1
    assert capsys.readouterr().err.startswith("error: fusing takes at least two")


def test_it_starts_from_any_working_directory_without_torch(files, tmp_path) -> None:
    code = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    script = str(ROOT / "engine/fuse_scores.py")
    done = subprocess.run([sys.executable, "-c", code, script, *files], cwd=tmp_path,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "mean of softmax" in done.stdout
