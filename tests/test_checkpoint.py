"""engine/checkpoint.py: no crash and no full disk ever costs the last good checkpoint."""

import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from engine import checkpoint


def state(value: float, size: int = 4) -> dict:
    return {"model": {"weight": torch.full((size,), value)}, "progress": {"step": 3}}


def test_what_was_saved_is_loaded(tmp_path):
    checkpoint.save(tmp_path / "last.pt", state(1.5))
    loaded = checkpoint.load(tmp_path / "last.pt")
    assert torch.equal(loaded["model"]["weight"], torch.full((4,), 1.5))
    assert loaded["progress"] == {"step": 3}
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


SAVE_UNDER_LIMIT = """
import resource, signal, sys, torch
from pathlib import Path
from engine import checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.save(Path(sys.argv[1]), {"model": {"weight": torch.zeros(1_000_000)}})
except OSError as error:
    print(error)
    sys.exit(7)
"""


def test_a_full_disk_is_an_error_that_leaves_the_old_checkpoint(tmp_path):
    """A file-size limit fails writes in the middle, as a full disk does."""
    path = tmp_path / "last.pt"
    checkpoint.save(path, state(1.0))
    done = subprocess.run(
        [sys.executable, "-c", SAVE_UNDER_LIMIT, str(path)], capture_output=True, text=True
    )
    assert done.returncode == 7, done.stderr
    assert done.stdout.startswith(f"{path}: cannot be saved (")
    assert "the checkpoint before it is untouched" in done.stdout
    assert checkpoint.load(path)["model"]["weight"].tolist() == [1.0] * 4
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


SAVE_FOR_EVER = """
import sys, torch
from pathlib import Path
from engine import checkpoint
print("ready", flush=True)
value = 0.0
while True:
    value += 1
    checkpoint.save(Path(sys.argv[1]), {"model": {"weight": torch.full((2_000_000,), value)}})
"""


def test_a_kill_in_mid_save_leaves_a_whole_checkpoint(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save(path, state(0.0, size=2_000_000))
    writing = tmp_path / "last.pt.partial"
    process = subprocess.Popen(
        [sys.executable, "-c", SAVE_FOR_EVER, str(path)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    while not (writing.exists() and writing.stat().st_size > 100_000):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert writing.exists(), "the kill was to come in mid-save"
    weight = checkpoint.load(path)["model"]["weight"]
    assert torch.equal(weight, weight[:1].expand_as(weight))
    checkpoint.save(path, state(2.0))
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("damage", [b"", b"no checkpoint", None])
def test_a_damaged_checkpoint_is_one_line_that_names_it(tmp_path, damage):
    path = tmp_path / "last.pt"
    checkpoint.save(path, state(1.0))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage is None else damage)
    with pytest.raises(ValueError) as error:
        checkpoint.load(path)
    assert str(error.value).startswith(f"{path}: cannot be read as a checkpoint (")
    assert "delete it to start anew" in str(error.value) and "\n" not in str(error.value)


def test_some_other_torch_file_is_not_taken_for_a_checkpoint(tmp_path):
    torch.save({"weights": torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x.pt: is no checkpoint of this program"):
        checkpoint.load(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("other", "detail"),
    [
        (nn.Linear(3, 4), r"weight is \(4, 3\) there and \(2, 3\) here"),
        (nn.Linear(3, 2, bias=False), "bias is missing there"),
        (nn.Bilinear(3, 3, 2), "weight is"),
        (nn.Sequential(nn.Linear(3, 2)), "bias is missing there"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused_by_name(tmp_path, other, detail):
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"model": other.state_dict()})
    model = nn.Linear(3, 2)
    before = model.weight.clone()
    with pytest.raises(
        ValueError, match=rf"last.pt: is a checkpoint of another network \({detail}"
    ):
        checkpoint.load_model(model, checkpoint.load(path), path)
    assert torch.equal(model.weight, before)


def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    missing = tmp_path / "gone" / "last.pt"
    with pytest.raises(OSError, match=r"gone/last.pt: cannot be saved"):
        checkpoint.save(missing, state(1.0))
