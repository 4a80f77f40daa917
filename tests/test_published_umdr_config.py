"""engine/published_umdr.py: UMDR's published YAML files train here what they trained there, with
what was said on the command line there said on ours."""

from typing import Any

import pytest
import yaml
from tests.published_yaml import GUIDE, PUBLISHED, ROOT, published, recipe

from engine.config import Config, load
from engine.published_umdr import COMPUTED, NO_EFFECT, ONLY, OPTIONS, RENAMED, translate

FILES = PUBLISHED / "umdr"

PLACES = ["data.root=/d", "data.train_list=train.txt", "data.eval_list=valid.txt"]
GIVEN = {"data": {"root": "/d", "train_list": "train.txt", "eval_list": "valid.txt"}}

UNIMODAL = [
    "data.num_frames=32", "optim.name=sgd", "optim.lr=0.01", "optim.schedule=timm_cosine",
    "mix.shufflemix_share=0.2", "mix.mixup=0.8", "mix.shufflemix=0.3", "train.epochs=100",
    "loss.recoupling_weight=0.2", "data.branch_frames=[16, 32, 48]",
]  # fmt: skip
"""The published README's command for an RGB network, our way."""

FUSION = [
    "data.num_frames=32", "optim.name=sgd", "optim.lr=0.01", "optim.schedule=timm_step",
    "optim.decay_every=10", "mix.shufflemix_share=0.2", "mix.mixup=0.8", "mix.shufflemix=0.3",
    "train.epochs=100", "data.branch_frames=[16, 32, 48]", "model.spatial_depth=2",
    "model.temporal_depth=4",
]  # fmt: skip
"""That for the fusion."""

NVGESTURE = [
    "train.global_batch=16", "mix.mixup=0.001", "mix.shufflemix=0.0", "mix.shufflemix_share=0.0",
    "loss.recoupling_weight=0.0",
]  # fmt: skip
"""The author's command for NvGesture where it differs: 2 GPUs x 8 clips, without ShuffleMix."""


PUBLISHED_OPTIONS = """
    data splits num-classes batch-size test-batch-size num_workers epochs device config eval_only
    local_rank type save_grid_image save_output demo_dir resume finetune drop_path_prob drop
    drop-path save seed world_size dist_url shuffle sched lr lr-noise lr-noise-pct lr-noise-std
    warmup-lr min-lr decay-epochs decay-milestones warmup-epochs cooldown-epochs patience-epochs
    decay-rate opt opt-eps opt-betas clip-grad momentum weight-decay ACCUMULATION-STEPS mixup cutmix
    cutmix-minmax mixup-prob mixup-switch-prob mixup-mode smoothing mixup-dynamic model-ema
    model-ema-decay model-ema-force-cpu autoaug color-jitter aa train-interpolation repeated-aug
    no-repeated-aug translate strong-aug resize-rate reprob remode recount resplit model shufflemix
    smixmode smprob temporal-consist tempMix MixIntra replace-prob sample-duration intar-fatcer
    sample-window distill temper DC-weight frp-num w fp16 amp-opt-level FusionNet scc-depth
    tcc-depth
"""
"""Of train.py, train_fusion.py and score_fusion.py there."""


def lists(folder: str) -> list[str]:
    return [f"data.train_list={folder}/train.txt", f"data.eval_list={folder}/valid.txt"]


def finetuned(modality: str) -> list[str]:
    return [f"train.init_from=runs/umdr_ntu_{modality}/best.pt"]


def halves(name: str) -> list[str]:
    return [
        f"train.init_{modality}=runs/{name}_{modality}/best.pt" for modality in ("rgb", "depth")
    ]


