"""The loader benchmark's entries as tables. Measures nothing."""

from collections.abc import Iterator
from typing import Any

from benchmarks.loader_cases import UPTOS

Entries = dict[str, dict[str, Any]]

TWIN = "twin"
"""The peer that all sources are compared with."""


def as_text(entries: Entries, missing: dict[str, str]) -> str:
    """Every entry, what is missing and why, and the stages' shares."""
    lines = [
        f"{'case':<44}{'clips/s':>9}{'quartiles':>20}{'twin':>7}{'cores':>7}{'memory':>10}"
        f"{'GPU':>10}{'Python':>9}{'cold':>6}"
    ]
    lines += [_row(name, entry, entries) for name, entry in entries.items()]
    lines += [f"{name:<44}{why:>29}" for name, why in missing.items()]
    splits = list(_split_rows(entries))
    if splits:
        heads = "".join(f"{upto:>11}" for upto in UPTOS)
        lines += ["", f"{'milliseconds per clip of each stage':<44}{heads}{'= whole':>11}", *splits]
    return "\n".join(lines)


def _row(name: str, entry: dict[str, Any], entries: Entries) -> str:
    spread = entry["seconds"]
    quartiles = f"{1 / spread['q3']:.2f} to {1 / spread['q1']:.2f}"
    ratio = over_twin(name, entries)
    gpu, python = entry.get("gpu_memory_bytes"), entry.get("python_ms_per_batch")
    left = entry.get("left_page_cache")
    cells = [
        "" if ratio is None else f"{ratio:.2f}x",
        f"{entry['cores']:.1f}",
        f"{entry['memory_bytes'] / 2**20:.0f} MiB",
        "" if gpu is None else f"{gpu / 2**20:.0f} MiB",
        "" if python is None else f"{python:.2f} ms",
        "" if left is None else f"{left:.0%}",
    ]
    widths = (7, 7, 10, 10, 9, 6)
    row = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
    return f"{name:<44}{entry['clips_per_s']:>9.2f}{quartiles:>20}{row}"


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
