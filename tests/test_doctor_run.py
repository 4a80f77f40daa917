"""Whether one run would go: its config, data, precision and memory."""

import pytest

from doctors import CARD, GIB, machine, named
from engine.doctor_children import Outcome
from engine.doctor_rows import ABSENT, FAIL, OK, WARN
from engine.doctor_run import run_rows


def states(**options):
    return {row.name: row.state for row in run_rows(machine(**options))}


def test_without_a_config_no_run_is_looked_at():
    assert states() == {}


def test_a_sound_run():
    assert states(config={}) == {"config": OK, "data": OK, "precision": OK, "a step": OK}


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (Outcome({"doing": "reading c.yaml"}, "ValueError: c.yaml: unknown key"), "config"),
        ({"batch_problem": "7 cannot be shared by 2 ranks"}, "config"),
        ({"data_problem": "/data: no such folder"}, "data"),
        ({"weights_problem": "a.pt: no such file"}, "starting weights"),
    ],
)
def test_what_stops_it(config, name):
    assert states(config=config)[name] == FAIL


def test_what_was_not_reached_says_so():
    crash = Outcome({"device": "cpu", "ranks": 1}, "ended by SIGSEGV while looking at the data")
    found = states(config=crash)
    assert found == {"config": FAIL, "data": ABSENT, "precision": ABSENT, "a step": ABSENT}


def test_a_step_against_the_gpu():
    def row(need: float, **more):
        config = {"device": "cuda", "memory_bytes": need * GIB, "clips": 12, **more}
        return named(run_rows(machine(gpus=2, config=config)), "a step")

    assert row(100).state == OK
    assert row(120).state == WARN  # of 130 GiB free
    too_large = row(200)
    assert too_large.state == FAIL
    # 12 clips x 0.9 x 130 of 200 GiB.
    assert too_large.mend == "python engine/train.py --config c.yaml train.micro_batch=7"
    assert row(100, cache="gpu", cache_gb=50.0).state == FAIL


def test_bf16_on_a_gpu_without_it():
    config = {"device": "cuda", "precision": "bfloat16"}
    old = {"gpu0": {**CARD, "bf16": False}}
    assert states(gpus=1, config=config)["precision"] == OK
    row = named(run_rows(machine(gpus=1, torch=old, config=config)), "precision")
    assert row.state == WARN and row.mend.endswith("train.precision=fp16")
