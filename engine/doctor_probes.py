"""What the doctor tries out, each in a process of its own (engine/doctor_children.py): finds facts
and says them as JSON lines on a pipe. Judges nothing; engine/doctor_*.py with rows do."""

import sys
from pathlib import Path

if not __package__:  # run as a file: find the project's packages from any working directory
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import ctypes
import functools
import importlib
import importlib.util
import json
import os
import socket
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

MODULES = (
    "numpy", "yaml", "einops", "tqdm", "PIL.Image", "cv2", "lz4.block", "av", "imageio_ffmpeg",
    "ffmpeg", "matplotlib", "torchvision", "torch.utils.tensorboard",
)  # fmt: skip
"""What setup.cfg asks for, as it is imported, less torch and DALI, which have their own probes."""

SMI_FIELDS = (
    "index,name,driver_version,memory.total,memory.used,"
    "ecc.errors.uncorrected.volatile.total,compute_mode"
)
TERM_S = 20

Say = Callable[..., None]
"""Takes facts by name; `doing`: what comes next, for the message if it never ends."""


def probe_driver(say: Say) -> None:
    """The driver as a program sees it: libcuda's own answers, and the library that NVDEC needs."""
    say(doing="loading the libraries of the driver")
    libraries: dict[str, Any] = {}
    for name in ("libcuda", "libnvcuvid"):
        try:
            libraries[name] = ctypes.CDLL(f"{name}.so.1")
            say(**{name: ""})
        except OSError as error:
            say(**{name: str(error)})
    cuda = libraries.get("libcuda")
    if cuda is None:
        return
    say(doing="asking libcuda for GPUs")
    number = ctypes.c_int()
    if cuda.cuDriverGetVersion(ctypes.byref(number)) == 0:
        say(cuda_version=number.value)
    status = cuda.cuInit(0)
    say(init=status)
    if status == 0 and cuda.cuDeviceGetCount(ctypes.byref(number)) == 0:
        say(count=number.value)


def probe_smi(say: Say) -> None:
    """What nvidia-smi tells of GPUs, of processes on them, and of their faults."""
    say(doing="running nvidia-smi")
    query = ["nvidia-smi", "--format=csv,noheader,nounits"]
    try:
        done = _run([*query, f"--query-gpu={SMI_FIELDS}"])
    except FileNotFoundError:
        say(absent=True)
        return
    if done.returncode:
        say(error=" ".join((done.stdout + done.stderr).split())[:300] or "no answer")
        return
    keys = SMI_FIELDS.split(",")
    say(gpus=[dict(zip(keys, map(str.strip, row.split(",")), strict=False))
              for row in done.stdout.splitlines() if row.strip()])  # fmt: skip
    say(processes=_lines([*query, "--query-compute-apps=pid,process_name,used_memory"]))
    say(
        remapped=_lines(
            [*query, "--query-remapped-rows=remapped_rows.pending,remapped_rows.failure"]
        )
    )
    kernel = _run(["dmesg"]) if os.path.exists("/bin/dmesg") else None
    if kernel is not None and kernel.returncode == 0:
        say(xid=[line for line in kernel.stdout.splitlines() if "NVRM: Xid" in line][-3:])


def probe_modules(say: Say) -> None:
    """What each package says to being imported."""
    broken: dict[str, str] = {}
    for name in MODULES:
        say(doing=f"importing {name}", broken=broken)
        try:
            importlib.import_module(name)
        except Exception as error:
            broken[name] = f"{type(error).__name__}: {_first_line(error)}"
    say(broken=broken)


def probe_torch(say: Say) -> None:
    """torch, the CUDA and cuDNN that it brings, and every GPU by some arithmetic on it."""
    say(doing="importing torch")
    import torch

    say(
        version=torch.__version__, cuda=torch.version.cuda, hip=torch.version.hip,
        archs=torch.cuda.get_arch_list() if torch.version.cuda else [],
        tf32_matmul=torch.backends.cuda.matmul.allow_tf32,
        tf32_convolution=torch.backends.cudnn.allow_tf32,
    )  # fmt: skip
    say(doing="a convolution on the CPU")
    weight = torch.ones(2, 2, 3, 3)
    say(cpu=torch.nn.functional.conv2d(torch.ones(1, 2, 4, 4), weight).sum().item() == 144.0)
    if not torch.version.cuda:
        return
    say(doing="loading cuDNN")
    try:
        say(cudnn=torch.backends.cudnn.version())
    except RuntimeError as error:  # another cuDNN stands in its way
        say(cudnn_error=_first_line(error))
    say(doing="asking torch for GPUs")
    available = torch.cuda.is_available()
    say(available=available, count=torch.cuda.device_count() if available else 0)
    if not available:
        return
    for number in range(torch.cuda.device_count()):
        say(doing=f"arithmetic on GPU {number}")
        say(**{f"gpu{number}": _gpu(torch, number)})
    count = torch.cuda.device_count()
    pairs = [(a, b) for a in range(count) for b in range(count) if a != b]
    say(doing="asking for access between GPUs")
    say(apart=[pair for pair in pairs if not torch.cuda.can_device_access_peer(*pair)])


