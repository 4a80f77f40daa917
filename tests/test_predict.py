"""engine/predict.py: its logits are those of evaluation, on real files; its command line."""

import json
import os
from pathlib import Path

import pytest
import torch
import yaml

from engine import checkpoint
from engine.clips import open_clips
from engine.config import as_dict, load, model_options
from engine.distributed import Ranks, place
from engine.loop import Precision, predict
from engine.optim import temperature_at
from engine.predict import main, picture_paths, recognise
from engine.trained import open_trained
from forked import Forked
from models import build_model
from models.upstream import to_published
from runs import as_network

ROOT = Path(__file__).resolve().parents[1]
FINISHED_EPOCHS = 2
NAMES = ["right", "left", "up", "down", "push", "pull", "turn", "back"]


@pytest.fixture
def saved(tiny_config: dict, tmp_path: Path):
    """Writes the config and a checkpoint of a network with random weights; returns both."""

    def save(network: str = "decoupled", **data: object):
        as_network(tiny_config, network, data.get("modality") == "rgbd")
        tiny_config["data"] |= data
        file = tmp_path / "tiny.yaml"
        file.write_text(yaml.safe_dump(tiny_config))
        config = load(file)
        torch.manual_seed(5)
        model = build_model(config.model.name, **model_options(config))
        for module in model.modules():  # as if trained: statistics that are not the initial ones
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
        state = {"config": as_dict(config), "progress": {"epoch": FINISHED_EPOCHS},
                 "model": model.state_dict(), "classes": NAMES}  # fmt: skip
        checkpoint.save(tmp_path / "last.pt", state)
        return config, tmp_path / "last.pt"

    return save


def evaluated(config, path: Path) -> tuple[list[str], torch.Tensor]:
    """Folder and logits (K) of each clip of the evaluation list, by the code of evaluation."""
    ranks = Ranks(0, 0, 1)
    precision = Precision.choose("auto", ranks.device)
    clips = open_clips(config, ranks, precision)
    network = build_model(config.model.name, **model_options(config))
    checkpoint.load_model(network, checkpoint.load(path), path)
    network = place(network, ranks).eval()
    train = config.train
    temperature = temperature_at(FINISHED_EPOCHS - 1, *train.temperature, train.temperature_epochs)
    with torch.no_grad():
        logits = [
            predict(network, batch, temperature, precision).heads()[0]
            for batch in clips.eval_batches()
        ]
    index = clips.evaluation.index
    return [_given(index, i, config.data.modalities) for i in range(len(index))], torch.cat(logits)


def _given(index, clip: int, modalities: tuple[str, ...]) -> str:
    """The clip as it is named on the command line."""
    return ",".join(index.media[modality][clip].folder for modality in modalities)


@pytest.mark.parametrize(
    ("network", "data"),
    [("decoupled", {"modality": "rgb"}),
     ("decoupled", {"modality": "depth", "depth_encoding": "metric"}),
     ("decoupled", {"modality": "depth", "depth_encoding": "wrapped_jet"}),
     ("decoupled", {"modality": "rgbd", "depth_encoding": "metric"}),
     ("umdr", {"modality": "rgb"}),
     ("umdr", {"modality": "depth", "depth_encoding": "metric"}),
     ("umdr", {"modality": "rgbd", "depth_encoding": "metric"})],
    ids=["rgb", "metric", "wrapped_jet", "rgbd", "umdr", "umdr_metric", "umdr_rgbd"],
)  # fmt: skip
def test_the_logits_are_those_of_evaluation_and_an_explanation_changes_none(
    saved, network, data
) -> None:
    config, path = saved(network, **data)
    folders, expected = evaluated(config, path)
    trained = open_trained(path)
    results = list(recognise(trained, folders, "cpu"))
    assert [result.clip for result in results] == folders
    assert torch.equal(torch.stack([result.logits for result in results]), expected)
    assert len(expected.unique(dim=0)) == 7, "equality to the last bit tells the clips apart"
    explained = list(recognise(trained, folders[:3], "cpu", explain=True))
    assert torch.equal(torch.stack([result.logits for result in explained]), expected[:3])
    modalities = ["rgb", "depth"] if data["modality"] == "rgbd" else [data["modality"]]
    for result in explained:
        assert [explanation.modality for explanation in result.explanations] == modalities


def test_an_explanation_is_made_in_16_bits_too(saved) -> None:
    config, path = saved()
    (folder, *_), _ = evaluated(config, path)
    shares = []
    for precision in ("fp32", "bf16"):
        trained = open_trained(path, overrides=[f"train.precision={precision}"])
        (result,) = recognise(trained, [folder], "cpu", explain=True)
        shares.append(torch.from_numpy(result.explanations[0].attention[0].weights))
    torch.testing.assert_close(*shares, rtol=0.02, atol=0.01)
    assert not torch.equal(*shares)


