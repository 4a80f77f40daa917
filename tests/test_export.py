"""engine/export.py: the written file does what the network does, for any number of clips."""

import importlib.util
import json
import math
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
import yaml

from engine import checkpoint, export
from engine.config import as_dict, load, model_options
from engine.trained import Trained, open_trained
from models.registry import build_model
from runs import as_network

NETWORKS: dict[str, dict] = {
    "decoupled": {}, "decoupled_fusion": {}, "umdr": {},
    # Untrained, frames are so alike that near-ties of the k-NN attention fall either way.
    "umdr_fusion": {"knn_ratio": 0.0, "spatial_depth": 1, "temporal_depth": 1},
}  # fmt: skip


@pytest.fixture
def saved(tiny_config: dict, tmp_path: Path):
    """Writes a checkpoint of a network with random weights, evaluated at temperature 0.5."""

    def save(name: str, **options: object) -> Path:
        both = name.endswith("_fusion")
        as_network(tiny_config, name.removesuffix("_fusion"), both)
        tiny_config["data"]["modality"] = "rgbd" if both else "rgb"
        if "motion_window" in options:
            tiny_config["data"]["motion_window"] = options.pop("motion_window")
        tiny_config["model"] |= options
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_config))
        config = load(tmp_path / "tiny.yaml")
        torch.manual_seed(3)
        network = build_model(name, **model_options(config))
        path = tmp_path / "last.pt"
        checkpoint.save(path, {"config": as_dict(config), "progress": {"epoch": 1},
                               "model": network.state_dict()})  # fmt: skip
        return path

    return save


def about_program(path: Path) -> dict:
    extra = {"about.json": ""}
    torch.export.load(path, extra_files=extra)
    return json.loads(extra["about.json"])


def about_onnx(path: Path) -> dict:
    entries = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    return {key: json.loads(value) if value[0] in "{[" else value for key, value in entries.items()}


def run_program(path: Path, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.export.load(path).module()(*inputs.values())


def run_onnx(path: Path, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    session = onnxruntime.InferenceSession(path.read_bytes())
    assert [entry.name for entry in session.get_inputs()] == list(inputs)
    (logits,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return torch.from_numpy(logits)


def network_logits(trained: Trained, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the network itself says, given temperature 0.5 by hand."""
    tensors = list(inputs.values())
    if trained.config.data.modality == "rgbd":
        tensors = [tuple(tensors[:2]), tuple(tensors[2:]) or None]
    return trained.network(*tensors, temperature=0.5).heads()[0]


@pytest.mark.slow
@pytest.mark.parametrize("model", NETWORKS)
@pytest.mark.parametrize(
    ("suffix", "run", "about"),
    [(".pt2", run_program, about_program), (".onnx", run_onnx, about_onnx)],
)
def test_a_written_file_gives_the_networks_logits_for_one_clip_and_for_three(
    saved, tmp_path, capsys, model, suffix, run, about
) -> None:
    path, out = saved(model, **NETWORKS[model]), tmp_path / f"net{suffix}"
    assert export.main(["--checkpoint", str(path), str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()[-1]
    assert printed.startswith(f"{out}: logits of 3 random clips differ from the network's by at ")
    assert printed.endswith("divided by the temperature 0.5")
    trained = open_trained(path)
    for clips in (1, 3):
        _, inputs = export.example(trained, clips)
        torch.testing.assert_close(run(out, inputs), network_logits(trained, inputs),
                                   rtol=1e-4, atol=1e-4)  # fmt: skip
    assert [path.name for path in tmp_path.glob("*net*")] == [out.name]
    says = about(out)
    assert says["inputs"] == {k: ["B", *tensor.shape[1:]] for k, tensor in inputs.items()}
    assert float(says["temperature"]) == 0.5 and says["classes"][2] == "raise"


@pytest.mark.slow
def test_a_network_without_maps_takes_the_clip_alone(saved, tmp_path) -> None:
    trained = open_trained(saved("decoupled", motion_attention=False, motion_window=0))
    export.export(trained, tmp_path / "net.pt2")
    _, inputs = export.example(trained, 1)
    assert list(inputs) == ["clip"]
    expected = trained.network(inputs["clip"], None, temperature=0.5).logits
    torch.testing.assert_close(run_program(tmp_path / "net.pt2", inputs), expected)


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
