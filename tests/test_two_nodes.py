"""Two launchers, as on two machines, that find each other by rendezvous and train together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from forked import free_port

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = ("model.dropout=0.0", "train.epochs=1", "train.precision=fp64", "optim.warmup=0")


def launch_node(config: Path, port: int, run: Path) -> subprocess.Popen:
    """torchrun of one of two nodes with one rank each."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
        "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=two_nodes",
        "--local-addr=127.0.0.1", str(ROOT / "engine" / "train.py"),
        "--config", str(config), *OPTIONS, f"train.run_dir={run}",
    ]  # fmt: skip
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=config.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def numbers(run: Path) -> list[dict[str, float]]:
    """Losses of each step, then the evaluation's counts."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    evaluation = [line for line in lines if line["kind"] == "eval"]
    return [{key: line[key] for key in ("loss", "recoupling", "lr")} for line in steps] + [
        {key: line[key] for key in ("loss", "top1", "top5")} for line in evaluation
    ]


@pytest.mark.slow
def test_two_launchers_train_as_two_ranks_of_one_machine(train, tiny_config, tmp_path):
    one = train(*OPTIONS, f"train.run_dir={tmp_path / 'one'}", ranks=2)
    assert one.returncode == 0, one.stderr

    config = tmp_path / "node.yaml"
    config.write_text(yaml.safe_dump(tiny_config))
    port = free_port()
    nodes = [launch_node(config, port, tmp_path / "two") for _ in range(2)]
    try:
        said = [node.communicate(timeout=300) for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], said
    # Apart, each would have a rank 0 that says where its results are.
    assert sorted("result.json" in out for out, _ in said) == [False, True]

    together, expected = numbers(tmp_path / "two"), numbers(tmp_path / "one")
    assert len(expected) == 5  # the steps at clips 0, 6, 12 and 18 of 23; the evaluation
    assert together == [pytest.approx(line, rel=1e-9) for line in expected]
