"""engine/clip_scores.py: the file of scores, and the same clips found again by name."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.clip_scores import ClipScores


def scores_of(names: list[str], labels: list[int], classes: int = 3, seed: int = 0) -> ClipScores:
    logits = np.random.default_rng(seed).normal(size=(2, len(names), classes)).astype(np.float32)
    heads = np.array(["merged", "sum"])
    return ClipScores(np.array(names), np.array(labels), heads, logits, f"{seed}.npz")


def test_a_file_holds_what_was_written_and_a_run_folder_stands_for_its_file(tmp_path: Path) -> None:
    scores = scores_of(["a", "b/c", "ä"], [2, 0, 1])
    scores.save(tmp_path / "scores.npz")
    for path in (tmp_path, tmp_path / "scores.npz"):
        found = ClipScores.load(path)
        assert found.names.tolist() == ["a", "b/c", "ä"] and found.labels.tolist() == [2, 0, 1]
        assert found.heads.tolist() == ["merged", "sum"] and found.source == str(
            tmp_path / "scores.npz"
        )
        np.testing.assert_array_equal(found.logits, scores.logits)
    with np.load(tmp_path / "scores.npz") as file:  # what other programs rely on
        assert set(file) == {"names", "labels", "heads", "logits"}
        assert file["labels"].dtype == np.int64 and file["logits"].dtype == np.float32


def test_clips_are_matched_by_name_whatever_their_order() -> None:
    one = scores_of(["a", "b", "c", "d"], [0, 1, 2, 0])
    order = [2, 0, 3, 1]
    other = replace(one, names=one.names[order], labels=one.labels[order],
                    logits=one.logits[:, order] + 1)  # fmt: skip
    found = other.ordered_like(one)
    assert found.names.tolist() == ["a", "b", "c", "d"] and found.labels.tolist() == [0, 1, 2, 0]
    np.testing.assert_array_equal(found.logits, one.logits + 1)


def test_clips_of_one_side_only_are_named_with_their_number() -> None:
    one = scores_of([f"c{i}" for i in range(9)], [0] * 9)
    other = scores_of(["c0", "c1"], [0, 0], seed=1)
    for a, b in ((other, one), (one, other)):
        with pytest.raises(ValueError) as error:
            a.ordered_like(b)
        assert str(error.value).startswith("1.npz: lacks 7 of the 9 clips of 0.npz: ")
        assert "c2, c3, c4, c5, c6 and 2 more" in str(error.value)


def test_a_clip_that_is_there_twice_cannot_be_matched() -> None:
    one, other = scores_of(["a", "b", "a"], [0, 0, 0]), scores_of(["b", "a"], [0, 0], seed=1)
    for a, b in ((one, other), (other, one)):
        with pytest.raises(ValueError, match=r"^0\.npz: has clips twice: a$"):
            a.ordered_like(b)


def test_other_labels_and_other_class_counts_are_named() -> None:
    one = scores_of(["a", "b", "c"], [0, 1, 2])
    with pytest.raises(ValueError, match=r"1\.npz: 2 clips have other labels .*0\.npz: a, c$"):
        scores_of(["c", "b", "a"], [0, 1, 2], seed=1).ordered_like(one)
    with pytest.raises(ValueError, match=r"0\.npz has 3 classes, 1\.npz has 4"):
        scores_of(["a", "b", "c"], [0, 1, 2], classes=4, seed=1).ordered_like(one)


def test_a_head_is_found_by_name_and_is_the_first_by_default() -> None:
    scores = scores_of(["a"], [0])
    np.testing.assert_array_equal(scores.head(None), scores.logits[0])
    np.testing.assert_array_equal(scores.head("sum"), scores.logits[1])
    with pytest.raises(ValueError, match=r"0\.npz: no head 'best'; it has merged, sum"):
        scores.head("best")


def test_a_file_that_holds_no_scores_is_named(tmp_path: Path) -> None:
    path = tmp_path / "scores.npz"
    with pytest.raises(ValueError, match=r"scores\.npz: no such file; engine/evaluate\.py"):
        ClipScores.load(tmp_path)
    path.write_text("no scores")
    with pytest.raises(ValueError, match=r"scores\.npz: is no file of scores"):
        ClipScores.load(path)
    np.savez(path, names=np.array(["a"]))
    with pytest.raises(ValueError, match=r"scores\.npz: is no file of scores"):
        ClipScores.load(path)
    np.savez(path, names=np.array(["a"]), labels=np.array([object()]), heads=["m"],
             logits=np.zeros((1, 1, 2)))  # fmt: skip
    with pytest.raises(ValueError, match=r"scores\.npz: is no file of scores"):
        ClipScores.load(path)


def test_a_file_whose_content_cannot_be_trusted_is_named(tmp_path: Path) -> None:
    scores = scores_of(["a", "b", "c"], [0, 0, 0])
    path = tmp_path / "scores.npz"
    logits = scores.logits.copy()
    logits[1, 2, 0] = np.nan
    replace(scores, logits=logits).save(path)
    with pytest.raises(ValueError, match=r"scores are not finite for 1 clips: c$"):
        ClipScores.load(path)
    replace(scores, heads=np.array(["merged"])).save(path)
    with pytest.raises(ValueError, match=r"logits \(2, 3, 3\) do not fit 1 heads and 3 clips"):
        ClipScores.load(path)
