"""engine/teacher.py: pseudo labels from the other modality, by a network that drifts slowly."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from engine import checkpoint
from engine.accumulation import Shares
from engine.config import Config, ModelConfig, TrainConfig
from engine.dry_run import starting_weights
from engine.loop import Precision
from engine.losses import LossConfig, training_loss
from engine.teacher import Teacher
from models import build_model
from models.output import ModelOutput
from pipelines.batch import Batch
from pipelines.config import DataConfig
from runs import lines_of

OPTIONS = {"num_classes": 5, "num_frames": 8, "num_blocks": 3, "width": 8, "dim": 64}
EXACT = Precision.choose("fp64", torch.device("cpu"))


def network(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_model("umdr", **OPTIONS).double()


def config(modality: str, teacher: str, decay: float = 0.9) -> Config:
    data = DataConfig("", "", "", num_classes=5, modality=modality, num_frames=8,
                      branch_frames=(4, 8, 12))  # fmt: skip
    train = TrainConfig("runs/x", teacher=teacher, teacher_decay=decay)
    return Config(data, train, ModelConfig("umdr"))


def both(clips: int = 3) -> Batch:
    draw = torch.Generator().manual_seed(5)

    def video() -> torch.Tensor:
        return torch.rand(clips, 3, 8, 32, 32, generator=draw, dtype=torch.float64) * 2 - 1

    label = torch.arange(clips) % 5
    indices = tuple(torch.zeros(clips, f, dtype=torch.int64) for f in (4, 8, 12))
    targets = tuple(torch.rand(clips, 5, generator=draw) for _ in ("rgb", "depth"))
    return Batch((video(), video()), None, label, indices, label, targets)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[torch.nn.Module, str]:
    """A trained network and its file."""
    model = network(1)
    checkpoint.save(tmp_path / "teacher.pt", {"model": model.state_dict()})
    return model.eval(), str(tmp_path / "teacher.pt")


@pytest.mark.parametrize(("modality", "own"), [("rgb", 0), ("depth", 1)])
@pytest.mark.parametrize("micro_batch", [0, 2])
def test_the_other_modality_is_labelled_and_the_own_one_kept(saved, modality, own, micro_batch):
    expected, path = saved
    teacher = Teacher(network(2), config(modality, path), EXACT)
    assert teacher.load() == f"the teacher starts from {path}"
    shown: list[torch.Tensor] = []
    teacher.network.spatial.register_forward_pre_hook(lambda _, clips: shown.append(clips[0]))
    batch = both()
    seen = teacher(batch, Shares(3, 1, micro_batch))
    assert torch.equal(seen.clip, batch.clip[own])
    assert len(seen.target) == 1 and torch.equal(seen.target[0], batch.target[own])
    assert seen.branch_indices is batch.branch_indices
    with torch.no_grad():  # by default it sees the middles of the segments
        answers = expected(batch.clip[1 - own]).logits.argmax(1)
    assert torch.equal(seen.pseudo, answers)
    assert [len(clips) for clips in shown] == ([2, 1] if micro_batch else [3])
    assert torch.equal(torch.cat(shown), batch.clip[1 - own])


def test_it_drifts_towards_the_network_from_the_first_step_on(saved):
    before, path = saved
    model = network(2)
    teacher = Teacher(model, config("rgb", path, 0.9), EXACT)
    teacher.load()
    model.train()(both().clip[0])  # other statistics
    teacher.update()
    teacher.update()
    for key, tensor in teacher.network.state_dict().items():
        if tensor.is_floating_point():
            expected = 0.81 * before.state_dict()[key] + 0.19 * model.state_dict()[key]
            torch.testing.assert_close(tensor, expected, rtol=1e-12, atol=1e-12)
    assert not any(p.requires_grad for p in teacher.network.parameters())
    assert not teacher.network.training


def test_its_labels_are_a_part_of_the_loss():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, generator=draw, dtype=torch.float64)
    label, pseudo = torch.tensor([0, 1, 2, 3]), torch.tensor([4, 4, 2, 0])
    plain, _ = training_loss(ModelOutput(logits), label, LossConfig(), 0)
    loss, parts = training_loss(
        ModelOutput(logits), label, LossConfig(pseudo_weight=0.5), 0, pseudo
    )
    expected = F.nll_loss(logits.log_softmax(1), pseudo)
    torch.testing.assert_close(parts["pseudo"], expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(loss, plain + 0.5 * expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "no such file; train.teacher is a checkpoint of the same network"),
        ({"width": 16}, "is a checkpoint of another network"),
    ],
)
def test_a_teacher_that_cannot_be_is_one_line(tmp_path, state, message):
    if state:
        other = build_model("umdr", **OPTIONS | state)
        checkpoint.save(tmp_path / "x.pt", {"model": other.state_dict()})
    teacher = Teacher(network(2), config("rgb", str(tmp_path / "x.pt")), EXACT)
    with pytest.raises(ValueError, match=message) as error:
        teacher.load()
    assert str(error.value).startswith(f"{tmp_path / 'x.pt'}: ")


def test_a_dry_run_reads_the_teacher(saved):
    _, path = saved
    options = {key: OPTIONS[key] for key in ("num_blocks", "width", "dim")}
    given = config("depth", path)
    assert starting_weights(replace(given, model=ModelConfig("umdr", options))) == [
        f"the teacher starts from {path}"
    ]


@pytest.fixture
def tiny_config(tiny_config: dict) -> dict:
    del tiny_config["data"]["branch_frames"]
    tiny_config["data"] |= {"motion_window": 0, "depth_encoding": "metric"}
    tiny_config["model"] = {"name": "umdr", "width": 8, "dim": 64, "num_blocks": 3}
    tiny_config["mix"] = {"mixup": 0.8, "shufflemix": 0.3, "shufflemix_share": 0.5}
    return tiny_config


def test_a_run_with_a_teacher_goes_on_bit_equal(train, tmp_path):
    done = train("data.modality=depth", "train.run_dir=depth", "train.epochs=1")
    assert done.returncode == 0, done.stderr
    teacher = tmp_path / "depth" / "last.pt"
    command = [f"train.teacher={teacher}", "train.teacher_decay=0.9", "train.epochs=1"]
    whole = train(*command, "train.run_dir=whole", "train.save_every=1", "train.keep=9")
    assert whole.returncode == 0, whole.stderr
    assert f"the teacher starts from {teacher}\n" in whole.stdout
    lines = lines_of(tmp_path / "whole", "train")
    assert all(line["pseudo"] > 0 for line in lines)
    (tmp_path / "parts").mkdir()
    shutil.copy(tmp_path / "whole" / "step_00000002.pt", tmp_path / "parts" / "last.pt")
    teacher.rename(tmp_path / "gone.pt")  # a resumed run has its teacher in its own files
    again = train(*command, "train.run_dir=parts")
    assert again.returncode == 0, again.stderr
    states = [checkpoint.load(tmp_path / name / "last.pt") for name in ("whole", "parts")]
    for part in ("model", "teacher"):
        assert states[0][part].keys() == states[1][part].keys()
        for key, tensor in states[0][part].items():
            assert torch.equal(tensor, states[1][part][key]), (part, key)


def test_both_modalities_at_once_have_no_teacher(train):
    done = train("model.name=umdr_fusion", "data.modality=rgbd", "train.teacher=x.pt")
    assert done.returncode == 1
    assert "train: teacher is for networks of one modality, which learn from" in done.stderr


@pytest.mark.slow
def test_two_ranks_give_the_loss_curve_of_one(train, tmp_path):
    done = train("data.modality=depth", "train.run_dir=depth", "train.epochs=1")
    assert done.returncode == 0, done.stderr
    curves = []
    for ranks in (1, 2):
        done = train(
            f"train.teacher={tmp_path / 'depth' / 'last.pt'}", "train.teacher_decay=0.9",
            "model.dropout=0.0", "train.precision=fp64", f"train.run_dir=ranks{ranks}",
            "train.global_batch=4", "train.epochs=1", "optim.lr=1e-4", "optim.warmup=0",
            ranks=ranks,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        lines = lines_of(tmp_path / f"ranks{ranks}", "train")
        curves.append([[line[key] for key in ("loss", "pseudo")] for line in lines])
    assert len(curves[0]) > 4
    assert curves[1] == [pytest.approx(values, rel=1e-9) for values in curves[0]]