def _gpu(torch: Any, number: int) -> dict[str, Any]:
    """Facts of a GPU, and how far a 16-bit convolution on it is off the CPU's (both are exact)."""
    facts: dict[str, Any] = {"name": torch.cuda.get_device_name(number)}
    facts["capability"] = list(torch.cuda.get_device_capability(number))
    try:
        device = torch.device("cuda", number)
        facts["free"], facts["total"] = torch.cuda.mem_get_info(number)
        torch.cuda.set_device(device)
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        facts["bf16"] = bf16
        dtype = torch.bfloat16 if bf16 else torch.float16
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(-2, 3, (2, 16, 16, 16), generator=generator).float()
        weight = torch.randint(-2, 3, (8, 16, 3, 3), generator=generator).float()
        exact = torch.nn.functional.conv2d(pixels, weight)
        found = torch.nn.functional.conv2d(pixels.to(device, dtype), weight.to(device, dtype))
        facts["off"] = ((found.float().cpu() - exact).norm() / exact.norm()).item()
    except RuntimeError as error:
        facts["error"] = _first_line(error)
    return facts


def probe_apex(say: Say) -> None:
    """Whether the module `apex` is NVIDIA's, and whether its kernels are built in."""
    say(doing="importing apex")
    try:
        found = importlib.util.find_spec("apex")
    except (ImportError, ValueError) as error:
        say(apex_error=_first_line(error))
        return
    say(there=found is not None)
    if found is None:
        return
    for name in ("apex.optimizers", "amp_C"):
        say(doing=f"importing {name}")
        try:
            importlib.import_module(name)
            say(**{name: ""})
        except Exception as error:
            say(**{name: f"{type(error).__name__}: {_first_line(error)}",
                   f"{name} is ImportError": isinstance(error, ImportError)})  # fmt: skip


def probe_reduce(say: Say, backend: str, ranks: str) -> None:
    """An all-reduce over `ranks` processes of this machine, checked by its sum."""
    say(doing="importing torch")
    import torch.distributed  # noqa: F401  # once: the ranks are forks of this process

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    say(doing=f"an all-reduce by {backend}")
    pids = [_fork_rank(say, backend, rank, int(ranks), port) for rank in range(int(ranks))]
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    if any(statuses):
        failed = {rank: status for rank, status in enumerate(statuses) if status}
        say(failed={str(rank): status for rank, status in failed.items()})


def _fork_rank(say: Say, backend: str, rank: int, ranks: int, port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        total = _reduce(backend, rank, ranks, port)
        status = 0 if total == ranks * (ranks + 1) / 2 else 1
        if status:
            say(**{f"rank {rank}": f"the sum is {total}"})
    except Exception as error:
        say(**{f"rank {rank}": f"{type(error).__name__}: {_first_line(error)}"})
    finally:
        os._exit(status)


def _reduce(backend: str, rank: int, ranks: int, port: int) -> float:
    """The sum over ranks of rank + 1, of the last of many elements."""
    import datetime

    import torch
    import torch.distributed as dist

    device = torch.device("cpu")
    if backend == "nccl":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    dist.init_process_group(
        backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks,
        timeout=datetime.timedelta(seconds=TERM_S),
    )  # fmt: skip
    tensor = torch.full((2**20,), rank + 1.0, device=device)
    dist.all_reduce(tensor)
    total = tensor[-1].item()
    dist.barrier()  # nobody leaves while another still talks to it
    return total


def _run(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, timeout=TERM_S, check=False)


def _lines(command: Sequence[str]) -> list[str] | None:
    """What it prints; None where it does not know the question."""
    done = _run(command)
    if done.returncode:
        return None
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:300]


def probes() -> dict[str, Callable[..., None]]:
    """All of them by name. Those of other files import what they look at, and so are found late."""

    def elsewhere(module: str, function: str) -> Callable[..., None]:
        return lambda *given: getattr(importlib.import_module(module), function)(*given)

    decoding, run = "engine.doctor_decoding", "engine.doctor_needs"
    return {
        "driver": probe_driver, "nvidia-smi": probe_smi, "packages": probe_modules,
        "torch": probe_torch, "Apex": probe_apex, "all-reduce": probe_reduce,
        "DALI": elsewhere(decoding, "probe_dali"), "nvJPEG": elsewhere(decoding, "probe_nvjpeg"),
        "codec": elsewhere(decoding, "probe_codec"), "LZ4": elsewhere(decoding, "probe_lz4"),
        "FFmpeg": elsewhere(decoding, "probe_ffmpeg"), "config": elsewhere(run, "probe_config"),
    }  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """NAME PIPE [ARGUMENT ...]; exit status 0 if the probe came to its end."""
    name, pipe, *given = arguments
    say = functools.partial(_say, int(pipe))
    try:
        probes()[name](say, *given)
    except ModuleNotFoundError as error:
        say(missing=_first_line(error))
        return 1
    except Exception as error:
        say(error=f"{type(error).__name__}: {_first_line(error)}")
        return 1
    say(done=True)
    return 0


def _say(pipe: int, **facts: Any) -> None:
    os.write(pipe, json.dumps(facts).encode() + b"\n")


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # what was found out stays so, whatever a library does at its end
