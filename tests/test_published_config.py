"""engine/published_config.py: published YAML files train here what they trained there."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.published_yaml import GUIDE, PUBLISHED, ROOT, published, recipe, without_first_weights

from engine.config import load
from engine.published_config import (
    COMPUTED,
    NO_EFFECT,
    ONLY,
    RENAMED,
    translate,
)
from models.video_networks import PUBLISHED as VIDEO_NETWORKS


def translated(name: str, ranks: int = 1, **changes: Any) -> dict[str, Any]:
    return translate(published(f"{name}.yml", **changes), "x.yml", ranks)[0]


def trained(path: Path) -> dict[str, Any]:
    """What a config trains, whatever it starts from."""
    return without_first_weights(recipe(load(path)))


RUNS = [("rgb", {}), ("depth", {"type": "K"}), ("fusion", {"Network": "FusionNet"})]
SAME = [
    *((f"nvgesture_{run}", "NvGesture", 4, change) for run, change in RUNS),
    *((f"isogd_{run}", "IsoGD", 8, change) for run, change in RUNS),
    *((f"ntu_{run}", "NetworkConfig", 8, change) for run, change in RUNS),
    *((f"ntu_cv_{run}", "NetworkConfig", 8, {**change, "splits": "PATH/dataset_splits/@CV"})
      for run, change in RUNS),
    *((f"thu_read_{i}_{run}", "THU", 8, {**change, "splits": f"PATH/dataset_splits/@{i}"})
      for run, change in RUNS for i in (1, 2, 3, 4)),
    ("jester_rgb", "Jester", 8, {}),
]  # fmt: skip


@pytest.mark.parametrize(("ours", "name", "ranks", "change"), SAME, ids=[x[0] for x in SAME])
def test_our_configs_are_the_published_ones(tmp_path, monkeypatch, ours, name, ranks, change):
    path = tmp_path / f"{name}.yml"
    path.write_text(yaml.safe_dump(published(f"{name}.yml", **change)))
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    assert trained(path) == trained(ROOT / "configs" / f"{ours}.yaml")


def test_every_published_experiment_has_its_config():
    """Those of UMDR are test_published_umdr_config.py's."""
    files = {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    others = {name for name in files if name.startswith(("demo_", "umdr_"))} | VIDEO_NETWORKS.keys()
    assert {ours for ours, *_ in SAME} == files - others


def test_the_published_ntu_file_differs_from_the_published_readme_in_three_values(monkeypatch):
    """4 clips per GPU at 0.005; README and NetworkConfig.yml, and so ours: 6 at 0.01."""
    monkeypatch.setenv("WORLD_SIZE", "8")
    file = trained(PUBLISHED / "NTU.yml")
    ours = trained(ROOT / "configs" / "ntu_rgb.yaml")
    assert {key: (file[key], ours[key]) for key in file if file[key] != ours[key]} == {
        "optim.lr": (0.005, 0.01),
        "train.global_batch": (32, 48),
        "loss.recoupling_scale": (4.0, 6.0),
    }


def test_places_are_taken_over():
    ours = translated("NvGesture", data="/nv", splits="/nv/lists/", pretrained="jester.pth.tar")
    assert ours["data"]["root"] == "/nv"
    assert ours["data"]["train_list"] == "/nv/lists/train.txt"
    assert ours["data"]["eval_list"] == "/nv/lists/valid.txt"
    assert ours["train"]["init_from"] == "jester.pth.tar"
    assert ours["train"]["run_dir"] == "runs/nvgesture_rgb"
    assert translated("NTU")["train"]["run_dir"] == "runs/ntu_cs_rgb"


def test_a_fusion_file_starts_from_both_modalities_and_draws_their_views_apart():
    ours = translated("NTU", Network="FusionNet", rgb_checkpoint="m.tar", depth_checkpoint="k.tar")
    assert ours["model"]["name"] == "decoupled_fusion"
    assert (ours["train"]["init_rgb"], ours["train"]["init_depth"]) == ("m.tar", "k.tar")
    assert "init_from" not in ours["train"]
    assert (ours["data"]["modality"], ours["data"]["paired_view"]) == ("rgbd", False)
    assert ours["data"]["depth_encoding"] == "wrapped_jet"
    assert ours["loss"] == {
        "recoupling_temperature": 0.5, "recoupling_scale": 4, "recoupling_delay": 0,
    }  # fmt: skip
    assert ours["train"]["temperature"] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("change", "section", "expected"),
    [
        ({"sharpness": False}, "train", {"temperature": [1.0, 1.0], "temperature_epochs": 1}),
        ({"MultiLoss": False}, "loss", {"branch_weight": 0.0}),
        ({"loss_lamdb": [1, 0.2, 0.2, 0.2]}, "loss", {"branch_weight": 0.2}),
        ({"loss": {"name": "CE", "labelsmooth": False}}, "loss", {"label_smoothing": 0.0}),
        ({"distill": 0.3}, "loss", {"recoupling_weight": 0.3}),
        ({"scheduler": {"name": "ReduceLR", "patience": 7, "warm_up_epochs": 5}}, "optim",
         {"schedule": "plateau", "patience": 7, "warmup": 5}),
        ({"scheduler": {"name": "cosin", "patience": 4, "warm_up_epochs": 0}}, "loss",
         {"recoupling_delay": 0}),
        ({"frp": False, "N": 3}, "model", {"motion_attention": False, "num_blocks": 3}),
        ({"angle": "(-45, 45)", "resize": "(320,240)"}, "data",
         {"angle": [-45, 45], "resize": [320, 240]}),
        ({"low_frames": 8, "high_frames": 60}, "data", {"branch_frames": [8, 32, 60]}),
        ({"report_freq": 50, "test_batch_size": 3}, "train", {"log_every": 50, "eval_batch": 3}),
    ],
)  # fmt: skip
def test_a_value_of_its_own_is_translated(change, section, expected):
    ours = translated("NvGesture", **change)[section]
    assert {key: ours[key] for key in expected} == expected


