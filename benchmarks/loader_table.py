"""The loader benchmark's entries as tables. Measures nothing."""

from collections.abc import Iterator
from typing import Any

from benchmarks import settings
from benchmarks.engines import busiest
from benchmarks.loader_cases import UPTOS
from benchmarks.loader_run import Entries

COLUMNS = {
    "clips/s": 9, "quartiles": 20, "x twin": 8, "CPU ms": 8, "cores": 7, "MiB": 7, "GPU MiB": 9,
    "Python ms": 11, "cold": 6, "busiest": 14,
}  # fmt: skip
"""Heads and widths. CPU: processor time per clip, which a busy machine changes least. Python: per
batch. Cold: share of the files that left the page cache."""

TWIN = "twin"
"""The peer that all sources are compared with."""


def as_text(entries: Entries, missing: dict[str, str]) -> str:
    """Every entry, what is missing and why, and the stages' shares."""
    heads = "".join(f"{head:>{width}}" for head, width in COLUMNS.items())
    lines = [f"{'case':<44}{heads}"]
    lines += [_row(name, entry, entries) for name, entry in entries.items()]
    lines += [f"{name:<44}{why:>29}" for name, why in missing.items()]
    lines += settings.rows(entries)
    splits = list(_split_rows(entries))
    if splits:
        heads = "".join(f"{upto:>11}" for upto in UPTOS)
        lines += ["", f"{'milliseconds per clip of each stage':<44}{heads}{'= whole':>11}", *splits]
    return "\n".join(lines)


def _row(name: str, entry: dict[str, Any], entries: Entries) -> str:
    spread = entry["seconds"]
    ratio = over_twin(name, entries)
    gpu, python = entry.get("gpu_memory_bytes"), entry.get("python_ms_per_batch")
    left = entry.get("left_page_cache")
    cells = (
        f"{entry['clips_per_s']:.2f}",
        f"{1 / spread['q3']:.2f} to {1 / spread['q1']:.2f}",
        "" if ratio is None else f"{ratio:.2f}",
        f"{1000 * entry['cpu_seconds_per_clip']:.1f}",
        f"{entry['cores']:.2f}",
        f"{entry['memory_bytes'] / 2**20:.0f}",
        "" if gpu is None else f"{gpu / 2**20:.0f}",
        "" if python is None else f"{python:.2f}",
        "" if left is None else f"{left:.0%}",
        busiest(entry.get("engines", {}), entry["cores"]),
    )
    widths = COLUMNS.values()
    return f"{name:<44}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True))


def over_twin(name: str, entries: Entries) -> float | None:
    """How many times as fast as the twin's case of the same kind; None where there is none."""
    twin = entries.get("/".join(("cpu", TWIN, *name.split("/")[2:])))
    return None if twin is None else twin["seconds"]["median"] / entries[name]["seconds"]["median"]


def split(name: str, entries: Entries) -> dict[str, float] | None:
    """Seconds per clip that each stage adds; they sum to the case's own. None where an earlier
    stage was not measured or the case is not a whole one."""
    device, source, what, upto, pages = name.split("/")
    names = {stage: "/".join((device, source, what, stage, pages)) for stage in UPTOS}
    if upto != list(UPTOS)[-1] or not all(stage in entries for stage in names.values()):
        return None
    through = [entries[stage]["seconds"]["median"] for stage in names.values()]
    before = [0.0, *through]
    return {stage: through[i] - before[i] for i, stage in enumerate(names)}


def _split_rows(entries: Entries) -> Iterator[str]:
    for name in entries:
        if parts := split(name, entries):
            cells = "".join(f"{1000 * part:>11.2f}" for part in parts.values())
            yield f"{name:<44}{cells}{1000 * sum(parts.values()):>11.2f}"
