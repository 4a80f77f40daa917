"""engine/checkpoint.py: no crash and no full disk ever costs the last good checkpoint."""

import argparse
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from engine import checkpoint
from tests.published import published_file, rewritten


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


class Harmful:
    """A pickle that runs a command when it is opened."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_code_in_a_file_is_never_executed(tmp_path):
    path, mark = tmp_path / "x.pth.tar", tmp_path / "executed"
    torch.save({**published_file(), "args": Harmful(f"touch {mark}")}, path)
    with pytest.raises(ValueError) as error:
        checkpoint.load(path)
    assert not mark.exists()
    assert str(error.value).startswith(f"{path}: is refused: to read it, posix.system would")
    torch.load(path, weights_only=False)
    assert mark.exists(), "the file was harmless, so that the test showed nothing"


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (argparse.Namespace(lr=1), "argparse.Namespace"),
        (np.zeros(3), "multiarray._reconstruct"),
        (np.str_("NTU"), "StrDType"),
        (np.datetime64("2022-03-01"), "DateTime64DType"),
    ],
)
def test_what_is_neither_tensor_nor_number_is_refused_by_name(tmp_path, value, name):
    torch.save({**published_file(), "args": value}, tmp_path / "x.pth.tar")
    with pytest.raises(ValueError, match=rf"x.pth.tar: is refused: to read it, \S*{name} would"):
        checkpoint.load(tmp_path / "x.pth.tar")


@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
@pytest.mark.parametrize("kind", checkpoint.NUMPY_NUMBERS)
def test_numpy_numbers_are_read_whichever_numpy_wrote_them(tmp_path, kind, module):
    path, value = tmp_path / "x.pth.tar", np.dtype(kind).type(0.8958)
    torch.save({"bestacc": value, "lr": [value]}, path)
    written = type(value).__reduce__(value)[0].__module__
    rewritten(path, f"c{written}\nscalar".encode(), f"c{module}.multiarray\nscalar".encode())
    content = checkpoint.read(path)
    assert content == {"bestacc": value, "lr": [value]}
    assert type(content["bestacc"]) is type(value)


def test_tensors_of_a_gpu_are_read_without_one(tmp_path):
    path = tmp_path / "x.pth.tar"
    content = published_file()
    torch.save(content, path)
    rewritten(path, b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0")
    loaded = checkpoint.load(path)
    bias = loaded["model"]["spatial.token_linear.bias"]
    assert bias.device.type == "cpu"
    assert torch.equal(bias, content["model"]["LinearMap.1.bias"])


def test_a_published_checkpoint_loads_like_one_of_ours(tmp_path):
    torch.save(published_file(), tmp_path / "x.pth.tar")
    state = checkpoint.load(tmp_path / "x.pth.tar")
    checkpoint.save(tmp_path / "x.pt", state)
    again = checkpoint.load(tmp_path / "x.pt")
    assert again.keys() == state.keys() and again["progress"] == state["progress"]
    assert all(torch.equal(again["model"][key], tensor) for key, tensor in state["model"].items())


def test_another_published_network_is_refused_with_the_file(tmp_path):
    torch.save({"model": {"head.weight": torch.zeros(2, 2)}}, tmp_path / "x.pth.tar")
    with pytest.raises(ValueError, match=r"x.pth.tar: no published CVPR'22 network: it has no"):
        checkpoint.load(tmp_path / "x.pth.tar")
