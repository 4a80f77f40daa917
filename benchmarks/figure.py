"""Draws results: `python -m benchmarks.figure OUT.png RESULT.json [RESULT.json ...]`.

A panel per file: clips per second of its entries, longest first, with quartiles, and where the file
knows it the wall, which no step on that device can pass.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH, BAR_HEIGHT, PANEL_MARGIN = 8.0, 0.28, 1.1
"""Inches; the margin holds a panel's title and axis."""


class Bar(NamedTuple):
    """An entry of a result, in clips/s."""

    name: str
    median: float
    low: float
    high: float
    """`low` to `high`: the quartiles."""


def bars(result: dict[str, Any]) -> list[Bar]:
    """The fastest first. Raises ValueError where the result has no entries in clips/s."""
    found = []
    for name, entry in result.get("entries", {}).items():
        if "clips_per_s" not in entry:
            continue
        rate, spread = entry["clips_per_s"], entry["seconds"]
        slower, faster = (rate * spread["median"] / spread[key] for key in ("q3", "q1"))
        found.append(Bar(name, rate, slower, faster))
    if not found:
        raise ValueError("has no entries with clips_per_s; give results of step, loader, "
                         "end_to_end or scaling")  # fmt: skip
    return sorted(found, key=lambda bar: -bar.median)


def walls(result: dict[str, Any]) -> dict[str, float]:
    """Clips/s that no step can pass, by network; empty where the result does not know them."""
    if "wall" in result:
        setting = result["setting"]
        return {setting["network"]: setting["batch"] / result["wall"]["least_seconds"]}
    found = result.get("walls", {})
    return {network: 1 / wall["least_seconds"] for network, wall in found.items()}


def draw(results: Sequence[dict[str, Any]], path: str | Path) -> None:
    """One panel below the other, as PNG, SVG or PDF by the path's ending."""
    panels = [bars(result) for result in results]
    heights = [PANEL_MARGIN + BAR_HEIGHT * len(panel) for panel in panels]
    figure = Figure((WIDTH, sum(heights)), layout="constrained")
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
    for axes, panel, result in zip(grid[:, 0], panels, results, strict=True):
        draw_panel(axes, panel, result)
    figure.savefig(path, dpi=130)


def draw_panel(axes: Axes, panel: Sequence[Bar], result: dict[str, Any]) -> None:
    """A bar for each entry, with its quartiles, and the walls."""
    names = [bar.name for bar in panel]
    medians = [bar.median for bar in panel]
    spread = [[bar.median - bar.low for bar in panel], [bar.high - bar.median for bar in panel]]
    axes.barh(names, medians, xerr=spread, height=0.7, color="#4c78a8",
              error_kw={"ecolor": "#1b2a3a", "capsize": 2, "elinewidth": 1})  # fmt: skip
    most = max(bar.high for bar in panel)
    for position, bar in enumerate(panel):
        text = f"{bar.median:.3g}"
        axes.text(bar.high + 0.01 * most, position, text, va="center", fontsize=8)
    for network, rate in walls(result).items():
        axes.axvline(rate, color="#c44e52", linestyle="--", linewidth=1)
        axes.text(rate, len(panel) - 0.4, f"wall, {network} ", fontsize=7, color="#c44e52",
                  ha="right", va="bottom")  # fmt: skip
    axes.set_ylim(len(panel) - 0.4, -0.6)  # the first on top
    axes.set_xlim(left=0)
    axes.margins(x=0.08)
    axes.set_xlabel("clips/s", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{result['what']} ({_place(result['machine'])})", fontsize=9)


def _place(machine: dict[str, Any]) -> str:
    """What was measured: the GPU, or else the cores."""
    if machine["device"].startswith("cpu"):
        return f"{machine['cores']} cores, {machine['cpu']}"
    return machine["device"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Read, draw, say where it is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figure", description=__doc__)
    parser.add_argument("out", metavar="OUT", help="the picture: .png, .svg or .pdf")
    parser.add_argument("results", nargs="+", metavar="RESULT", help="JSON files of benchmarks")
    options = parser.parse_args(arguments)
    results = []
    for path in options.results:
        try:
            result = json.loads(Path(path).read_text())
            bars(result)
        except (OSError, ValueError) as error:
            print(f"error: {path}: {error}", file=sys.stderr)
            return 1
        results.append(result)
    draw(results, options.out)
    print(f"written: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