ONE = ("rgb", "depth")
CS, CV, BARE = (lists(f"dataset_splits{split}") for split in ("/@CS", "/@CV", ""))
SAME: list[tuple[str, str, dict[str, Any], int, list[str]]] = [
    *((f"umdr_ntu_{one}", "NTU", {}, 8, [*CS, *UNIMODAL, f"data.modality={one}"]) for one in ONE),
    *((f"umdr_ntu_cv_{one}", "NTU", {}, 8, [*CV, *UNIMODAL, f"data.modality={one}"])
      for one in ONE),
    *((f"umdr_ntu120_{one}", "NTU", {"num_classes": 120}, 8,
       [*CS, *UNIMODAL, f"data.modality={one}"]) for one in ONE),
    *((f"umdr_isogd_{one}", "IsoGD", {}, 8,
       [*BARE, *UNIMODAL, f"data.modality={one}", *finetuned(one)]) for one in ONE),
    *((f"umdr_nvgesture_{one}", "NvGesture", {}, 2,
       [*BARE, *UNIMODAL, *NVGESTURE, f"data.modality={one}", *finetuned(one)]) for one in ONE),
    *((f"{name}_fusion", file, {}, 8, [*places, *FUSION, "data.modality=rgbd", *halves(name)])
      for name, file, places in (
          ("umdr_ntu", "NTU", CS), ("umdr_ntu_cv", "NTU", CV), ("umdr_isogd", "IsoGD", BARE))),
]  # fmt: skip


@pytest.mark.parametrize(
    ("ours", "name", "change", "ranks", "overrides"), SAME, ids=[x[0] for x in SAME]
)
def test_our_configs_are_the_published_ones(
    tmp_path, monkeypatch, ours, name, change, ranks, overrides
):
    path = tmp_path / "x.yml"
    path.write_text(yaml.safe_dump(published(f"umdr/{name}.yml", **change)))
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    expected = recipe(load(ROOT / "configs" / f"{ours}.yaml"))
    assert recipe(load(path, ["data.root=/d", *overrides])) == expected


def test_every_published_experiment_has_its_config():
    files = {path.stem for path in (ROOT / "configs").glob("umdr_*.yaml")}
    assert {ours for ours, *_ in SAME} == files


@pytest.mark.parametrize(("run", "more"), [("rgb", []), ("fusion", halves("umdr_ntu"))])
def test_what_is_not_said_is_as_in_the_published_readme(monkeypatch, run, more):
    monkeypatch.setenv("WORLD_SIZE", "8")
    modality = "rgbd" if run == "fusion" else run
    overrides = ["data.root=/d", *CS, f"data.modality={modality}", *more]
    expected = recipe(load(ROOT / "configs" / f"umdr_ntu_{run}.yaml"))
    assert recipe(load(FILES / "NTU.yml", overrides)) == expected


def loaded(file: str, *overrides: str) -> Config:
    return load(FILES / file, [*PLACES, *overrides])


def translated(
    name: str, given: dict[str, Any] | None = None, **changes: Any
) -> tuple[dict[str, Any], list[str]]:
    """(Tree, notes), with GIVEN and what else is given on our command line."""
    given = given or {}
    whole = {key: GIVEN.get(key, {}) | given.get(key, {}) for key in GIVEN | given}
    return translate(published(f"umdr/{name}.yml", **changes), "x.yml", 1, whole)


def test_a_published_command_line_is_overrides_of_ours():
    config = loaded("NTU.yml", "data.modality=rgb", "train.global_batch=8", "optim.lr=0.02")
    assert (config.data.root, config.data.train_list) == ("/d", "train.txt")
    assert (config.train.global_batch, config.optim.lr) == (8, 0.02)
    assert (config.model.name, config.loss.teacher_gradient) == ("umdr", True)


def test_the_number_of_frames_sets_the_branches():
    assert loaded("IsoGD.yml", "data.num_frames=64").data.branch_frames == (16, 32, 48)
    assert loaded("IsoGD.yml", "data.num_frames=16").data.branch_frames == (8, 16, 24)


@pytest.mark.parametrize("override", ["data.modality=rgbd", "model.name=umdr_fusion"])
def test_the_fusion_is_the_same_file_with_another_modality_or_network(override):
    config = loaded("THU.yml", override)
    assert (config.model.name, config.data.modality) == ("umdr_fusion", "rgbd")
    assert not config.data.paired_view
    assert (config.loss.merged_weight, config.loss.branch_weight) == (0.0, 1.0)
    assert config.train.temperature == (0.07, 0.07)
    assert (config.train.init_rgb, config.train.init_depth) == ("PATH", "PATH")
    assert config.train.run_dir == "runs/umdr_thuread_fusion"


def test_the_fusion_network_may_be_named_in_the_file():
    assert translated("NTU", Network="FusionNet")[0]["data"]["modality"] == "rgbd"