def test_the_batch_is_per_gpu_as_published():
    ours = translated("THU", ranks=3)
    assert (ours["train"]["global_batch"], ours["loss"]["recoupling_scale"]) == (18, 6)


def test_overrides_name_our_keys(tmp_path):
    config = load(PUBLISHED / "IsoGD.yml", ["data.root=/isogd", "optim.lr=0.02"])
    assert (config.data.root, config.optim.lr, config.optim.min_lr) == ("/isogd", 0.02, 1e-5)


def test_the_translation_is_printed_as_a_config_and_idle_keys_are_named_once(capsys, tmp_path):
    config = load(PUBLISHED / "Jester.yml")
    out, err = capsys.readouterr()
    assert out == ""
    first, *lines = err.splitlines()
    path = f"{PUBLISHED / 'Jester.yml'}"
    assert first == f"{path}: a published config, read as"
    notes = [line for line in lines if line.startswith(path)]
    assert [note.split()[1] for note in notes] == [
        "num_workers", "init_epochs", "dist", "vis_feature", "visname", "metric_freq",
        "show_cluster_result", "mse_weight", "resumelr",
    ]  # fmt: skip
    assert all(" has no effect: " in note for note in notes)
    again = tmp_path / "jester.yaml"
    again.write_text("\n".join(line for line in lines if line not in notes))
    assert load(again) == config


def test_only_one_rank_prints(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    load(PUBLISHED / "Jester.yml")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rte": 1}, "unknown key 'learning_rte'; did you mean 'learning_rate'?"),
        ({"batch_size": None}, "missing key 'batch_size'"),
        ({"batch_size": "many"}, "batch_size: expected a whole number, found 'many'"),
        ({"dataset": "UCF101"}, "dataset is 'UCF101' (one of NTU, NvGesture, IsoGD, THUREAD, "
         "Jester)"),
        ({"dataset": "THURead"}, "dataset is 'THURead'; did you mean 'THUREAD'? (one of NTU, "
         "NvGesture, IsoGD, THUREAD, Jester)"),
        ({"type": "F"}, "type is 'F' (one of M, K)"),
        ({"type": "K", "Network": "FusionNet"}, "type is 'K' (one of M)"),
        ({"Network": "DSN"}, "Network is 'DSN'; the networks of CVPR'22 are I3DWTrans and "
         "FusionNet, that of UMDR is DSNV2"),
        ({"optim": "Adam"}, "optim is 'Adam'; only 'SGD' is offered: no published result was made "
         "otherwise; see optim.name for AdamW"),
        ({"SYNC_BN": 0}, "SYNC_BN is 0; only 1 is offered: batch statistics are those of the "
         "global batch"),
        ({"resume": "x.tar"}, "resume is 'x.tar'; only '' is offered: copy the checkpoint to "
         "RUN_DIR/last.pt: the run goes on from there"),
        ({"Blur": True}, "Blur is True; only False is offered: no published file blurs"),
        ({"loss_lamdb": [2, 1, 1, 1]}, "loss_lamdb is [2, 1, 1, 1]; expected [1, b, b, b], b for "
         "each of three branches"),
        ({"loss_lamdb": [1, 1, 0.5, 0.5]}, "loss_lamdb is [1, 1, 0.5, 0.5]; the three branches "
         "need one weight (loss.branch_weight)"),
        ({"loss": {"name": "SoftCE", "labelsmooth": True}}, "loss.name is 'SoftCE'; did you "
         "mean 'CE'? (one of CE)"),
        ({"scheduler": "cosin"}, "scheduler: expected name, patience, warm_up_epochs, found "
         "'cosin'"),
        ({"scheduler": {"name": "cosin", "warm_up_epochs": "few"}}, "scheduler.warm_up_epochs: "
         "expected a whole number, found 'few'"),
        ({"type": ["M", "K"]}, "type is ['M', 'K'] (one of M, K)"),
        ({"scheduler": {"nme": "cosin"}}, "scheduler: unknown key 'nme'; did you mean 'name'?"),
    ],
)  # fmt: skip
def test_what_is_not_offered_is_one_line_that_names_the_key(change, message):
    with pytest.raises(ValueError) as error:
        translated("NetworkConfig", **change)
    assert str(error.value) == f"x.yml: {message}"


def test_sections_are_merged_and_the_later_one_wins():
    tree = published("NTU.yml")
    tree["dataset"]["w"] = 6
    assert translate(tree, "x.yml", 1)[0]["data"]["motion_window"] == 6
    tree["fusion"] = {}
    with pytest.raises(ValueError, match=r"x.yml: unknown section 'fusion'"):
        translate(tree, "x.yml", 1)


def test_a_wrong_value_is_refused_as_in_our_own_files(tmp_path):
    path = tmp_path / "x.yml"
    path.write_text(yaml.safe_dump(published("NTU.yml", angle="(-10, ten)", momentum="high")))
    with pytest.raises(ValueError, match=r"x.yml: data: angle: expected a list, found '\(-10, t"):
        load(path)


def test_every_published_key_is_in_the_table_and_in_the_guide():
    known = {*RENAMED, *ONLY, *NO_EFFECT, *COMPUTED}
    found = {
        key
        for path in PUBLISHED.glob("*.yml")
        for section in yaml.safe_load(path.read_text()).values()
        for key in section
    }
    assert found == known and len(list(PUBLISHED.glob("*.yml"))) == 6
    assert [key for key in sorted(known) if f"`{key}`" not in GUIDE] == []
