"""docker/slurm.sbatch and docker/kubernetes.yaml, with small programs in place of those that only a
cluster has."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from linters import linter

DOCKER = Path(__file__).resolve().parents[1] / "docker"
SERVICE, JOB = yaml.safe_load_all((DOCKER / "kubernetes.yaml").read_text())
POD = JOB["spec"]["template"]["spec"]
TRAIN = POD["containers"][0]

PROGRAM = """#!/bin/bash
# Stands for Python and torchrun: notes its arguments; the doctor and the training end as told,
# a training that waits is ended by a signal, as torchrun with 1.
echo "$@" >> "$NOTES"
case " $* " in *engine.doctor*) exit "${DOCTOR:-0}" ;; esac
[ -z "${WAITS:-}" ] && exit "${TRAINING:-0}"
for name in USR1 TERM; do trap "echo saved after $name >> '$NOTES'; exit ${TRAINING:-1}" $name; done
echo waits >> "$NOTES"
while :; do sleep 0.05; done
"""
SRUN = """#!/bin/bash
# Stands for srun on one node: hands signals on, as its process is the program's.
while [[ "$1" == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then printf 'node1\\nnode2\\n'; else echo "scontrol $*" >> "$NOTES"; fi
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """The programs on PATH; returns where they note what they were asked."""
    programs = {"python": PROGRAM, "torchrun": PROGRAM, "srun": SRUN, "scontrol": SCONTROL}
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    notes = tmp_path / "notes"
    for name, value in {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "NOTES": str(notes), "PYTHON": "python",
        "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "12345",
        "SLURM_JOB_NODELIST": "node[1-2]", "JOB_COMPLETION_INDEX": "0",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return notes


def run(command: list[str], notes: Path, send: int = 0) -> tuple[int, list[str]]:
    """Exit status and notes; `send` a signal as soon as the training waits for one."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while send and (not notes.exists() or "waits" not in notes.read_text()):
            assert process.poll() is None, "ended before it was to be stopped"
            time.sleep(0.02)
        if send:
            process.send_signal(send)
        status = process.wait(timeout=300)
    finally:
        process.kill()
    return status, notes.read_text().splitlines()


def slurm(notes: Path, send: int = 0) -> tuple[int, list[str]]:
    command = ["bash", str(DOCKER / "slurm.sbatch"), "--config", "a.yaml", "data.root=/data"]
    return run(command, notes, send)


def pod(notes: Path, send: int = 0) -> tuple[int, list[str]]:
    return run([*TRAIN["command"], *TRAIN["args"]], notes, send)


def test_slurm_starts_one_torchrun_a_node_after_the_doctor(cluster):
    status, (doctor, training) = slurm(cluster)
    assert status == 0
    assert doctor == "-m engine.doctor --device cuda --ranks 16 --config a.yaml data.root=/data"
    words = training.split()
    assert words[:2] == ["-m", "torch.distributed.run"]
    assert {"--nnodes=2", "--nproc-per-node=8", "--rdzv-endpoint=node1:22345"} <= set(words)
    assert words[-4:] == ["engine/train.py", "--config", "a.yaml", "data.root=/data"]


def test_slurm_does_not_train_where_the_doctor_says_that_it_would_fail(cluster, monkeypatch):
    monkeypatch.setenv("DOCTOR", "1")
    status, notes = slurm(cluster)
    assert status == 1 and len(notes) == 1


def test_a_job_that_slurm_warns_saves_and_goes_back_into_the_queue(cluster, monkeypatch):
    monkeypatch.setenv("WAITS", "yes")
    status, notes = slurm(cluster, signal.SIGUSR1)
    assert notes[-2:] == ["saved after USR1", "scontrol requeue 12345"]
    assert status == 1


def test_a_job_that_ends_in_the_last_minutes_is_not_queued_again(cluster, monkeypatch):
    monkeypatch.setenv("WAITS", "yes")
    monkeypatch.setenv("TRAINING", "0")
    status, notes = slurm(cluster, signal.SIGUSR1)
    assert status == 0 and notes[-1] == "saved after USR1"


def test_a_job_that_fails_is_not_queued_again(cluster, monkeypatch):
    monkeypatch.setenv("TRAINING", "3")
    status, notes = slurm(cluster)
    assert status == 3 and len(notes) == 2


def test_slurm_gives_the_ranks_less_time_to_save_than_it_warns_ahead():
    text = (DOCKER / "slurm.sbatch").read_text()
    assert "--signal=B:USR1@180" in text and "--shutdown-timeout=120" in text


@pytest.mark.parametrize(("index", "is_host"), [("0", "true"), ("1", "false")])
def test_only_the_first_pod_holds_the_rendezvous(cluster, monkeypatch, index, is_host):
    monkeypatch.setenv("JOB_COMPLETION_INDEX", index)
    status, (doctor, training) = pod(cluster)
    assert status == 0 and doctor == "-m engine.doctor --device cuda"
    assert training.split() == [f"--rdzv-conf=is_host={is_host}", *TRAIN["args"]]


def test_a_pod_that_is_told_to_stop_saves_and_ends_with_75(cluster, monkeypatch):
    monkeypatch.setenv("WAITS", "yes")
    status, notes = pod(cluster, signal.SIGTERM)
    assert status == 75 and notes[-1] == "saved after TERM"


def test_a_pod_fails_with_its_doctor_and_with_its_training(cluster, monkeypatch):
    monkeypatch.setenv("TRAINING", "3")
    assert pod(cluster)[0] == 3
    monkeypatch.setenv("DOCTOR", "1")
    cluster.unlink()
    assert pod(cluster) == (1, ["-m engine.doctor --device cuda"])


def test_the_parts_of_the_kubernetes_file_name_each_other():
    spec, arguments = JOB["spec"], TRAIN["args"]
    labels = JOB["spec"]["template"]["metadata"]["labels"]
    service = SERVICE["metadata"]["name"]
    assert SERVICE["spec"]["selector"].items() <= labels.items()
    assert SERVICE["spec"]["clusterIP"] == "None" and POD["subdomain"] == service
    assert f"--rdzv-endpoint={JOB['metadata']['name']}-0.{service}:29400" in arguments
    assert f"--nnodes={spec['completions']}" in arguments
    assert spec["parallelism"] == spec["completions"] and spec["completionMode"] == "Indexed"
    gpus = TRAIN["resources"]["limits"]["nvidia.com/gpu"]
    assert f"--nproc-per-node={gpus}" in arguments
    mounts = {mount["name"]: mount for mount in TRAIN["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in POD["volumes"]}
    assert mounts["data"]["readOnly"] and mounts["shm"]["mountPath"] == "/dev/shm"
    assert "--shutdown-timeout=120" in arguments and POD["terminationGracePeriodSeconds"] > 120


def test_kubernetes_counts_no_attempt_for_a_preemption_or_a_save():
    assert POD["restartPolicy"] == "Never"  # what podFailurePolicy asks for
    on_condition, on_status = JOB["spec"]["podFailurePolicy"]["rules"]
    assert on_condition["action"] == on_status["action"] == "Ignore"
    assert on_condition["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert on_status["onExitCodes"] == {
        "containerName": TRAIN["name"], "operator": "In", "values": [75]}  # fmt: skip


@pytest.mark.parametrize("manifest", [SERVICE, JOB], ids=["service", "job"])
def test_the_kubernetes_file_follows_the_schema(manifest):
    # Here: without this package all other tests of this file can still be run.
    import kubernetes_validate

    kubernetes_validate.validate(manifest, "1.31", strict=True)
    broken = {**manifest, "spec": {**manifest["spec"], "completion": 2}}
    with pytest.raises(kubernetes_validate.ValidationError, match="completion"):
        kubernetes_validate.validate(broken, "1.31", strict=True)


@pytest.mark.parametrize("script", ["slurm.sbatch", "kubernetes.yaml"])
def test_shellcheck_has_nothing_to_say(script, tmp_path):
    path = DOCKER / script
    if path.suffix == ".yaml":
        path = tmp_path / "command.sh"
        path.write_text(TRAIN["command"][2])
    done = subprocess.run(
        [linter("shellcheck"), "--shell=bash", path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
