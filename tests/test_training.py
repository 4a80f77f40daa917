"""engine/training.py, end to end on real files: results, resuming, ranks."""

import json
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from engine import checkpoint
from engine.convert import main as convert
from pipelines.sampling import stream_clips
from tests.published import published_file


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


@pytest.mark.slow
def test_a_run_leaves_everything_a_user_looks_for(train, tmp_path):
    done = train()
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

    again = train()
    assert again.returncode == 0 and result_of(run)["steps"] == 8
    assert len(lines_of(run, "train")) == 8, "a finished run that is started again trains nothing"

    other = train("optim.lr=0.5")
    assert other.returncode == 1
    assert (
        f"error: {run}: holds a run with optim.lr = 0.02, not 0.5; choose another" in other.stderr
    )


@pytest.mark.slow
def test_ten_kills_at_random_moments_end_bit_equal_to_the_uninterrupted_run(start, train, tmp_path):
    whole = train("train.epochs=6", "train.save_every=2", "train.run_dir=whole")
    assert whole.returncode == 0, whole.stderr
    draw = random.Random(11)
    run, total = tmp_path / "killed", len(lines_of(tmp_path / "whole", "train"))
    targets = sorted(draw.sample(range(1, total), 10))
    for target in targets:
        process = start("train.epochs=6", "train.save_every=2", "train.run_dir=killed")
        while process.poll() is None:
            metrics = run / "metrics.jsonl"
            text = metrics.read_text() if metrics.exists() else ""
            steps = [json.loads(line)["step"] for line in text.splitlines(True) if line[-1] == "\n"]
            if steps and steps[-1] >= target:
                time.sleep(draw.random() * 0.1)
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.01)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    done = train("train.epochs=6", "train.save_every=2", "train.run_dir=killed")
    assert done.returncode == 0, done.stderr
    assert_bit_equal(final_state(run), final_state(tmp_path / "whole"))
    for kind in ("train", "eval", "epoch"):
        seen, expected = lines_of(run, kind), lines_of(tmp_path / "whole", kind)
        assert list(map(without_times, seen)) == list(map(without_times, expected)), kind


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
    process = start(*explode, "train.run_dir=killed")
    run = tmp_path / "killed"
    while not (run / "metrics.jsonl").exists() or len(lines_of(run, "train")) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert train(*explode, "train.run_dir=killed").returncode == 0
    assert_bit_equal(final_state(run), final_state(tmp_path / "whole"))
    seen, expected = (
        [str(without_times(line)) for line in lines_of(folder, "train")]
        for folder in (run, tmp_path / "whole")
    )
    assert seen == expected and "'skipped': 7" in seen[-1]


# The full rate from the first step, and mild: a few steps of a steep curve turn the last digit of a
# float into the third, whoever computes them.
LOSS_CURVE = ("model.dropout=0.0", "train.epochs=5", "optim.warmup=0", "optim.lr=0.001",
              "train.temperature=[1.0, 1.0]", "train.eval_batch=2")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "steps", "tolerance"), [("fp64", 20, 1e-9), ("fp32", 5, 1e-5)]
)
def test_two_ranks_give_the_loss_curve_of_one(train, tmp_path, precision, steps, tolerance):
    curves, evaluations = [], []
    for ranks in (1, 2):
        run = f"ranks{ranks}"
        options = (*LOSS_CURVE, f"train.precision={precision}", f"train.run_dir={run}")
        done = train(*options, ranks=ranks)
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
    said = f"the network starts from {published} without heads.0.linear.bias, heads.0.linear.weight"
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


LONG = ("train.epochs=8", "train.save_every=2", "optim.warmup=0")


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
def test_a_damaged_last_checkpoint_costs_a_warning_and_the_steps_since_the_one_before(
    train, tmp_path
):
    whole = train("train.save_every=3", "train.run_dir=whole")
    assert whole.returncode == 0, whole.stderr
    run = tmp_path / "run"
    shutil.copytree(tmp_path / "whole", run)
    assert [path.name for path in sorted(run.glob("step_*.pt"))] == [
        "step_00000004.pt", "step_00000006.pt", "step_00000008.pt",
    ]  # fmt: skip
    for name in ("last.pt", "step_00000008.pt"):
        damage(run / name)
    (run / "step_00000009.pt.partial").write_bytes(b"left by a kill")
    done = train("train.save_every=3", "train.keep=2", ranks=2)
    assert done.returncode == 0, done.stderr
    said = f"warning: {run / 'last.pt'} is damaged: the run goes on from {run / 'step_00000006.pt'}"
    assert done.stderr.count(said) == 1
    assert final_state(run)["progress"] == final_state(tmp_path / "whole")["progress"]
    assert [line["step"] for line in lines_of(run, "train")] == list(range(1, 9))
    assert [line["epoch"] for line in lines_of(run, "eval")] == [0, 1]
    assert sorted(path.name for path in run.glob("*.pt*")) == [
        "best.pt", "last.pt", "step_00000006.pt", "step_00000008.pt",
    ]  # fmt: skip

    for path in {path.stat().st_ino: path for path in run.glob("*.pt")}.values():
        damage(path)  # each once: some are names of one file
    lost = train("train.save_every=3")
    assert lost.returncode == 1
    (error,) = [line for line in lost.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith(f"error: {run / 'last.pt'}: cannot be read as a checkpoint (")
    assert f"{run}: no checkpoint is left to go on from; put a good copy" in lost.stderr


def wait_for(process, text: str) -> None:
    """Read the process's stderr as far as a line with `text`."""
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"the run ended without saying {text!r}")


def wait_for_file(process, path: Path) -> None:
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)


@pytest.mark.slow
def test_training_outlives_a_full_disk_and_a_deleted_directory_bit_for_bit(start, train, tmp_path):
    """A limit on the size of files fails writes in the middle, as a full disk does; a directory
    that is moved away is deleted for the run."""
    whole = train(*LONG, "train.run_dir=whole")
    assert whole.returncode == 0, whole.stderr
    expected = final_state(tmp_path / "whole")

    process = start(*LONG, "train.run_dir=full")
    wait_for_file(process, tmp_path / "full" / "last.pt")
    unlimited = resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (10_000, -1))
    wait_for(process, "IS NOT SAVED")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, unlimited)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "checkpoints are saved again" in err
    assert_bit_equal(final_state(tmp_path / "full"), expected)
    steps = [line["step"] for line in lines_of(tmp_path / "full", "train")]
    assert steps == [line["step"] for line in lines_of(tmp_path / "whole", "train")]

    process = start(*LONG, "train.run_dir=deleted")
    wait_for_file(process, tmp_path / "deleted" / "last.pt")
    (tmp_path / "deleted").rename(tmp_path / "away")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert_bit_equal(final_state(tmp_path / "deleted"), expected)
    assert (tmp_path / "deleted" / "config.yaml").read_bytes() == (
        tmp_path / "away" / "config.yaml"
    ).read_bytes()
    assert result_of(tmp_path / "deleted")["steps"] == result_of(tmp_path / "whole")["steps"]


@pytest.mark.slow
def test_a_disk_that_stays_full_is_an_error_at_the_end(start, tmp_path):
    process = start("train.run_dir=full")
    wait_for_file(process, tmp_path / "full" / "last.pt")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (10_000, -1))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "step_00000008.pt: cannot be saved (" in error and "untouched" in error
    assert final_state(tmp_path / "full")["progress"]["step"] == 4