def test_the_command_prints_the_top_5_with_names_and_probabilities(saved, capsys) -> None:
    config, path = saved()
    folders, logits = evaluated(config, path)
    assert main(["--checkpoint", str(path), "--device", "cpu", *folders[:2]]) == 0
    text = capsys.readouterr().out
    json_of = [folders[0], "--checkpoint", str(path), "--device", "cpu", "--json", folders[1]]
    assert main(json_of) == 0, "clips may stand anywhere among the options"
    result = json.loads(capsys.readouterr().out)
    assert result["temperature"] == 1.0  # of the second of two epochs, from 0.5 to 1
    for clip, folder, row in zip(result["clips"], folders, logits, strict=False):
        chances = torch.softmax(row, 0)
        best = chances.argsort(descending=True)[:5].tolist()
        assert clip["clip"] == folder and [entry["label"] for entry in clip["top"]] == best
        assert [entry["name"] for entry in clip["top"]] == [NAMES[k] for k in best]
        for entry in clip["top"]:
            assert entry["probability"] == pytest.approx(chances[entry["label"]].item())
            assert f"  {entry['probability']:7.2%}  {entry['name']}\n" in text
    assert text.endswith("softmax of logits divided by 1, as in evaluation\n")


def test_overrides_and_a_config_file_replace_the_checkpoints_config(saved, tmp_path) -> None:
    _, path = saved()
    assert open_trained(path, overrides=["data.crop=20"]).config.data.crop == 20
    assert open_trained(path).config.data.crop == 32
    with pytest.raises(ValueError, match=r"last\.pt: data: unknown key 'cropp'; did you mean"):
        open_trained(path, overrides=["data.cropp=20"])


@pytest.mark.parametrize("modality", ["rgb", "rgbd"])
def test_a_published_checkpoint_needs_a_config_and_nothing_else(saved, tmp_path, modality) -> None:
    config, path = saved(modality=modality, depth_encoding="metric")
    folders, expected = evaluated(config, path)
    published = tmp_path / "model_best.pth.tar"
    model = to_published(open_trained(path).network)
    checkpoint.write(published, {"model": model, "epoch": FINISHED_EPOCHS, "bestacc": 0.5})
    with pytest.raises(ValueError, match=r"\.tar: holds no whole config; name the one .*--config"):
        open_trained(published)
    trained = open_trained(published, str(tmp_path / "tiny.yaml"))
    assert trained.classes[0] == "swipe right" and trained.temperature == 1.0
    (result,) = recognise(trained, folders[:1], "cpu")
    if modality == "rgb":
        torch.testing.assert_close(result.logits, expected[0])
    else:
        assert trained.network.published_reshape, "which mixes up time and channels: other logits"
        assert not torch.allclose(result.logits, expected[0], atol=1e-4)


def test_errors_are_one_line(saved, tmp_path, capsys) -> None:
    config, path = saved()
    clip = evaluated(config, path)[0][0]
    for arguments, message in (
        ([str(tmp_path / "absent")], f"error: {tmp_path / 'absent'}: No such file or directory"),
        (["train.epochs=3"], "error: no clip was named"),
        ([clip, "--explain", "out.jpg"], "error: out.jpg: pictures end in .png or .gif"),
        ([clip, "--explain", "no/out.png"], "error: no/out.png: there is no folder no; make"),
        ([clip, "model.width=16"], f"error: {path}: is a checkpoint of another network"),
    ):
        assert main(["--checkpoint", str(path), "--device", "cpu", *arguments]) == 1
        error = capsys.readouterr().err
        assert error.startswith(message) and error.count("\n") == 1


def test_a_damaged_frame_is_named(saved, tmp_path, capsys) -> None:
    _, path = saved()
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "0.jpg").write_bytes(b"\xff\xd8 no image")
    assert main(["--checkpoint", str(path), "--device", "cpu", str(tmp_path / "clip")]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'clip' / '0.jpg'}: damaged")


@pytest.mark.parametrize("modality", ["rgb", "rgbd"])
def test_explanations_of_umdr_are_drawn(saved, tmp_path, capsys, modality) -> None:
    config, path = saved("umdr", modality=modality, depth_encoding="metric")
    out = tmp_path / "seen.png"
    clip = evaluated(config, path)[0][0]
    assert main(["--checkpoint", str(path), "--device", "cpu", clip, "--explain", str(out)]) == 0
    assert f"drawn: {out}\n" in capsys.readouterr().out
    assert out.read_bytes()[:4] == b"\x89PNG"


def test_several_clips_get_numbered_pictures(tmp_path) -> None:
    out = tmp_path / "seen.png"
    assert picture_paths(str(out), 1) == [out]
    assert picture_paths(str(out), 2) == [tmp_path / "seen_1.png", tmp_path / "seen_2.png"]


def test_it_draws_a_picture_per_clip_where_it_is_started(saved, tmp_path) -> None:
    config, path = saved()
    folders, _ = evaluated(config, path)
    arguments = ["--checkpoint", str(path), "--device", "cpu", *folders[:2]]
    process = Forked(
        ROOT / "engine/predict.py", [*arguments, "--explain", "seen.png"], tmp_path, os.environ
    )
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert "drawn: seen_2.png" in out
    for name in ("seen_1.png", "seen_2.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
