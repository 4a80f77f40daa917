"""What runs of engine/train.py leave, for tests to compare."""

import json
from pathlib import Path

import torch

from engine import checkpoint


def result_of(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def lines_of(run: Path, kind: str) -> list[dict]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def without_times(line: dict) -> dict:
    """A log line without what differs from one run to the next."""
    timed = ("clips_per_s", "data_wait", "flop_use", "gpu_")
    return {key: value for key, value in line.items()
            if not (key.endswith("_s") or key.startswith(timed))}  # fmt: skip


def final_state(run: Path) -> dict:
    return checkpoint.load(run / "last.pt")


def assert_bit_equal(a: dict, b: dict) -> None:
    assert a["progress"] == b["progress"]
    assert a["model"].keys() == b["model"].keys()
    for key, tensor in a["model"].items():
        assert torch.equal(tensor, b["model"][key]), key
    momenta = [state["optimizer"]["state"] for state in (a, b)]
    for index, entry in momenta[0].items():
        assert torch.equal(entry["momentum_buffer"], momenta[1][index]["momentum_buffer"])


def flip(path: Path) -> None:
    """One bit in the middle of a file, of a checkpoint in its weights."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
