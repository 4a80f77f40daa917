"""Where the doctor runs: on the host or in which kind of container, and how things are mended
there."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

HOST, DOCKER, PODMAN, APPTAINER, KUBERNETES, CONTAINER = (
    "host", "docker", "podman", "apptainer", "kubernetes", "container",
)  # fmt: skip

REINSTALL_DRIVER = "sudo ubuntu-drivers install"
MENDS: dict[str, dict[str, str]] = {
    "gpu": {
        HOST: REINSTALL_DRIVER,
        DOCKER: "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,video,utility IMAGE",
        PODMAN: "podman run --device nvidia.com/gpu=all IMAGE",
        APPTAINER: "apptainer exec --nv IMAGE COMMAND",
        KUBERNETES: "kubectl set resources job/JOB --limits=nvidia.com/gpu=1",
    },
    "driver": {
        HOST: REINSTALL_DRIVER,
        CONTAINER: f"{REINSTALL_DRIVER}    # on the host, not in the container",
    },
    "video": {
        HOST: "sudo apt-get install libnvidia-decode-DRIVER",
        DOCKER: "docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,video,utility IMAGE",
        PODMAN: "podman run --device nvidia.com/gpu=all "
        "-e NVIDIA_DRIVER_CAPABILITIES=compute,video,utility IMAGE",
        APPTAINER: "apptainer exec --nv IMAGE COMMAND",
        KUBERNETES: "kubectl set env job/JOB NVIDIA_DRIVER_CAPABILITIES=compute,video,utility",
    },
    "shm": {
        HOST: "sudo mount -o remount,size=8G /dev/shm",
        DOCKER: "docker run --shm-size=8g IMAGE",
        PODMAN: "podman run --shm-size=8g IMAGE",
        KUBERNETES: "kubectl edit job/JOB    # mount an emptyDir with medium: Memory on /dev/shm",
    },
    "open files": {
        HOST: "ulimit -n 65536",
        DOCKER: "docker run --ulimit nofile=65536:65536 IMAGE",
        PODMAN: "podman run --ulimit nofile=65536:65536 IMAGE",
    },
    "locked memory": {
        HOST: "sudo sh -c 'echo \"* - memlock unlimited\" >> /etc/security/limits.conf'",
        DOCKER: "docker run --ulimit memlock=-1 IMAGE",
        PODMAN: "podman run --ulimit memlock=-1 IMAGE",
    },
    "memory": {
        HOST: "sudo systemctl edit user-$(id -u).slice    # MemoryMax=",
        DOCKER: "docker run --memory=64g IMAGE",
        PODMAN: "podman run --memory=64g IMAGE",
        KUBERNETES: "kubectl set resources job/JOB --limits=memory=64Gi",
    },
}
"""What mends a subject, by the place; other places take `container`'s or the host's."""


@dataclass(frozen=True)
class Place:
    """Host or container."""

    kind: str = HOST
    slurm_job: str = ""

    @property
    def in_container(self) -> bool:
        """Whether another system lies beneath this one."""
        return self.kind != HOST

    def mend(self, subject: str) -> str:
        """The command for a subject of MENDS."""
        known = MENDS[subject]
        fallback = known.get(CONTAINER, known[HOST]) if self.in_container else known[HOST]
        return known.get(self.kind, fallback)

    def __str__(self) -> str:
        text = "on the host" if not self.in_container else f"in a container ({self.kind})"
        return f"{text}, Slurm job {self.slurm_job}" if self.slurm_job else text


def find_place(root: Path = Path("/"), env: Mapping[str, str] = os.environ) -> Place:
    """By the marks that each kind of container leaves; `root` is for tests."""
    return Place(_kind(root, env), env.get("SLURM_JOB_ID", ""))


def _kind(root: Path, env: Mapping[str, str]) -> str:
    if "KUBERNETES_SERVICE_HOST" in env or (root / "run/secrets/kubernetes.io").exists():
        return KUBERNETES
    if {"APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"} & set(env):
        return APPTAINER
    if (root / ".singularity.d").exists():
        return APPTAINER
    if (root / "run/.containerenv").exists():
        return PODMAN
    if (root / ".dockerenv").exists():
        return DOCKER
    try:
        groups = (root / "proc/1/cgroup").read_text()
    except OSError:
        groups = ""
    marks = {"kubepods": KUBERNETES, "libpod": PODMAN, "docker": DOCKER, "lxc": CONTAINER}
    for mark, kind in marks.items():
        if mark in groups:
            return kind
    return CONTAINER if env.get("container") else HOST
