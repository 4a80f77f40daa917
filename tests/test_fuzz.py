"""A seeded part of tests/fuzz.py: no damaged file ends the process, hangs it, is replaced by other
pixels without a word, or stops the run without being named."""

import json
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

import fuzz
from forked import CONTEXT, Forked
from fuzz_damage import DAMAGES, draw, restore

GROUPS = {
    "frames": ("jpeg", "png", "depth_metric", "depth_wrapped_jet", "rgbd"),
    "packs": ("pack", "pack_png", "pack_index", "pack_npz", "pack_h264", "pack_vp9"),
    "videos": ("h264", "hevc", "mpeg4", "mjpeg", "vp8", "vp9", "av1"),
}
CASES = 100
"""Of each group."""


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_damaged_files_are_refused_by_name_or_delivered_as_any_decoder_sees_them(
    group: str, tmp_path: Path
) -> None:
    kinds = [word for kind in GROUPS[group] for word in ("--kind", kind)]
    out = tmp_path / "results.json"
    arguments = [f"--cases={CASES}", "--seed=7", f"--json={out}", *kinds]
    process = Forked(Path(fuzz.__file__), arguments, tmp_path, os.environ)
    said = process.communicate(timeout=1200)
    assert process.returncode == 0, said[0] + said[1][-2000:]
    result = json.loads(out.read_text())
    assert result["cases"] == CASES and set(result["counts"]) == set(GROUPS[group])
    counted = [item for found in result["counts"].values() for item in found.items()]
    assert sum(number for _, number in counted) == CASES and result["defects"] == []
    assert sum(number for outcome, number in counted if outcome.startswith("refused")) > 10
    assert sum(number for outcome, number in counted if outcome.startswith("delivered")) > 2


def die_and_fall_silent(kind: str, seed: int, first: int, last: int, results: Connection) -> None:
    for number in range(first, last):
        if number == 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        if number == 3:
            time.sleep(600)
        results.send({"kind": "jpeg", "number": number, "outcome": "fine"})


@pytest.mark.slow
def test_a_crash_and_a_hang_are_results_and_the_next_case_follows(monkeypatch) -> None:
    """Of a worker that dies in case 1 and falls silent in case 3, of 5."""
    monkeypatch.setattr(fuzz, "CONTEXT", CONTEXT)
    monkeypatch.setattr(fuzz, "work", die_and_fall_silent)
    monkeypatch.setattr(fuzz, "PATIENCE_S", 20)
    results = fuzz.run("jpeg", 0, 0, 5)
    assert [r["outcome"] for r in results] == ["fine", "CRASH", "fine", "HANG", "fine"]
    assert [r["number"] for r in results] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", DAMAGES)
def test_the_same_seed_makes_the_same_damage(name: str) -> None:
    data = np.random.default_rng(0).bytes(5000)
    one, other = (DAMAGES[name](data, np.random.default_rng([4, 2])) for _ in range(2))
    assert one == other != data


def test_a_damaged_file_is_put_back_whatever_became_of_it(tmp_path: Path) -> None:
    path, data = tmp_path / "file", b"0123456789" * 500
    path.write_bytes(data)
    seen = set()
    for number in range(60):
        name, strike = draw(path, np.random.default_rng(number))
        strike()
        seen.add(name if not name.endswith("in its place") else "other")
        restore(path, data)
        assert path.read_bytes() == data
    assert {"bits", "cut", "folder", "vanished", "other"} <= seen
