"""The data section of a run's file, read without the engine."""

from pathlib import Path

import pytest

from engine.config import load
from pipelines.data_section import read_data_section

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
GOOD = "data: {root: r, train_list: t, eval_list: e, num_classes: 3}\n"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_config_is_read_as_the_engine_reads_it(path: Path) -> None:
    overrides = ["data.modality=rgbd"] if "fusion" in path.stem else []
    assert read_data_section(path, overrides) == load(path).data


def test_patterns_and_overrides_are_read(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(GOOD)
    overrides = ['data.rgb={pattern: "{name}/{frame}.jpg", rename: [[a, b]]}', "data.flip=1"]
    config = read_data_section(path, overrides)
    assert config.rgb is not None and config.rgb.rename == (("a", "b"),)
    assert config.flip == 1


@pytest.mark.parametrize("text, message", [
    ("model: {}", "has no section 'data:'"),
    ("data: [1", "not valid YAML"),
    (GOOD.replace("num_classes", "num_class"), "unknown key 'num_class'; did you mean 'num_cl"),
    ("data: {root: r, train_list: t, num_classes: 3}", "missing key 'eval_list'"),
    (GOOD.replace("3}", "three}"), "num_classes: expected a whole number, found 'three'"),
    (GOOD.replace("3}", "3, layout: nut}"), "layout is 'nut'; did you mean 'ntu'?"),
])  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as raised:
        read_data_section(path)
    assert str(raised.value).startswith(f"{path}: ") and message in str(raised.value)


@pytest.mark.parametrize("override", ["train.epochs=3", "data.modality", "modality=rgb"])
def test_an_override_of_something_else_is_an_error(tmp_path: Path, override: str) -> None:
    (tmp_path / "run.yaml").write_text(GOOD)
    with pytest.raises(ValueError, match=r"is not of the form data\.key=value"):
        read_data_section(tmp_path / "run.yaml", [override])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run\.yaml: No such file or directory"):
        read_data_section(tmp_path / "run.yaml")
