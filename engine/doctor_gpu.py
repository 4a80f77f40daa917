"""Rows about GPUs: driver, each card by arithmetic on it, who else is there, faults, NCCL."""

from collections.abc import Iterator
from typing import Any

from engine.doctor_facts import Facts
from engine.doctor_rows import ABSENT, FAIL, OK, WARN, Row, gib
from engine.doctor_software import FOR_OLD_GPU

WRONG = 0.02
"""Relative error of a 16-bit convolution; rounding makes 0.002."""
ENOUGH_SHM = 2**30
BUSY = 0.05
"""Share of a GPU's memory in use before anything was started here."""

INIT: dict[int, tuple[str, str]] = {
    34: ("the stub of libcuda, made for building, is found ahead of the driver's",
         "unset LD_LIBRARY_PATH"),
    46: ("another process holds the GPU exclusively, or the card is failing",
         "sudo nvidia-smi --compute-mode=DEFAULT"),
    802: ("the switch between the GPUs is not set up", "sudo systemctl start nvidia-fabricmanager"),
    803: ("the driver was updated while its old kernel module runs on", "sudo reboot"),
    804: ("a compatibility libcuda in the image does not fit this card", "unset LD_LIBRARY_PATH"),
    999: ("the kernel module for computing is not loaded, or broken", "sudo modprobe nvidia_uvm"),
}  # fmt: skip
"""What libcuda answers at its start, and what mends it (CUresult of cuda.h)."""


def driver_row(facts: Facts) -> Row:
    """From the card on the bus to GPUs that a program is given."""
    outcome, host = facts.outcome("driver"), facts.host
    if outcome.problem:
        why = "whatever uses the GPU hangs or crashes like this"
        return Row("driver", facts.worst_of_gpu, outcome.problem, why, "sudo reboot")
    if facts.num_gpus:
        number = outcome.get("cuda_version", 0)
        cuda = f"runs CUDA up to {number // 1000}.{number % 1000 // 10}"
        return Row("driver", OK, f"{facts.driver or 'of unknown version'}, {cuda}")
    status = outcome.get("init")
    if status in INIT:
        what, mend = INIT[status]
        return Row("driver", facts.worst_of_gpu, f"libcuda starts with error {status}", what, mend)
    if host.visible is not None and status in (0, 100) and (host.gpu_nodes or host.pci_gpus):
        found = f"CUDA_VISIBLE_DEVICES={host.visible} hides all GPUs"
        why = "training would run on the CPU"
        return Row("driver", facts.worst_of_gpu, found, why, "unset CUDA_VISIBLE_DEVICES")
    if host.gpu_nodes or host.pci_gpus:
        return _unusable(facts)
    if facts.wanted == "cuda":
        why = "training is meant for one, by train.device or --device"
        mend = "python engine/train.py --config CONFIG train.device=cpu"
        return Row("driver", FAIL, "no NVIDIA GPU", why, mend)
    return Row("driver", ABSENT, "no NVIDIA GPU")


def _unusable(facts: Facts) -> Row:
    """There is a GPU, and programs do not get it."""
    outcome, host = facts.outcome("driver"), facts.host
    cards = f"{host.pci_gpus or len(host.gpu_nodes)} NVIDIA GPU on this machine"
    reason = outcome.get("libcuda") or f"libcuda starts with error {outcome.get('init')}"
    subject = "gpu" if facts.place.in_container else "driver"
    why = "the container was not given it" if facts.place.in_container else "no driver that works"
    return Row(
        "driver", facts.worst_of_gpu, f"{cards}, none can be used: {reason}",
        f"{why}; training would run on the CPU", facts.place.mend(subject),
    )  # fmt: skip


def gpu_rows(facts: Facts) -> Iterator[Row]:
    """Each card as torch finds it."""
    outcome = facts.outcome("torch")
    count = outcome.get("count", 0)
    if not count:
        why = "no GPU that torch uses" if facts.num_gpus else "no GPU that could be used"
        yield Row("GPU", ABSENT, why)
    for number in range(count):
        card = outcome.get(f"gpu{number}")
        if card is None:
            yield Row(
                f"GPU {number}", facts.worst_of_gpu, outcome.problem or "no answer",
                "training would end like this", f"sudo nvidia-smi --gpu-reset -i {number}",
            )  # fmt: skip
        else:
            yield _gpu_row(facts, number, card)