@pytest.mark.parametrize(
    ("train_list", "frames", "expected"),
    [("s/@CS/train.txt", 32, "cs32.tar"), ("s/@CV/train.txt", 32, "cv32.tar"),
     ("s/@CV/train.txt", 16, "cv16.tar"), ("s/train.txt", 32, ""), ("s/@CS/train.txt", 6, "")],
)  # fmt: skip
def test_the_fusion_starts_from_the_networks_of_its_split_and_frames(train_list, frames, expected):
    files = {net: f"{net}.tar" for net in ("cs16", "cs32", "cs64", "cv16", "cv32", "cv64")}
    data = {"modality": "rgbd", "train_list": train_list, "num_frames": frames}
    ours, notes = translated("NTU", {"data": data}, rgb_checkpoint=files)
    assert ours["train"]["init_rgb"] == expected
    untold = "x.yml: rgb_checkpoint does not tell train.init_rgb; set it to what --FusionNet"
    assert (f"{untold} chose there" in notes) == (not expected)


def test_a_network_that_is_given_is_not_asked_for():
    given = {"data": {"modality": "rgbd"}, "train": {"init_rgb": "m.pt"}}
    notes = translated("UCF101", given)[1]
    assert [note.split()[1] for note in notes if "--FusionNet" in note] == ["depth_checkpoint"]


@pytest.mark.parametrize(
    ("name", "modality", "data"),
    [
        ("NTU", "rgb", {"layout": "ntu", "num_classes": 60, "frame_slack": 10}),
        ("NTU", "depth", {"depth_encoding": "wrapped_jet", "min_frames": 17}),
        ("NTU", "rgbd", {"depth_encoding": "wrapped_jet", "paired_view": False}),
        ("NvGesture", "depth", {"layout": "nvgesture", "num_classes": 25, "angle": [-20, 20],
                                "crop_offset": [10, 32], "eval_crop": [32, 32]}),
        ("THU", "rgb", {"layout": "thu_read", "num_classes": 40, "crop": 200, "size": 224}),
        ("UCF101", "rgb", {"layout": "generic", "num_classes": 101,
                           "rgb": {"pattern": "{name}/{frame:06d}.jpg"}}),
    ],
)  # fmt: skip
def test_a_data_set_is_what_the_published_code_knew_of_it(name, modality, data):
    ours = translated(name, {"data": {"modality": modality}})[0]["data"]
    assert {key: ours[key] for key in data} == data
    assert ("depth_encoding" in ours) == (name == "NTU" and modality != "rgb")
    assert "motion_window" not in ours


def test_a_data_set_of_ones_own_has_the_generic_layout():
    config = load(FILES / "my_dataset.yaml", [*PLACES, "data.modality=depth"])
    assert (config.data.layout, config.data.num_classes) == ("generic", 25)


@pytest.mark.parametrize(
    ("change", "section", "expected"),
    [
        ({"MultiLoss": False}, "loss", {"branch_weight": 0.0}),
        ({"loss_lamdb": [1, 0.2, 0.2, 0.2]}, "loss", {"branch_weight": 0.2}),
        ({"temp": [0.1, 0.2]}, "train", {"temperature": [0.1, 0.2]}),
        ({"N": 4, "knn_attention": 0.5}, "model", {"num_blocks": 4, "knn_ratio": 0.5}),
        ({"num_classes": 120}, "data", {"num_classes": 120}),
        ({"report_freq": 50}, "train", {"log_every": 50}),
    ],
)
def test_a_value_of_its_own_is_translated(change, section, expected):
    ours = translated("IsoGD", **change)[0][section]
    assert {key: ours[key] for key in expected} == expected


def test_the_temperature_of_the_fusion_is_the_last():
    fusion = {"data": {"modality": "rgbd"}}
    assert translated("NTU", fusion, temp=[0.1, 0.2])[0]["train"]["temperature"] == [0.2, 0.2]


