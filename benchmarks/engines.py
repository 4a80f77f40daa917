"""How busy the engines of a GPU and the processor's cores are. Measures no speed."""

import os
import subprocess

QUERIES = {
    "SM": "utilization.gpu",
    "memory": "utilization.memory",
    "NVDEC": "utilization.decoder",
    "NVJPG": "utilization.jpeg",
}
"""By what `nvidia-smi` calls them; copies over PCIe are in none of them."""


def engine_use() -> dict[str, float]:
    """Share of time, 0 to 1, that each engine of the first GPU was busy of late (the driver's
    period is up to a second); those that the driver does not tell are left out."""
    ask = [
        "nvidia-smi", "--id=0", f"--query-gpu={','.join(QUERIES.values())}",
        "--format=csv,noheader,nounits",
    ]  # fmt: skip
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=5)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return {}
    values = [value.strip() for value in answer.stdout.split(",")]
    if answer.returncode or len(values) != len(QUERIES):
        return {}
    return {
        engine: int(value) / 100
        for engine, value in zip(QUERIES, values, strict=True)
        if value.isdigit()
    }


def busiest(engines: dict[str, float], cores: float) -> str:
    """Name and share of the engine that has least left, the processor's cores among them."""
    shares = {"CPU": cores / len(os.sched_getaffinity(0)), **engines}
    name = max(shares, key=lambda engine: shares[engine])
    return f"{name} {shares[name]:.0%}"
