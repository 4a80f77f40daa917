"""`python -m engine.doctor` as it is called."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from doctors import machine
from engine import doctor
from engine.doctor_children import Outcome
from engine.doctor_media import CODECS
from runs import ROOT


def run(folder: Path, *arguments: str, code: str = "") -> subprocess.CompletedProcess:
    start = ["-c", code] if code else ["-m", "engine.doctor"]
    return subprocess.run(
        [sys.executable, *start, *arguments], capture_output=True, text=True, cwd=ROOT,
        check=False, timeout=600,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU prints")
def test_this_machine_trains_and_its_gpu_is_absent(tmp_path, tiny_config):
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny_config))
    done = run(tmp_path, "--config", str(config), "--json", str(tmp_path / "rows.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""  # no progress where nobody looks
    tree = json.loads((tmp_path / "rows.json").read_text())
    assert tree["ok"] is True and tree["device"] == "cpu"
    states = {row["name"]: row["state"] for row in tree["rows"]}
    assert len(states) == len(tree["rows"])  # every name once
    for name in ("driver", "GPU", "NCCL", "NVDEC", "nvJPEG", "torch and driver"):
        assert states[name] == "absent"
    for name in ("Python", "packages", "torch", "DALI", "gloo", "LZ4", "data", "config", "a step",
                 "FFmpeg", *CODECS.values()):  # fmt: skip
        assert states[name] == "ok", name
    for row in tree["rows"]:
        assert f"{row['state']:6}  {row['name']}" in done.stdout


def examined(monkeypatch: pytest.MonkeyPatch, facts) -> None:
    monkeypatch.setattr(doctor, "examine", lambda options, progress: facts)


def test_exit_status(monkeypatch, capsys):
    examined(monkeypatch, machine())
    assert doctor.main([]) == 0
    assert capsys.readouterr().out.endswith("\ntraining would run\n")
    examined(monkeypatch, machine(torch=Outcome({}, "ended by SIGILL while importing torch")))
    assert doctor.main([]) == 1
    assert capsys.readouterr().out.endswith("\ntraining would fail: torch\n")


def test_a_sound_gpu_machine_has_no_row_to_mend():
    rows = doctor.judge(machine(gpus=2, config={"device": "cuda"}))
    assert [row for row in rows if row.state in ("warn", "fail")] == []
    assert len({row.name for row in rows}) == len(rows)


def test_a_file_that_cannot_be_written_is_named(monkeypatch, capsys, tmp_path):
    examined(monkeypatch, machine())
    assert doctor.main(["--json", str(tmp_path / "none" / "rows.json")]) == 1
    assert f"error: {tmp_path}/none/rows.json: No such file" in capsys.readouterr().err


def test_quick_says_of_every_probe_what_it_left_out(monkeypatch):
    started = []

    def run_probes(probes, timeout_s, jobs, progress):
        started.extend(probe.name for probe in probes)
        return {probe.name: Outcome({"done": True}) for probe in probes}

    monkeypatch.setattr(doctor, "run_probes", run_probes)
    options = doctor.command_line().parse_args(["--quick"])
    facts = doctor.examine(options, lambda *state: None)
    assert sorted(started) == ["Apex", "DALI", "driver", "nvidia-smi", "packages", "torch"]
    rows = {row.name: row for row in doctor.judge(facts)}
    for name in ("gloo", "FFmpeg", "LZ4", *CODECS.values()):
        assert (rows[name].state, rows[name].found) == ("absent", "not checked (--quick)")


def test_probes_use_the_gpus_that_are_there():
    options = doctor.command_line().parse_args(["--config", "c.yaml", "--ranks", "4", "a.b=1"])
    quick, slow = doctor.probes(options, 2)
    arguments = {probe.name: probe.arguments for probe in (*quick, *slow)}
    assert arguments["config"] == ("c.yaml", "4", "a.b=1")
    assert arguments["all-reduce NCCL"] == ("nccl", "2")
    assert arguments["codec av1"] == ("av1", "cuda")
    without = {probe.name for probe in doctor.probes(options, 0)[1]}
    assert not without & {"all-reduce NCCL", "nvJPEG"}


def test_the_doctor_itself_needs_no_package(tmp_path):
    """Where nothing is installed it says so: of the project's needs, it imports none."""
    code = (
        "import sys; sys.path.insert(0, '.'); before = set(sys.modules); import engine.doctor; "
        "print([m for m in sys.modules if m.split('.')[0] in "
        "('torch', 'numpy', 'nvidia', 'yaml', 'tqdm', 'av')])"
    )
    assert run(tmp_path, code=code).stdout == "[]\n"