def test_the_batch_is_sixteen_clips_per_gpu(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert loaded("NTU.yml").train.global_batch == 48


@pytest.mark.parametrize("modality", ["depth", "rgbd"])
def test_the_translation_is_printed_as_a_config_and_idle_keys_are_named(capsys, tmp_path, modality):
    overrides = ["data.train_list=s/@CV/train.txt", f"data.modality={modality}"]
    config = loaded("NTU.yml", *overrides)
    path = f"{FILES / 'NTU.yml'}"
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == f"{path}: a published config, read as"
    notes = [line for line in lines if line.startswith(path)]
    mode = ("MultiLoss", "loss_lamdb") if modality == "rgbd" else ()
    other = () if modality == "rgbd" else ("rgb_checkpoint", "depth_checkpoint")
    assert [note.split()[1] for note in notes] == [
        "visdom", "dist", "vis_feature", "DEBUG", "scheduler", *mode, "resumelr", "recoupling",
        "sharpness", "SEHeads", *other, "Blur",
    ]  # fmt: skip
    assert all(" has no effect: " in note for note in notes)
    again = tmp_path / "ntu.yaml"
    again.write_text("\n".join(line for line in lines if line not in notes))
    assert load(again, [*PLACES, *overrides]) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"knn_atention": 1}, "unknown key 'knn_atention'; did you mean 'knn_attention'?"),
        ({"lr": 0.1}, "lr is an option of the published program: set optim.lr instead"),
        ({"splits": "/s"}, "splits is an option of the published program: set data.train_list and "
         "data.eval_list instead"),
        ({"dataset": "UCF"}, "dataset is 'UCF'; did you mean 'UCF101'? (one of NTU, NvGesture, "
         "IsoGD, THUREAD, Jester, UCF101, basic)"),
        ({"Network": "DSN"}, "Network is 'DSN'; did you mean 'DSNV2'? (one of DSNV2, FusionNet)"),
        ({"loss": {"name": "CE", "labelsmooth": True}}, "loss is {'name': 'CE', 'labelsmooth': "
         "True}; only {'name': 'SoftCE', 'labelsmooth': True} is offered: smoothing is "
         "loss.label_smoothing"),
        ({"frp": True}, "frp is True; only False is offered: no published result was made with "
         "motion maps in place of frames"),
        ({"pretrained": "x.tar"}, "pretrained is 'x.tar'; only '' is offered: first weights are "
         "train.init_from"),
        ({"SYNC_BN": 0}, "SYNC_BN is 0; only 1 is offered: batch statistics are those of the "
         "global batch"),
        ({"loss_lamdb": [1, 1, 0.5, 0.5]}, "loss_lamdb is [1, 1, 0.5, 0.5]; the three branches "
         "need one weight (loss.branch_weight)"),
        ({"rgb_checkpoint": "x.tar"}, "rgb_checkpoint is 'x.tar'; expected files of cs16, cs32, "
         "cs64, cv16, cv32, cv64"),
    ],
)  # fmt: skip
def test_what_is_not_offered_is_one_line_that_names_the_key(change, message):
    with pytest.raises(ValueError) as error:
        translated("NTU", **change)
    assert str(error.value) == f"x.yml: {message}"


def test_what_is_missing_is_named_with_the_option_that_told_it(tmp_path):
    path = tmp_path / "x.yml"
    path.write_text(yaml.safe_dump(published("umdr/my_dataset.yaml", num_classes=None)))
    with pytest.raises(ValueError) as error:
        load(path, ["data.root=/d"])
    assert str(error.value).splitlines() == [
        f"{path}: data.{key} is missing: --{option} told it there; add data.{key}=... here"
        for key, option in (
            ("train_list", "splits"), ("eval_list", "splits"), ("num_classes", "num-classes")
        )
    ]  # fmt: skip
    assert load(path, [*PLACES, "data.num_classes=9"]).data.num_classes == 9


def test_unknown_sections_stop():
    with pytest.raises(ValueError, match=r"x.yml: unknown section 'fuson'; did you mean 'fusion'"):
        translate(published("umdr/NTU.yml") | {"fuson": {}}, "x.yml", 1, GIVEN)


def test_every_published_key_and_option_is_in_the_guide():
    found = {
        key
        for path in FILES.iterdir()
        for section in yaml.safe_load(path.read_text()).values()
        for key in section
    }
    assert found == {*RENAMED, *ONLY, *NO_EFFECT, *COMPUTED} and len(list(FILES.iterdir())) == 6
    guide, options = GUIDE[GUIDE.index("## UMDR") :], PUBLISHED_OPTIONS.split()
    assert [key for key in sorted(found) if f"`{key}`" not in guide] == []
    assert [option for option in options if f"`--{option}`" not in guide] == []
    assert OPTIONS.keys() <= {option.replace("-", "_") for option in options}
    ours = " and ".join(OPTIONS.values()).split(" and ")
    assert [key for key in ours if f"`{key}" not in guide] == []