def _gpu_row(facts: Facts, number: int, card: dict[str, Any]) -> Row:
    name, capability = f"GPU {number}", tuple(card["capability"])
    found = f"{card['name']}, compute capability {capability[0]}.{capability[1]}"
    if not _has_kernels(facts.outcome("torch").get("archs", []), capability):
        blackwell = capability >= (10, 0)
        packages = "--upgrade 'torch>=2.8' torchvision" if blackwell else FOR_OLD_GPU
        return Row(name, facts.worst_of_gpu, found, "this torch has no kernels for it",
                   f"{facts.pip} install {packages}")  # fmt: skip
    if "out of memory" in card.get("error", ""):
        why = "another program fills it, perhaps training itself"
        return Row(name, WARN, f"{found}: no memory free", why, "nvidia-smi")
    if "error" in card:
        return Row(name, facts.worst_of_gpu, f"{found}: {card['error']}", "nothing runs on it",
                   f"sudo nvidia-smi --gpu-reset -i {number}")  # fmt: skip
    found += f", {gib(card['free'])} of {gib(card['total'])} free"
    if not card["off"] <= WRONG:  # NaN is no agreement
        why = f"a 16-bit convolution is off by {card['off']:.0%}"
        return Row(name, facts.worst_of_gpu, found, why,
                   f"{facts.pip} install --upgrade torch torchvision")  # fmt: skip
    return Row(name, OK, f"{found}, {'bf16' if card['bf16'] else 'fp16, no bf16'}")


def _has_kernels(archs: list[str], capability: tuple[int, ...]) -> bool:
    """Of the same major version and no later minor, or a program to be compiled for later cards."""
    for arch in archs:
        kind, _, number = arch.partition("_")
        digits = "".join(c for c in number if c.isdigit())
        made = (int(digits[:-1]), int(digits[-1]))
        if made <= capability and (kind == "compute" or made[0] == capability[0]):
            return True
    return not archs


def peers_row(facts: Facts) -> Row:
    """How gradients get from card to card."""
    outcome = facts.outcome("torch")
    if outcome.get("count", 0) < 2:
        return Row("GPU to GPU", ABSENT, f"{outcome.get('count', 0)} GPUs: nothing to connect")
    if "apart" not in outcome.said:
        return Row("GPU to GPU", ABSENT, f"not checked: {outcome.problem}")
    if apart := outcome.get("apart"):
        pairs = ", ".join(f"{a} and {b}" for a, b in apart if a < b) or "some one way"
        return Row("GPU to GPU", OK, f"no direct access between {pairs}: through shared memory")
    return Row("GPU to GPU", OK, f"all {outcome.get('count')} reach each other's memory")


def busy_row(facts: Facts) -> Row:
    """Who else computes there. Asked before the doctor itself did."""
    outcome = facts.outcome("nvidia-smi")
    if (absent := _without_smi(facts, "other processes")) is not None:
        return absent
    modes = {gpu["index"]: gpu.get("compute_mode", "") for gpu in outcome.get("gpus", [])}
    if forbidden := [number for number, mode in modes.items() if mode == "Prohibited"]:
        return Row(
            "other processes", facts.worst_of_gpu, f"GPU {', '.join(forbidden)} forbids computing",
            "compute mode Prohibited", "sudo nvidia-smi --compute-mode=DEFAULT",
        )  # fmt: skip
    why = "it takes memory and time of the GPU; free it, or choose others by CUDA_VISIBLE_DEVICES"
    if processes := outcome.get("processes"):
        first = processes[0].partition(",")[0]
        found = f"{len(processes)} on the GPUs: {'; '.join(processes[:3])} (pid, name, MiB)"
        return Row("other processes", WARN, found, why, f"kill {first}")
    for gpu in outcome.get("gpus", []):
        used, total = _number(gpu.get("memory.used")), _number(gpu.get("memory.total"))
        if used and total and used > BUSY * total:
            found = f"{used:.0f} of {total:.0f} MiB of GPU {gpu['index']} in use by none seen here"
            return Row("other processes", WARN, found, why, "nvidia-smi    # on the host")
    return Row("other processes", OK, "none on the GPUs")


