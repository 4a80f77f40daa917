"""engine/training.py, end to end on real files: results, resuming, ranks."""

import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from tests.published import published_file

from engine.convert import main as convert
from holding import HeldRun
from pipelines.sampling import stream_clips
from runs import assert_bit_equal, final_state, lines_of, result_of, without_times


@pytest.mark.slow
def test_a_run_leaves_everything_a_user_looks_for(train, tmp_path):
    done = train("train.flop_use=true")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    for name in ("config.yaml", "metrics.jsonl", "last.pt", "best.pt", "curves.png",
                 "confusion.png", "time.png", "result.json"):  # fmt: skip
        assert (run / name).stat().st_size > 0, name
    assert list((run / "tensorboard").glob("events*"))
    assert not list(run.glob("*.partial"))
    assert final_state(run)["classes"][:2] == ["swipe right", "swipe left"]
    result = result_of(run)
    # 23 clips, 6 per step: steps 0..3 begin in epoch 0, 4..7 in epoch 1.
    assert (result["steps"], result["clips"], result["epochs"]) == (8, 48, 2)
    assert 0 <= result["top1"] <= result["top5"] <= 1 and 0 <= result["data_wait"] <= 1
    assert result["best_top1"] == max(line["top1"] for line in lines_of(run, "eval"))
    assert result["clips_per_s"] == pytest.approx(result["clips"] / result["seconds"])
    assert {"command", "commit", "device", "best_epoch"} <= result.keys()
    assert [line["clips"] for line in lines_of(run, "eval")] == [7, 7]
    assert [line["step"] for line in lines_of(run, "train")] == list(range(1, 9))
    for line in lines_of(run, "train"):
        parts = [line[f"{part}_s"] for part in ("data", "forward", "backward", "optimizer")]
        assert min(parts) > 0 and "sync_s" not in line and "skipped" not in line
        assert sum(parts) + line["other_s"] == pytest.approx(line["step_s"])
        assert line["clips_per_s"] == line["clips_per_s_per_rank"] == 6 / line["step_s"]
        assert line["data_wait"] == line["data_wait_max"] == parts[0] / line["step_s"]
        assert 0 < line["flop_use"] < 1
    assert list(lines_of(run, "eval")[0]["heads"]) == [
        "merged", "sum", "2 frames", "4 frames", "6 frames",
    ]  # fmt: skip
    assert "merged" in done.stdout and str(run) in done.stdout

    again = train("train.flop_use=true")
    assert again.returncode == 0 and result_of(run)["steps"] == 8
    assert len(lines_of(run, "train")) == 8, "a finished run that is started again trains nothing"

    other = train("optim.lr=0.5")
    assert other.returncode == 1
    assert (
        f"error: {run}: holds a run with optim.lr = 0.02, not 0.5; choose another" in other.stderr
    )


@pytest.mark.slow
def test_six_kills_at_random_moments_end_bit_equal_to_the_uninterrupted_run(start, train, tmp_path):
    options = ("train.epochs=4", "train.save_every=2")
    whole = train(*options, "train.run_dir=whole")
    assert whole.returncode == 0, whole.stderr
    draw = random.Random(11)
    run, total = tmp_path / "killed", len(lines_of(tmp_path / "whole", "train"))
    targets = sorted(draw.sample(range(1, total), 6))
    for number, target in enumerate(targets):
        held = HeldRun(
            start, tmp_path / f"held_{number}", [target], *options, "train.run_dir=killed"
        )
        held.wait(target)
        if number % 2:
            held.go(target)
            time.sleep(draw.random() * 0.1)
        held.process.send_signal(signal.SIGKILL)
        held.process.communicate()
        assert held.process.returncode in (-signal.SIGKILL, 0), "the last may end before"
    done = train(*options, "train.run_dir=killed")
    assert done.returncode == 0, done.stderr
    assert_bit_equal(final_state(run), final_state(tmp_path / "whole"))
    for kind in ("train", "eval", "epoch"):
        seen, expected = lines_of(run, kind), lines_of(tmp_path / "whole", kind)
        assert list(map(without_times, seen)) == list(map(without_times, expected)), kind


@pytest.mark.slow
def test_three_ranks_go_on_bit_equal(train, tmp_path):
    """Unlike that of two, a sum of three numbers depends on which two are added first."""
    options = ("train.epochs=1", "train.save_every=2", "optim.warmup=0")
    assert train(*options, "train.run_dir=whole", ranks=3).returncode == 0
    (tmp_path / "resumed").mkdir()
    shutil.copy(tmp_path / "whole" / "step_00000002.pt", tmp_path / "resumed" / "last.pt")
    assert train(*options, "train.run_dir=resumed", ranks=3).returncode == 0
    assert_bit_equal(final_state(tmp_path / "resumed"), final_state(tmp_path / "whole"))


