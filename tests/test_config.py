"""engine/config.py: a config is either right, or stopped with one line that says what to write."""

from pathlib import Path

import pytest
import yaml

from engine.config import as_dict, load, model_options

MINIMAL = """
data: {root: /nowhere, train_list: train.txt, eval_list: eval.txt, num_classes: 8}
train: {run_dir: runs/x}
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(MINIMAL)
    return path


def test_defaults_are_the_published_recipe(config_file):
    config = load(config_file)
    assert (config.data.num_frames, config.data.branch_frames) == (64, (16, 32, 48))
    assert (config.optim.lr, config.optim.momentum, config.optim.weight_decay) == (0.01, 0.9, 3e-4)
    assert (config.loss.label_smoothing, config.loss.branch_weight) == (0.1, 0.5)
    assert config.train.temperature == (0.04, 0.07)


def test_numbers_are_read_by_type_so_1e_3_is_a_number(config_file):
    config = load(config_file, ["optim.lr=1e-3", "optim.clip_norm=5", "train.epochs=7"])
    assert config.optim.lr == 0.001
    assert config.optim.clip_norm == 5.0 and isinstance(config.optim.clip_norm, float)
    assert config.train.epochs == 7


def test_text_may_be_emptied(config_file):
    assert load(config_file, ["train.init_from=x.pt"]).train.init_from == "x.pt"
    assert load(config_file, ["train.init_from=x.pt", "train.init_from="]).train.init_from == ""


def test_overrides_reach_nested_keys_and_lists(config_file):
    overrides = ["data.rgb.pattern=v/{name}/{frame:05d}.png", "data.rgb.first=1", "data.size=64",
                 "data.branch_frames=[4, 8]", "model.num_blocks=2"]  # fmt: skip
    config = load(config_file, overrides)
    assert config.data.rgb.pattern == "v/{name}/{frame:05d}.png" and config.data.rgb.first == 1
    assert model_options(config) == {
        "num_classes": 8, "num_frames": 64, "branch_frames": (4, 8), "num_blocks": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.num_frame=3", "data: unknown key 'num_frame'; did you mean 'num_frames'?"),
        ("dta.root=3", "unknown key 'dta'; did you mean 'data'?"),
        ("optim.lr=fast", "optim: lr: expected a number, found 'fast'"),
        ("train.epochs=2.5", "train: epochs: expected a whole number, found 2.5"),
        ("train.epochs=true", "train: epochs: expected a whole number, found True"),
        ("data.resize=[320]", "data: resize: expected 2 values, found 1: [320]"),
        ("data.resize=320", "data: resize: expected a list, found 320"),
        ("data.branch_frames=[16, 80]",
         "data: branch_frames holds 80, more than num_frames = 64"),
        ("data.crop=300", "data: crop is 300, larger than resize = [256, 256]; "
         "it can be at most 256"),
        ("data.size=100", "data: size is 100, no multiple of 32, which the motion attention "
         "needs; take 96 or 128"),
        ("data.modality=dept", "data: modality is 'dept'; did you mean 'depth'? "
         "(one of rgb, depth, rgbd)"),
        ("data.layout=nut", "data: layout is 'nut'; did you mean 'ntu'? "
         "(one of generic, ntu, nvgesture, isogd, thu_read, jester)"),
        ("data.flip=1.5", "data: flip is 1.5; a probability is between 0 and 1"),
        ("data.angle=[5, -5]", "data: angle is [5, -5]; the first must be below the second"),
        ("data.eval_crop=[40, 0]", "data: eval_crop is [40, 0], outside the resized frame: with "
         "resize = [256, 256] and crop = 224 at most [32, 32]"),
        ("data.motion_window=0", "data: motion_window is 0, but this network's motion attention "
         "needs the maps; set it to 10, or model.motion_attention to false"),
        ("data.motion_window=99", "data: motion_window is 99; it must be 0 (no motion maps) or "
         "between 2 and num_frames = 64"),
        ("model.name=decupled", "model: name is 'decupled'; did you mean 'decoupled'? "
         "(one of decoupled, decoupled_fusion, umdr, umdr_fusion, r3d_18, mvit_v2_s, swin3d_t)"),
        ("model.num_block=3", "model: unknown key 'num_block'; did you mean 'num_blocks'?"),
        ("model.num_frames=3", "model: 'num_frames' belongs in the data section: "
         "data.num_frames"),
        ("model.knn_ratio=most", "model: knn_ratio: expected a number, found 'most'"),
        ("model.knn_ratio=7", "model: knn_ratio must be from 0 to 1, not 7.0"),
        ("train.precision=half", "train: precision is 'half' (one of auto, bf16, fp16, fp32, "
         "fp64)"),
        ("train.cuda_graph=auto", "train: cuda_graph is 'auto' (one of on, off)"),
        ("train.ema=1", "train: ema is 1.0; it must be 0 (off) or more and below 1"),
        ("train.gc=-1", "train: gc is -1; it must be 0 (off) or more"),
        ("train.micro_batch=-2", "train: micro_batch is -2; it must be 0 (off) or more"),
        ("optim.fused=nvidia", "optim: fused is 'nvidia'; it must be one of auto, apex, torch"),
        ("train.compile=never", "train: compile is 'never' (one of auto, on, off)"),
        ("train.init_rgb=a.pt", "train: init_rgb is for decoupled_fusion and umdr_fusion; set "
         "init_from for decoupled"),
        ("train.global_batch=0", "train: global_batch is 0; it must be at least 1"),
        ("train.timeout_s=-1", "train: timeout_s is negative; 0 turns it off"),
        ("optim.schedule=cosin", "optim: schedule is 'cosin'; it must be one of cosine, plateau, "
         "constant, timm_cosine, timm_step"),
        ("loss.label_smoothing=1.0", "loss: label_smoothing is 1.0; it must be in [0, 1)"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_line_that_names_file_and_key(config_file, override, message):
    with pytest.raises(ValueError) as error:
        load(config_file, [override])
    assert str(error.value) == f"{config_file}: {message}"


def test_apex_is_for_sgd(config_file):
    with pytest.raises(
        ValueError, match=r"optim: fused is apex, which is for sgd here; with adamw"
    ):
        load(config_file, ["optim.name=adamw", "optim.fused=apex"])


@pytest.mark.parametrize("word", ["on", "off", "auto"])
def test_on_and_off_are_words_although_yaml_reads_them_as_truth(config_file, word):
    assert load(config_file, [f"train.compile={word}"]).train.compile == word


def test_umdr_comes_with_its_published_values(config_file):
    config = load(config_file, ["model.name=umdr", "data.num_frames=16"])
    assert config.data.branch_frames == (8, 16, 24) and config.data.motion_window == 0
    mix = config.mix
    assert (mix.mixup, mix.shufflemix, mix.shufflemix_share) == (0.8, 0.3, 0.2)
    optim = config.optim
    assert optim.nesterov and not optim.decay_norms and optim.weight_decay == 5e-4
    assert (optim.schedule, optim.warmup) == ("timm_cosine", 5)
    loss = config.loss
    assert loss.recoupling_weight * loss.recoupling_scale == pytest.approx(0.2 / 3)
    assert (loss.recoupling_temperature, loss.recoupling_delay) == (0.6, 6)
    assert not loss.teacher_gradient
    assert load(config_file, ["model.name=umdr", "data.num_frames=64"]).data.branch_frames == (
        16, 32, 48,
    )  # fmt: skip


def test_umdr_fusion_comes_with_its_published_values(config_file):
    config = load(config_file, ["model.name=umdr_fusion", "data.num_frames=32"])
    assert (config.data.modality, config.data.branch_frames) == ("rgbd", (16, 32, 48))
    assert (config.loss.merged_weight, config.loss.branch_weight) == (0.0, 1.0)
    assert (config.optim.schedule, config.optim.lr) == ("timm_step", 0.01)
    assert config.train.temperature == (0.07, 0.07)


FUSION = ["model.name=decoupled_fusion"]


def test_the_fusion_network_comes_with_its_published_values(config_file):
    config = load(config_file, FUSION)
    assert config.data.modality == "rgbd"
    assert (config.loss.branch_weight, config.loss.recoupling_delay) == (1.0, 0)
    assert config.train.temperature == (1.0, 1.0)
    config = load(config_file, [*FUSION, "loss.branch_weight=0.25", "train.temperature=[2, 3]"])
    assert config.loss.branch_weight == 0.25 and config.train.temperature == (2.0, 3.0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([*FUSION, "data.modality=depth"],
         "data: modality is depth, but model.name decoupled_fusion takes rgbd; set it so, or "
         "model.name to decoupled"),
        (["data.modality=rgbd"],
         "data: modality is rgbd, but model.name decoupled takes rgb or depth; set it so, or "
         "model.name to decoupled_fusion"),
        (["model.name=umdr", "data.modality=rgbd"],
         "data: modality is rgbd, but model.name umdr takes rgb or depth; set it so, or "
         "model.name to umdr_fusion"),
        (["model.name=umdr", "data.motion_window=10"],
         "data: motion_window is 10, but model.name umdr takes no motion maps; set it to 0"),
        ([*FUSION, "data.motion_window=0"],
         "data: motion_window is 0, but this network's motion attention needs the maps; set it to "
         "10, or model.motion_attention to false"),
    ],
)  # fmt: skip
def test_networks_name_the_modalities_they_take(config_file, overrides, message):
    with pytest.raises(ValueError) as error:
        load(config_file, overrides)
    assert str(error.value) == f"{config_file}: {message}"


def test_all_impossible_values_are_reported_at_once(config_file):
    with pytest.raises(ValueError) as error:
        load(config_file, ["data.flip=2", "optim.lr=-1.0", "train.epochs=0"])
    lines = str(error.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["data", "optim", "optim", "train"]


def test_a_missing_key_is_named(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("train: {run_dir: runs/x}\ndata: {root: /nowhere}\n")
    with pytest.raises(ValueError, match=r"x.yaml: data: missing key 'train_list'"):
        load(path)


@pytest.mark.parametrize("override", ["epochs=3", "train.epochs", "train..epochs=3"])
def test_an_override_without_section_or_value_is_refused(config_file, override):
    with pytest.raises(ValueError, match=r"command line: .* is not of the form section.key=value"):
        load(config_file, [override])


def test_a_missing_file_suggests_its_neighbour(config_file):
    wrong = config_file.with_name("y.yaml")
    with pytest.raises(ValueError) as error:
        load(wrong)
    assert str(error.value) == f"{wrong}: no such config file; did you mean '{config_file}'?"


def test_broken_yaml_is_one_line(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("data: [1, 2\ntrain: }")
    with pytest.raises(ValueError, match="not valid YAML") as error:
        load(path)
    assert "\n" not in str(error.value)


def test_a_saved_config_loads_to_the_same_config(config_file, tmp_path):
    config = load(config_file, ["model.dropout=0.0", "data.crop_offset=[3, 9]"])
    saved = tmp_path / "saved.yaml"
    saved.write_text(yaml.safe_dump(as_dict(config)))
    assert load(saved) == config


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[1].glob("configs/*.yaml")), ids=str)
def test_every_config_in_the_repository_is_valid(path):
    load(path)


def test_a_network_starts_whole_or_by_halves(config_file):
    with pytest.raises(ValueError, match=r"train: init_from fills the whole network, init_rgb and"):
        load(config_file, ["train.init_from=a.pt", "train.init_depth=b.pt"])
