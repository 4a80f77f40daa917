"""UMDR's networks through the same entry points, step and loader as those of CVPR'22."""

import shutil

import pytest
import torch
import yaml

from engine import checkpoint
from engine.distributed import Ranks, place
from engine.loop import Precision
from runs import as_network, lines_of
from test_compilation import batch_for, network, step_of

UNIMODAL = ["merged", "sum", "4 frames", "8 frames", "12 frames"]
FUSION = ["sum", "mean", "rgb + depth", "rgb", "depth", "completed rgb", "completed depth"]


@pytest.fixture
def tiny_config(tiny_config: dict) -> dict:
    as_network(tiny_config, "umdr")
    return tiny_config


def test_a_run_reports_all_heads_and_goes_on_bit_equal(train, tmp_path):
    whole = train("train.run_dir=whole", "train.save_every=3", "train.keep=9")
    assert whole.returncode == 0, whole.stderr
    evaluation, logged = (lines_of(tmp_path / "whole", kind)[-1] for kind in ("eval", "train"))
    frames = yaml.safe_load((tmp_path / "whole" / "config.yaml").read_text())["data"]["num_frames"]
    halves = [f"{frames // 2 * k} frames" for k in (1, 2, 3)]
    assert list(evaluation["heads"]) == ["merged", "sum", *halves]
    assert {"merged", "branches", "recoupling"} <= logged.keys()

    (tmp_path / "parts").mkdir()  # in the middle of an epoch
    shutil.copy(tmp_path / "whole" / "step_00000006.pt", tmp_path / "parts" / "last.pt")
    again = train("train.run_dir=parts")
    assert again.returncode == 0, again.stderr
    states = [checkpoint.load(tmp_path / name / "last.pt") for name in ("whole", "parts")]
    for key, tensor in states[0]["model"].items():
        assert torch.equal(tensor, states[1]["model"][key]), key


@pytest.mark.slow
@pytest.mark.parametrize("mix", ["mix.mixup=0.8", "mix.shufflemix_share=1.0"])
def test_two_ranks_give_the_loss_curve_of_one(train, tmp_path, mix):
    curves = []
    for ranks in (1, 2):
        done = train(
            "model.dropout=0.0", "optim.warmup=0", "optim.lr=1e-4", "optim.min_lr=1e-5", mix,
            "train.precision=fp64", "train.temperature=[1.0, 1.0]", f"train.run_dir=ranks{ranks}",
            "loss.recoupling_delay=0", "train.global_batch=4", "train.epochs=1", ranks=ranks,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        lines = lines_of(tmp_path / f"ranks{ranks}", "train")
        curves.append([[line[key] for key in ("loss", "recoupling")] for line in lines])
    assert len(curves[0]) > 4
    assert curves[1] == [pytest.approx(values, rel=1e-9) for values in curves[0]]


def test_the_fusion_starts_from_both_networks_heads_included_and_trains_the_rest(train, tmp_path):
    files = {}
    for modality in ("rgb", "depth"):
        done = train(f"data.modality={modality}", "data.depth_encoding=metric", "train.epochs=1",
                     f"train.run_dir={modality}")  # fmt: skip
        assert done.returncode == 0, done.stderr
        files[modality] = tmp_path / modality / "last.pt"
    done = train(
        "model.name=umdr_fusion", "data.modality=rgbd", "data.depth_encoding=metric",
        "train.epochs=1", "train.run_dir=both",
        *(f"train.init_{m}={path}" for m, path in files.items()),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"the rgb network starts from {files['rgb']}\n" in done.stdout
    assert list(lines_of(tmp_path / "both", "eval")[-1]["heads"]) == FUSION
    fused = checkpoint.load(tmp_path / "both" / "last.pt")["model"]
    for modality, path in files.items():
        for key, tensor in checkpoint.load(path)["model"].items():
            assert torch.equal(fused[f"{modality}.{key}"], tensor), key


@pytest.mark.parametrize("name", ["umdr", "umdr_fusion"])
def test_a_batch_of_one_clip_trains(name):
    precision = Precision.choose("fp64", torch.device("cpu"))
    model = place(network(name, precision), Ranks(0, 0, 1), precision.weights)
    before = {key: value.clone() for key, value in model.named_parameters()}
    step, batch = step_of(model, precision), batch_for(name, 1)
    losses = [step(batch, 0, 0.5)["loss"].item() for _ in range(6)]
    assert losses[-1] < 0.9 * losses[0]
    for key, value in model.named_parameters():
        assert value.requires_grad != torch.equal(value, before[key]), key