def clips_of(step: int, tiny_config: dict, ranks: int) -> list[str]:
    """Names of the training clips of a step, as log lines number it, rank after rank."""
    root, train = Path(tiny_config["data"]["root"]), tiny_config["train"]
    names = [line.split()[0] for line in (root / "train.txt").read_text().splitlines()]
    batch = train["global_batch"]
    clips = [clip for _, clip in stream_clips(0, len(names), (step - 1) * batch, step * batch)]
    return [names[clip] for rank in range(ranks) for clip in clips[rank::ranks]]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [0, 2])
def test_a_loss_that_is_no_number_stops_the_run_with_the_clips_and_is_never_saved(
    train, tiny_config, tmp_path, ranks
):
    """The rate throws the weights out of all bounds in the first step; by the second one nothing
    is finite any more. Looked at before a save, long before the log line."""
    explode = ("optim.lr=1e30", "optim.warmup=0", "train.save_every=1", "train.log_every=4",
               "optim.schedule=constant")  # fmt: skip
    done = train(*explode, ranks=ranks)
    assert done.returncode == 1
    (first, clips) = (line for line in done.stderr.splitlines() if "step 2, " in line or
                      line.startswith("its clips: "))  # fmt: skip
    assert first.startswith("error: step 2, epoch 1: its ")
    found = [word.strip(",;") for word in clips.removeprefix("its clips: ").split()]
    names = clips_of(2, tiny_config, max(ranks, 1))
    assert [word for word in found if word in names] == names
    state = final_state(tmp_path / "run")
    assert state["progress"]["step"] == 1
    assert all(tensor.isfinite().all() for tensor in state["model"].values())

    skipping = train(*explode, "train.on_nan=skip", ranks=ranks)
    assert skipping.returncode == 0, skipping.stderr
    assert [line["skipped"] for line in lines_of(tmp_path / "run", "train")] == [3, 7]
    after = final_state(tmp_path / "run")
    for key, tensor in state["model"].items():
        if tensor.is_floating_point():
            assert torch.equal(tensor, after["model"][key]), key


@pytest.mark.slow
def test_what_was_skipped_is_still_counted_and_still_left_out_after_a_kill(start, train, tmp_path):
    explode = ("optim.lr=1e30", "optim.warmup=0", "optim.schedule=constant", "train.save_every=3",
               "train.on_nan=skip")  # fmt: skip
    assert train(*explode, "train.run_dir=whole").returncode == 0
    run = tmp_path / "killed"
    held = HeldRun(start, tmp_path / "held", [5], *explode, "train.run_dir=killed")
    held.wait(5)
    assert len(lines_of(run, "train")) == 5
    held.process.kill()
    held.process.communicate()
    assert train(*explode, "train.run_dir=killed").returncode == 0
    assert_bit_equal(final_state(run), final_state(tmp_path / "whole"))
    seen, expected = (
        [str(without_times(line)) for line in lines_of(folder, "train")]
        for folder in (run, tmp_path / "whole")
    )
    assert seen == expected and "'skipped': 7" in seen[-1]


