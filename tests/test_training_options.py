"""engine/training.py with what is optional in a step: micro batches, averages, fp16, collection."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from runs import assert_bit_equal, final_state, lines_of
from test_training import LOSS_CURVE

OPTIONS = (
    "train.precision=fp16", "train.ema=0.9", "train.micro_batch=4", "train.gc=2",
    "train.cuda_graph=on", "optim.schedule=constant",
)  # fmt: skip


@pytest.mark.slow
def test_a_run_with_all_of_them_goes_on_bit_equal_and_evaluates_the_average(train, tmp_path):
    done = train(*OPTIONS, "train.keep=9", "train.run_dir=whole")
    assert done.returncode == 0, done.stderr
    assert "train.cuda_graph: not captured, CUDA graphs are for GPUs, and this" in done.stdout
    (tmp_path / "second").mkdir()
    shutil.copy(tmp_path / "whole" / "step_00000004.pt", tmp_path / "second" / "last.pt")
    assert train(*OPTIONS, "train.run_dir=second").returncode == 0
    whole, second = final_state(tmp_path / "whole"), final_state(tmp_path / "second")
    assert_bit_equal(whole, second)
    assert whole["scaler"] == second["scaler"] and whole["scaler"]["scale"] > 0
    assert whole["ema"].keys() == whole["model"].keys()
    for key, tensor in whole["ema"].items():
        assert torch.equal(tensor, second["ema"][key]), key
    assert any(not torch.equal(t, whole["model"][key]) for key, t in whole["ema"].items())

    logged = lines_of(tmp_path / "whole", "eval")[-1]["loss"]
    last = ("--checkpoint", str(tmp_path / "whole" / "last.pt"), "train.precision=fp16")
    assert evaluation(train, tmp_path, *last)["loss"] == pytest.approx(logged, rel=1e-6)
    assert evaluation(train, tmp_path, *last, "--raw")["loss"] != pytest.approx(logged, rel=1e-3)


def evaluation(train, tmp_path: Path, *options: str) -> dict:
    done = train("--out", "out", *options, script="engine/evaluate.py")
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "out" / "evaluation.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("global_batch", "micro_batches"),
    [(7, (0, 0)), (8, (4, 2))],
    ids=["shares of 4 and 3 clips", "two clips of two ranks or four of one at a time"],
)
def test_two_ranks_follow_one_in_micro_batches_and_averages(
    train, tmp_path, global_batch, micro_batches
):
    for ranks, micro_batch in zip((1, 2), micro_batches, strict=True):
        done = train(
            *LOSS_CURVE, "train.precision=fp64", "train.epochs=2", "train.ema=0.9",
            f"train.global_batch={global_batch}", f"train.micro_batch={micro_batch}",
            f"train.run_dir=ranks{ranks}", ranks=ranks,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    for kind, tolerance in (("train", 1e-9), ("eval", 1e-6)):  # scores are summed in float32
        one, two = (lines_of(tmp_path / f"ranks{ranks}", kind) for ranks in (1, 2))
        for key in ("loss", "top1"):
            expected = [line[key] for line in one]
            assert [line[key] for line in two] == pytest.approx(expected, rel=tolerance), key
    one, two = (final_state(tmp_path / f"ranks{ranks}")["ema"] for ranks in (1, 2))
    torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-9)
