"""Did something become slower? `python -m benchmarks.compare BEFORE.json AFTER.json`.

Compares two results of one benchmark entry by entry; the exit status is 1 where one has become
slower than the threshold allows, beyond what both runs' own spread explains.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

THRESHOLD = 1.05
"""An entry may take this many times as long."""


@dataclass(frozen=True)
class Change:
    """One entry before and after."""

    name: str
    ratio: float
    """Median time after over median time before: above 1 is slower."""

    certain: bool
    """Whether the quartiles of the two runs are apart."""

    def is_slower(self, threshold: float) -> bool:
        """Beyond the threshold and beyond the spread."""
        return self.ratio > threshold and self.certain


def changes(before: dict[str, Any], after: dict[str, Any]) -> Iterator[Change]:
    """One change per entry. Raises ValueError where the two are not results of one benchmark in one
    setting with the same entries."""
    for key in ("what", "setting", "threads"):
        if before.get(key) != after.get(key):
            raise ValueError(f"{key} differs: {before.get(key)} before, {after.get(key)} after")
    old, new = before["entries"], after["entries"]
    if differing := old.keys() ^ new.keys():
        raise ValueError(f"only one of the two has {', '.join(sorted(differing))}")
    for name in old:
        one, two = old[name]["seconds"], new[name]["seconds"]
        apart = one["q3"] < two["q1"] or two["q3"] < one["q1"]
        yield Change(name, two["median"] / one["median"], apart)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 where an entry became slower, 2 where the files cannot be compared."""
    options = command_line().parse_args(arguments)
    try:
        found = list(changes(*(_read(path) for path in (options.before, options.after))))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    slower = [change for change in found if change.is_slower(options.threshold)]
    for change in found:
        verdict = "slower" if change in slower else "ok"
        spread = "" if change.certain else ", within the spread"
        print(f"{change.name:<36}{change.ratio:>7.3f} times as long{spread}: {verdict}")
    return 1 if slower else 0


def _read(path: str) -> dict[str, Any]:
    try:
        result = json.loads(Path(path).read_text())
        seconds = [entry["seconds"]["median"] for entry in result["entries"].values()]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: is no result of a benchmark") from None
    if not seconds:
        raise ValueError(f"{path}: holds no entry")
    return result


def command_line() -> argparse.ArgumentParser:
    """BEFORE AFTER [--threshold RATIO]"""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("before", metavar="BEFORE.json")
    parser.add_argument("after", metavar="AFTER.json")
    parser.add_argument(
        "--threshold", type=float, default=THRESHOLD, metavar="RATIO",
        help=f"how many times as long an entry may take (default {THRESHOLD})",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