# The full rate from the first step, and mild: a few steps of a steep curve turn the last digit of a
# float into the third, whoever computes them.
LOSS_CURVE = ("model.dropout=0.0", "optim.warmup=0", "optim.lr=0.001",
              "train.temperature=[1.0, 1.0]", "train.eval_batch=2")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "epochs", "steps", "tolerance"), [("fp64", 3, 12, 1e-9), ("fp32", 2, 5, 1e-5)]
)
def test_two_ranks_give_the_loss_curve_of_one(train, tmp_path, precision, epochs, steps, tolerance):
    curves, evaluations = [], []
    for ranks in (1, 2):
        run = f"ranks{ranks}"
        done = train(
            *LOSS_CURVE, f"train.precision={precision}", f"train.epochs={epochs}",
            f"train.run_dir={run}", ranks=ranks,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        lines = lines_of(tmp_path / run, "train")
        curves.append([[line[k] for k in ("loss", "recoupling")] for line in lines[:steps]])
        evaluations.append(lines_of(tmp_path / run, "eval"))
    assert len(curves[0]) == steps
    assert curves[1] == [pytest.approx(values, rel=tolerance) for values in curves[0]]
    if precision == "fp64":
        for one, two in zip(*evaluations, strict=True):
            assert one["confusion"] == two["confusion"] and one["heads"] == two["heads"]


@pytest.mark.slow
def test_evaluation_counts_are_identical_for_one_two_and_three_processes(train, tmp_path):
    assert train("train.epochs=1").returncode == 0
    tables = []
    for ranks in (1, 2, 3):
        out = tmp_path / f"out{ranks}"
        done = train(
            "--checkpoint", str(tmp_path / "run" / "best.pt"), "--out", str(out),
            ranks=ranks, script="engine/evaluate.py",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        tables.append(json.loads((out / "evaluation.json").read_text()))
    for table in tables:
        assert table["clips"] == 7
        assert table["confusion"] == tables[0]["confusion"] and table["heads"] == tables[0]["heads"]
        assert table["loss"] == pytest.approx(tables[0]["loss"], rel=1e-5)
    assert tables[0]["top1"] == lines_of(tmp_path / "run", "eval")[0]["top1"]


def test_a_list_shorter_than_the_global_batch_has_epochs_without_a_step(train, tmp_path):
    done = train("train.global_batch=40", "train.epochs=3")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    # 23 clips: steps begin at positions 0 and 40, in epochs 0 and 1; epoch 2 only evaluates.
    assert [line["epoch"] for line in lines_of(run, "train")] == [0, 1]
    assert [line["epoch"] for line in lines_of(run, "eval")] == [0, 1, 2]
    assert result_of(run)["steps"] == 2


def test_a_dry_run_shows_the_plan_and_trains_nothing(train, tmp_path):
    done = train("--dry-run")
    assert done.returncode == 0, done.stderr
    for text in (
        "num_frames: 8", "training: 23 clips of", "evaluation: 7 clips of", "8 steps of 6 clips",
        "memory per rank, estimated:", "contact_sheet.png",
    ):  # fmt: skip
        assert text in done.stdout, text
    assert (tmp_path / "run" / "contact_sheet.png").read_bytes()[:4] == b"\x89PNG"
    assert not (tmp_path / "run" / "last.pt").exists()


@pytest.mark.slow
def test_a_run_goes_on_from_a_published_checkpoint_as_from_its_own(train, tmp_path):
    """Weights, momentum and epoch are those of the run."""
    options = ("optim.schedule=constant", "train.device=cpu")
    assert train(*options, "train.epochs=1", "train.run_dir=first").returncode == 0
    last = tmp_path / "first" / "last.pt"
    for folder in ("own", "published"):
        (tmp_path / folder).mkdir()
    shutil.copy(last, tmp_path / "own" / "last.pt")
    assert convert([str(last), str(tmp_path / "published" / "last.pt")]) == 0
    for folder in ("own", "published"):
        done = train(*options, "train.epochs=2", f"train.run_dir={folder}")
        assert done.returncode == 0, done.stderr
        assert [line["step"] for line in lines_of(tmp_path / folder, "train")] == [5, 6, 7, 8]
    own, published = (final_state(tmp_path / folder) for folder in ("own", "published"))
    if published["progress"]["best_epoch"] == -1:  # published files do not say which epoch it was
        own["progress"]["best_epoch"] = -1
    assert_bit_equal(own, published)


@pytest.mark.slow
def test_a_run_starts_once_from_another_and_evaluation_reads_published_files(train, tmp_path):
    assert train("train.epochs=1", "train.run_dir=first").returncode == 0
    published = tmp_path / "model_best.pth.tar"
    assert convert([str(tmp_path / "first" / "last.pt"), str(published)]) == 0
    tables = []
    for path in (tmp_path / "first" / "last.pt", published):
        done = train("--checkpoint", str(path), "--out", "out", script="engine/evaluate.py")
        assert done.returncode == 0, done.stderr
        tables.append(json.loads((tmp_path / "out" / "evaluation.json").read_text()))
    assert tables[0] == tables[1]

    options = (
        "optim.lr=1e-9",
        "optim.min_lr=0",
        "data.num_classes=9",
        f"train.init_from={published}",
    )
    done = train(*options, ranks=2)
    assert done.returncode == 0, done.stderr
    said = f"the network starts from {published} without heads.0.linear, heads.1.linear"
    assert done.stdout.count(said) == 1
    weights = [final_state(tmp_path / run)["model"] for run in ("first", "run")]
    key = "spatial.conv2c.conv.weight"
    assert torch.allclose(weights[0][key], weights[1][key], atol=1e-6)

    published.unlink()
    again = train(*options)
    assert again.returncode == 0 and "starts from" not in again.stdout
    for saved in (tmp_path / "run").glob("*.pt"):
        saved.unlink()
    gone = train(*options)
    assert gone.returncode == 1 and f"error: {published}: no such file; train the" in gone.stderr


@pytest.mark.slow
def test_weights_alone_are_no_run_to_go_on_with(train, tmp_path):
    (tmp_path / "run").mkdir()
    last = tmp_path / "run" / "last.pt"
    content = published_file(num_classes=8, num_blocks=1, optimizer=False)
    torch.save(content, last)
    done = train()
    assert done.returncode == 1
    assert f"error: {last}: holds weights only, from which no run can go on" in done.stderr
