"""What end_to_end's entries say together: the stall, and the field's published rates beside it.
Measures nothing."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks import settings
from benchmarks.end_to_end_run import BOTH, LOADER, STEP
from benchmarks.engines import busiest
from benchmarks.loader_run import Entries

COLUMNS = {
    "clips": 13, "batch": 7, "loader": 9, "step": 9, "both": 9, "quartiles": 18, "stall": 7,
    "of best": 9, "wait": 7, "busiest": 13,
}  # fmt: skip
"""Heads and widths; loader, step and both in clips/s."""


@dataclass(frozen=True)
class Published:
    """A rate of training that others report, per GPU."""

    network: str
    """By our name, where it is one of ours."""

    clips_per_s: str
    conditions: str
    source: str


PUBLISHED = (
    Published("r3d_18", "171", "R3D-18, 16x112x112, bf16, 8 x H100, videos decoded by NVDEC",
              "facebookresearch/spdl, autoresearch_example_v2"),
    Published("", "280 to 332", "VideoMAE pre-training of ViT-B, 16x224x224, nine tenths masked, "
              "8 x A100 or H800, decoded on the CPU into DALI", "OpenVFM/V-SWIFT, README"),
    Published("", "170", "SlowOnly-R50 4x16, compiled, mixed precision", "mmaction2's docs"),
)  # fmt: skip


def stall(step_seconds: float, both_seconds: float) -> float:
    """Share of training's time, 0 to 1, in which the step could have gone on had the clips been
    there: what training takes beyond the step alone. Noise may make it a little less than 0."""
    return 1 - step_seconds / both_seconds


def of_best(loader_seconds: float, step_seconds: float, both_seconds: float) -> float:
    """Training's rate in parts of what its slower half allows where they share nothing."""
    return max(loader_seconds, step_seconds) / both_seconds


def stalls(entries: Entries) -> dict[str, dict[str, float]]:
    """`stall` and `of_best` by DEVICE/NETWORK/SOURCE, where all three parts were measured."""
    found = {}
    for name in entries:
        both, _, part = name.rpartition("/")
        step = f"{both.rpartition('/')[0]}/{STEP}"
        names = (f"{both}/{LOADER}", step, name)
        if part == BOTH and all(each in entries for each in names):
            seconds = [entries[each]["seconds"]["median"] for each in names]
            found[both] = {"stall": stall(*seconds[1:]), "of_best": of_best(*seconds)}
    return found


def as_text(entries: Entries, walls: dict[str, dict[str, float]]) -> str:
    """A line per network and source, then what else is known; `walls` are ceilings.py's, by
    network, of a clip."""
    heads = "".join(f"{head:>{width}}" for head, width in COLUMNS.items())
    lines = [f"{'network and source':<26}{heads}"]
    lines += [_row(name, figures, entries) for name, figures in stalls(entries).items()]
    lines += wall_rows(entries, walls)
    lines += _rest(entries)
    lines += settings.rows(entries)
    if any(name.startswith("cpu/") for name in entries):
        lines.append("on a CPU loader and step share the cores: the stall is the loader's share")
    if any(name.startswith("cuda/") for name in entries):
        lines += ["", *published_rows(entries)]
    return "\n".join(lines)


def _row(name: str, figures: dict[str, float], entries: Entries) -> str:
    both = entries[f"{name}/{BOTH}"]
    rates = [entries[f"{name}/{LOADER}"], entries[f"{name.rpartition('/')[0]}/{STEP}"], both]
    cells = (
        both["clips"],
        str(both["batch"]),
        *(f"{rate['clips_per_s']:.2f}" for rate in rates),
        f"{1 / both['seconds']['q3']:.2f} to {1 / both['seconds']['q1']:.2f}",
        f"{figures['stall']:.1%}",
        f"{figures['of_best']:.0%}",
        f"{both['data_wait']:.0%}",
        busiest(both.get("engines", {}), both["cores"]),
    )
    widths = COLUMNS.values()
    return f"{name:<26}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True))


def _rest(entries: Entries) -> Iterator[str]:
    """Yields the rates of entries that stand in no row, as another part of it is missing."""
    compared = stalls(entries)
    networks = {row.rpartition("/")[0] for row in compared}
    for name, entry in entries.items():
        above, _, part = name.rpartition("/")
        if above not in (networks if part == STEP else compared):
            yield f"{name}: {entry['clips_per_s']:.2f} clips/s; not all parts were measured"


def wall_rows(entries: Entries, walls: dict[str, dict[str, float]]) -> Iterator[str]:
    """Per network the least time a step could take, and what was reached of it."""
    for network, wall in walls.items():
        reached = [
            f"{name.partition('/')[2]} {wall['least_seconds'] / entry['seconds']['median']:.0%}"
            for name, entry in entries.items()
            if name.split("/")[1] == network and not name.endswith(f"/{LOADER}")
        ]
        yield (
            f"a clip of {network}: {wall['tflop']:.3g} TFLOP, {wall['merged_gb']:.3g} GB, at least "
            f"{1e3 * wall['least_seconds']:.3g} ms here; reached of it: {', '.join(reached)}"
        )


def published_rows(entries: Entries) -> Iterator[str]:
    """The field's rates with their conditions, beside ours of the same network."""
    yield "published, clips/s per GPU"
    for rate in PUBLISHED:
        ours = [
            f"{name.split('/')[2]} {entry['clips_per_s']:.0f}"
            for name, entry in entries.items()
            if name.split("/")[1] == rate.network and name.endswith(f"/{BOTH}")
        ]
        beside = f"; here from {', '.join(ours)}" if ours else "; another network than ours"
        yield f"{rate.clips_per_s:>12}  {rate.conditions} ({rate.source}){beside}"


def published() -> list[dict[str, Any]]:
    """For the record."""
    return [vars(rate) for rate in PUBLISHED]
