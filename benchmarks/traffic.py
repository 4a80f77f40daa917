"""What must a training step compute and move? `python -m benchmarks.traffic [--network N]`.

Counted in seconds, on any machine: the arithmetic of every operation of the engine's step and the
bytes it reads and writes. With the `--rates` of a device the least time the step can take there.
`merged` is the step with its element-wise operations made part of others: the wall that step.py
and end_to_end.py measure against.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import nn

from benchmarks.alternatives import ALTERNATIVES
from benchmarks.forms import NUM_CLASSES, Setting, engine_network, make_batch
from benchmarks.networks import SHAPES, Network
from benchmarks.operations import Operation, least_seconds, merged, step_operations
from benchmarks.records import record, write
from models.gathered_pool import gathered_max_pool_3x3x3
from models.registry import build_model
from models.spatial import SpatialInception

SMALLEST = 0.003
"""Operations with a smaller share of all bytes have no line of their own."""


def gathered_pool(network: nn.Module) -> None:
    """As alternatives.py's, on any device: the kernels are counted and not run."""
    for module in network.modules():
        if isinstance(module, SpatialInception):
            module.pool = gathered_max_pool_3x3x3


CHANGES = {**ALTERNATIVES, gathered_pool.__name__: gathered_pool}


@dataclass(frozen=True)
class Row:
    """What some of the operations come to, per clip but for `calls`, which are a step's."""

    calls: int
    gb: float
    tflop: float
    least_ms: float | None = None
    """On a device whose rates are given."""


@dataclass(frozen=True)
class Rates:
    """What a device does at most."""

    gb_per_s: float
    tflop_per_s: float

    def least_seconds(self, operations: Sequence[Operation]) -> float:
        """Of all operations, one after the other."""
        return least_seconds(operations, 1e9 * self.gb_per_s, 1e12 * self.tflop_per_s)


def setting_operations(setting: Setting, precision: str) -> list[Operation]:
    """Of the networks that step.py measures."""
    on_shapes = replace(setting, device="cpu")
    return step_operations(
        lambda: engine_network(on_shapes), lambda: make_batch(on_shapes, True), precision
    )


def network_operations(
    network: Network, precision: str, changes: Sequence[Callable[[nn.Module], None]] = ()
) -> list[Operation]:
    """Of the networks that end_to_end.py trains, on batches of theirs, after `changes`."""

    def changed() -> nn.Module:
        model = build_model(network.name, num_classes=NUM_CLASSES, **network.options())
        for change in changes:
            change(model)
        return model

    setting = Setting(network.name, network.size, network.batch, network.frames)
    return step_operations(changed, lambda: make_batch(setting, True), precision)


def table(operations: Sequence[Operation], clips: int, rates: Rates | None) -> dict[str, Row]:
    """Rows by kind, by kind/operation, of `all`, and of those that remain `merged`."""
    groups: dict[str, list[Operation]] = {}
    for operation in operations:
        for name in (operation.kind, f"{operation.kind}/{operation.name}"):
            groups.setdefault(name, []).append(operation)
    groups |= {"all": list(operations), "merged": merged(operations)}
    return {
        name: Row(
            len(members),
            sum(member.num_bytes for member in members) / clips / 1e9,
            sum(member.flop for member in members) / clips / 1e12,
            1e3 * rates.least_seconds(members) / clips if rates else None,
        )
        for name, members in groups.items()
    }


def as_text(rows: dict[str, Row]) -> str:
    """Kinds by their bytes, below each its larger operations."""
    lines = [f"{'of a clip':<40}{'calls':>7}{'GB':>9}{'TFLOP':>9}{'least ms':>10}"]
    by_bytes = sorted(rows, key=lambda name: -rows[name].gb)
    kinds = [name for name in by_bytes if "/" not in name and name not in ("all", "merged")]
    for kind in (*kinds, "all", "merged"):
        lines.append(_line(kind, rows[kind]))
        for name in by_bytes:
            if name.startswith(f"{kind}/") and rows[name].gb >= SMALLEST * rows["all"].gb:
                lines.append(_line("  " + name.partition("/")[2], rows[name]))
    return "\n".join(lines)


def _line(name: str, row: Row) -> str:
    time = "" if row.least_ms is None else f"{row.least_ms:.3f}"
    return f"{name:<40}{row.calls:>7}{row.gb:>9.3f}{row.tflop:>9.4f}{time:>10}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, print the table, write the JSON."""
    options = command_line().parse_args(arguments)
    given = {key: getattr(options, key) for key in ("frames", "size", "batch")}
    network = SHAPES["published"][options.network]
    network = replace(network, **{key: value for key, value in given.items() if value})
    changes = [CHANGES[name] for name in options.change]
    rates = Rates(*options.rates) if options.rates else None
    try:
        operations = network_operations(network, options.precision, changes)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    rows = table(operations, network.batch, rates)
    print(as_text(rows))
    if options.json:
        about = {"network": asdict(network), "precision": options.precision}
        about |= {"change": options.change, "rates": rates and asdict(rates)}
        found = {name: asdict(row) for name, row in rows.items()}
        what, module = "operations of a training step, counted", "benchmarks.traffic"
        write(record(what, module, torch.device("cpu"), **about, rows=found), options.json)
        print(f"written: {options.json}")
    return 0


def command_line() -> argparse.ArgumentParser:
    """The network, its batches, and a device to compare with."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.traffic", description=__doc__)
    add, names = parser.add_argument, list(SHAPES["published"])
    add("--network", choices=names, default=names[0], metavar="NAME", help=", ".join(names))
    for name in ("frames", "size", "batch"):
        add(f"--{name}", type=int, default=0, metavar="N", help="instead of the published recipe's")
    add("--precision", choices=("bf16", "fp32"), default="bf16", help="as train.precision")
    add("--change", nargs="+", choices=CHANGES, default=[], metavar="FORM",
        help=f"forms of a step: {', '.join(CHANGES)}")  # fmt: skip
    add("--rates", nargs=2, type=float, metavar=("GB/S", "TFLOP/S"),
        help="of a large copy, read and written, and a large matrix product")  # fmt: skip
    add("--json", metavar="OUT", help="write the rows, commit")
    return parser


if __name__ == "__main__":
    sys.exit(main())
