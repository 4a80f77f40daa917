"""A seeded part of tests/fuzz.py: no damaged file ends the process, hangs it, is replaced by other
pixels without a word, or stops the run without being named."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fuzz
from fuzz_damage import DAMAGES, draw, restore

GROUPS = {
    "frames": ("jpeg", "png", "depth_metric", "depth_wrapped_jet", "rgbd"),
    "packs": ("pack", "pack_png", "pack_index", "pack_npz", "pack_h264", "pack_vp9"),
    "videos": ("h264", "hevc", "mpeg4", "mjpeg", "vp8", "vp9", "av1"),
}


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_damaged_files_are_refused_by_name_or_delivered_as_any_decoder_sees_them(
    group: str, tmp_path: Path
) -> None:
    kinds = [word for kind in GROUPS[group] for word in ("--kind", kind)]
    out = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, fuzz.__file__, "--cases=100", "--seed=7", f"--json={out}", *kinds],
        capture_output=True, text=True, errors="replace", timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    result = json.loads(out.read_text())
    assert result["cases"] == 100 and set(result["counts"]) == set(GROUPS[group])
    counted = [item for found in result["counts"].values() for item in found.items()]
    assert sum(number for _, number in counted) == 100 and result["defects"] == []
    assert sum(number for outcome, number in counted if outcome.startswith("refused")) > 10
    assert sum(number for outcome, number in counted if outcome.startswith("delivered")) > 2


@pytest.mark.slow
def test_a_crash_and_a_hang_are_results_and_the_next_case_follows(monkeypatch) -> None:
    """Of a worker that dies in case 1 and falls silent in case 3, of 5."""
    worker = """
import json, os, signal, sys, time
first, last = map(int, sys.argv[-2:])
for number in range(first, last):
    if number == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 3:
        time.sleep(600)
    print(json.dumps({"kind": "jpeg", "number": number, "outcome": "fine"}), flush=True)
"""

    def command(kind: str, seed: int, first: int, last: int) -> list[str]:
        return [sys.executable, "-c", worker, str(first), str(last)]

    monkeypatch.setattr(fuzz, "worker_command", command)
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
