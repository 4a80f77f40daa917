"""On the host, or in which kind of container."""

from pathlib import Path

import pytest

from engine.doctor_place import MENDS, Place, find_place


@pytest.mark.parametrize(
    ("mark", "text", "env", "kind"),
    [
        ("", "", {}, "host"),
        (".dockerenv", "", {}, "docker"),
        ("run/.containerenv", "", {}, "podman"),
        (".singularity.d/runscript", "", {}, "apptainer"),
        ("", "", {"APPTAINER_CONTAINER": "/a.sif"}, "apptainer"),
        (".dockerenv", "", {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
        ("proc/1/cgroup", "0::/kubepods/besteffort/pod1", {}, "kubernetes"),
        ("proc/1/cgroup", "5:cpu:/docker/abc", {}, "docker"),
        ("proc/1/cgroup", "0::/init.scope", {}, "host"),
        ("", "", {"container": "systemd-nspawn"}, "container"),
    ],
)
def test_by_the_marks_it_leaves(tmp_path: Path, mark, text, env, kind):
    if mark:
        (tmp_path / mark).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / mark).write_text(text)
    assert find_place(tmp_path, env).kind == kind


def test_a_slurm_job_is_named(tmp_path):
    place = find_place(tmp_path, {"SLURM_JOB_ID": "42"})
    assert str(place) == "on the host, Slurm job 42"


def test_every_subject_has_a_command_everywhere():
    for kind in ("host", "docker", "podman", "apptainer", "kubernetes", "container"):
        for subject in MENDS:
            assert Place(kind).mend(subject)


def test_a_driver_is_never_mended_inside_of_a_container():
    assert "# on the host" in Place("docker").mend("driver")
    assert "#" not in Place("host").mend("driver")
