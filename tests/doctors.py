"""Machines for the tests of the doctor: facts as its probes would have said them."""

from dataclasses import replace
from typing import Any

from engine.doctor_children import Outcome
from engine.doctor_facts import Facts
from engine.doctor_host import Host
from engine.doctor_place import Place
from engine.doctor_rows import Row

GIB = 2**30
HOST = Host(
    processors=8, allowed=8, memory=64 * GIB, memory_available=60 * GIB, shm=32 * GIB,
    shm_free=32 * GIB, open_files=(65536, 65536), compiler=True,
)  # fmt: skip
TORCH = {
    "version": "2.15.0+cu132", "cuda": "13.2", "archs": ["sm_80", "sm_90", "compute_90"],
    "tf32_matmul": False, "tf32_convolution": True, "cpu": True, "cudnn": 92600,
    "available": False, "count": 0,
}  # fmt: skip
CARD = {
    "name": "NVIDIA H200", "capability": [9, 0], "free": 130 * GIB, "total": 140 * GIB,
    "bf16": True, "off": 0.001,
}  # fmt: skip
SMI = {
    "index": "0", "name": "NVIDIA H200", "driver_version": "580.65.06", "memory.total": "143771",
    "memory.used": "1", "ecc.errors.uncorrected.volatile.total": "0", "compute_mode": "Default",
}  # fmt: skip
DALI = {"packages": {"nvidia-dali-cuda120": "2.4.0"}, "version": "2.4.0", "cpu": ""}
CODEC = {"ffmpeg": "", "found": "h264"}
NVDEC = {"nvdec_asked": True, "nvdec_limits": "48x16 to 4096x4096", "nvdec": ""}
CONFIG = {
    "wanted": "auto", "device": "cpu", "model": "decoupled", "optimizer": "sgd", "compile": "auto",
    "modality": "rgb", "cache": "none", "cache_gb": 8.0, "workers": 0, "ranks": 1,
    "precision": "float32", "checkpoint_bytes": GIB, "memory": "estimated", "clips": 6,
    "memory_bytes": 10 * GIB, "batch_problem": "", "data_problem": "", "weights_problem": "",
    "memory_problem": "", "shards": 0,
    "train": {"clips": 9, "source": "videos", "kinds": [{"kind": "h264", "video": True}]},
    "eval": {"clips": 4, "source": "videos", "kinds": [{"kind": "h264", "video": True}]},
}  # fmt: skip


def machine(gpus: int = 0, place: str = "host", host: dict | None = None, **said: Any) -> Facts:
    """A sound machine; `said` replaces facts of single probes (`dali={...}`), or their outcome."""
    probes: dict[str, dict[str, Any]] = {
        "driver": {"libcuda": "libcuda.so.1: cannot open shared object file"},
        "nvidia-smi": {"absent": True}, "packages": {"broken": {}}, "torch": TORCH, "DALI": DALI,
        "Apex": {"there": False}, "all-reduce gloo": {}, "FFmpeg": {"works": True, "version": "n9"},
        "LZ4": {"cpu": True}, "codec h264": CODEC,
    }  # fmt: skip
    nodes = tuple(f"nvidia{number}" for number in range(gpus))
    if gpus:
        cards = {f"gpu{number}": CARD for number in range(gpus)}
        smi = [{**SMI, "index": str(number)} for number in range(gpus)]
        probes |= {
            "driver": {"libcuda": "", "libnvcuvid": "", "cuda_version": 13000, "init": 0,
                       "count": gpus},
            "nvidia-smi": {"gpus": smi, "processes": [], "remapped": ["0, 0"] * gpus},
            "torch": {**TORCH, "available": True, "count": gpus, "apart": [], **cards},
            "all-reduce NCCL": {}, "nvJPEG": {"gpu": "", "engines": 7},
            "LZ4": {"cpu": True, "gpu": True},
            "codec h264": {**CODEC, **NVDEC},
        }  # fmt: skip
    names = {key.replace(" ", "_").replace("-", "_").lower(): key for key in [*probes, "config"]}
    outcomes = {key: Outcome(facts) for key, facts in probes.items()}
    for key, value in said.items():
        name = names[key]
        before = {**CONFIG} if name == "config" else probes[name]
        outcomes[name] = value if isinstance(value, Outcome) else Outcome({**before, **value})
    return Facts(
        Place(place), replace(HOST, **{"gpu_nodes": nodes, **(host or {})}), outcomes,
        pip="pip", config_path="c.yaml" if "config" in said else "",
        wanted=outcomes["config"].get("wanted") if "config" in said else "auto",
    )  # fmt: skip


def only(rows: Any) -> Row:
    """The row, or the only one of several."""
    if isinstance(rows, Row):
        return rows
    (row,) = rows
    return row


def named(rows: Any, name: str) -> Row:
    """The row of that name."""
    (row,) = [row for row in rows if row.name == name]
    return row