def faults_row(facts: Facts) -> Row:
    """Memory errors and what the kernel wrote down."""
    outcome = facts.outcome("nvidia-smi")
    if (absent := _without_smi(facts, "GPU faults")) is not None:
        return absent
    for gpu in outcome.get("gpus", []):
        if errors := _number(gpu.get("ecc.errors.uncorrected.volatile.total")):
            found = f"GPU {gpu['index']}: {errors:.0f} memory errors that could not be corrected"
            return Row("GPU faults", WARN, found, "results may be wrong, and runs may end",
                       f"sudo nvidia-smi --gpu-reset -i {gpu['index']}")  # fmt: skip
    for number, row in enumerate(outcome.get("remapped") or []):
        states = [_number(text) or text.strip() == "Yes" for text in row.split(",")]
        if any(states):
            found = f"GPU {number}: damaged memory waits to be replaced by spare rows"
            return Row("GPU faults", WARN, found, "results may be wrong, and runs may end",
                       f"sudo nvidia-smi --gpu-reset -i {number}")  # fmt: skip
    if xid := outcome.get("xid"):
        return Row("GPU faults", WARN, f"kernel log: {xid[-1]}", "the driver has stopped programs",
                   "sudo dmesg | grep Xid    # the number says what happened")  # fmt: skip
    log = "" if "xid" in outcome.said else "; the kernel's log cannot be read here, Xid not checked"
    return Row("GPU faults", OK, f"no memory error counted{log}")


def _without_smi(facts: Facts, name: str) -> Row | None:
    outcome = facts.outcome("nvidia-smi")
    if not facts.num_gpus:
        return Row(name, ABSENT, "no GPU that could be used")
    if outcome.get("gpus"):
        return None
    reason = "nvidia-smi is not here" if outcome.get("absent") else outcome.trouble or "no answer"
    return Row(name, ABSENT, f"not checked: {reason}")


def _number(text: str | None) -> float:
    """0 for `[N/A]` and the like."""
    try:
        return float(text or 0)
    except ValueError:
        return 0.0


def nccl_row(facts: Facts) -> Row:
    """An all-reduce over all cards."""
    if not facts.num_gpus:
        return Row("NCCL", ABSENT, "no GPU that could be used")
    outcome = facts.outcome("all-reduce NCCL")
    if outcome.unchecked:
        return Row("NCCL", ABSENT, outcome.unchecked)
    if not (trouble := reduce_trouble(outcome.said, outcome.problem)):
        return Row("NCCL", OK, f"an all-reduce over {facts.num_gpus} GPUs gives the sum")
    if "out of memory" in trouble:
        why = "not checked: other programs fill the GPUs, perhaps training itself"
        return Row("NCCL", WARN, trouble, why, "nvidia-smi")
    small = facts.host.shm is not None and facts.host.shm < ENOUGH_SHM
    if facts.num_gpus == 1:
        mend = f"{facts.pip} install --upgrade --force-reinstall torch torchvision"
    else:
        mend = facts.place.mend("shm") if small else "export NCCL_P2P_DISABLE=1"
    return Row("NCCL", facts.worst_of_gpu, trouble, "torchrun on GPUs starts with it", mend)


def gloo_row(facts: Facts) -> Row:
    """An all-reduce over two processes."""
    outcome = facts.outcome("all-reduce gloo")
    if outcome.unchecked:
        return Row("gloo", ABSENT, outcome.unchecked)
    if not (trouble := reduce_trouble(outcome.said, outcome.problem)):
        return Row("gloo", OK, "an all-reduce over 2 processes gives the sum")
    alone = facts.config.get("ranks") == 1
    return Row(
        "gloo", WARN if alone else FAIL, trouble, "torchrun's processes agree by it, on GPUs too",
        "export GLOO_SOCKET_IFNAME=lo    # on one machine; on several the interface between them",
    )  # fmt: skip


def reduce_trouble(said: Any, problem: str) -> str:
    """What a rank said that failed, or how it ended."""
    ranks = [f"{key}: {value}" for key, value in said.items() if key.startswith("rank ")]
    if ranks or problem:
        return "; ".join(ranks) or problem
    return f"exit status by rank {said['failed']}" if said.get("failed") else ""
