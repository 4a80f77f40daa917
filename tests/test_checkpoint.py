"""engine/checkpoint.py: no crash and no full disk ever costs the last good checkpoint."""

import itertools
import os
import random
import signal
import subprocess
import sys
import types
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import yaml
from tests.published import published_file, rewritten
from torch import nn

from engine import checkpoint, convert, evaluate, export, predict


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
    assert isinstance(error.value, checkpoint.Damaged)
    assert "put a good copy in its place" in str(error.value) and "\n" not in str(error.value)


def test_some_other_torch_file_is_not_taken_for_a_checkpoint(tmp_path):
    torch.save({"weights": [1.0]}, tmp_path / "x.pt")
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
        (types.SimpleNamespace(lr=1), "types.SimpleNamespace"),
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


def flipped(content: bytes, at: int, bit: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


def zeroed(content: bytes, start: int, end: int) -> bytes:
    return content[:start] + bytes(end - start) + content[end:]


def damages(content: bytes) -> Iterator[bytes]:
    """A flipped bit in each of 400 parts of the file, then blocks that are missing, zero (as after
    a power cut) or another's, and ends that are cut off."""
    draw, size = random.Random(5), len(content)
    edges = [size * part // 400 for part in range(401)]
    for start, end in itertools.pairwise(edges):
        yield flipped(content, draw.randrange(start, end), draw.randrange(8))
    for start, end in itertools.pairwise(edges[::8]):
        yield content[:start] + content[end:]
        yield zeroed(content, start, end)
        other = draw.randrange(size - (end - start))
        yield content[:start] + content[other : other + end - start] + content[end:]
        yield content[:start]


def test_damage_anywhere_is_found_or_harmless(tmp_path):
    path = tmp_path / "last.pt"
    torch.manual_seed(1)
    saved = {
        "a": torch.randn(700),
        "b": torch.randn(30, 20),
        "n": torch.arange(9),
        "lr": [0.1, "x"],
    }
    checkpoint.save(path, saved)
    content, found, harmless = path.read_bytes(), 0, 0
    for damaged in damages(content):
        path.write_bytes(damaged)
        try:
            loaded = checkpoint.load(path)
        except checkpoint.Damaged as error:
            assert str(error).startswith(f"{path}: cannot be read as a checkpoint (")
            assert "\n" not in str(error)
            found += 1
            continue
        assert all(torch.equal(loaded[key], saved[key]) for key in "abn")
        assert loaded["lr"] == saved["lr"]
        harmless += 1
    # Harmless are padding between records, dates and the like; torch.load alone finds no bit of the
    # weights, which are half of this file.
    assert found + harmless == 600 and found > 400


def test_torch_alone_does_not_see_a_flipped_bit_of_the_weights(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save(path, state(1.0, size=1000))
    content = path.read_bytes()
    path.write_bytes(flipped(content, content.index(b"\0\0\x80?" * 9) + 30, 6))
    assert not torch.load(path)["model"]["weight"].eq(1.0).all()
    with pytest.raises(checkpoint.Damaged, match=r"data/0 differs from its checksum"):
        checkpoint.load(path)


def test_files_without_checksums_are_read_as_they_are(tmp_path):
    torch.save({"format": 1, "w": torch.ones(2)}, tmp_path / "old.pt",
               _use_new_zipfile_serialization=False)  # fmt: skip
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"format": 1, "w": torch.ones(2)}, tmp_path / "none.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    for name in ("old.pt", "none.pt"):
        assert checkpoint.load(tmp_path / name)["w"].tolist() == [1.0, 1.0]


def test_every_program_refuses_a_damaged_checkpoint_in_one_line(tmp_path, tiny_config, capsys):
    path, config = tmp_path / "best.pt", tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny_config))
    checkpoint.save(path, state(1.0, size=1000))
    content = path.read_bytes()
    path.write_bytes(flipped(content, content.index(b"\0\0\x80?" * 9), 0))
    out = str(tmp_path / "out.pt2")
    for program, arguments in (
        (convert, [str(path), out]),
        (evaluate, ["--config", str(config), "--checkpoint", str(path)]),
        (export, ["--checkpoint", str(path), out]),
        (predict, ["--checkpoint", str(path), "clip"]),
    ):
        assert program.main(arguments) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{path}: cannot be read as a checkpoint (" in line and line.startswith("error: ")
        assert "data/0 differs from its checksum" in line
    assert not (tmp_path / "out.pt2").exists()
