"""engine/export.py: the written file does what the network does, for any number of clips."""

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

import trunks
from engine import export
from engine.trained import Trained, open_trained
from runs import as_network, write_checkpoint

NETWORKS: dict[str, dict] = {
    "decoupled": {"branch_frames": [2, 6]},
    "decoupled_fusion": {"branch_frames": [4]},
    "umdr": {"branch_frames": [4, 9]},
    # Untrained, frames are so alike that near-ties of the k-NN attention fall either way.
    "umdr_fusion": {"branch_frames": [4], "knn_ratio": 0.0, "spatial_depth": 1,
                    "temporal_depth": 1},
}  # fmt: skip
"""Options, of few branches: what one alone has is exported in the unimodal networks."""

INPUTS = {
    "decoupled": ["clip", "motion"],
    "decoupled_fusion": ["rgb", "depth", "motion_rgb", "motion_depth"],
    "umdr": ["clip"],
    "umdr_fusion": ["rgb", "depth"],
}


@pytest.fixture
def saved(tiny_config: dict, tmp_path: Path):
    """Writes a checkpoint of a network with random weights, evaluated at temperature 0.5."""

    def save(name: str, **options: object) -> Path:
        both = name.endswith("_fusion")
        as_network(tiny_config, name.removesuffix("_fusion"), both)
        tiny_config["data"]["modality"] = "rgbd" if both else "rgb"
        for key in ("motion_window", "branch_frames"):
            if key in options:
                tiny_config["data"][key] = options.pop(key)
        tiny_config["model"] |= options
        return write_checkpoint(tiny_config, tmp_path / "saved")

    return save


@pytest.fixture
def traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both formats are written of one program: to trace the network takes the longest."""
    trace, programs = export._program, []

    def program(scores: export.Scores, inputs: dict) -> torch.export.ExportedProgram:
        if not programs:
            programs.append(trace(scores, inputs))
        return programs[0]

    monkeypatch.setattr(export, "_program", program)


Logits = Callable[[dict[str, torch.Tensor]], torch.Tensor]


def opened_program(path: Path) -> tuple[Logits, dict]:
    """What the file computes, and what it says of itself."""
    extra = {"about.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    return lambda inputs: program(*inputs.values()), json.loads(extra["about.json"])


def opened_onnx(path: Path) -> tuple[Logits, dict]:
    """As `opened_program`."""
    entries = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    session = onnxruntime.InferenceSession(path.read_bytes())

    def run(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        assert [entry.name for entry in session.get_inputs()] == list(inputs)
        (logits,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        return torch.from_numpy(logits)

    says = {key: json.loads(value) if value[0] in "{[" else value for key, value in entries.items()}
    return run, says


def network_logits(trained: Trained, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the network itself says, given temperature 0.5 by hand."""
    tensors = list(inputs.values())
    if trained.config.data.modality == "rgbd":
        tensors = [tuple(tensors[:2]), tuple(tensors[2:]) or None]
    return trained.network(*tensors, temperature=0.5).heads()[0]


@pytest.mark.slow
@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize("model", NETWORKS)
def test_a_written_file_gives_the_networks_logits_for_one_clip_and_for_three(
    saved, tmp_path, capsys, monkeypatch, model
) -> None:
    if model.endswith("_fusion"):
        trunks.thin(monkeypatch)
    path = saved(model, **NETWORKS[model])
    trained = open_trained(path)
    for suffix, opened in ((".pt2", opened_program), (".onnx", opened_onnx)):
        out = tmp_path / f"net{suffix}"
        assert export.main(["--checkpoint", str(path), str(out)]) == 0
        printed = capsys.readouterr().out.splitlines()[-1]
        assert printed.startswith(f"{out}: logits of 3 random clips differ from the network's by a")
        assert printed.endswith("divided by the temperature 0.5")
        assert [path.name for path in tmp_path.glob("*net*")] == [out.name]
        run, says = opened(out)
        for clips in (1, 3):
            _, inputs = export.example(trained, clips)
            torch.testing.assert_close(run(inputs), network_logits(trained, inputs),
                                       rtol=1e-4, atol=1e-4)  # fmt: skip
        assert list(inputs) == INPUTS[model]
        assert says["inputs"] == {k: ["B", *tensor.shape[1:]] for k, tensor in inputs.items()}
        assert float(says["temperature"]) == 0.5 and says["classes"][2] == "raise"
        out.unlink()


def test_a_network_without_maps_takes_the_clip_alone(saved) -> None:
    trained = open_trained(saved("decoupled", motion_attention=False, motion_window=0))
    scores, inputs = export.example(trained, 1)
    assert list(inputs) == ["clip"]
    expected = trained.network(inputs["clip"], None, temperature=0.5).logits
    torch.testing.assert_close(scores(**inputs), expected)


def test_the_example_is_as_the_clips_of_the_config(saved) -> None:
    _, inputs = export.example(open_trained(saved("decoupled")), 3)
    assert {name: tuple(tensor.shape) for name, tensor in inputs.items()} == {
        "clip": (3, 3, 8, 32, 32), "motion": (3, 1, 8, 32, 32),
    }  # fmt: skip
    assert -1 <= inputs["clip"].min() < -0.9 and 1.9 < inputs["motion"].max() <= 2


@pytest.mark.parametrize("off_by", [0.0, 0.2, math.nan])
def test_only_a_file_that_does_what_the_network_does_is_put_in_place(
    saved, tmp_path, monkeypatch, off_by
) -> None:
    trained = open_trained(saved("decoupled"))
    out = tmp_path / "net.pt2"
    out.write_text("the one before")

    def write(scores: export.Scores, inputs: dict, about: dict, path: Path) -> None:
        path.write_text("the new one")

    def run(path: Path, inputs: dict) -> torch.Tensor:
        assert path.read_text() == "the new one"
        return network_logits(trained, inputs) + torch.tensor([off_by] + [0.0] * 7)

    monkeypatch.setattr(export, "_format", lambda out: (write, run))
    if off_by == 0:
        parity = export.export(trained, out)
        assert parity["clips"] == 3 and parity["difference"] < 1e-5 < parity["largest"]
        assert out.read_text() == "the new one"
        return
    with pytest.raises(ValueError, match=rf"net\.pt2: not written: .* by {off_by:.2g} of"):
        export.export(trained, out)
    assert out.read_text() == "the one before"
    assert [path.name for path in tmp_path.iterdir() if "net" in str(path.name)] == ["net.pt2"]


def test_errors_are_one_line(saved, tmp_path, capsys, monkeypatch) -> None:
    path = saved("decoupled")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if "onnx" in n else find(n))
    for name, message in (
        ("net.pth", "the name must end in .pt2 or .onnx"),
        ("no/net.pt2", f"there is no folder {tmp_path / 'no'}; make it first"),
        ("net.onnx", "ONNX needs onnx, onnxscript, onnxruntime; install it: pip install -e '.[ex"),
    ):
        assert export.main(["--checkpoint", str(path), str(tmp_path / name)]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: {tmp_path / name}: {message}") and error.count("\n") == 1
