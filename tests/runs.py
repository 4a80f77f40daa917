"""Tiny runs of engine/train.py, and what they leave, for tests to compare."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from engine import checkpoint
from engine.config import as_dict, load, model_options
from forked import Forked, ForkedRanks
from models.registry import build_model
from pipelines.synthetic import write_dataset

ROOT = Path(__file__).resolve().parents[1]


def write_tiny_dataset(out: Path) -> Path:
    """23 training and 7 evaluation clips: neither 2 nor 3 ranks divide the lists."""
    write_dataset(out, train_clips=23, eval_clips=7, frames=(10, 14), size=(64, 48),
                  depth_size=(64, 48), workers=1, progress=False)  # fmt: skip
    return out


def tiny_config(dataset: Path, folder: Path) -> dict:
    """A whole config of a run of a few seconds in `folder`: 8 frames of 32 x 32, one block, two
    epochs of 4 steps."""
    return {
        "data": {
            "root": str(dataset), "train_list": "train.txt", "eval_list": "eval.txt",
            "layout": "ntu", "num_classes": 8, "num_frames": 8, "branch_frames": [2, 4, 6],
            "resize": [48, 36], "crop": 32, "size": 32, "rotate": 0.5, "motion_window": 3,
            "cache_dir": str(folder / "cache"),
        },
        "model": {"name": "decoupled", "width": 8, "dim": 64, "num_blocks": 1},
        "loss": {"recoupling_delay": 1},
        "optim": {"lr": 0.02, "warmup": 1},
        "train": {
            "run_dir": str(folder / "run"), "epochs": 2, "global_batch": 6, "eval_batch": 3,
            "log_every": 1, "temperature": [0.5, 1.0], "temperature_epochs": 2, "device": "cpu",
            "flop_use": False,  # a fifth of such a run's time
        },
    }  # fmt: skip


def as_network(config: dict, network: str, both: bool = False) -> None:
    """Make a `tiny_config` one of `umdr` instead of `decoupled`, or of the fusion of `both`."""
    config["model"]["name"] = f"{network}_fusion" if both else network
    if network == "umdr":
        del config["data"]["branch_frames"]
        config["data"]["motion_window"] = 0
        config["model"]["num_blocks"] = 3


def write_checkpoint(config: dict, folder: Path) -> Path:
    """A file of the config's network with random weights, in a new `folder`."""
    folder.mkdir()
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    loaded = load(folder / "tiny.yaml")
    torch.manual_seed(3)
    network = build_model(loaded.model.name, **model_options(loaded))
    progress = {"epoch": 1}
    content = {"config": as_dict(loaded), "progress": progress, "model": network.state_dict()}
    checkpoint.save(folder / "last.pt", content)
    return folder / "last.pt"


def launch(
    config: Path, *overrides: str, ranks: int = 0, script: str = "engine/train.py",
    env: dict | None = None, fork: bool = True, torchrun: bool = False, restarts: int = 0,
) -> subprocess.Popen | Forked | ForkedRanks:  # fmt: skip
    """Starts a script of the repository on a config, in the config's folder: as a plain process, as
    ranks, or as ranks that torchrun starts, and starts again.

    `fork` of False: in a new interpreter, for what torch reads at its import from `env`.
    """
    env = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    arguments = ["--config", str(config), *overrides]
    if not ranks and fork:
        return Forked(ROOT / script, arguments, config.parent, env)
    if ranks and not torchrun:
        return ForkedRanks(ranks, ROOT / script, arguments, config.parent, env)
    launcher = [sys.executable]
    if ranks:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        launcher += [f"--max-restarts={restarts}"]
    return subprocess.Popen(
        [*launcher, str(ROOT / script), *arguments], cwd=config.parent, env=env,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def steps_logged(run: Path) -> int:
    """The last step in the run's log; 0: none."""
    path = run / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    steps = [json.loads(line)["step"] for line in text.splitlines(True) if line.endswith("\n")]
    return max(steps, default=0)


def rank_process(launcher: subprocess.Popen, rank: int) -> int | None:
    """The process that torchrun has started for a rank; None: there is none."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")")[-1].split()[1])
            if parent == launcher.pid:
                environment = (folder / "environ").read_bytes().split(b"\0")
                if f"RANK={rank}".encode() in environment:
                    return int(folder.name)
        except OSError:  # it has just ended
            continue
    return None


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
