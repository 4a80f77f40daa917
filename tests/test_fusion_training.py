"""The fusion network through the same entry points, step and loader as the unimodal one."""

import json
import shutil

import numpy as np
import pytest
import torch

from engine import checkpoint
from engine.clip_scores import ClipScores
from runs import lines_of

HEADS = ["sum", "fused", "rgb + depth", "rgb", "depth"]


@pytest.fixture
def tiny_config(tiny_config: dict) -> dict:
    tiny_config["data"] |= {"modality": "rgbd", "depth_encoding": "metric"}
    tiny_config["model"]["name"] = "decoupled_fusion"
    return tiny_config


def test_a_run_reports_all_heads_and_resumes_bit_equal(train, tmp_path):
    whole = train("train.run_dir=whole", "train.keep=9")
    assert whole.returncode == 0, whole.stderr
    assert list(lines_of(tmp_path / "whole", "eval")[0]["heads"]) == HEADS
    logged = lines_of(tmp_path / "whole", "train")[-1]
    assert {"merged", "branches", "recoupling", "reconstruction", "modality"} <= logged.keys()

    (tmp_path / "parts").mkdir()
    shutil.copy(tmp_path / "whole" / "step_00000004.pt", tmp_path / "parts" / "last.pt")
    assert train("train.run_dir=parts").returncode == 0
    states = [checkpoint.load(tmp_path / run / "last.pt") for run in ("whole", "parts")]
    for key, tensor in states[0]["model"].items():
        assert torch.equal(tensor, states[1]["model"][key]), key


@pytest.mark.slow
def test_two_ranks_give_the_loss_curve_of_one(train, tmp_path):
    curves = []
    for ranks in (1, 2):
        done = train(
            "model.dropout=0.0", "optim.warmup=0", "optim.lr=1e-4", "optim.min_lr=1e-5",
            "train.precision=fp64", "train.temperature=[1.0, 1.0]", f"train.run_dir=ranks{ranks}",
            "train.epochs=1", "loss.recoupling_delay=0", ranks=ranks,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        keys = ("loss", "recoupling", "reconstruction", "modality")
        lines = lines_of(tmp_path / f"ranks{ranks}", "train")
        curves.append([[line[key] for key in keys] for line in lines])
    assert len(curves[0]) == 4
    assert curves[1] == [pytest.approx(values, rel=1e-9) for values in curves[0]]


def test_a_single_clip_per_rank_is_refused_before_any_data_is_read(train):
    done = train("train.global_batch=2", "data.root=/nowhere", ranks=2)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert lines == [
        "error: train.global_batch = 2 leaves a single clip at a time to some of 2 ranks, in "
        "which the fusion network's batch norms see one value per channel; take 4 or more"
    ]


def test_a_dry_run_estimates_the_memory_and_shows_both_modalities(train, tmp_path):
    done = train("--dry-run")
    assert done.returncode == 0, done.stderr
    assert "memory per rank, estimated:" in done.stdout
    assert (tmp_path / "run" / "contact_sheet.png").stat().st_size > 0


def test_the_scores_of_every_clip_are_those_of_the_table_on_any_number_of_ranks(
    train, tmp_path, dataset
):
    assert train("train.epochs=1").returncode == 0
    names = [line.split()[0] for line in (dataset / "eval.txt").read_text().splitlines()]
    files = []
    for ranks in (1, 3):
        out = tmp_path / f"out{ranks}"
        done = train(
            "--checkpoint", str(tmp_path / "run" / "last.pt"), "--out", str(out),
            ranks=ranks, script="engine/evaluate.py",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        table = json.loads((out / "evaluation.json").read_text())
        scores = ClipScores.load(out / "scores.npz")
        files.append(scores)
        assert scores.names.tolist() == names and scores.heads.tolist() == HEADS
        hits = (scores.logits.argmax(2) == scores.labels).mean(1)
        assert hits.tolist() == [table["heads"][head]["top1"] for head in HEADS]
    one, three = files
    np.testing.assert_allclose(one.logits, three.logits, rtol=1e-4, atol=1e-4)
    total, fused, both, rgb, depth = one.logits
    np.testing.assert_allclose(total, fused + rgb + depth, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(both, rgb + depth, rtol=1e-5, atol=1e-5)
