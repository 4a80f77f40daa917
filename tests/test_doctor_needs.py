"""What a config asks of a machine."""

from pathlib import Path

import pytest
import yaml

from engine.doctor_needs import probe_config
from test_doctor_probes import Said


@pytest.fixture
def needs(tiny_config, tmp_path):
    """What is said of the tiny config with overrides."""

    def needs(*overrides: str, ranks: int = 0) -> Said:
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(tiny_config))
        said = Said()
        probe_config(said, str(path), str(ranks), *overrides)
        return said

    return needs


def test_a_sound_config(needs, tiny_config):
    said = needs()
    assert (said["device"], said["ranks"], said["precision"]) == ("cpu", 1, "float32")
    for key in ("batch", "data", "weights", "memory"):
        assert said[f"{key}_problem"] == ""
    assert said["train"] == {
        "clips": 23, "source": "frames", "kinds": [{"kind": "image", "video": False}],
    }  # fmt: skip
    assert said["eval"]["clips"] == 7
    assert said["clips"] == 6 and 2**20 < said["memory_bytes"] < 2**30
    assert said["run_dir"] == tiny_config["train"]["run_dir"]
    for folder in (said["run_dir"], tiny_config["data"]["cache_dir"]):
        assert not Path(folder).exists(), "nothing is written"
    assert needs("optim.name=adamw")["checkpoint_bytes"] == 1.5 * said["checkpoint_bytes"]


def test_ranks_share_a_step(needs):
    said = needs(ranks=3)
    assert said["ranks"] == 3 and said["clips"] == 2


def test_one_problem_hides_no_other(needs, tmp_path):
    said = needs(f"data.root={tmp_path}/none", "train.init_from=none.pt", ranks=7)
    assert "leaves some of 7 ranks without a clip; take 7 or more" in said["batch_problem"]
    assert said["data_problem"].startswith(f"{tmp_path}/none: no such folder")
    assert "none.pt" in said["weights_problem"]
    assert said["memory_problem"] == ""


def test_a_clip_that_is_not_there(needs, tiny_config):
    said = needs("data.layout=jester")
    name = (Path(tiny_config["data"]["root"]) / "train.txt").read_text().split()[0]
    folder = f"{tiny_config['data']['root']}/{name}"
    assert said["data_problem"] == f"{folder}: No such file or directory"


def test_a_wrong_key_stops_before_all_else(needs):
    with pytest.raises(ValueError, match="unknown key 'epoch'"):
        needs("train.epoch=3")
