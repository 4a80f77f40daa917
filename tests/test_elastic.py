"""Runs that are killed, stopped and continued under torchrun, on any number of ranks."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holding import HeldRun
from pipelines.plan import train_plan
from pipelines.sampling import stream_clips
from runs import assert_bit_equal, final_state, lines_of, rank_process, steps_logged
from test_plan import source

EVERY_STEP = ("train.save_every=1",)  # of 8


@given(
    batch=st.integers(8, 17), num_clips=st.integers(1, 11),
    spans=st.lists(st.tuples(st.sampled_from([1, 2, 3, 8]), st.integers(0, 3)), max_size=5),
)  # fmt: skip
def test_no_change_of_rank_count_repeats_or_leaves_out_a_clip(
    batch: int, num_clips: int, spans: list[tuple[int, int]]
) -> None:
    """Where shares are unequal, too."""
    clips, step, met = source(num_clips), 0, []
    for ranks, count in spans:
        plans = [
            list(train_plan(clips, 5, batch, step, step + count, rank, ranks))
            for rank in range(ranks)
        ]
        for shares in zip(*plans, strict=True):
            met += [shares[i % ranks][i // ranks].index for i in range(batch)]
        step += count
    assert met == [clip for _, clip in stream_clips(5, num_clips, 0, step * batch)]


@pytest.mark.slow
def test_the_clips_of_every_step_are_the_same_whatever_the_ranks(
    train: Callable[..., subprocess.CompletedProcess], dataset: Path, tmp_path: Path
) -> None:
    """2 ranks, stopped in mid-epoch, go on as 3, then as 1: by name, all clips once per epoch."""
    record = tmp_path / "record"
    for ranks, stop_after in ((2, 1), (3, 5), (0, 0)):
        env = {"RECORD": str(record), "STOP_AFTER": str(stop_after)}
        done = train(ranks=ranks, script="tests/recorded_training.py", env=env)
        assert (done.returncode == 0) == (not stop_after), done.stderr
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    steps: dict[int, dict[int, list[str]]] = {}
    for step, rank, ranks, names in lines:
        assert rank not in steps.setdefault(step, {}), f"step {step} was taken twice"
        assert ranks == (2 if step < 2 else 3 if step < 6 else 1)  # a step behind the signal
        steps[step][rank] = names
    assert sorted(steps) == list(range(8))  # 23 clips, 6 per step, 2 epochs
    order = []
    for step in range(8):
        shares = steps[step]
        order += [shares[i % len(shares)][i // len(shares)] for i in range(6)]
    listed = sorted(line.split()[0] for line in (dataset / "train.txt").read_text().splitlines())
    assert [sorted(order[first : first + 23]) for first in (0, 23)] == [listed] * 2


@pytest.mark.slow
def test_a_rank_that_dies_and_one_that_hangs_cost_no_step(
    start: Callable[..., subprocess.Popen], train: Callable, tmp_path: Path
) -> None:
    whole = train(*EVERY_STEP, "train.run_dir=whole", ranks=2)
    assert whole.returncode == 0, whole.stderr
    run = tmp_path / "run"
    held = HeldRun(
        start, tmp_path / "held", [3, 6], *EVERY_STEP, "train.timeout_s=15", ranks=2,
        torchrun=True, restarts=3,
    )  # fmt: skip
    held.wait(3)
    os.kill(rank_process(held.process, 1), signal.SIGKILL)
    held.go(3)
    held.wait(6)
    stopped = rank_process(held.process, 0)
    os.kill(stopped, signal.SIGSTOP)
    held.go(6)
    said = held.end()
    assert held.process.returncode == 0, said
    named = re.search(
        rf"^error: rank 0 \({os.uname().nodename}, process {stopped}\) is silent for 15 s "
        r"\(train.timeout_s\): .*\bstep (\d+).*$",
        said, re.MULTILINE,
    )  # fmt: skip
    assert named, said
    assert int(named[1]) >= 3, said  # of its last report, up to a second before it was stopped
    assert "Traceback" not in said
    assert_bit_equal(final_state(run), final_state(tmp_path / "whole"))
    for kind in ("train", "eval"):
        assert [line["step"] for line in lines_of(run, kind)] == [
            line["step"] for line in lines_of(tmp_path / "whole", kind)
        ]


@pytest.mark.slow
def test_a_job_that_is_told_to_stop_saves_and_the_same_command_goes_on(
    start: Callable[..., subprocess.Popen], train: Callable, tmp_path: Path
) -> None:
    """torchrun passes SIGTERM on and ends with 1; without it the status is 75, of Ctrl-C 130."""
    run = tmp_path / "run"
    for ranks, number, step in (
        (0, signal.SIGINT, 1), (0, signal.SIGUSR1, 3), (2, signal.SIGTERM, 5),
    ):  # fmt: skip
        held = HeldRun(start, tmp_path / f"held_{step}", [step], ranks=ranks, torchrun=bool(ranks))
        held.wait(step)
        held.process.send_signal(number)
        held.wait_until_heard(number)
        held.go(step)
        said = held.end()
        expected = 1 if ranks else 130 if number == signal.SIGINT else 75
        assert held.process.returncode == expected, said
        reached = final_state(run)["progress"]["step"]
        assert f"stopped by {signal.Signals(number).name} behind step {reached}, saved in" in said
        assert step < reached <= step + 2 and steps_logged(run) == reached
        if ranks == 0:
            assert reached == step + 1, "a process by itself asks nobody"
            expected_steps = list(range(1, reached + 1))
            assert [line["step"] for line in lines_of(run, "train")] == expected_steps
    done = train()
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in lines_of(run, "train")] == list(range(1, 9))
