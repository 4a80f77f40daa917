"""All that the doctor knows before it judges: what this system's files and the probes said."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.doctor_children import Outcome
from engine.doctor_host import Host
from engine.doctor_place import Place
from engine.doctor_rows import FAIL, WARN

DRIVER_OF_CUDA = {11: 450, 12: 525, 13: 580}
"""Least major version of the NVIDIA driver for a major version of CUDA (README, Versions)."""

NOT_RUN = Outcome(unchecked="not checked")


@dataclass(frozen=True)
class Facts:
    """Of one machine, for one kind of training."""

    place: Place
    host: Host
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    """Of the probes, by name."""

    wanted: str = "auto"
    """`--device`, or train.device of the config."""

    pip: str = "pip"
    """How packages are installed here."""

    config_path: str = ""
    """With its overrides, as they are typed. Empty: no run is looked at."""

    def outcome(self, name: str) -> Outcome:
        """Of a probe; one that was not started says so."""
        return self.outcomes.get(name, NOT_RUN)

    @property
    def config(self) -> Outcome:
        """What the run's config needs."""
        return self.outcome("config")

    @property
    def num_gpus(self) -> int:
        """Those that the driver hands out here; torch may still not be able to use them."""
        return self.outcome("driver").get("count", 0)

    @property
    def device(self) -> str:
        """What training would run on, or should: a GPU that is there is meant to be used."""
        if self.wanted == "auto":
            return "cuda" if self.num_gpus or self.host.gpu_nodes else "cpu"
        return self.wanted

    @property
    def worst_of_gpu(self) -> str:
        """How bad a fault of the GPU is: training on the CPU goes on in spite of it."""
        return FAIL if self.device == "cuda" else WARN

    @property
    def local_ranks(self) -> int:
        """The config's, on this machine: of a run on several, one per GPU."""
        ranks = self.config.get("ranks", 1)
        return min(ranks, self.num_gpus) if self.num_gpus and self.device == "cuda" else ranks

    @property
    def driver(self) -> str:
        """The driver's version, `580.65.06`; empty if unknown."""
        gpus = self.outcome("nvidia-smi").get("gpus") or [{}]
        return gpus[0].get("driver_version", "") or self.host.kernel_driver

    @property
    def driver_major(self) -> int | None:
        """Its first number; where only the CUDA that it runs is known, the least that does."""
        major = self.driver.partition(".")[0]
        if major.isdigit():
            return int(major)
        return DRIVER_OF_CUDA.get(self.outcome("driver").get("cuda_version", 0) // 1000)

    def kinds(self) -> dict[str, bool]:
        """Of the config's first clips: codec or encoding, and whether it is a video's."""
        found = {}
        for which in ("train", "eval"):
            for kind in self.config.get(which, {}).get("kinds", []):
                found[kind["kind"]] = kind["video"]
        return found


def version_tuple(text: str) -> tuple[int, ...]:
    """`2.10.0+cu128` -> (2, 10, 0)."""
    numbers = []
    for part in text.partition("+")[0].split("."):
        digits = part[: next((i for i, c in enumerate(part) if not c.isdigit()), len(part))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)
